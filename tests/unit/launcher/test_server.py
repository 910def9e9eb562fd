"""A server's run folder belongs to one server at a time."""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from samserve_launcher import server
from samserve_launcher.errors import ServerError
from samserve_launcher.options import Options
from samserve_launcher.server import check_loading, run_dir_to_itself


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(run_root=tmp_path)


def test_a_server_waits_until_the_one_before_has_removed_its_files(options: Options) -> None:
    """One that stops frees its ports first, and would remove the files of the next one."""
    order = []
    with ExitStack() as first:
        first.enter_context(run_dir_to_itself(options))

        def second() -> None:
            with run_dir_to_itself(options):
                order.append("second starts")

        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.5)
        order.append("first ends")
    thread.join()
    assert order == ["first ends", "second starts"]


def test_a_server_that_does_not_stop_is_named(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "STOP_TIMEOUT_S", 0.2)
    with (
        run_dir_to_itself(options),
        pytest.raises(ServerError, match="8000 and does not stop"),
        run_dir_to_itself(options),
    ):
        pass


def test_servers_on_other_ports_do_not_wait(options: Options, tmp_path: Path) -> None:
    with run_dir_to_itself(options), run_dir_to_itself(Options(port=8001, run_root=tmp_path)):
        pass


@pytest.mark.parametrize("said", ["Load model failed: vit_t", "Failed to load model: vit_t"])
def test_a_model_that_cannot_be_loaded_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    log = tmp_path / "torchserve.log"
    log.write_text("of an earlier start\n")
    start = log.stat().st_size
    check_loading(log, start)
    with log.open("a") as file:
        file.write(said)
    monkeypatch.setattr(server, "LAST_LINES_S", 0.2)
    with pytest.raises(ServerError, match="cannot load its model: its process ended"):
        check_loading(log, start)


def test_the_exception_may_be_logged_after_the_failure(tmp_path: Path) -> None:
    log = tmp_path / "torchserve.log"
    log.write_text("Load model failed: vit_t\n")

    def write_later() -> None:
        time.sleep(0.3)
        line = {"lane": "vit_t", "message": "ValueError: max_pionts is no setting"}
        with log.open("a") as file:
            file.write(json.dumps(line) + "\n")

    thread = threading.Thread(target=write_later)
    thread.start()
    with pytest.raises(ServerError, match="model: ValueError: max_pionts is no setting"):
        check_loading(log, 0)
    thread.join()
