"""The store of embeddings: real files, real processes, real full disks.

Where another process is wanted, it runs one of this file's functions named `child_…`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from samserve.embeddings import folder_store as store_module
from samserve.embeddings.folder_store import EmbeddingStore

ROOT = Path(__file__).resolve().parents[3]
MEGABYTE = 1 << 20
PAGE = 4096
HEADER = 20
KEY = "vit_t-0123456789abcdef"
ONE_PAGE = bytes(PAGE - HEADER)  # with its header


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "shared" / "embeddings"


@pytest.fixture
def store(folder: Path) -> EmbeddingStore:
    return EmbeddingStore(folder, MEGABYTE)


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was warned of since it was last asked."""

    def take() -> list[str]:
        messages = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        caplog.clear()
        return messages

    return take


Warned = Callable[[], list[str]]


def entry(folder: Path, key: str = KEY) -> Path:
    return folder / f"{key}.embedding"


def names(folder: Path) -> set[str]:
    """The keys that are there, and anything that is neither an entry nor a lock."""
    return {
        path.name.removesuffix(".embedding")
        for path in folder.iterdir()
        if not path.name.startswith(".lock")
    }


def taken(folder: Path) -> int:
    """Bytes that all the files take, in pages."""
    return sum(-(-path.lstat().st_size // PAGE) * PAGE for path in folder.iterdir())


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.002)


@contextmanager
def running(
    child: Callable[..., None], *args: object, prefix: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[str]]:
    """A process that runs one of this file's functions; it is over when the block is."""
    code = (
        f"import sys; from tests.unit.embeddings.test_folder_store import {child.__name__} as child"
    )
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", f"{code}; child(*sys.argv[1:])", *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> str:
    """What it logged. It must have ended well."""
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    return errors


class TestKeeping:
    @pytest.mark.parametrize("size", [0, 1, PAGE - HEADER, PAGE, 700_000])
    def test_what_was_saved_comes_back(
        self, store: EmbeddingStore, size: int, warned: Warned
    ) -> None:
        payload = random.Random(size).randbytes(size)
        assert store.load(KEY) is None
        store.save(KEY, payload)
        assert store.load(KEY) == payload
        assert not warned()

    def test_another_store_on_the_same_folder_finds_it(
        self, store: EmbeddingStore, folder: Path
    ) -> None:
        store.save(KEY, b"payload")
        assert EmbeddingStore(folder, MEGABYTE).load(KEY) == b"payload"

    def test_a_view_of_numbers_is_kept_as_its_bytes(self, store: EmbeddingStore) -> None:
        numbers = memoryview(bytes(range(24))).cast("i", (2, 3))
        store.save(KEY, numbers)
        assert store.load(KEY) == bytes(range(24))

    def test_saving_again_replaces(self, store: EmbeddingStore, folder: Path) -> None:
        for payload in (b"first", b"", b"the third, which is longer"):
            store.save(KEY, payload)
            assert store.load(KEY) == payload
        assert names(folder) == {KEY}

    def test_who_may_read_it(self, store: EmbeddingStore, folder: Path) -> None:
        store.save(KEY, b"payload")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}

    @pytest.mark.parametrize("key", ["a", "A.b_c-9", "-", "_", "a..", "x" * 200])
    def test_keys(self, store: EmbeddingStore, key: str) -> None:
        store.save(key, b"payload")
        assert store.load(key) == b"payload"

    @pytest.mark.parametrize(
        "key", ["", ".", "..", ".a", "a/b", "/a", "a\n", "a b", "a\0", "ä", "٣", "x" * 201]
    )
    def test_what_is_no_key(self, store: EmbeddingStore, key: str) -> None:
        with pytest.raises(ValueError, match="not a key"):
            store.load(key)
        with pytest.raises(ValueError, match="not a key"):
            store.save(key, b"payload")
        with pytest.raises(ValueError, match="not a key"), store.lock(key, 0):
            pass

    def test_a_reader_sees_one_payload_or_the_other(
        self, store: EmbeddingStore, warned: Warned
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

    def test_no_descriptor_is_left_open(self, store: EmbeddingStore, folder: Path) -> None:
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
    EmbeddingStore(path.parent, MEGABYTE).save("another", b"payload")
    entry(path.parent, "another").rename(path)


def huge(path: Path) -> None:
    os.truncate(path, 10 << 30)  # sparse: it takes no space


def huge_by_its_own_account(path: Path) -> None:
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
            huge_by_its_own_account,
            symbolic_link,
            dangling_link,
            fifo,
            unix_socket,
        ],
    )
    def test_it_is_a_miss_and_removed(
        self, store: EmbeddingStore, folder: Path, warned: Warned, damage: Callable[[Path], None]
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
        self, store: EmbeddingStore, folder: Path, warned: Warned
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

    def test_an_empty_payload_under_another_key(self, store: EmbeddingStore, folder: Path) -> None:
        store.save(KEY, b"")
        entry(folder).rename(entry(folder, "another"))
        assert store.load("another") is None

    def test_a_link_is_removed_and_not_what_it_points_to(
        self, store: EmbeddingStore, folder: Path
    ) -> None:
        store.save(KEY, b"payload")
        symbolic_link(entry(folder))
        store.load(KEY)
        assert (folder.parent / "elsewhere").read_bytes().endswith(b"payload")

    def test_saving_replaces_a_link_and_not_what_it_points_to(
        self, store: EmbeddingStore, folder: Path
    ) -> None:
        store.save(KEY, b"payload")
        symbolic_link(entry(folder))
        store.save(KEY, b"another")
        assert store.load(KEY) == b"another"
        assert (folder.parent / "elsewhere").read_bytes().endswith(b"payload")

    def test_a_directory_in_its_place(
        self, store: EmbeddingStore, folder: Path, warned: Warned
    ) -> None:
        store.save("other", b"payload")
        entry(folder).mkdir()
        for _ in range(3):
            assert store.load(KEY) is None
            assert store.load("missing") is None  # which is no recovery
            store.save(KEY, b"payload")
        reading, writing = warned()
        assert f"cannot read {entry(folder)}: Is a directory." in reading
        assert f"cannot write {entry(folder)}: Is a directory." in writing
        assert names(folder) == {KEY, "other"}
        assert store.load("other") == b"payload"


def group_writable(folder: Path) -> None:
    folder.chmod(0o720)


def writable_by_all(folder: Path) -> None:
    folder.chmod(0o1777)


def linked(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to("elsewhere")


def linked_to_nowhere(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"")


def below_a_file(folder: Path) -> None:
    shutil.rmtree(folder.parent)
    folder.parent.write_bytes(b"")


def of_another_user(folder: Path) -> None:
    os.chown(folder, 1, -1)


def unreadable(folder: Path) -> None:
    folder.chmod(0)


UNUSABLE = [
    pytest.param(group_writable, r"others may write to it \(mode 720\)", id="group-writable"),
    pytest.param(writable_by_all, r"others may write to it \(mode 1777\)", id="world-writable"),
    pytest.param(linked, "it is a symbolic link", id="link"),
    pytest.param(linked_to_nowhere, "it is a symbolic link", id="link-to-nowhere"),
    pytest.param(a_file, "Not a directory", id="file"),
    pytest.param(below_a_file, "Not a directory", id="below-a-file"),
    pytest.param(
        of_another_user,
        r"it belongs to another user \(uid 1\)",
        id="another-user",
        marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away"),
    ),
    pytest.param(
        unreadable,
        "Permission denied",
        id="unreadable",
        marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything"),
    ),
]


def use_in_vain(store: EmbeddingStore) -> None:
    assert store.load(KEY) is None
    store.save(KEY, b"payload")
    with store.lock(KEY, 0.01) as held:
        assert not held
    assert not store.usable


class TestFolder:
    def test_it_is_made_and_usable(self, store: EmbeddingStore, folder: Path) -> None:
        assert not folder.exists()
        assert store.usable
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    @pytest.mark.parametrize(("spoil", "reason"), UNUSABLE)
    def test_unusable_says_so_once(
        self,
        store: EmbeddingStore,
        folder: Path,
        warned: Warned,
        spoil: Callable[[Path], None],
        reason: str,
    ) -> None:
        store.save(KEY, b"payload")
        spoil(folder)
        for _ in range(3):
            use_in_vain(store)
        (message,) = warned()
        assert message.startswith(f"Stored embeddings: cannot use {folder}: ")
        assert re.search(reason, message)

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
    def test_where_no_folder_can_be_made(self, warned: Warned) -> None:
        for _ in range(3):
            use_in_vain(EmbeddingStore(Path("/proc/samserve/embeddings"), MEGABYTE))
        assert len(warned()) == 3  # each store for itself

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_read_only_gives_what_it_has(
        self, store: EmbeddingStore, folder: Path, warned: Warned
    ) -> None:
        store.save(KEY, b"payload")
        (folder / ".lock").unlink()
        folder.chmod(0o500)
        for _ in range(3):
            assert store.load(KEY) == b"payload"
            store.save("another", b"payload")
            with store.lock(KEY, 0.01) as held:
                assert not held
            assert not store.usable
        (message,) = warned()
        assert message.endswith("Permission denied.")
        folder.chmod(0o700)
        assert store.usable

    def test_trouble_is_told_again_after_a_recovery(
        self, store: EmbeddingStore, folder: Path, warned: Warned
    ) -> None:
        for _ in range(3):
            store.save(KEY, b"payload")
            assert store.load(KEY) == b"payload"
            assert store.usable
            assert not warned()
            folder.chmod(0o777)
            use_in_vain(store)
            assert len(warned()) == 1
            folder.chmod(0o700)

    def test_trouble_of_another_kind_is_told_too(
        self, store: EmbeddingStore, folder: Path, warned: Warned
    ) -> None:
        store.save(KEY, b"payload")
        aside = folder.with_name("aside")
        for expected in (1, 0):
            folder.chmod(0o777)
            use_in_vain(store)
            assert len(warned()) == expected
            folder.rename(aside)
            folder.write_bytes(b"")
            use_in_vain(store)
            assert len(warned()) == expected
            folder.unlink()
            aside.rename(folder)

    def test_removed_under_way(self, store: EmbeddingStore, folder: Path, warned: Warned) -> None:
        store.save(KEY, b"payload")
        shutil.rmtree(folder.parent)
        assert store.load(KEY) is None
        store.save(KEY, b"payload")
        assert store.load(KEY) == b"payload"
        with store.lock(KEY, 0) as held:
            assert held
            shutil.rmtree(folder)
            store.save(KEY, b"payload")
            assert store.load(KEY) == b"payload"
            with store.lock(KEY, 0) as held_too:
                assert held_too
        assert not warned()


def child_fills(folder: str, max_bytes: str, name: str) -> None:
    """Saves 200 entries of one to five pages, and looks for some of the earlier ones."""
    dice = random.Random(name)
    store = EmbeddingStore(Path(folder), int(max_bytes))
    for number in range(200):
        key = f"{name}-{number}"
        store.save(key, key.encode() * dice.randrange(1, 5 * PAGE // len(key) - HEADER))
        earlier = f"{name}-{dice.randrange(number + 1)}"
        found = store.load(earlier)
        assert not (found or b"").replace(earlier.encode(), b"")


def child_saves(folder: str, size: str) -> None:
    EmbeddingStore(Path(folder), 1 << 40).save("large", bytes(int(size)))


class TestBound:
    def test_the_least_recently_used_goes_first(self, folder: Path) -> None:
        store = EmbeddingStore(folder, 3 * PAGE)
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
        store = EmbeddingStore(folder, 5 * PAGE)
        for key in "abcde":
            store.save(key, ONE_PAGE)
        for key in "abcde":
            os.utime(entry(folder, key), ns=(1, 1))
        store.save("f", bytes(2 * PAGE))
        assert names(folder) == {"d", "e", "f"}

    def test_replacing_costs_no_other_entry(self, folder: Path) -> None:
        store = EmbeddingStore(folder, 2 * PAGE)
        for key in ("a", "b", "b"):
            store.save(key, ONE_PAGE)
        assert names(folder) == {"a", "b"}

    def test_what_is_larger_than_all_is_not_kept(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = EmbeddingStore(folder, 2 * PAGE)
        store.save("a", ONE_PAGE)
        caplog.set_level(logging.DEBUG)
        store.save("large", bytes(2 * PAGE - HEADER + 1))
        assert [record.levelname for record in caplog.records] == ["DEBUG"]
        assert names(folder) == {"a"}
        store.save("large", bytes(2 * PAGE - HEADER))
        assert names(folder) == {"large"}

    def test_unfinished_files_of_dead_writers_go(self, store: EmbeddingStore, folder: Path) -> None:
        assert store.usable
        (folder / ".writing-0123456789abcdef").write_bytes(ONE_PAGE)
        store.save(KEY, b"payload")
        assert names(folder) == {KEY}

    def test_a_writer_is_killed(self, folder: Path, warned: Warned) -> None:
        store = EmbeddingStore(folder, MEGABYTE)
        with running(child_saves, folder, 64 * MEGABYTE) as process:
            deadline = time.monotonic() + 20
            while not list(folder.glob(".writing-*")) and not list(folder.glob("*.embedding")):
                assert time.monotonic() < deadline
            process.kill()
        store.save(KEY, b"payload")
        assert names(folder) == {KEY}
        assert not warned()

    def test_files_of_others_are_left_alone(self, folder: Path) -> None:
        store = EmbeddingStore(folder, 2 * PAGE)
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
                    fcntl.flock(lock, fcntl.LOCK_EX)  # only for a true sum
                    assert taken(folder) <= bound
                    fcntl.flock(lock, fcntl.LOCK_UN)
                    time.sleep(0.02)
            assert [finish(process) for process in processes] == [""] * 4
        assert bound - 10 * PAGE < taken(folder) <= bound
        store = EmbeddingStore(folder, bound)
        assert all(store.load(key) is not None for key in names(folder))


def fill_up(path: Path) -> None:
    """Leaves no space on a disk."""
    with open(path, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(PAGE))


def child_on_a_small_disk(disk: str) -> None:
    """On a tmpfs of 256 pages, of which 230 are 90 %."""
    folder = Path(disk) / "embeddings"
    store = EmbeddingStore(folder, 1 << 40)
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
    """Cannot write files of more than 64 KiB."""
    store = EmbeddingStore(Path(folder), MEGABYTE)
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
        store: EmbeddingStore,
        folder: Path,
        warned: Warned,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(store_module, "_SAVE_PATIENCE_S", 0.02)
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


def child_wants(folder: str, work: str, name: str) -> None:
    """Three threads want one key, and note in `work` when they do the work."""
    store = EmbeddingStore(Path(folder), MEGABYTE)
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
    with EmbeddingStore(Path(folder), MEGABYTE).lock(KEY, 0) as held:
        assert held
        Path(ready).touch()
        signal.pause()


def child_forks(folder: str) -> None:
    store = EmbeddingStore(Path(folder), MEGABYTE)
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

    def test_time_runs_out(self, store: EmbeddingStore, warned: Warned) -> None:
        with store.lock(KEY, 0) as first, store.lock(KEY, 0.02) as second:
            assert first
            assert not second
        with store.lock(KEY, 0) as third:
            assert third
        assert not warned()

    def test_another_process_holds_it_and_is_killed(
        self, store: EmbeddingStore, folder: Path, tmp_path: Path
    ) -> None:
        with running(child_holds, folder, tmp_path / "ready") as process:
            wait_for(tmp_path / "ready")
            with store.lock(KEY, 0.02) as held:
                assert not held
            store.save(KEY, b"payload")  # whoever went on without the lock
            assert store.load(KEY) == b"payload"
            process.send_signal(signal.SIGKILL)
            with store.lock(KEY, 20) as held:
                assert held

    def test_a_forked_child_does_not_keep_it(self, folder: Path) -> None:
        with running(child_forks, folder) as process:
            assert finish(process) == ""

    def test_an_exception_passes_and_frees_it(self, store: EmbeddingStore) -> None:
        for error in (OSError("computing failed"), KeyboardInterrupt()):
            with pytest.raises(type(error)) as caught, store.lock(KEY, 0):
                raise error
            assert caught.value is error
        with store.lock(KEY, 0) as held:
            assert held

    def test_there_are_64_files_at_most_and_all_empty(
        self, store: EmbeddingStore, folder: Path
    ) -> None:
        for number in range(600):
            with store.lock(f"key-{number}", 0) as held:
                assert held
        assert len(list(folder.iterdir())) == 64
        assert taken(folder) == 0

    def test_its_file_is_deleted_while_others_wait(
        self, store: EmbeddingStore, folder: Path
    ) -> None:
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
