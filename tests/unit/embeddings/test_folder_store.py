"""The folder store keeps entries, and treats damaged entries as misses: real files and folders."""

from __future__ import annotations

import os
import random
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from samserve.embeddings.folder_store import FolderStore
from tests.support.stored_entries import HEADER, KEY, MEGABYTE, PAGE, Warned, entry, names


class TestKeeping:
    @pytest.mark.parametrize("size", [0, 1, PAGE - HEADER, PAGE, 700_000])
    def test_what_was_saved_comes_back(self, store: FolderStore, size: int, warned: Warned) -> None:
        payload = random.Random(size).randbytes(size)
        assert store.load(KEY) is None
        store.save(KEY, payload)
        assert store.load(KEY) == payload
        assert not warned()

    def test_another_store_on_the_same_folder_finds_it(
        self, store: FolderStore, folder: Path
    ) -> None:
        store.save(KEY, b"payload")
        assert FolderStore(folder, MEGABYTE).load(KEY) == b"payload"

    def test_a_view_of_numbers_is_kept_as_its_bytes(self, store: FolderStore) -> None:
        numbers = memoryview(bytes(range(24))).cast("i", (2, 3))
        store.save(KEY, numbers)
        assert store.load(KEY) == bytes(range(24))

    def test_saving_again_replaces(self, store: FolderStore, folder: Path) -> None:
        for payload in (b"first", b"", b"the third, which is longer"):
            store.save(KEY, payload)
            assert store.load(KEY) == payload
        assert names(folder) == {KEY}

    def test_who_may_read_it(self, store: FolderStore, folder: Path) -> None:
        store.save(KEY, b"payload")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}

    @pytest.mark.parametrize("key", ["a", "A.b_c-9", "-", "_", "a..", "x" * 200])
    def test_keys(self, store: FolderStore, key: str) -> None:
        store.save(key, b"payload")
        assert store.load(key) == b"payload"

    @pytest.mark.parametrize(
        "key", ["", ".", "..", ".a", "a/b", "/a", "a\n", "a b", "a\0", "ä", "٣", "x" * 201]
    )
    def test_what_is_no_key(self, store: FolderStore, key: str) -> None:
        with pytest.raises(ValueError, match="not a key"):
            store.load(key)
        with pytest.raises(ValueError, match="not a key"):
            store.save(key, b"payload")
        with pytest.raises(ValueError, match="not a key"), store.lock(key, 0):
            pass

    def test_a_reader_sees_one_payload_or_the_other(
        self, store: FolderStore, warned: Warned
    ) -> None:
        payloads = [bytes([number]) * 300_000 for number in range(2)]
        done = threading.Event()

        def write() -> None:
            for turn in range(100):
                store.save(KEY, payloads[turn % 2])
            done.set()

        store.save(KEY, payloads[0])
        writer = threading.Thread(target=write)
        writer.start()
        while not done.is_set():
            assert store.load(KEY) in payloads
        writer.join()
        assert not warned()

    def test_no_descriptor_is_left_open(self, store: FolderStore, folder: Path) -> None:
        def use() -> None:
            store.save(KEY, b"payload")
            store.load(KEY)
            store.load("missing")
            with store.lock(KEY, 0), store.lock(KEY, 0):
                pass
            entry(folder, "damaged").write_bytes(b"garbage")
            store.load("damaged")
            entry(folder, "directory").mkdir(exist_ok=True)
            store.load("directory")
            store.save("directory", b"payload")
            folder.chmod(0o777)
            store.load(KEY)
            folder.chmod(0o700)

        use()
        before = os.listdir("/dev/fd")
        for _ in range(5):
            use()
        assert len(os.listdir("/dev/fd")) == len(before)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def cut_in_the_header(path: Path) -> None:
    os.truncate(path, HEADER - 1)


def cut_to_the_header(path: Path) -> None:
    os.truncate(path, HEADER)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(5000))


def another_version(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"samserv\x01", b"samserv\x02"))


def another_key(path: Path) -> None:
    FolderStore(path.parent, MEGABYTE).save("another", b"payload")
    entry(path.parent, "another").rename(path)


def huge(path: Path) -> None:
    os.truncate(path, 10 << 30)  # a sparse file takes no space


def huge_with_that_length(path: Path) -> None:
    size = 10 << 30
    path.write_bytes(b"samserv\x01" + (size - HEADER).to_bytes(8, "big") + bytes(4))
    os.truncate(path, size)


def symbolic_link(path: Path) -> None:
    path.rename(path.parents[1] / "elsewhere")
    path.symlink_to(path.parents[1] / "elsewhere")


def dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    path.unlink()
    here = os.getcwd()
    os.chdir(path.parent)  # the whole path is too long for a socket
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


class TestDamage:
    @pytest.mark.parametrize(
        "damage",
        [
            cut,
            cut_in_the_header,
            cut_to_the_header,
            append,
            empty,
            garbage,
            another_version,
            another_key,
            huge,
            huge_with_that_length,
            symbolic_link,
            dangling_link,
            fifo,
            unix_socket,
        ],
    )
    def test_it_is_a_miss_and_removed(
        self, store: FolderStore, folder: Path, warned: Warned, damage: Callable[[Path], None]
    ) -> None:
        store.save(KEY, b"payload")
        damage(entry(folder))
        assert store.load(KEY) is None
        (message,) = warned()
        assert message.startswith(f"Stored embeddings: cannot read {entry(folder)}: it")
        assert not names(folder)

        store.save(KEY, b"payload")
        assert store.load(KEY) == b"payload"
        assert not warned()

    def test_any_flipped_bit_is_noticed(
        self, store: FolderStore, folder: Path, warned: Warned
    ) -> None:
        payload = random.Random(0).randbytes(50)
        for at in range(HEADER + len(payload)):
            store.save(KEY, payload)
            damaged = bytearray(entry(folder).read_bytes())
            damaged[at] ^= 1 << at % 8
            entry(folder).write_bytes(damaged)
            assert store.load(KEY) is None, at
            assert not names(folder)
        assert len(warned()) == 3  # magic, length, checksum: each once

    def test_an_empty_payload_under_another_key(self, store: FolderStore, folder: Path) -> None:
        store.save(KEY, b"")
        entry(folder).rename(entry(folder, "another"))
        assert store.load("another") is None

    def test_a_link_is_removed_and_not_what_it_points_to(
        self, store: FolderStore, folder: Path
    ) -> None:
        store.save(KEY, b"payload")
        symbolic_link(entry(folder))
        store.load(KEY)
        assert (folder.parent / "elsewhere").read_bytes().endswith(b"payload")

    def test_saving_replaces_a_link_and_not_what_it_points_to(
        self, store: FolderStore, folder: Path
    ) -> None:
        store.save(KEY, b"payload")
        symbolic_link(entry(folder))
        store.save(KEY, b"another")
        assert store.load(KEY) == b"another"
        assert (folder.parent / "elsewhere").read_bytes().endswith(b"payload")

    def test_a_directory_in_its_place(
        self, store: FolderStore, folder: Path, warned: Warned
    ) -> None:
        store.save("other", b"payload")
        entry(folder).mkdir()
        for _ in range(3):
            assert store.load(KEY) is None
            assert store.load("missing") is None  # a miss does not count as a success
            store.save(KEY, b"payload")
        reading, writing = warned()
        assert f"cannot read {entry(folder)}: Is a directory." in reading
        assert f"cannot write {entry(folder)}: Is a directory." in writing
        assert names(folder) == {KEY, "other"}
        assert store.load("other") == b"payload"
