"""The folder store stays within its bound, also with several processes and full disks.

Functions named `child_…` run in another process.
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import resource
import shutil
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from samserve.embeddings import folder_store
from samserve.embeddings import folder_store as store_module
from samserve.embeddings.folder_store import FolderStore
from tests.support.stored_entries import (
    HEADER,
    KEY,
    MEGABYTE,
    ONE_PAGE,
    PAGE,
    Warned,
    entry,
    finish,
    names,
    running,
    taken,
    wait_for,
)


def child_fills(folder: str, max_bytes: str, name: str) -> None:
    """Save 200 entries with one to five pages, and load some of the earlier ones."""
    dice = random.Random(name)
    store = FolderStore(Path(folder), int(max_bytes))
    for number in range(200):
        key = f"{name}-{number}"
        store.save(key, key.encode() * dice.randrange(1, 5 * PAGE // len(key) - HEADER))
        earlier = f"{name}-{dice.randrange(number + 1)}"
        found = store.load(earlier)
        assert not (found or b"").replace(earlier.encode(), b"")


def child_saves(folder: str, size: str) -> None:
    FolderStore(Path(folder), 1 << 40).save("large", bytes(int(size)))


class TestBound:
    def test_the_least_recently_used_goes_first(self, folder: Path) -> None:
        store = FolderStore(folder, 3 * PAGE)
        for key in ("a", "b", "c"):
            store.save(key, ONE_PAGE)
        assert names(folder) == {"a", "b", "c"}
        store.load("a")
        store.save("d", ONE_PAGE)
        assert names(folder) == {"a", "c", "d"}
        store.save("c", ONE_PAGE)
        store.save("e", ONE_PAGE)
        assert names(folder) == {"c", "d", "e"}
        store.save("f", ONE_PAGE + b"\0")
        assert names(folder) == {"e", "f"}

    def test_at_the_same_time(self, folder: Path) -> None:
        store = FolderStore(folder, 5 * PAGE)
        for key in "abcde":
            store.save(key, ONE_PAGE)
        for key in "abcde":
            os.utime(entry(folder, key), ns=(1, 1))
        store.save("f", bytes(2 * PAGE))
        assert names(folder) == {"d", "e", "f"}

    def test_replacing_costs_no_other_entry(self, folder: Path) -> None:
        store = FolderStore(folder, 2 * PAGE)
        for key in ("a", "b", "b"):
            store.save(key, ONE_PAGE)
        assert names(folder) == {"a", "b"}

    def test_what_is_larger_than_all_is_not_kept(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = FolderStore(folder, 2 * PAGE)
        store.save("a", ONE_PAGE)
        caplog.set_level(logging.DEBUG)
        store.save("large", bytes(2 * PAGE - HEADER + 1))
        assert [record.levelname for record in caplog.records] == ["DEBUG"]
        assert names(folder) == {"a"}
        store.save("large", bytes(2 * PAGE - HEADER))
        assert names(folder) == {"large"}

    def test_unfinished_files_of_dead_writers_go(self, store: FolderStore, folder: Path) -> None:
        assert store.usable
        (folder / ".writing-0123456789abcdef").write_bytes(ONE_PAGE)
        store.save(KEY, b"payload")
        assert names(folder) == {KEY}

    def test_a_writer_is_killed(self, folder: Path, warned: Warned) -> None:
        store = FolderStore(folder, MEGABYTE)
        with running(child_saves, folder, 64 * MEGABYTE) as process:
            deadline = time.monotonic() + 20
            while not list(folder.glob(".writing-*")) and not list(folder.glob("*.embedding")):
                assert time.monotonic() < deadline
            process.kill()
        store.save(KEY, b"payload")
        assert names(folder) == {KEY}
        assert not warned()

    def test_files_of_others_are_left_alone(self, folder: Path) -> None:
        store = FolderStore(folder, 2 * PAGE)
        assert store.usable
        others = {".bashrc", "notes.txt", "embedding", ".writing-a-novel", "a.tmp"}
        for name in others:
            (folder / name).write_bytes(bytes(PAGE))
        for key in ("a", "b", "c"):
            store.save(key, ONE_PAGE)
        assert names(folder) == others | {"b", "c"}

    def test_it_holds_while_four_processes_save(self, folder: Path) -> None:
        bound = 100 * PAGE
        with ExitStack() as stack:
            processes = [
                stack.enter_context(running(child_fills, folder, bound, f"p{number}"))
                for number in range(4)
            ]
            wait_for(folder / ".lock")
            with open(folder / ".lock") as lock:
                while any(process.poll() is None for process in processes):
                    fcntl.flock(lock, fcntl.LOCK_EX)  # so that no file changes during the sum
                    assert taken(folder) <= bound
                    fcntl.flock(lock, fcntl.LOCK_UN)
                    time.sleep(0.02)
            assert [finish(process) for process in processes] == [""] * 4
        assert bound - 10 * PAGE < taken(folder) <= bound
        store = FolderStore(folder, bound)
        assert all(store.load(key) is not None for key in names(folder))


def fill_up(path: Path) -> None:
    """Fill a disk completely."""
    with open(path, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(PAGE))


def child_on_a_small_disk(disk: str) -> None:
    """Use a tmpfs with 256 pages; 90 % of them are 230."""
    folder_store.LOG_EVERY_S = 0.0
    folder = Path(disk) / "embeddings"
    store = FolderStore(folder, 1 << 40)
    for number in range(300):
        store.save(f"{number}", ONE_PAGE)
    assert names(folder) == {f"{number}" for number in range(70, 300)}

    shutil.rmtree(folder)
    for number in range(100):
        store.save(f"{number}", ONE_PAGE)
    fill_up(folder.parent / "filler")
    store.save("new", bytes(9 * PAGE))
    assert store.load("new") == bytes(9 * PAGE)
    assert names(folder) == {f"{number}" for number in range(10, 100)} | {"new"}

    for _ in range(3):
        store.save("too-large", bytes(110 * PAGE))  # warns
        assert not names(folder)
    store.save("new", ONE_PAGE)
    store.save("too-large", bytes(110 * PAGE))  # warns again
    assert not names(folder)


def child_with_a_limit(folder: str) -> None:
    """Use a store in a process that cannot write files with more than 64 KiB."""
    folder_store.LOG_EVERY_S = 0.0
    store = FolderStore(Path(folder), MEGABYTE)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    for _ in range(2):
        store.save("small", b"payload")
        for _ in range(3):
            store.save("large", bytes(100_000))  # warns, once each time round
            assert names(Path(folder)) == {"small"}
        assert store.load("small") == b"payload"
        assert store.load("large") is None


class TestFailingWrites:
    def test_a_full_disk(self, tmp_path: Path) -> None:
        mount = 'mount -t tmpfs -o size=1m,mode=700 none "$0" && exec "$@"'
        prefix = ("unshare", "-Urm", "sh", "-c", mount, str(tmp_path))
        try:
            subprocess.run([*prefix, "true"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as exc:
            pytest.skip(f"no small disk can be mounted: {exc}")
        with running(child_on_a_small_disk, tmp_path, prefix=prefix) as process:
            large = entry(tmp_path / "embeddings", "too-large")
            message = f"Stored embeddings: cannot write {large}: No space left on device.\n"
            assert finish(process) == 2 * message

    def test_a_write_that_stops_half_way(self, folder: Path) -> None:
        with running(child_with_a_limit, folder) as process:
            large = entry(folder, "large")
            message = f"Stored embeddings: cannot write {large}: File too large.\n"
            assert finish(process) == 2 * message

    def test_a_stuck_process_costs_a_wait_and_no_more(
        self,
        store: FolderStore,
        folder: Path,
        warned: Warned,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(store_module, "_SAVE_TIMEOUT_S", 0.02)
        store.save("earlier", b"payload")
        with open(folder / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for _ in range(2):
                store.save(KEY, b"payload")
                assert store.load("earlier") == b"payload"
                assert store.usable
        (message,) = warned()
        assert message.endswith(": the folder was locked for 0.02 s.")
        assert names(folder) == {"earlier"}
        store.save(KEY, b"payload")
        assert store.load(KEY) == b"payload"
