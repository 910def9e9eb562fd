"""Compressed bodies: read, bounded, and refused by name where they are of another kind."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Iterator
from functools import partial

import pytest
import zstandard

from samserve.errors import InvalidRequest, TooLarge, UnsupportedEncoding
from samserve_gateway.decompression import MAX_MEMBERS, decoded, encoding_of
from tests.support.http import ask, lone_gateway, serving

TEXT = b'{"type": "vit_t"}' + b" " * 100_000
LIMIT = 2**20


def zstd(content: bytes, **parameters: int) -> bytes:
    """Without its size in the header, as a stream is written."""
    chosen = zstandard.ZstdCompressionParameters(write_content_size=0, **parameters)
    compressor = zstandard.ZstdCompressor(compression_params=chosen).compressobj()
    return compressor.compress(content) + compressor.flush()


# Without the time, so that every process of pytest-xdist makes the same test ids.
gzipped = partial(gzip.compress, mtime=0)

COMPRESSED = {"gzip": gzipped(TEXT), "zstd": zstandard.compress(TEXT)}


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        ("", None),
        ("identity", None),
        (" Identity , ", None),
        ("gzip", "gzip"),
        ("GZip", "gzip"),
        ("x-gzip", "gzip"),
        ("identity, zstd", "zstd"),
    ],
)
def test_encodings_that_are_read(header: str, encoding: str | None) -> None:
    assert encoding_of(header) == encoding


@pytest.mark.parametrize(
    "header", ["br", "deflate", "gzip, gzip", "gzip, zstd", "compress", "aes128gcm", "\xff", "a;b"]
)
def test_encodings_that_are_not(header: str) -> None:
    with pytest.raises(UnsupportedEncoding, match="gzip or zstd"):
        encoding_of(header)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_what_was_compressed(encoding: str) -> None:
    one = COMPRESSED[encoding]
    assert decoded(one, encoding, LIMIT) == TEXT
    assert decoded(one * 3, encoding, LIMIT) == TEXT * 3
    assert decoded(zstd(TEXT) if encoding == "zstd" else one, encoding, len(TEXT)) == TEXT


def test_a_frame_to_be_skipped() -> None:
    skipped = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
    assert decoded(skipped + COMPRESSED["zstd"], "zstd", LIMIT) == TEXT


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_damaged_bodies(encoding: str) -> None:
    one = COMPRESSED[encoding]
    for cut in (b"", one[:1], one[:10], one[: len(one) // 2], one[:-1]):
        with pytest.raises(InvalidRequest, match="incomplete"):
            decoded(cut, encoding, LIMIT)
    for wrong in (b"{}", TEXT, one + b"x", one + bytes(8), one + TEXT, one + one[:-1] + b"\xff"):
        with pytest.raises(InvalidRequest, match=r"not valid|incomplete"):
            decoded(wrong, encoding, LIMIT)
    other = COMPRESSED["zstd" if encoding == "gzip" else "gzip"]
    with pytest.raises(InvalidRequest, match="not valid"):
        decoded(other, encoding, LIMIT)
    with pytest.raises(InvalidRequest, match="not valid"):
        decoded(zlib.compress(TEXT), encoding, LIMIT)


BOMBS = {
    "gzip": gzipped(bytes(2**28)),
    "zstd": zstandard.compress(bytes(2**32)),
    "zstd of unknown size": zstd(bytes(2**28)),
    "many gzips": gzipped(bytes(2**22)) * 100,
    "many zstds": zstandard.compress(bytes(2**22)) * 100,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_no_more_memory_than_the_limit(name: str) -> None:
    encoding = "gzip" if "gzip" in name else "zstd"
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match=str(LIMIT)):
            decoded(BOMBS[name], encoding, LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < LIMIT + 2 * 2**23


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_many_empty_members(encoding: str) -> None:
    empty = gzipped(b"") if encoding == "gzip" else zstandard.compress(b"")
    assert decoded(empty * 1000, encoding, LIMIT) == b""
    with pytest.raises(InvalidRequest, match="parts"):
        decoded(empty * (MAX_MEMBERS + 1), encoding, LIMIT)


def test_a_window_that_would_take_much_memory() -> None:
    with pytest.raises(InvalidRequest, match="memory"):
        decoded(zstd(TEXT, window_log=27), "zstd", LIMIT)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(lone_gateway(max_body_bytes=LIMIT)) as port:
        yield port


GOOD = json.dumps({"type": "vit_t", "b64img": "QUJD", "bbox": [1, 2, 3, 4]}).encode()


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", gzipped(GOOD), 503),  # read: then TorchServe is down
        ("zstd", zstandard.compress(GOOD), 503),
        ("identity", GOOD, 503),
        ("br", GOOD, 415),
        ("deflate", zlib.compress(GOOD), 415),
        ("gzip, gzip", gzipped(gzipped(GOOD)), 415),
        ("gzip", GOOD, 400),
        ("gzip", gzipped(GOOD)[:-1], 400),
        ("gzip", gzipped(GOOD) + b"and", 400),
        ("zstd", zstandard.compress(GOOD)[:-1], 400),
        ("gzip", gzipped(b"not JSON"), 400),
        ("gzip", gzipped(bytes(LIMIT + 1)), 413),
        ("zstd", zstandard.compress(bytes(LIMIT + 1)), 413),
        ("gzip", bytes(LIMIT + 1), 413),
    ],
)
@pytest.mark.parametrize("path", ["/sam/", "/sam/automask/"])
def test_through_the_gateway(port: int, path: str, encoding: str, body: bytes, status: int) -> None:
    answer = ask(port, "POST", path, body, {"Content-Encoding": encoding})
    assert answer.status == status, answer.content
    assert answer.error()
    assert answer.headers.get("accept-encoding") == ("gzip, zstd" if status == 415 else None)
