"""Answers are compressed with an encoding that the client accepts, and can be decompressed."""

from __future__ import annotations

import asyncio
import gzip

import pytest
import zstandard

from samserve_gateway.compression import WORTHWHILE_BYTES, chosen, compressed

LARGE = b"0123456789" * (WORTHWHILE_BYTES // 10 + 1)


@pytest.mark.parametrize(
    ("accepted", "name"),
    [
        ("", None),
        ("identity", None),
        ("br, deflate", None),
        ("gzip", "gzip"),
        ("gzip, deflate", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("GZip;q=1.0, zstd;q=0.5", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=0, zstd;q=0.1", "zstd"),
        ("gzip;q=nonsense", None),
        ("*", "zstd"),
        ("*;q=0", None),
        ("zstd;q=0, *", "gzip"),
        (",;;=,", None),
    ],
)
def test_chosen(accepted: str, name: str | None) -> None:
    assert chosen(accepted) == name


def test_large_answers_shrink() -> None:
    content, name = asyncio.run(compressed(LARGE, "gzip"))
    assert (gzip.decompress(content), name) == (LARGE, "gzip")
    content, name = asyncio.run(compressed(LARGE, "zstd"))
    assert (zstandard.decompress(content), name) == (LARGE, "zstd")
    assert len(content) < len(LARGE) / 10


def test_others_go_as_they_are() -> None:
    assert asyncio.run(compressed(LARGE, "identity")) == (LARGE, None)
    small = LARGE[: WORTHWHILE_BYTES - 1]
    assert asyncio.run(compressed(small, "gzip")) == (small, None)
