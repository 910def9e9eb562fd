"""Fetch weights, check them, and put them and their archive where they belong: the gateway's job.

    python -m samserve.archives.register < request.json

The request is one JSON object (`Request`); what happens is told in lines of JSON on stdout:
`{"message", "percent"}` on the way, and one `{"registered": …}` or `{"error": …}` at the end.

Works in the folder `incoming`, and leaves clearing it to who started this. Knows nothing of
TorchServe: the gateway tells it of the archive.
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
from samserve.weights import download as web

from .build import make, unpack

TELL_EVERY_S = 0.1
MAX_MESSAGE = 2000  # a checkpoint's own names may be of any length

# Scheme, host and port in plain characters; then anything but spaces, controls and backslashes.
_ADDRESS = re.compile(
    r"https?://[^\s\0-\x20\x7f\\/?#@%]+(?:[/?#][^\s\0-\x20\x7f\\]*)?", re.IGNORECASE
)

Tell = Callable[[str, int], None]
"""What happens, and how many percent of the download are there."""


@dataclass(frozen=True)
class Request:
    """What is to be registered, and within what bounds.

    Attributes:
        type, name, url: as the client asked.
        incoming: an empty folder to work in.
        parts: where a download that breaks off is kept.
        weights_dir, model_store, models_dir: where weights, archives and what is unpacked of
            these belong.
        origins: `https://host` that a download may touch.
        max_bytes: of the weights.
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
    """Exits with 0 also where the weights are refused: that is told."""
    # What libraries and the archiver print is for the log, and no event.
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.nice(10)  # who segments meanwhile comes first

    def send(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")

    try:
        weights = register(
            Request(**json.load(sys.stdin)),
            lambda message, percent: send(message=message, percent=percent),
        )
    except SamserveError as error:
        error.message = error.message[:MAX_MESSAGE]
        send(**error.body())
    else:
        send(registered=weights)


def register(request: Request, tell: Tell) -> dict[str, str]:
    """Do it, and give what `weights.json` says.

    Raises:
        InvalidField: nothing may come from there.
        Unreachable: nothing came, or not all.
        TooLarge: more than `max_bytes`.
        InvalidWeights: no checkpoint of this type.
    """
    family = registered_family(request.type, request.name)
    incoming, kept = Path(request.incoming), Path(request.weights_dir) / REGISTERED
    weights = incoming / f"{family}.pt"
    source = fetch(request, weights, tell)
    tell(f"{request.name}: checking", 100)
    check(request, weights)
    described = {
        "type": request.type,
        "name": request.name,
        "url": request.url,
        "source": source,
        "sha256": sha256_of(weights),
    }
    sidecar = weights.with_suffix(".json")
    sidecar.write_text(json.dumps(described, indent=2) + "\n")
    tell(f"{request.name}: making the archive", 100)
    archive = incoming / f"{family}.mar"
    make(archive, request.type, weights)
    # Weights count as registered once they are there, so what belongs to them comes before.
    made = (incoming / f"{family}-{made}" for made in MADE_FROM_WEIGHTS)
    for path in (*made, sidecar, weights):
        if path.exists():
            shutil.move(path, kept / path.name)
    unpack(archive, Path(request.models_dir) / family)
    shutil.move(archive, Path(request.model_store) / archive.name)
    return described


def fetch(request: Request, target: Path, tell: Tell) -> str:
    """Put at `target` what the URL means, and give the kind of source that this is.

    Raises:
        InvalidField, Unreachable, TooLarge: as `register`'s.
    """
    try:
        url = urlsplit(request.url)
    except ValueError as exc:
        raise InvalidField(f"url: {exc}.", "url") from exc
    if url.scheme in ("http", "https"):
        _download(request, target, tell)
        return "downloaded"
    if url.scheme == "file" and url.netloc in ("", "localhost"):
        _copy(unquote(url.path), request, target)
    elif not url.scheme:
        _copy(request.url, request, target)
    else:
        raise InvalidField(
            f"url: weights cannot come by {url.scheme}: send an https address, or the name of a "
            "file in the weights folder.",
            "url",
        )
    return "weights folder"


def check(request: Request, weights: Path) -> None:
    """Raises InvalidWeights unless the file is a checkpoint of its type, and nothing else."""
    # Heavy, and a download that fails does without.
    from samserve.network.checkpoints import CheckpointError, model_from, open_checkpoint

    if zipfile.is_zipfile(weights):
        try:
            with zipfile.ZipFile(weights) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as exc:
            raise InvalidWeights(f"{request.url}: cannot be read: {exc}", "url") from exc
        if unpacked > request.max_bytes:  # packed small, to fill the memory
            raise TooLarge(f"{request.url} unpacks to {unpacked} bytes.", "url")
    try:
        # What is left out of the file is told once, where the archive is made.
        tensors = open_checkpoint(weights).tensors
        model_from(request.type, tensors, origin=str(weights))
    except CheckpointError as exc:
        raise InvalidWeights(str(exc).replace(str(weights), request.url), "url") from exc
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InvalidWeights(f"{request.url}: {key} holds NaN or infinity.", "url")


def _download(request: Request, target: Path, tell: Tell) -> None:
    parts = Path(request.parts)
    part = parts / hashlib.sha256(request.url.encode()).hexdigest()
    etag = part.with_suffix(".etag")
    parts.mkdir(exist_ok=True)
    for other in parts.iterdir():  # one is enough to keep
        if other not in (part, etag):
            other.unlink()
    told = 0.0

    def progress(done: int, total: int | None) -> None:
        nonlocal told
        if done == total or time.monotonic() - told >= TELL_EVERY_S:
            told = time.monotonic()
            of = "" if total is None else f" of {total / 1e6:.1f}"
            percent = 100 * done // total if total else 0
            tell(f"{request.name}: {done / 1e6:.1f}{of} MB downloaded", percent)

    try:
        web.download(
            request.url,
            part,
            max_bytes=request.max_bytes,
            progress=progress,
            check=lambda url: _check_origin(url, request.origins),
            etag=etag,
        )
    except web.TooLong as exc:
        raise TooLarge(
            f"{request.url} has {exc}; this server's limit is {request.max_bytes}.", "url"
        ) from exc
    except web.Unreachable as exc:
        kept = part.stat().st_size if part.exists() and etag.exists() else 0
        again = f" {kept} bytes are kept for the next try." if kept else ""
        raise Unreachable(f"{request.url} gave no whole file: {exc}.{again}", "url") from exc
    part.replace(target)


def _check_origin(url: str, origins: list[str]) -> None:
    """Refuse an address of another origin, and one that two parsers could read differently."""
    address = _ADDRESS.fullmatch(url)
    if address is None:
        raise InvalidField(
            f"url: {url[:200]!r} is no address of a file. It must not hold spaces or backslashes, "
            "nor '@' or '%' before the path.",
            "url",
        )
    try:
        origin = _origin(parse_url(url))
    except LocationParseError as exc:
        raise InvalidField(f"url: {exc}.", "url") from exc
    if origin not in {_origin(parse_url(allowed)) for allowed in origins}:
        raise InvalidField(
            f"url: weights may not come from {origin}, only from {', '.join(origins)}, or "
            "from the weights folder. The server's administrator can allow other addresses, and "
            "those that they redirect to, in SAMSERVE_WEIGHTS_ORIGINS.",
            "url",
        )


def _origin(url: Url) -> str:
    return f"{url.scheme}://{url.host}:{url.port or {'https': 443, 'http': 80}[str(url.scheme)]}"


def _copy(path: str, request: Request, target: Path) -> None:
    """A copy, so that the file can be changed or removed later."""
    refused = InvalidField(f"url: there is no file {request.url!r} in the weights folder.", "url")
    folder = Path(request.weights_dir).resolve()
    try:
        source = (folder / path).resolve()
        if not source.is_relative_to(folder) or not source.is_file():
            raise refused
        file = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError, RuntimeError) as exc:  # no path at all, or a loop of links
        raise refused from exc
    with open(file, "rb") as content:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise refused
        if status.st_size > request.max_bytes:
            raise TooLarge(
                f"{request.url} has {status.st_size} bytes; "
                f"this server's limit is {request.max_bytes}.",
                "url",
            )
        with target.open("wb") as copy:
            shutil.copyfileobj(content, copy)


if __name__ == "__main__":
    main()
