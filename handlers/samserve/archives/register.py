"""This module registers weights: it fetches and checks them, and builds and installs their archive.

    python -m samserve.archives.register < registration.json

The gateway runs it as a process. The input is one JSON object (`Registration`). The output is lines
of JSON on stdout: `{"message", "percent"}` for progress, and one `{"registered": …}` or
`{"error": …}` at the end.

It works in the folder `incoming`, which the gateway clears afterwards. The gateway then tells
TorchServe about the archive.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

from samserve.errors import InvalidField, InvalidWeights, SamserveError, TooLarge, Unreachable
from samserve.model_types import MADE_FROM_WEIGHTS, sha256_of
from samserve.serving.lanes import REGISTERED, registered_family
from samserve.weights.download import DownloadFailed, TooLong, download

from .build import build_if_stale, unpack_archive

REPORT_EVERY_S = 0.1
MAX_MESSAGE = 2000  # the names in a checkpoint may have any length

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


def main() -> None:
    """Register weights. The exit status is 0 even if they are refused: stdout reports that."""
    # Output of libraries and of the archiver goes to stderr, for the log, not among the events.
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.nice(10)  # segmentation requests have priority

    def send(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")

    try:
        weights = register(
            Registration(**json.load(sys.stdin)),
            lambda message, percent: send(message=message, percent=percent),
        )
    except SamserveError as error:
        error.message = error.message[:MAX_MESSAGE]
        send(**error.body())
    else:
        send(registered=weights)


def register(registration: Registration, report: Report) -> dict[str, str]:
    """Register weights, and return the content of `weights.json`.

    Raises:
        InvalidField: the address is not allowed.
        Unreachable: the download failed.
        TooLarge: the weights have more than `max_bytes`.
        InvalidWeights: the file is not a checkpoint of the model type.
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
    build_if_stale(archive, registration.type, weights)
    # Weights count as registered as soon as their file is there, so it is moved last.
    derived = (incoming / f"{family}-{suffix}" for suffix in MADE_FROM_WEIGHTS)
    for path in (*derived, sidecar, weights):
        if path.exists():
            shutil.move(path, kept / path.name)
    unpack_archive(archive, Path(registration.models_dir) / family)
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
            raise InvalidWeights(f"{registration.url}: cannot be read: {exc}", "url") from exc
        if (
            unpacked > registration.max_bytes
        ):  # a small file that decompresses to more than the limit
            raise TooLarge(f"{registration.url} unpacks to {unpacked} bytes.", "url")
    try:
        # Building the archive logs the entries that are left out.
        tensors = open_checkpoint(weights).tensors
        model_from(registration.type, tensors, origin=str(weights))
    except CheckpointError as exc:
        raise InvalidWeights(str(exc).replace(str(weights), registration.url), "url") from exc


def _download(registration: Registration, target: Path, report: Report) -> None:
    parts = Path(registration.parts)
    part = parts / hashlib.sha256(registration.url.encode()).hexdigest()
    etag = part.with_suffix(".etag")
    parts.mkdir(exist_ok=True)
    for other in parts.iterdir():  # only one partial download is kept
        if other not in (part, etag):
            other.unlink()
    last_report = 0.0

    def progress(done: int, total: int | None) -> None:
        nonlocal last_report
        if done == total or time.monotonic() - last_report >= REPORT_EVERY_S:
            last_report = time.monotonic()
            of = "" if total is None else f" of {total / 1e6:.1f}"
            percent = 100 * done // total if total else 0
            report(f"{registration.name}: {done / 1e6:.1f}{of} MB downloaded", percent)

    try:
        download(
            registration.url,
            part,
            max_bytes=registration.max_bytes,
            progress=progress,
            check=lambda url: _check_origin(url, registration.origins),
            etag=etag,
        )
    except TooLong as exc:
        raise TooLarge(
            f"{registration.url} has {exc}; this server's limit is {registration.max_bytes}.", "url"
        ) from exc
    except DownloadFailed as exc:
        kept = part.stat().st_size if part.exists() and etag.exists() else 0
        again = f" {kept} bytes are kept to resume." if kept else ""
        raise Unreachable(
            f"{registration.url} did not send the whole file: {exc}.{again}", "url"
        ) from exc
    part.replace(target)


def _check_origin(url: str, origins: list[str]) -> None:
    """Refuse an address of another origin, or one that two parsers could read differently."""
    address = _ADDRESS.fullmatch(url)
    if address is None:
        raise InvalidField(
            f"url: {url[:200]!r} is not the address of a file. It must not have spaces or "
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
        f"url: there is no file {registration.url!r} in the weights folder.", "url"
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
                f"{registration.url} has {status.st_size} bytes; "
                f"this server's limit is {registration.max_bytes}.",
                "url",
            )
        with target.open("wb") as copy:
            shutil.copyfileobj(content, copy)


if __name__ == "__main__":
    main()
