"""A server that stops or loses a process leaves no process and no file behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from samserve_launcher.configuration import configuration, read_properties, threads_per_worker
from samserve_launcher.errors import ServerError
from samserve_launcher.options import Options, free_ports, parse_options
from samserve_launcher.processes import Children
from samserve_launcher.server import check_alive, running
from tests.support.paths import ROOT
from tests.support.servers import port_flags


def test_sigterm_while_starting_stops_everything() -> None:
    options = free_ports(Options())
    process = subprocess.Popen(
        [sys.executable, "-m", "samserve_launcher", "serve", *port_flags(options)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    serve = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    while len(serve.children(recursive=True)) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    started = serve.children(recursive=True)
    assert len(started) >= 3
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output.rstrip().endswith("stopped")
    _, alive = psutil.wait_procs(started, timeout=1)
    assert not alive
    assert {path.name for path in options.run_dir.iterdir()} == {"config.properties", "logs"}
    shutil.rmtree(options.run_dir)


def test_a_lost_process_is_told_and_the_rest_is_stopped() -> None:
    options = free_ports(Options())
    children: Children = {}

    def lose_the_gateway() -> None:
        with running(options) as processes:
            children.update(processes)
            processes["gateway"].kill()
            processes["gateway"].wait()
            check_alive(options, processes)

    with pytest.raises(ServerError, match="gateway ended with status"):
        lose_the_gateway()
    assert sorted(children) == ["gateway", "torchserve"]
    assert all(child.returncode is not None for child in children.values())
    shutil.rmtree(options.run_dir)


def test_a_missing_archive_names_the_command(tmp_path: Path) -> None:
    options = free_ports(Options(model_store=tmp_path))
    with pytest.raises(ServerError, match="samserve archive vit_t"), running(options):
        pass


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "vit_t.mar").write_bytes(b"PK\x03\x04 torn off")
    options = free_ports(Options(model_store=tmp_path))
    with pytest.raises(ServerError, match=r"vit_t\.mar cannot be unpacked"), running(options):
        pass
    assert not options.models_dir.exists()
    shutil.rmtree(options.run_dir)


def test_a_worker_that_cannot_load_tells_why(tmp_path: Path) -> None:
    """An archive that lacks a file stops the start. TorchServe alone would retry for ever."""
    with (
        zipfile.ZipFile(ROOT / "model_store" / "vit_t.mar") as whole,
        zipfile.ZipFile(tmp_path / "vit_t.mar", "w") as broken,
    ):
        for member in whole.infolist():
            if member.filename != "weights.json":
                broken.writestr(member, whole.read(member))
    options = free_ports(Options(model_store=tmp_path))
    with (
        pytest.raises(
            ServerError, match=r"cannot load its model: FileNotFoundError.*weights\.json"
        ),
        running(options),
    ):
        pass
    shutil.rmtree(options.run_dir)


def test_the_configuration_is_ours_with_the_options_after_it(tmp_path: Path) -> None:
    options = Options(model_store=tmp_path, automask_workers=3, inference_port=9999)
    properties = read_properties(configuration(options))
    assert properties["inference_address"] == "http://127.0.0.1:9999"
    assert properties["load_models"] == "vit_t=vit_t,vit_t-automask=vit_t"
    assert properties["enable_model_api"] == "false"
    assert properties["disable_token_authorization"] == "false"
    assert (
        '"vit_t-automask": {"1.0": {"marName": "vit_t.mar", "minWorkers": 3' in properties["models"]
    )


def test_registered_weights_get_lanes_like_their_types(tmp_path: Path) -> None:
    for name in ("vit_t", "vit_t.nuclei", "vit_b.nuclei", "vit_t.a.b", "vit_t.-", "other"):
        (tmp_path / f"{name}.mar").touch()
    properties = read_properties(
        configuration(replace(Options(), model_store=tmp_path, automask_workers=3))
    )
    assert properties["load_models"].split(",") == [
        "vit_t=vit_t",
        "vit_t-automask=vit_t",
        "vit_t.nuclei=vit_t.nuclei",
        "vit_t.nuclei-automask=vit_t.nuclei",
    ]
    lanes = json.loads(properties["models"])
    for mode in ("", "-automask"):
        [default], [registered] = (
            lanes[name + mode].values() for name in ("vit_t", "vit_t.nuclei")
        )
        assert registered == {**default, "marName": "vit_t.nuclei.mar"}
    assert registered["minWorkers"] == 3


def test_models_may_be_registered_only_where_there_is_an_administrator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SAMSERVE_ADMIN_TOKEN", "a secret of the administrator")
    text = configuration(Options())
    assert read_properties(text)["enable_model_api"] == "true"
    assert "secret" not in text


def test_threads_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samserve_launcher.configuration.usable_cores", lambda: 8)
    threads = []
    for prompt_workers in (1, 2, 3, 40):
        options = Options(prompt_workers=prompt_workers, automask_workers=3)
        threads.append(threads_per_worker(configuration(options)))
    assert [each["prompt"] for each in threads] == [8, 8, 5, 1]
    assert {each["automask"] for each in threads} == {2}


@pytest.mark.parametrize(
    ("available", "models", "gpu", "workers"),
    [
        (8 * 2**30, "vit_t", None, 2),
        (8 * 2**30 - 1, "vit_t", None, 1),
        (19 * 2**30, "vit_t vit_b", None, 1),
        (20 * 2**30, "vit_t vit_b", None, 2),
        (16 * 2**30, "vit_t sam2_t", None, 1),
        (17 * 2**30, "vit_t sam2_t", None, 2),
        (20 * 2**30, "vit_t sam2_l", None, 2),
        (None, "vit_t", None, 2),
        (None, "vit_t", "/usr/bin/nvidia-smi", 1),
    ],
)
def test_prompt_lanes_have_two_workers_where_they_fit(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    available: int | None,
    models: str,
    gpu: str | None,
    workers: int,
) -> None:
    module = "samserve_launcher.configuration"
    monkeypatch.setattr(f"{module}.available_memory", lambda: available)
    monkeypatch.setattr(f"{module}.shutil.which", lambda name: gpu)
    options = Options(models=models, model_store=tmp_path)
    for asked, given in ((None, workers), (1, 1), (3, 3)):
        text = configuration(replace(options, prompt_workers=asked))
        lanes = json.loads(read_properties(text)["models"])
        for name in models.split():
            assert lanes[name]["1.0"]["minWorkers"] == given
            assert lanes[name]["1.0"]["maxWorkers"] == given
            assert lanes[f"{name}-automask"]["1.0"]["minWorkers"] == 1


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMSERVE_PORT", "9000")
    monkeypatch.setenv("SAMSERVE_HOST", "0.0.0.0")
    assert parse_options([]).port == 9000
    assert parse_options(["--port", "9001"]).port == 9001
    assert parse_options([]).url == "http://127.0.0.1:9000"


@pytest.mark.parametrize("value", ["abc", "0", "70000", "-1"])
def test_a_bad_port_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    monkeypatch.setenv("SAMSERVE_PORT", value)
    with pytest.raises(SystemExit):
        parse_options([])
    assert "argument --port: invalid number from 1 to 65535" in capsys.readouterr().err
