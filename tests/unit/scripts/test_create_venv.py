"""`.venv` gets the build of PyTorch that was asked for. The indexes here hold empty wheels."""

from __future__ import annotations

import functools
import http.server
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import create_venv, prepare_offline
from tests.support.package_index import hashed, put_source, put_wheel

LOCK = """\
# made by a resolver
nvidia-cublas==1.0 ; sys_platform == 'linux'
    # via torch
cuda-toolkit==1.0 ; sys_platform == 'linux'
    # via torch
plain==3.0
torch==1.5 ; python_full_version < '3'
torch==2.0 ; python_full_version >= '3'
    # via samserve (pyproject.toml)
torchvision==2.5
triton==1.0 ; sys_platform == 'linux'
"""

# Builds an editable wheel without content, so that installing the project needs no other package.
BACKEND = """\
import zipfile

INFO = "samserve-1.0.dist-info/"
EXTRAS = ("worker", "gateway", "conversion", "java")


def build_editable(folder, config_settings=None, metadata_directory=None):
    metadata = ["Metadata-Version: 2.1", "Name: samserve", "Version: 1.0"]
    metadata += [f"Provides-Extra: {extra}" for extra in EXTRAS]
    tags = ["Wheel-Version: 1.0", "Generator: test", "Root-Is-Purelib: true", "Tag: py3-none-any"]
    name = "samserve-1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr(INFO + "METADATA", "\\n".join(metadata))
        wheel.writestr(INFO + "WHEEL", "\\n".join(tags))
        wheel.writestr(INFO + "RECORD", "")
    return name
"""

linux = pytest.mark.skipif(
    sys.platform != "linux", reason="PyPI's PyTorch contains CUDA on Linux only"
)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """The requests are not printed."""


@pytest.fixture
def indexes(tmp_path: Path) -> Iterator[str]:
    """A server with PyPI at /pypi, PyTorch's CPU builds at /cpu and other versions at /old."""
    for name, version in [
        *(("torch", v) for v in ("2.0", "1.5")),
        *((name, "1.0") for name in ("nvidia-cublas", "cuda-toolkit", "triton")),
        ("torchvision", "2.5"),
        ("plain", "3.0"),
    ]:
        put_wheel(tmp_path / "pypi", name, version)
    for name, version in (("torch", "2.0+cpu"), ("torchvision", "2.5+cpu")):
        put_wheel(tmp_path / "cpu", name, version)
    put_wheel(tmp_path / "old", "torch", "1.9+cpu")
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def project(tmp_path: Path, indexes: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose set-up takes seconds; `create_venv` works on it."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "backend.py").write_text(BACKEND)
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "samserve"\nversion = "1.0"\n'
    )
    for lock in (*create_venv.LOCKS.values(), create_venv.JAVA_LOCK):
        (root / lock).write_text(hashed(LOCK, tmp_path / "pypi"))
    (root / create_venv.SAM2_LOCK).write_text(put_source(tmp_path / "pypi"))
    venv = root / ".venv"
    for name, value in (
        ("ROOT", root),
        ("VENV", venv),
        ("LOG", venv / "setup.log"),
        ("TORCH_MARK", venv / ".samserve-torch"),
    ):
        monkeypatch.setattr(create_venv, name, value)
    monkeypatch.setattr(sys, "argv", ["create_venv.py"])
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"{indexes}/pypi")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "SAMSERVE_TORCH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SAMSERVE_TORCH_INDEX", f"{indexes}/cpu")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return root


def installed(root: Path) -> dict[str, str]:
    command = [str(root / ".venv/bin/python"), "-m", "pip", "list", "--format", "freeze"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line.split("==") for line in done.stdout.splitlines() if "==" in line]
    return {name: version for name, version in lines if name not in ("pip", "setuptools")}


CUDA = {"nvidia-cublas", "cuda-toolkit", "triton"}


@linux
def test_the_build_stays_until_another_is_chosen(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAMSERVE_TORCH", "cpu")
    assert create_venv.main() == 0
    packages = installed(project)
    assert (packages["torch"], packages["torchvision"]) == ("2.0+cpu", "2.5+cpu")
    assert not CUDA & set(packages)
    assert packages["plain"] == "3.0"
    assert "Collecting" not in capsys.readouterr().out  # pip's own lines are in the log
    assert "Collecting" in create_venv.LOG.read_text()

    # `make demo` without TORCH does not bring CUDA, nor does it install anything.
    monkeypatch.delenv("SAMSERVE_TORCH")
    before = create_venv.LOG.read_text()
    assert create_venv.main() == 0
    assert create_venv.LOG.read_text() == before
    assert capsys.readouterr().out == ""

    # pip alone would keep 2.0+cpu, which is "2.0" to it.
    monkeypatch.setenv("SAMSERVE_TORCH", "pypi")
    assert create_venv.main() == 0
    packages = installed(project)
    assert (packages["torch"], packages["torchvision"]) == ("2.0", "2.5")
    assert set(packages) >= CUDA


@linux
@pytest.mark.parametrize("index", ["unreachable", "without the version", "no index"])
def test_without_the_cpu_build_pypis_is_taken_and_a_line_says_so(
    index: str,
    project: Path,
    indexes: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there
        address = {
            "unreachable": f"http://127.0.0.1:{closed.getsockname()[1]}",
            "without the version": f"{indexes}/old",
            "no index": f"{indexes}/nothing",
        }[index]
        monkeypatch.setenv("SAMSERVE_TORCH", "cpu")
        monkeypatch.setenv("SAMSERVE_TORCH_INDEX", address)
        assert create_venv.main() == 0
    out = capsys.readouterr().out
    assert f"CPU build from {address}" in out
    assert "Taking PyPI's build instead" in out
    assert ("the index cannot be reached" in out) == (index == "unreachable")
    packages = installed(project)
    assert packages["torch"] == "2.0"
    assert set(packages) >= CUDA


@linux
def test_an_interrupted_set_up_of_one_build_is_not_completed_as_the_other(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMSERVE_TORCH", "cpu")
    assert create_venv.main() == 0
    create_venv.stamp_path("runtime").unlink()
    monkeypatch.setenv("SAMSERVE_TORCH", "pypi")
    assert create_venv.main() == 0
    assert installed(project)["torch"] == "2.0"


def test_the_reference_is_built_for_the_tests_only(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert create_venv.main() == 0
    assert "sam2" not in installed(project)
    monkeypatch.setattr(sys, "argv", ["create_venv.py", "dev"])
    assert create_venv.main() == 0
    assert installed(project)["sam2"] == "1.0"

    # A changed lock is installed, also if only `runtime` is asked for.
    (project / create_venv.SAM2_LOCK).write_text(f"sam2==1.0 --hash=sha256:{'0' * 64}\n")
    subprocess.run(
        [project / ".venv/bin/python", "-m", "pip", "uninstall", "-yq", "sam2"], check=True
    )
    monkeypatch.setattr(sys, "argv", ["create_venv.py", "runtime"])
    assert create_venv.main() == 1
    assert "sam2" not in installed(project)


def test_a_failure_shows_the_end_of_pips_log_and_where_it_is(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = f"no-such-package==1.0 --hash=sha256:{'0' * 64}\n"
    (project / "requirements.lock").write_text(missing)
    assert create_venv.main() == 1
    told = capsys.readouterr().err
    assert "no-such-package" in told
    assert str(project / ".venv" / "setup.log") in told
    assert len(told.splitlines()) < 25


@pytest.mark.parametrize("torch", ["cpu", "pypi"])
def test_a_package_that_was_replaced_on_the_index_is_refused(
    torch: str,
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    [wheel] = (tmp_path / "pypi" / "plain").glob("*.whl")
    with zipfile.ZipFile(wheel, "a") as file:
        file.writestr("evil.py", "print('runs')")
    monkeypatch.setenv("SAMSERVE_TORCH", torch)
    assert create_venv.main() == 1
    assert "DO NOT MATCH THE HASHES" in capsys.readouterr().err
    assert "plain" not in installed(project)


def test_a_package_without_a_hash_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "requirements.lock").write_text("plain==3.0\n")
    assert create_venv.main() == 1
    assert "Hashes are required" in capsys.readouterr().err


@pytest.mark.parametrize(
    "lock", [*create_venv.LOCKS.values(), create_venv.JAVA_LOCK, create_venv.SAM2_LOCK]
)
def test_every_package_of_the_real_locks_has_hashes(lock: str) -> None:
    text = (create_venv.ROOT / lock).read_text()
    pinned = create_venv.pinned(create_venv.ROOT / lock)
    assert pinned
    assert all(line.endswith(" \\") for line in pinned)
    assert text.count("--hash=sha256:") > len(pinned)


@pytest.mark.parametrize(
    ("choice", "existing", "driver", "build"),
    [
        ("", None, True, "pypi"),
        ("", "cpu", True, "cpu"),
        ("", "pypi", False, "pypi"),
        ("pypi", "cpu", False, "pypi"),
        ("cpu", "pypi", True, "cpu"),
        ("auto", None, True, "pypi"),
        ("auto", None, False, "cpu"),
        ("auto", "pypi", False, "cpu"),
    ],
)
def test_the_choice(
    choice: str,
    existing: str | None,
    driver: bool,
    build: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = tmp_path / "nvidia0"
    if driver:
        device.touch()
    monkeypatch.setattr(create_venv, "NVIDIA_DRIVER", (str(device),))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert create_venv.chosen_torch(choice, existing, linux=True) == build


def test_nvidia_smi_is_a_driver_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create_venv, "NVIDIA_DRIVER", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not create_venv.has_nvidia_driver()
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    assert create_venv.has_nvidia_driver()


def test_elsewhere_than_on_linux_pypis_build_is_the_cpu_build() -> None:
    assert create_venv.chosen_torch("cpu", None, linux=False) == "pypi"
    assert create_venv.chosen_torch("auto", None, linux=False) == "pypi"


def test_no_such_choice(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAMSERVE_TORCH", "gpu")
    assert create_venv.main() == 1
    assert "must be pypi, cpu, auto" in capsys.readouterr().err


@pytest.mark.parametrize("lock", create_venv.LOCKS.values())
def test_the_real_lock_without_cuda(lock: str) -> None:
    lines = create_venv.cpu_lines((create_venv.ROOT / lock).read_text())
    named = {line.split("==")[0] for line in lines if "==" in line}
    assert not [name for name in named if name.startswith(("nvidia", "cuda", "triton"))]
    assert all("+cpu" in line for line in lines if line.startswith(("torch==", "torchvision==")))
    assert {"torch", "torchvision", "torchserve", "numpy"} <= named


@linux
@pytest.mark.parametrize("torch", ["cpu", "pypi"])
def test_packages_of_a_prepared_folder_need_no_index(
    torch: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`prepare_offline` downloads them; then no index can be reached."""
    prepare_offline.download_packages(project / "packages", torch)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there
        for name in ("PIP_INDEX_URL", "SAMSERVE_TORCH_INDEX"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("SAMSERVE_TORCH", torch)
        assert create_venv.main() == 0
    packages = installed(project)
    assert packages["torch"] == ("2.0+cpu" if torch == "cpu" else "2.0")
    assert packages["plain"] == "3.0"
    assert "Looking in links" in create_venv.LOG.read_text()
