"""This module keeps byte strings in a bounded folder that all worker processes of a machine share.

It is meant for image embeddings, about 4 MB each, in a folder in memory (tmpfs). A key determines
its payload: every process would save the same bytes under a key.

    with store.lock(key, timeout_s=5):  # other processes wait here, and then find the entry
        payload = store.load(key)
        if payload is None:
            payload = compute()
            store.save(key, payload)

No error of the file system is raised: a load misses, a save does nothing, and one warning says why.
The same warning appears again only after the operation has succeeded in between, and at most once a
minute: on a full disk, some saves succeed and others do not.

Entries need not survive a crash of the machine (no fsync). Other programs of the same user are not
guarded against. Files with names that this module does not use are never touched.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import math
import os
import re
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from .entry import FOLDER_FORMAT

logger = logging.getLogger(__name__)

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_SUFFIX = ".embedding"
_UNFINISHED = re.compile(r"\.writing-[0-9a-f]{16}")
_FOLDER_LOCK = ".lock"
_KEY_LOCKS = 64

_POLL_S = 0.005  # flock has no timeout: it waits for ever or not at all
LOG_EVERY_S = 60.0
_SAVE_TIMEOUT_S = 2.0  # a save takes milliseconds, so a process that holds the lock longer is stuck


class FolderStore:
    """Entries in a folder, with a bound on their bytes. The least recently used are removed first.

    Any number of threads and processes may use one folder, through one store or several.

    Args:
        directory: the folder. It is created, readable by this user only, if it is missing. It is
            not used unless it belongs to this user and nobody else may write to it: otherwise
            anybody on the machine could plant embeddings.
        max_bytes: the bound for entries and unfinished files together. They also take no more than
            90 % of the file system (Docker's /dev/shm has 64 MB).
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._warned: dict[str, set[str]] = {}  # operation -> reasons already logged
        self._logged: dict[tuple[str, str], float] = {}  # (operation, reason) -> time of the log

    @property
    def usable(self) -> bool:
        """Whether the folder can be used. It is created if it is missing."""
        with suppress(_Abandoned), self._locked(_FOLDER_LOCK, 0):
            return True
        return False

    def load(self, key: str) -> bytes | None:
        """Return the payload that was saved under `key`, or None."""
        name = _entry_name(key)
        with suppress(_Abandoned), self._folder() as folder, self._logging_errors("read", name):
            try:
                return _read_entry(folder, key, self._max_bytes)
            except FileNotFoundError:
                raise _Abandoned from None  # a miss: neither a failure nor a success to be logged
            except _BadEntry:
                with suppress(OSError):
                    os.unlink(name, dir_fd=folder)
                raise
        return None

    def save(self, key: str, payload: bytes | memoryview) -> None:
        """Save `payload` under `key` if possible, and remove old entries if that is necessary."""
        name = _entry_name(key)
        content = memoryview(payload).cast("B")
        size = _allocated(FOLDER_FORMAT.header_size + len(content))
        header = FOLDER_FORMAT.header(key, content)
        locked = self._locked(_FOLDER_LOCK, _SAVE_TIMEOUT_S)
        with suppress(_Abandoned), locked as folder, self._logging_errors("write", name):
            if folder is None:
                raise OSError(f"the folder was locked for {_SAVE_TIMEOUT_S:g} s")
            bound = min(self._max_bytes, _most_it_can_hold(folder))
            if size > bound:
                logger.debug("%s is not kept: %d bytes; the limit is %d.", name, size, bound)
                raise _Abandoned
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
        """Let one thread of one process at a time work on `key`.

        Yields True while the lock is held. Yields False if it was not free in time, or the folder
        is unusable; the caller then continues without it. Some keys share a lock, so a thread must
        not hold two. The lock is released when its process dies.
        """
        number = zlib.crc32(_entry_name(key).encode()) % _KEY_LOCKS
        with ExitStack() as stack:
            folder = None
            with suppress(_Abandoned):
                folder = stack.enter_context(self._locked(f".lock-{number:02}", timeout_s))
            yield folder is not None

    @contextmanager
    def _locked(self, name: str, timeout_s: float) -> Iterator[int | None]:
        """Hold a lock file. Yield the folder's descriptor, or None after the timeout.

        Each attempt opens the folder and the file again, so that a waiting process notices if one
        of them was deleted and created again.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with self._folder() as folder:
                with self._logging_errors("lock", name):
                    lock = _try_lock(folder, name)
                if lock is not None:
                    try:
                        yield folder
                    finally:
                        with suppress(OSError):
                            # Closing does not unlock if a forked child has the file open, too.
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
        with self._logging_errors("use", ""):
            folder = _open_folder(self._directory)
        try:
            yield folder
        finally:
            os.close(folder)

    @contextmanager
    def _logging_errors(self, operation: str, name: str) -> Iterator[None]:
        """Log an error of the block once, and again only after `operation` has succeeded.

        The same line is logged once a minute at most.
        """
        try:
            yield
        except OSError as exc:
            reason = exc.strerror or str(exc)
            reasons = self._warned.setdefault(operation, set())
            last, now = self._logged.get((operation, reason), -math.inf), time.monotonic()
            if reason not in reasons and now - last >= LOG_EVERY_S:
                reasons.add(reason)
                self._logged[operation, reason] = now
                path = self._directory / name
                logger.warning("Stored embeddings: cannot %s %s: %s.", operation, path, reason)
            raise _Abandoned from exc
        self._warned.pop(operation, None)


class _Abandoned(Exception):
    """The operation cannot continue. Its error, if it is one, has been logged."""


class _BadEntry(OSError):
    """The file is no entry, is damaged, or belongs to another key."""


def _entry_name(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"not a key: {key!r}")
    return key + _SUFFIX


def _allocated(size: int) -> int:
    # tmpfs allocates pages. st_blocks would be exact on any file system, but is known only after
    # writing, when it is too late to remove entries.
    return -(-size // 4096) * 4096


def _most_it_can_hold(folder: int) -> int:
    status = os.fstatvfs(folder)
    # A tmpfs without a limit reports 0 blocks.
    return status.f_blocks * status.f_frsize * 9 // 10 or 1 << 63


def _open_folder(path: Path) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    if path.is_symlink():
        raise OSError("it is a symbolic link; a folder is required")
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
        # Do not follow a symbolic link, and do not wait for the other end of a FIFO.
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=folder)

    return open(name, mode, opener=opener)


def _try_lock(folder: int, name: str) -> int | None:
    """Return the descriptor of the locked file, or None if another process holds the lock."""
    with suppress(BlockingIOError, FileNotFoundError), ExitStack() as undo:
        lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder)
        undo.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A lock on a file that was deleted since it was opened would exclude nobody.
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
        header = file.read(FOLDER_FORMAT.header_size)
        length = FOLDER_FORMAT.declared_length(header)
        if length is None:
            raise _BadEntry("it is of another kind or version")
        if status.st_size != FOLDER_FORMAT.header_size + length or status.st_size > bound:
            raise _BadEntry("its length is wrong")
        content = file.read(length)
        if FOLDER_FORMAT.header(key, content) != header:
            raise _BadEntry("it is damaged, or was saved under another key")
        with suppress(OSError):
            _touch(file)
    return content


def _write_entry(folder: int, name: str, header: bytes, content: memoryview) -> None:
    """Write a file under a temporary name and rename it, so that no process reads half an entry."""
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
    # With this process's clock: the file system's clock has a resolution of some milliseconds.
    now = time.time_ns()
    os.utime(file.fileno(), ns=(now, now))


def _make_room(folder: int, name: str, size: int, bound: int | None) -> None:
    """Remove entries until `size` bytes more are within `bound`.

    If `bound` is None, remove entries of `size` bytes. The entry `name`, which is to be replaced,
    is removed first, then the least recently used ones.

    The caller must hold the folder's lock. Then no process is writing, so unfinished files belong
    to processes that died.
    """
    entries = []
    with os.scandir(folder) as files:
        for file in files:
            if _UNFINISHED.fullmatch(file.name):
                _remove(folder, file.name)
            elif file.name.endswith(_SUFFIX) and file.is_file(follow_symlinks=False):
                with suppress(
                    FileNotFoundError
                ):  # a load in another process removed a damaged entry
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
