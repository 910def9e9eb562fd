"""One request each that takes as much as it can: its name, and its bytes.

The first eight are those with which one client once stopped this server for everybody.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from tests.support import hostile_pictures, raw_requests
from tests.support.picture_files import chunk
from tests.support.raw_requests import BOUNDARY, CLOSE, JSON, form, part, post

N = 63_000_000
HEAD = raw_requests.HEAD + CLOSE + b"\r\n"


def request(body: bytes, path: str = "/sam/") -> list[bytes]:
    """Return a request after whose answer the server hangs up."""
    return post(body, JSON, CLOSE, path=path.encode())


def segment(picture: bytes, path: str = "/sam/", **fields: Any) -> list[bytes]:
    """Return a request to segment a picture: by a box in its middle, unless a field says more."""
    prompt = {} if fields else {"bbox": [10, 10, 90, 90]}
    text = base64.b64encode(picture).decode()
    return request(json.dumps({"type": "vit_t", "b64img": text, **prompt, **fields}).encode(), path)


def striped_png(side: int) -> bytes:
    """Return a small PNG of many pixels, whose masks are large."""
    rows = zlib.compressobj(1)
    dark, light = bytes(side), bytes([255]) * side
    content = b"".join(
        rows.compress(b"\0" + (light if side // 4 < y < side * 3 // 4 else dark))
        for y in range(side)
    )
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", content + rows.flush())
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def _many_boxes(count: int, masks: int) -> list[bytes]:
    side = hostile_pictures.SIDE
    box = [side // 5, side // 5, side - 9, side - 9]
    picture = striped_png(side)
    return segment(picture, prompts=[{"bbox": box}] * count, multimask_output=masks > 1)


@lru_cache
def noise_png(side: int) -> bytes:
    """Return noise, whose masks have outlines everywhere."""
    return save_png(np.random.default_rng(0).integers(0, 256, (side, side), np.uint8))


@lru_cache
def drawn_png(side: int) -> bytes:
    return save_png(np.random.default_rng(1).integers(0, 2, (side, side), np.uint8) * 255)


def save_png(pixels: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


@lru_cache
def animation(side: int) -> bytes:
    """Return an animated WebP whose frames are hard to decode."""
    stream = io.BytesIO()
    first, second = (
        Image.fromarray(
            np.random.default_rng(seed).integers(0, 256, (side // 4, side // 4, 3), np.uint8)
        ).resize((side, side))
        for seed in (0, 1)
    )
    first.save(stream, "WEBP", save_all=True, append_images=[second], quality=80, method=0)
    return stream.getvalue()


_NUMBERS = itertools.count()


def new(webp: bytes) -> bytes:
    """Return the same picture as another file, which the server has never seen."""
    return webp + chunk_of_webp(str(next(_NUMBERS)).encode())


def chunk_of_webp(data: bytes) -> bytes:
    return b"XMP " + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def new_picture() -> bytes:
    """Return a small picture that the server has never seen."""
    pixels = np.zeros((64, 64), np.uint8)
    pixels[0, :8] = np.frombuffer(struct.pack("<Q", next(_NUMBERS)), np.uint8)
    return save_png(pixels)


def filled_jpeg(count: int) -> bytes:
    """Return a JPEG with so many fill bytes before its first marker."""
    stream = io.BytesIO()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(stream, "JPEG")
    jpeg = stream.getvalue()
    return jpeg[:2] + b"\xff" * count + jpeg[2:]


def column_png(height: int) -> bytes:
    """Return a PNG that is one pixel wide."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, height, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(2 * height)))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def noisy(side: int, boxes: int = 3, **fields: Any) -> list[bytes]:
    """Return a request for complex masks."""
    box = {"bbox": [10, 10, side - side // 30, side - side // 30]}
    return segment(noise_png(side), prompts=[box] * boxes, **{"multimask_output": True, **fields})


def drawn(side: int, sent: int) -> list[bytes]:
    text = base64.b64encode(drawn_png(sent)).decode()
    return segment(noise_png(side), bbox=[10, 10, side - 9, side - 9], b64mask=text)


def many_points(side: int, prompts: int) -> list[bytes]:
    points = [[7 * n % side, 11 * n % side] for n in range(256)]
    prompt = {"point_coords": points, "point_labels": [1, 0] * 128}
    return segment(noise_png(side), prompts=[prompt] * prompts)


@dataclass(frozen=True)
class Manner:
    """How an attack is sent.

    Attributes:
        clients: so many clients send it at once. If there are several rounds, one sends the first.
        rounds: it is sent so often at least. The first time, the picture is new to the server.
        fresh: it is made anew each time.
    """

    clients: int = 1
    rounds: int = 1
    fresh: bool = False


ATTACKS: dict[str, Callable[[], Iterable[bytes]]] = {
    "63 MB of nested lists in an unknown field": lambda: request(
        b'{"type": "vit_t", "x": ' + b"[" * (N // 2) + b"]" * (N // 2) + b"}"
    ),
    "63 MB of nearly-boundaries in a form": lambda: form(
        part(b"type", b"vit_t"),
        part(b"image", (b"\r\n--" + BOUNDARY[:-1]) * (N // 34)),
        headers=[CLOSE],
    ),
    "a header of 100 MB": lambda: [HEAD, b"A: ", *[b"a" * 2**20] * 100, b"\r\n\r\n"],
    "6.5 million headers": lambda: [HEAD, *[b"abc: d\r\n" * 2**17] * 50, b"\r\n"],
    "10,000x10,000, 16 boxes, three masks each": lambda: _many_boxes(16, 3),
    "10,000x10,000, 32 boxes": lambda: _many_boxes(32, 1),
    "a sequential JPEG of 3,000 scans": lambda: segment(hostile_pictures.sequential_jpeg()),
    "a progressive JPEG of 199 scans": lambda: segment(hostile_pictures.progressive_jpeg()),
    "a TIFF of many strips at one offset": lambda: segment(hostile_pictures.many_strips()),
    # Their siblings, and others.
    "a TIFF of many tiles at one offset": lambda: segment(hostile_pictures.many_tiles()),
    "an interlaced PNG in chunks of 8 bytes": lambda: segment(hostile_pictures.interlaced_png()),
    "a lossless WebP of 100 MP": lambda: segment(hostile_pictures.lossless_webp()),
    "a TIFF of floats": lambda: segment(hostile_pictures.predicted_tiff()),
    "10,000x10,000, 16 boxes, within the limit": lambda: _many_boxes(16, 1),
    "an automask of 100 MP with 262,144 points": lambda: segment(
        striped_png(10_000), "/sam/automask/", points_per_side=512, timeout_s=10
    ),
    "63 MB of numbers": lambda: request(b'{"type": "vit_t", "x": [' + b"1," * (N // 2) + b"1]}"),
    "63 MB of base64 that is no picture": lambda: request(
        b'{"type": "vit_t", "bbox": [1, 1, 2, 2], "b64img": "' + b"abcd" * (N // 4) + b'"}'
    ),
    "63 MB of escapes": lambda: request(
        b'{"type": "vit_t", "b64img": "' + b"\\u00e9" * (N // 6) + b'"}'
    ),
    "noise, 3 boxes, simplified": lambda: noisy(3000, simplify=1),
    "noise, 3 boxes, simplified, four clients": lambda: noisy(3000, simplify=1),
    "noise, 3 boxes, exact, four clients": lambda: noisy(3000),
    "noise, 8 boxes, far simplified, four clients": lambda: noisy(900, boxes=8, simplify=1000),
    "noise as run lengths, four clients": lambda: noisy(5600, output_format="coco_rle"),
    "noise, eight prompts of 256 points, four clients": lambda: many_points(1024, 8),
    "a drawn mask of 31 MP": lambda: drawn(5600, 5600),
    "a drawn mask of 31 MP, four clients": lambda: drawn(5600, 5600),
    "a drawn mask that is larger than its picture": lambda: drawn(300, 5600),
    "a new animated WebP of 16 MP": lambda: segment(new(animation(4000))),
    "a new animated WebP of 16 MP, four clients": lambda: segment(new(animation(4000))),
    "new small pictures of 16 clients": lambda: segment(new_picture()),
    "a PNG of one column of 100 MP": lambda: segment(column_png(10**8)),
    "a JPEG with 45 MB of fill bytes": lambda: segment(filled_jpeg(45_000_000)),
    "chunks of one byte": lambda: [
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
        *[b"1\r\n \r\n" * 2**17] * 80,
    ],
}
"""The requests by name. Each is made anew, because some are large."""

MANNERS = {
    "noise, 3 boxes, simplified": Manner(rounds=2),
    "noise, 3 boxes, simplified, four clients": Manner(clients=4, rounds=2),
    "noise, 3 boxes, exact, four clients": Manner(clients=4, rounds=2),
    "noise, 8 boxes, far simplified, four clients": Manner(clients=4, rounds=2),
    "noise as run lengths, four clients": Manner(clients=4, rounds=2),
    "noise, eight prompts of 256 points, four clients": Manner(clients=4, rounds=2),
    "a drawn mask of 31 MP": Manner(rounds=2),
    "a drawn mask of 31 MP, four clients": Manner(clients=4, rounds=2),
    "a new animated WebP of 16 MP": Manner(fresh=True),
    "new small pictures of 16 clients": Manner(clients=16, rounds=2, fresh=True),
    "a new animated WebP of 16 MP, four clients": Manner(clients=4, fresh=True),
}
"""The attacks that are not sent by one client, once or more often."""
