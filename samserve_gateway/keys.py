"""Reads and writes the file of API keys. It holds the keys' hashes, never the keys.

One key a line: its name, its SHA-256, and the role `admin` if it is an administrator's. Empty lines
and lines that begin with `#` are ignored:

    # Lab of pathology
    alice  sha256:9f86d081…
    bob    sha256:60303ae2…  admin

`samserve keys` makes the file. The gateway reads it again when it has changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

PREFIX = "sam_"
"""Every key begins with it: so a leaked key is recognised, and none looks like a flag."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
ADMIN = "admin"

MAX_FILE_BYTES = 2**20
LOOK_EVERY_S = 1.0
"""How often the gateway looks whether the file has changed."""

_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_HEADER = "# API keys of samserve: name, hash, role. `samserve keys` adds and removes them.\n"


class KeysFileError(Exception):
    """The file of API keys cannot be used. The message names the file and the reason."""


@dataclass(frozen=True)
class Key:
    """One line of the file.

    Attributes:
        digest: `sha256:` and the hexadecimal SHA-256 of the key.
        admin: whether it may register weights.
    """

    name: str
    digest: str
    admin: bool = False

    def line(self) -> str:
        return " ".join([self.name, self.digest, *([ADMIN] if self.admin else [])]) + "\n"


def new_key() -> str:
    """Return a new random key of 256 bits."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: bytes) -> str:
    """Return what the file holds of a key.

    SHA-256 is enough: a key has 256 random bits, so nobody can find it by trying. A slow hash is
    for passwords that people choose.
    """
    return "sha256:" + hashlib.sha256(key).hexdigest()


def parse(text: str, where: str) -> dict[str, Key]:
    """Return the keys of a file by their digests.

    Raises:
        KeysFileError: a line is wrong, or a name or a key stands in two lines.
    """
    keys: dict[str, Key] = {}
    names: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        # No message repeats the line: somebody may have written a key into it.
        name, digest, roles = words[0], "".join(words[1:2]), words[2:]
        if not NAME.fullmatch(name) or not _HASH.fullmatch(digest) or roles not in ([], [ADMIN]):
            raise KeysFileError(
                f"{where}, line {number}: a line has a name, `sha256:` with 64 hexadecimal digits, "
                f"and perhaps `{ADMIN}`."
            )
        if name in names or digest in keys:
            raise KeysFileError(f"{where}, line {number}: this name or key is in the file already.")
        names.add(name)
        keys[digest] = Key(name, digest, bool(roles))
    return keys


def read(path: Path) -> tuple[dict[str, Key], os.stat_result]:
    """Return the keys of a file by their digests, and the file's state.

    Raises:
        KeysFileError: it cannot be read, others may change it, or a line is wrong.
    """
    try:
        # O_NONBLOCK: opening a pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise KeysFileError(f"{path} is not a file.")
            if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise KeysFileError(
                    f"{path} may be changed by other users than its owner, who could add keys. "
                    f"Run: chmod go-w {path}"
                )
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise KeysFileError(f"{path} cannot be read: {exc.strerror}.") from exc
    if len(content) > MAX_FILE_BYTES:
        raise KeysFileError(f"{path} has more than {MAX_FILE_BYTES} bytes.")
    try:
        return parse(content.decode(), str(path)), state
    except UnicodeDecodeError as exc:
        raise KeysFileError(f"{path} is not text in UTF-8.") from exc


class KeysFile:
    """The keys of a file that may change while the gateway runs.

    Raises:
        KeysFileError: the file is wrong at the start. Later, a wrong file leaves the keys as they
            were, and is logged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys, state = read(path)
        self._seen: object = _version(state)
        self._looked = time.monotonic()

    def find(self, digest: str) -> Key | None:
        """Return the key with this digest; None if it is not in the file."""
        self._look()
        found = self._keys.get(digest)
        # Nobody can choose the digest of a guess, so the time of the search says nothing about the
        # keys. The comparison takes the same time for every digest.
        return found if found and hmac.compare_digest(found.digest, digest) else None

    def known(self) -> list[Key]:
        """Return all keys."""
        self._look()
        return list(self._keys.values())

    def _look(self) -> None:
        """Read the file again if it has changed."""
        if time.monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        try:
            seen: object = _version(os.stat(self._path))
        except OSError as exc:
            seen = exc.errno
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._keys, state = read(self._path)
            self._seen = _version(state)
        except KeysFileError as error:
            logger.error("The API keys stay as they were: %s", error)
        else:
            logger.warning("The API keys were read again: there are %d.", len(self._keys))


def _version(state: os.stat_result) -> tuple[int, ...]:
    """Return what changes when a file is written or replaced, or its mode is changed."""
    return (
        state.st_dev,
        state.st_ino,
        state.st_size,
        state.st_mtime_ns,
        state.st_ctime_ns,
        state.st_mode,
    )


def add(path: Path, key: Key) -> None:
    """Add a line to the file, which is made if it does not exist.

    Raises:
        KeysFileError: the file is wrong, or it has a key of this name.
    """
    with _alone(path):
        keys = read(path)[0] if path.exists() else {}
        if any(known.name == key.name for known in keys.values()):
            raise KeysFileError(f"{path} has a key named {key.name} already.")
        text = path.read_text() if path.exists() else _HEADER
        _replace(path, text + ("" if text.endswith("\n") or not text else "\n") + key.line())


def remove(path: Path, name: str) -> None:
    """Remove the key of this name. Other lines stay as they are.

    Raises:
        KeysFileError: the file is wrong, or it has no key of this name.
    """
    with _alone(path):
        keys, _ = read(path)
        if all(known.name != name for known in keys.values()):
            raise KeysFileError(f"{path} has no key of this name.")
        lines = path.read_text().splitlines(keepends=True)
        _replace(path, "".join(line for line in lines if line.split()[:1] != [name]))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other `samserve keys` commands out, so that none loses the change of another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _replace(path: Path, text: str) -> None:
    """Write the whole file at once: a gateway never reads half of it."""
    target = path.resolve()  # the file itself, if `path` is a link to it
    descriptor, unfinished = tempfile.mkstemp(prefix=".keys-", dir=target.parent)  # mode 0600
    try:
        with open(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            os.chmod(unfinished, stat.S_IMODE(target.stat().st_mode))
        os.replace(unfinished, target)
    except BaseException:
        os.unlink(unfinished)
        raise
