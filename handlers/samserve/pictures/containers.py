"""This module removes the metadata from a PNG or JPEG, and reads sizes and counts of frames.

Profiles, texts and previews change no pixel, so the decoder does not get them. However large they
are, and whatever they decompress to, they take no time or memory, and are no reason to refuse a
file. Each function reads the lengths of the parts once and decompresses nothing.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

MAX_JPEG_SCANS = 200
"""The largest number of scans of a progressive JPEG that is decoded.

Each scan of a JPEG is a pass over the whole picture, and takes the sender ten bytes or more: 6 MB
of scans would occupy a worker for an hour. Encoders write about ten scans.
"""

MAX_SEQUENTIAL_SCANS = 10
"""The largest number of scans of another JPEG. Encoders write at most one for each component."""

MAX_SCANNED_PIXELS = 5 * 10**9
"""The largest product of a JPEG's scans and pixels. A fast core needs three seconds for it."""

_PNG_NAME = re.compile(rb"[A-Za-z]{4}")
_PNG_START = 8  # the signature's length

# A JPEG decoder reads APP0 (JFIF) and APP14 (Adobe), which declare the colour space.
_APP0, _APP14, _COMMENT = 0xE0, 0xEE, 0xFE
_START_OF_SCAN = 0xDA
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_FILL = re.compile(rb"\xff*")
_MARKER = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")  # in a scan: no stuffed byte, and no restart
_END = 0xD9
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_REFUSED_FRAMES = {0xC3: "lossless JPEG", 0xC5: "hierarchical JPEG", 0xC6: "hierarchical JPEG"}
_REFUSED_FRAMES |= dict.fromkeys(
    (0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF), "JPEG with arithmetic coding or a rare process"
)


@dataclass(frozen=True)
class Png:
    """A PNG without metadata.

    Attributes:
        data: the file with its critical chunks only.
        frames: the number of pictures in the file: more than one if it is animated.
    """

    data: bytes
    frames: int


def png_pixels(data: bytes) -> Png:
    """Return a PNG with its critical chunks only, and its number of frames.

    The names of critical chunks begin with a capital letter (PNG specification, 5.4). A damaged
    part and everything behind it stay as they are, so that the decoder reports the damage.
    """
    kept = [data[:_PNG_START]]
    at, frames, animated, still = _PNG_START, 0, False, 0
    # Consecutive critical chunks are copied together: pixels can come in thousands of chunks.
    run = at
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        name = data[at + 4 : at + 8]
        if not _PNG_NAME.fullmatch(name):
            break
        following = at + 12 + length
        if name[0] & 0x20:
            kept.append(data[run:at])
            animated |= name == b"acTL"
            frames += name == b"fcTL"
            run = following
        elif name == b"IDAT" and not frames:
            still = 1  # a picture apart from the frames of the animation
        elif name == b"IEND":
            break
        at = following
    pages = max(1, frames + still) if animated else 1
    if run == _PNG_START:
        return Png(data, pages)
    kept.append(data[run:])
    return Png(b"".join(kept), pages)


def jpeg_pixels(data: bytes) -> bytes:
    """Return a JPEG without the metadata and the fill bytes before its first scan.

    Pillow reads fill bytes one by one. A damaged part and everything behind it stay as they are.
    """
    kept, at, run = [], 2, 0
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            kept.append(data[run:at])
            run = at = _after_fill(data, at)
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == _START_OF_SCAN or length < 2 or marker < 0xC0 or 0xD0 <= marker <= 0xD9:
            break
        following = at + 2 + length
        if marker == _COMMENT or (_APP0 < marker <= 0xEF and marker != _APP14):
            kept.append(data[run:at])
            run = following
        at = following
    if not run:
        return data
    kept.append(data[run:])
    return b"".join(kept)


@dataclass(frozen=True)
class JpegFrame:
    """The content of a JPEG's frame header.

    Attributes:
        bits: the bits of a sample.
        height, width: the size in pixels.
        components: the number of colour components.
        progressive: whether each scan refines the picture.
        refusal: the name of the kind of JPEG if that kind is not read, otherwise None.
    """

    bits: int
    height: int
    width: int
    components: int
    progressive: bool
    refusal: str | None


def jpeg_frame(data: bytes) -> JpegFrame | None:
    """Return the first frame header before the first scan; None if there is none."""
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at = _after_fill(data, at)
            continue
        if marker in _FRAMES:
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            progressive, refusal = marker in _PROGRESSIVE, _REFUSED_FRAMES.get(marker)
            return JpegFrame(bits, height, width, components, progressive, refusal)
        if marker == _START_OF_SCAN:
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _after_fill(data: bytes, at: int) -> int:
    """Return the place of the last of the bytes 0xFF from here on: the others only fill.

    There may be millions of them.
    """
    filled = _FILL.match(data, at)
    return at if filled is None else max(at + 1, filled.end() - 1)


def is_whole_jpeg(data: bytes) -> bool:
    """Return whether a stream has an end mark. libjpeg fills a truncated stream with grey."""
    return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") >= 0


def too_many_scans(jpeg: bytes) -> str | None:
    """Return why decoding a JPEG takes too many passes over the picture; None if it does not."""
    frame = jpeg_frame(jpeg)
    if frame is None:
        return None
    most = MAX_JPEG_SCANS if frame.progressive else MAX_SEQUENTIAL_SCANS
    kind = "progressive" if frame.progressive else "sequential"
    by_size = MAX_SCANNED_PIXELS // max(1, frame.width * frame.height)
    # The quick count includes other pictures behind the first one.
    if jpeg.count(b"\xff\xda") <= min(most, by_size):
        return None
    scans = _scans(jpeg, min(most, by_size) + 1)
    if scans > most:
        return f"the JPEG has more than {most} scans, the limit of a {kind} one"
    if scans > by_size:
        return (
            f"the JPEG has more than {by_size} scans; the limit is {MAX_SCANNED_PIXELS} pixels in "
            "all scans together"
        )
    return None


def _scans(jpeg: bytes, most: int) -> int:
    """Count the scans of the first picture in a JPEG, up to `most`.

    A marker within the parameters of another one is none: their lengths are followed.
    """
    scans, at = 0, 2
    while scans < most and (found := _MARKER.search(jpeg, at)) is not None:
        marker, at = jpeg[found.start() + 1], found.end()
        if marker == _END:
            break
        scans += marker == _START_OF_SCAN
        at += max(2, int.from_bytes(jpeg[at : at + 2], "big"))
    return scans


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) of the canvas in pixels, from the first chunk."""
    if len(data) < 30:
        return None
    chunk = data[12:16]
    if chunk == b"VP8X":
        width, height = data[24:27], data[27:30]
        return int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        width_, height_ = struct.unpack_from("<HH", data, 26)
        return width_ & 0x3FFF, height_ & 0x3FFF
    return None


def webp_frames(data: bytes) -> int:
    """Return the number of frames in the file: more than one if it is animated."""
    at, frames = 12, 0
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        frames += name == b"ANMF"
        at += 8 + length + (length & 1)
    return max(1, frames)
