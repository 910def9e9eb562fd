"""This module registers weights: it fetches and checks them, and builds and installs their archive.

    python -m samserve.archives.register [PARENT] < registration.json

The gateway starts this process and passes its own process id as PARENT. If the gateway ends, Linux
then kills this process, which would otherwise go on. The input is one JSON object (`Registration`).
The output is lines of JSON on stdout: `{"message", "percent"}` for progress, and one
`{"registered": …}` or `{"error": …}` at the end.

It works in the folder `incoming`, which the gateway clears afterwards. The gateway then tells
TorchServe about the archive.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

from samserve import parents
from samserve.errors import (
    InvalidField,
    InvalidWeights,
    NoRoom,
    SamserveError,
    TooLarge,
    Unreachable,
    quoted,
)
from samserve.model_types import MADE_FROM_WEIGHTS, sha256_of
from samserve.serving.lanes import REGISTERED, registered_family
from samserve.weights.download import DownloadFailed, Pace, TooLong, download

from .build import build_if_stale, unpack_archive
from .digests import DamagedArchive

REPORT_EVERY_S = 0.1

FULL_BYTES = 2**20
"""A disk with less room is full."""

FIRST_BYTE_S = 60.0
"""Longest time until the first byte of the file. No pace is known before: a host may send the
headers of its answers one byte at a time."""

TIMES_THE_FILE = 4
"""Bytes on the disk while weights of one byte are registered: the file, the form in which it is
served, the archive, and the archiver's copy; in the end the unpacked archive."""

# Scheme, host and port in plain characters; then anything but spaces, controls and backslashes.
_ADDRESS = re.compile(
    r"https?://[^\s\0-\x20\x7f\\/?#@%]+(?:[/?#][^\s\0-\x20\x7f\\]*)?", re.IGNORECASE
)

Report = Callable[[str, int], None]
"""Called with a message, and the percentage of the download."""


@dataclass(frozen=True)
class Registration:
    """The weights to register, and the bounds for them.

    Attributes:
        type, name, url: the fields of the client's request.
        incoming: an empty folder to work in.
        parts: the folder for downloads that broke off.
        weights_dir, model_store, models_dir: the folders for weights, archives and unpacked
            archives.
        origins: the origins (`https://host`) that a download may contact.
        max_bytes: the largest size of the weights.
        download_s: the longest time of a download.
        min_rate: the bytes a second that a download has at least, over a minute.
    """

    type: str
    name: str
    url: str
    incoming: str
    parts: str
    weights_dir: str
    model_store: str
    models_dir: str
    origins: list[str]
    max_bytes: int
    download_s: float = 3600.0
    min_rate: float = 10_000.0

    @property
    def shown(self) -> str:
        """The URL in messages. It may have 2,000 characters."""
        return self.url if len(self.url) <= 100 else f"{self.url[:100]}…"


def main() -> None:
    """Register weights. The exit status is 0 even if they are refused: stdout reports that."""
    # Output of libraries and of the archiver goes to stderr, for the log, not among the events.
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.nice(10)  # segmentation requests have priority
    if len(sys.argv) > 1:
        parents.die_with_parent(int(sys.argv[1]))

    def send(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")

    registration = Registration(**json.load(sys.stdin))
    try:
        with full_disks_refused(registration):
            weights = register(
                registration, lambda message, percent: send(message=message, percent=percent)
            )
    except SamserveError as error:
        send(**error.body())
    else:
        send(registered=weights)


@contextlib.contextmanager
def full_disks_refused(registration: Registration) -> Iterator[None]:
    """Raise NoRoom if the block fails because a disk is full.

    PyTorch and the archiver report a full disk in ways of their own; so the disks are looked at.
    """
    try:
        yield
    except (OSError, RuntimeError, SystemExit) as exc:
        folders = (registration.weights_dir, registration.model_store, registration.models_dir)
        full = [folder for folder in folders if _free_bytes(folder) < FULL_BYTES]
        is_full = isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and not is_full:
            raise
        print(f"A disk is full: {exc}", file=sys.stderr)
        raise NoRoom("The disk is full. Nothing of the registration is kept.", "url") from exc


def _free_bytes(folder: str) -> int:
    existing = Path(folder)
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def check_room(registration: Registration, n_bytes: int) -> None:
    """Raise NoRoom if the disk has too little room for weights of this size."""
    free = _free_bytes(registration.weights_dir)
    if free < TIMES_THE_FILE * n_bytes:
        raise NoRoom(
            f"{registration.shown} has {n_bytes} bytes. Its registration takes "
            f"{TIMES_THE_FILE} times as many on the disk, and {free} are free.",
            "url",
        )


def register(registration: Registration, report: Report) -> dict[str, str]:
    """Register weights, and return the content of `weights.json`.

    Raises:
        InvalidField: the address is not allowed.
        Unreachable: the download failed.
        TooLarge: the weights have more than `max_bytes`.
        InvalidWeights: the file is not a checkpoint of the model type.
        NoRoom: the disk has too little room.
    """
    family = registered_family(registration.type, registration.name)
    incoming, kept = Path(registration.incoming), Path(registration.weights_dir) / REGISTERED
    weights = incoming / f"{family}.pt"
    source = fetch_weights(registration, weights, report)
    report(f"{registration.name}: checking", 100)
    check_weights(registration, weights)
    described = {
        "type": registration.type,
        "name": registration.name,
        "url": registration.url,
        "source": source,
        "sha256": sha256_of(weights),
    }
    sidecar = weights.with_suffix(".json")
    sidecar.write_text(json.dumps(described, indent=2) + "\n")
    report(f"{registration.name}: building the archive", 100)
    archive = incoming / f"{family}.mar"
    try:
        build_if_stale(archive, registration.type, weights)
    except SystemExit as exc:
        print(exc, file=sys.stderr)
        raise InvalidWeights(
            f"{registration.shown}: its archive cannot be built; the server's log says why.",
            "url",
        ) from exc
    # Weights count as registered as soon as their file is there, so it is moved last.
    derived = (incoming / f"{family}-{suffix}" for suffix in MADE_FROM_WEIGHTS)
    for path in (*derived, sidecar, weights):
        if path.exists():
            shutil.move(path, kept / path.name)
    try:
        unpack_archive(archive, Path(registration.models_dir) / family)
    except DamagedArchive as exc:
        raise InvalidWeights(
            f"{registration.shown}: a file changed during the registration: {exc}.", "url"
        ) from exc
    shutil.move(archive, Path(registration.model_store) / archive.name)
    return described


def fetch_weights(registration: Registration, target: Path, report: Report) -> str:
    """Put the weights of a registration's URL at `target`, and return the kind of source.

    Raises:
        InvalidField, Unreachable, TooLarge: see `register`.
    """
    try:
        url = urlsplit(registration.url)
    except ValueError as exc:
        raise InvalidField(f"url: {exc}.", "url") from exc
    if url.scheme in ("http", "https"):
        _download(registration, target, report)
        return "downloaded"
    if url.scheme == "file" and url.netloc in ("", "localhost"):
        _copy(unquote(url.path), registration, target)
    elif not url.scheme:
        _copy(registration.url, registration, target)
    else:
        raise InvalidField(
            f"url: weights cannot come by {url.scheme}: send an https address, or the name of a "
            "file in the weights folder.",
            "url",
        )
    return "weights folder"


def check_weights(registration: Registration, weights: Path) -> None:
    """Raise InvalidWeights unless the file is a checkpoint of its type, with finite numbers."""
    # Imported here, because torch takes seconds to import, and a failed download does not need it.
    from samserve.network.checkpoints import CheckpointError, model_from, open_checkpoint

    if zipfile.is_zipfile(weights):
        try:
            with zipfile.ZipFile(weights) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as exc:
            raise InvalidWeights(f"{registration.shown}: cannot be read: {exc}", "url") from exc
        if (
            unpacked > registration.max_bytes
        ):  # a small file that decompresses to more than the limit
            raise TooLarge(f"{registration.shown} unpacks to {unpacked} bytes.", "url")
    try:
        # Building the archive logs the entries that are left out.
        tensors = open_checkpoint(weights).tensors
        model_from(registration.type, tensors, origin=str(weights))
    except CheckpointError as exc:
        raise InvalidWeights(str(exc).replace(str(weights), registration.shown), "url") from exc


def _download(registration: Registration, target: Path, report: Report) -> None:
    parts = Path(registration.parts)
    part = parts / hashlib.sha256(registration.url.encode()).hexdigest()
    etag = part.with_suffix(".etag")
    parts.mkdir(exist_ok=True)
    for other in parts.iterdir():  # only one partial download is kept
        if other not in (part, etag):
            other.unlink()
    last_report = 0.0
    begun = False

    def progress(done: int, total: int | None) -> None:
        nonlocal last_report, begun
        if not begun:
            begun = True
            signal.setitimer(signal.ITIMER_REAL, 0)
            check_room(registration, total or 0)
        if done == total or time.monotonic() - last_report >= REPORT_EVERY_S:
            last_report = time.monotonic()
            of = "" if total is None else f" of {total / 1e6:.1f}"
            percent = 100 * done // total if total else 0
            report(f"{registration.name}: {done / 1e6:.1f}{of} MB downloaded", percent)

    try:
        with _first_byte_in_time():
            download(
                registration.url,
                part,
                max_bytes=registration.max_bytes,
                progress=progress,
                check=lambda url: _check_origin(url, registration.origins),
                etag=etag,
                pace=Pace(registration.download_s, registration.min_rate),
            )
    except TooLong as exc:
        raise TooLarge(
            f"{registration.shown} has {exc}; this server's limit is {registration.max_bytes}.",
            "url",
        ) from exc
    except DownloadFailed as exc:
        kept = part.stat().st_size if part.exists() and etag.exists() else 0
        again = f" {kept} bytes are kept to resume." if kept else ""
        raise Unreachable(
            f"{registration.shown} did not send the whole file: {exc}.{again}", "url"
        ) from exc
    part.replace(target)


@contextlib.contextmanager
def _first_byte_in_time() -> Iterator[None]:
    """Raise DownloadFailed within the block after FIRST_BYTE_S, unless the timer is stopped."""

    def stop(*_: object) -> None:
        raise DownloadFailed(f"it did not begin to send the file within {FIRST_BYTE_S:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, FIRST_BYTE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _check_origin(url: str, origins: list[str]) -> None:
    """Refuse an address of another origin, or one that two parsers could read differently."""
    address = _ADDRESS.fullmatch(url)
    if address is None:
        raise InvalidField(
            f"url: {quoted(url)} is not the address of a file. It must not have spaces or "
            "backslashes, nor '@' or '%' before the path.",
            "url",
        )
    try:
        origin = _origin(parse_url(url))
    except LocationParseError as exc:
        raise InvalidField(f"url: {exc}.", "url") from exc
    if origin not in {_origin(parse_url(allowed)) for allowed in origins}:
        raise InvalidField(
            f"url: weights may not come from {origin}, only from {', '.join(origins)}, or "
            "from the weights folder. The server's administrator can allow other origins, also for "
            "redirects, in SAMSERVE_WEIGHTS_ORIGINS.",
            "url",
        )


def _origin(url: Url) -> str:
    return f"{url.scheme}://{url.host}:{url.port or {'https': 443, 'http': 80}[str(url.scheme)]}"


def _copy(path: str, registration: Registration, target: Path) -> None:
    """Copy a file of the weights folder, so that it can be changed or removed later."""
    refused = InvalidField(
        f"url: there is no file {quoted(registration.url)} in the weights folder.", "url"
    )
    folder = Path(registration.weights_dir).resolve()
    try:
        source = (folder / path).resolve()
        if not source.is_relative_to(folder) or not source.is_file():
            raise refused
        file = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError, RuntimeError) as exc:  # not a path, or a loop of links
        raise refused from exc
    with open(file, "rb") as content:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise refused
        if status.st_size > registration.max_bytes:
            raise TooLarge(
                f"{registration.shown} has {status.st_size} bytes; "
                f"this server's limit is {registration.max_bytes}.",
                "url",
            )
        check_room(registration, status.st_size)
        with target.open("wb") as copy:
            shutil.copyfileobj(content, copy)


if __name__ == "__main__":
    main()
