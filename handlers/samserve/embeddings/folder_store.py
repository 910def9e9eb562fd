"""A bounded folder of byte strings that all worker processes of one machine share.

It is meant for image embeddings, some 4 MB each, in a folder in memory (tmpfs). A key
stands for its content: whoever saves under a key saves what anybody else would have.

    with store.lock(key, timeout_s=5):  # the others wait here, and then find it
        payload = store.load(key)
        if payload is None:
            payload = compute()
            store.save(key, payload)

Whatever the file system does, nothing is raised: loading misses, saving does nothing,
and a warning says why, once until it works again.

Does not keep anything over a crash of the machine (no fsync), does not guard against
other programs of the same user, and touches no file that it has not named itself.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_SUFFIX = ".embedding"
_UNFINISHED = re.compile(r"\.writing-[0-9a-f]{16}")
_FOLDER_LOCK = ".lock"
_KEY_LOCKS = 64

_HEADER = struct.Struct(">8sQI")  # magic, length of the payload, checksum
_MAGIC = b"samserv\x01"  # ends in the format's version

_POLL_S = 0.005  # flock either waits for ever or not at all
_SAVE_PATIENCE_S = 2.0  # a save takes milliseconds: whoever locks out others longer is stuck


class EmbeddingStore:
    """At most `max_bytes` of byte strings in `directory`; the least recently used go first.

    Any number of threads and processes may use one folder, through one store or several.

    Args:
        directory: made where it is missing, readable by this user only. It must belong to
            this user, and no one else may write to it, or else it is not used: anybody on
            the machine could plant embeddings.
        max_bytes: entries and unfinished files together take no more than this, nor more
            than 90 % of the file system (Docker's /dev/shm has 64 MB).
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._told: dict[str, set[str]] = {}

    @property
    def usable(self) -> bool:
        """Whether the folder is there, ours, and can be written to; made if need be."""
        with suppress(_GaveUp), self._locked(_FOLDER_LOCK, 0):
            return True
        return False

    def load(self, key: str) -> bytes | None:
        """What was saved under `key`, or None."""
        name = _entry_name(key)
        with suppress(_GaveUp), self._folder() as folder, self._watching("read", name):
            try:
                return _read_entry(folder, key, self._max_bytes)
            except FileNotFoundError:
                raise _GaveUp from None  # an ordinary miss: neither trouble nor success
            except _BadEntry:
                with suppress(OSError):
                    os.unlink(name, dir_fd=folder)
                raise
        return None

    def save(self, key: str, payload: bytes | memoryview) -> None:
        """Keeps `payload` under `key` if possible, and makes room for it."""
        name = _entry_name(key)
        content = memoryview(payload).cast("B")
        size = _allocated(_HEADER.size + len(content))
        header = _HEADER.pack(_MAGIC, len(content), _checksum(key, content))
        locked = self._locked(_FOLDER_LOCK, _SAVE_PATIENCE_S)
        with suppress(_GaveUp), locked as folder, self._watching("write", name):
            if folder is None:
                raise OSError(f"the folder was locked for {_SAVE_PATIENCE_S:g} s")
            bound = min(self._max_bytes, _most_it_can_hold(folder))
            if size > bound:
                logger.debug("%s is not kept: %d bytes, of %d in all.", name, size, bound)
                raise _GaveUp
            _make_room(folder, name, size, bound)
            try:
                _write_entry(folder, name, header, content)
            except OSError as exc:
                if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                _make_room(folder, name, size, None)
                _write_entry(folder, name, header, content)

    @contextmanager
    def lock(self, key: str, timeout_s: float) -> Iterator[bool]:
        """Lets one thread of one process at a time work on `key`.

        Yields True while the lock is held, False when it could not be had in time or the
        folder is unusable: go on without it then. Now and then two keys share a lock, so
        never hold two. It is freed when its process dies.
        """
        number = zlib.crc32(_entry_name(key).encode()) % _KEY_LOCKS
        with ExitStack() as stack:
            folder = None
            with suppress(_GaveUp):
                folder = stack.enter_context(self._locked(f".lock-{number:02}", timeout_s))
            yield folder is not None

    @contextmanager
    def _locked(self, name: str, timeout_s: float) -> Iterator[int | None]:
        """Holds a lock file; yields the folder's descriptor, or None when time ran out.

        Each try opens folder and file anew, so that those who wait notice when either was
        deleted and made again.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with self._folder() as folder:
                with self._watching("lock", name):
                    lock = _try_lock(folder, name)
                if lock is not None:
                    try:
                        yield folder
                    finally:
                        with suppress(OSError):
                            # Closing is no unlocking where a forked child has it open too.
                            fcntl.flock(lock, fcntl.LOCK_UN)
                        os.close(lock)
                    return
            if time.monotonic() >= deadline:
                yield None
                return
            time.sleep(_POLL_S)

    @contextmanager
    def _folder(self) -> Iterator[int]:
        """The folder's descriptor. Files are reached through it and not by their paths, so
        that they are in the very folder that was checked."""
        with self._watching("use", ""):
            folder = _open_folder(self._directory)
        try:
            yield folder
        finally:
            os.close(folder)

    @contextmanager
    def _watching(self, doing: str, name: str) -> Iterator[None]:
        """Tells of trouble, but of the same trouble not again until `doing` has succeeded."""
        try:
            yield
        except OSError as exc:
            reason = exc.strerror or str(exc)
            told = self._told.setdefault(doing, set())
            if reason not in told:
                told.add(reason)
                path = self._directory / name
                logger.warning("Stored embeddings: cannot %s %s: %s.", doing, path, reason)
            raise _GaveUp from exc
        self._told.pop(doing, None)


class _GaveUp(Exception):
    """There is no going on; what is to be told has been told."""


class _BadEntry(OSError):
    """A file that is no entry, or not the one it is named after."""


def _entry_name(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a key: {key!r}")
    return key + _SUFFIX


def _checksum(key: str, content: bytes | memoryview) -> int:
    # Against accidents only: malice is kept out by the folder's owner and mode. CRC-32 takes
    # 0.9 ms for 4 MB; SHA-1 and SHA-256 2.2 ms where the processor has instructions for them
    # and several times that elsewhere; BLAKE2b 3.4 ms.
    return zlib.crc32(content, zlib.crc32(key.encode()))


def _allocated(size: int) -> int:
    # In pages, which is what tmpfs allocates. st_blocks would be the truth anywhere, but is
    # known only after writing: too late to make room.
    return -(-size // 4096) * 4096


def _most_it_can_hold(folder: int) -> int:
    status = os.fstatvfs(folder)
    # A tmpfs without a limit says that it has 0 blocks.
    return status.f_blocks * status.f_frsize * 9 // 10 or 1 << 63


def _open_folder(path: Path) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    if path.is_symlink():
        raise OSError("it is a symbolic link, and must be the folder itself")
    try:
        folder = os.open(path, flags)
    except FileNotFoundError:
        path.mkdir(0o700, parents=True, exist_ok=True)
        folder = os.open(path, flags)
    with ExitStack() as undo:
        undo.callback(os.close, folder)
        status = os.fstat(folder)
        if status.st_uid != os.geteuid():
            raise OSError(f"it belongs to another user (uid {status.st_uid})")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise OSError(f"others may write to it (mode {stat.S_IMODE(status.st_mode):o})")
        undo.pop_all()
    return folder


def _open(folder: int, name: str, mode: str) -> IO[bytes]:
    def opener(path: str, flags: int) -> int:
        # Neither through a symbolic link, nor waiting for the other end of a FIFO.
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=folder)

    return open(name, mode, opener=opener)


def _try_lock(folder: int, name: str) -> int | None:
    """The descriptor of the locked file, or None if somebody else has it."""
    with suppress(BlockingIOError, FileNotFoundError), ExitStack() as undo:
        lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        undo.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A file that was deleted since it was opened would lock nobody out.
        if os.path.samestat(os.fstat(lock), os.stat(name, dir_fd=folder, follow_symlinks=False)):
            undo.pop_all()
            return lock
    return None


def _read_entry(folder: int, key: str, bound: int) -> bytes:
    try:
        file = _open(folder, _entry_name(key), "rb")
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.ENXIO, errno.EOPNOTSUPP):  # a link, a socket
            raise _BadEntry("it is not a regular file") from exc
        raise
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _BadEntry("it is not a regular file")
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise _BadEntry("it is of another kind or version")
        _, length, checksum = _HEADER.unpack(header)
        if status.st_size != _HEADER.size + length or status.st_size > bound:
            raise _BadEntry("its length is wrong")
        content = file.read(length)
        if _checksum(key, content) != checksum:
            raise _BadEntry("it is damaged, or was saved under another key")
        with suppress(OSError):
            _touch(file)
    return content


def _write_entry(folder: int, name: str, header: bytes, content: memoryview) -> None:
    """Writes under another name and renames: nobody ever reads half an entry."""
    unfinished = f".writing-{os.urandom(8).hex()}"
    try:
        with _open(folder, unfinished, "xb") as file:
            file.write(header)
            file.write(content)
            file.flush()
            _touch(file)
        os.replace(unfinished, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        with suppress(OSError):
            os.unlink(unfinished, dir_fd=folder)


def _touch(file: IO[bytes]) -> None:
    # With our own clock: the file system's ticks only every few milliseconds.
    now = time.time_ns()
    os.utime(file.fileno(), ns=(now, now))


def _make_room(folder: int, name: str, size: int, bound: int | None) -> None:
    """Removes entries until `size` bytes more stay within `bound`; None: until `size` bytes
    came free. The entry to be replaced goes first, then the least recently used.

    Only for who holds the folder's lock: then nobody is writing, and unfinished files are
    what dead writers left.
    """
    entries = []
    with os.scandir(folder) as files:
        for file in files:
            if _UNFINISHED.fullmatch(file.name):
                _remove(folder, file.name)
            elif file.name.endswith(_SUFFIX) and file.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):  # another's load removed a damaged one
                    status = file.stat(follow_symlinks=False)
                    order = (file.name != name, status.st_mtime_ns, file.name)
                    entries.append((order, _allocated(status.st_size)))
    surplus = size if bound is None else sum(taken for _, taken in entries) + size - bound
    for (_, _, oldest), taken in sorted(entries):
        if surplus <= 0:
            break
        _remove(folder, oldest)
        surplus -= taken


def _remove(folder: int, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
