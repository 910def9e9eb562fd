"""One thread of one process at a time holds the lock of a key.

Functions named `child_…` run in another process.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from samserve.embeddings.folder_store import FolderStore
from tests.support.stored_entries import KEY, MEGABYTE, Warned, finish, running, taken, wait_for


def child_wants(folder: str, work: str, name: str) -> None:
    """Let three threads want one key, and note in `work` when one computes the payload."""
    store = FolderStore(Path(folder), MEGABYTE)
    found = []

    def want() -> None:
        with store.lock(KEY, 20) as held:
            assert held
            payload = store.load(KEY)
            if payload is None:
                with open(work, "ab", buffering=0) as file:
                    file.write(b"done\n")
                time.sleep(0.05)
                payload = b"payload"
                store.save(KEY, payload)
        found.append(payload)

    Path(work).with_name(name).touch()
    wait_for(Path(work).with_name("go"))
    threads = [threading.Thread(target=want) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"payload"] * 3


def child_holds(folder: str, ready: str) -> None:
    with FolderStore(Path(folder), MEGABYTE).lock(KEY, 0) as held:
        assert held
        Path(ready).touch()
        signal.pause()


def child_forks(folder: str) -> None:
    store = FolderStore(Path(folder), MEGABYTE)
    with store.lock(KEY, 0) as held:
        assert held
        forked = os.fork()
        if not forked:
            signal.pause()
    try:
        with store.lock(KEY, 0) as held:
            assert held
    finally:
        os.kill(forked, signal.SIGKILL)


class TestLock:
    def test_the_work_is_done_once(self, folder: Path, tmp_path: Path) -> None:
        work = tmp_path / "work"
        children = [f"p{number}" for number in range(4)]
        with ExitStack() as stack:
            processes = [
                stack.enter_context(running(child_wants, folder, work, name)) for name in children
            ]
            for name in children:
                wait_for(tmp_path / name)
            (tmp_path / "go").touch()
            assert [finish(process) for process in processes] == [""] * 4
        assert work.read_bytes() == b"done\n"

    def test_time_runs_out(self, store: FolderStore, warned: Warned) -> None:
        with store.lock(KEY, 0) as first, store.lock(KEY, 0.02) as second:
            assert first
            assert not second
        with store.lock(KEY, 0) as third:
            assert third
        assert not warned()

    def test_another_process_holds_it_and_is_killed(
        self, store: FolderStore, folder: Path, tmp_path: Path
    ) -> None:
        with running(child_holds, folder, tmp_path / "ready") as process:
            wait_for(tmp_path / "ready")
            with store.lock(KEY, 0.02) as held:
                assert not held
            store.save(KEY, b"payload")  # a process may continue without the lock
            assert store.load(KEY) == b"payload"
            process.send_signal(signal.SIGKILL)
            with store.lock(KEY, 20) as held:
                assert held

    def test_a_forked_child_does_not_keep_it(self, folder: Path) -> None:
        with running(child_forks, folder) as process:
            assert finish(process) == ""

    def test_an_exception_passes_and_frees_it(self, store: FolderStore) -> None:
        for error in (OSError("computing failed"), KeyboardInterrupt()):
            with pytest.raises(type(error)) as caught, store.lock(KEY, 0):
                raise error
            assert caught.value is error
        with store.lock(KEY, 0) as held:
            assert held

    def test_there_are_64_files_at_most_and_all_empty(
        self, store: FolderStore, folder: Path
    ) -> None:
        for number in range(600):
            with store.lock(f"key-{number}", 0) as held:
                assert held
        assert len(list(folder.iterdir())) == 64
        assert taken(folder) == 0

    def test_its_file_is_deleted_while_others_wait(self, store: FolderStore, folder: Path) -> None:
        got = []

        def wait() -> None:
            with store.lock(KEY, 20) as held:
                got.append(held)

        with store.lock(KEY, 0):
            waiting = threading.Thread(target=wait)
            waiting.start()
            for path in folder.iterdir():
                path.unlink()
            waiting.join()
        assert got == [True]
        with store.lock(KEY, 0) as held:
            assert held
