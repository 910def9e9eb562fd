"""The command `samserve`: its help, its errors, and what the doctor says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from samserve import __version__, places
from samserve.archives import build
from samserve_launcher import __main__ as command
from samserve_launcher import doctor
from samserve_launcher.access import gateway_environment
from samserve_launcher.checks import check_ports
from samserve_launcher.errors import ServerError
from samserve_launcher.options import parse_options


def samserve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "samserve_launcher", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_lists_every_command() -> None:
    done = samserve("--help")
    assert done.returncode == 0
    assert all(f"    {name} " in done.stdout for name in command.COMMANDS)


def test_the_version() -> None:
    assert samserve("--version").stdout == f"samserve {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["fly"], ["serve", "--wings"], ["weights", "vit_x"]])
def test_a_wrong_command_line_is_refused(arguments: list[str]) -> None:
    done = samserve(*arguments)
    assert done.returncode == 2
    assert "usage: samserve" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    done = samserve(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: samserve {name}" in done.stdout


def test_a_missing_package_is_named_with_the_extra_that_has_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(command.COMMANDS, "serve", ("no_such_package.serve", ""))
    assert command.run("serve", []) == 1
    error = capsys.readouterr().err
    assert "no_such_package is not installed" in error
    assert "pip install 'samserve[server]'" in error


def test_an_unknown_model_type_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse_options(["--models", "vit_t vit_x"])
    assert "--models (SAMSERVE_MODELS) must name some of vit_t" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["", "../2", "2 0", "-1", "a/b", "2.0\n"])
def test_a_version_that_is_no_file_name_is_refused(
    version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        build.main(["vit_t", f"--version={version}"])
    assert "--version must have letters" in capsys.readouterr().err


def test_two_apis_on_one_port_are_refused() -> None:
    options = parse_options(["--port", "8123", "--metrics-port", "8123"])
    with pytest.raises(ServerError, match="--port and --metrics-port are both 8123"):
        check_ports(options)


def test_a_folder_that_cannot_be_made_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    entry = ModuleType("entry_of_a_test")
    entry.main = lambda arguments: (taken / "folder").mkdir()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, entry.__name__, entry)
    monkeypatch.setitem(command.COMMANDS, "serve", (entry.__name__, ""))
    assert command.run("serve", []) == 1
    error = capsys.readouterr().err
    assert error == f"samserve serve: {taken / 'folder'}: Not a directory\n"


def test_a_certificate_may_have_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway runs in the run folder, so it gets the whole path."""
    monkeypatch.chdir(tmp_path)
    options = parse_options(["--tls-certificate", "cert.pem", "--tls-key", "key.pem"])
    environ = gateway_environment(options)
    assert environ["SAMSERVE_TLS_CERTIFICATE"] == str(tmp_path / "cert.pem")
    assert environ["SAMSERVE_TLS_KEY"] == str(tmp_path / "key.pem")


def test_the_doctor_names_a_wrong_model_type(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        doctor.main(["--models", "vit_t vit_x"])
    assert "not 'vit_x'" in capsys.readouterr().err


def test_the_doctor_finds_nothing_missing_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    output = capsys.readouterr().out
    assert "A server can start on this machine." in output
    assert "MISSING" not in output


def test_the_doctor_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "requires", lambda name: ["no-such-package; extra == 'worker'"])

    def no_java() -> Path:
        raise RuntimeError

    monkeypatch.setattr(doctor, "java_home", no_java)
    assert doctor.main([]) == 1
    output = capsys.readouterr().out
    assert "MISSING These Python packages are not installed: no-such-package." in output
    assert "MISSING TorchServe needs Java 11 or newer." in output
    assert "2 problem(s)." in output


def test_state_lies_in_the_clone_or_in_the_users_data_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert places.state_folder() == places.clone()
    assert (places.handler_file().name, places.config_folder().is_dir()) == ("sam_handler.py", True)
    monkeypatch.setattr(places, "LIBRARY", tmp_path / "site-packages" / "samserve")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert places.clone() is None
    assert places.weights_folder() == tmp_path / "data" / "samserve" / "weights"
