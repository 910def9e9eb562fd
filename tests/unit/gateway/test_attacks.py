"""One request cannot stop the gateway or fill its memory, and neither can many together.

The largest request of each kind is sent to a gateway in a process of its own, and somebody else
asks for `/healthz` meanwhile. Without the bounds, the worst of them stops the gateway for 29 s.
"""

from __future__ import annotations

import gzip
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest
import zstandard

from tests.support.gateway_process import (
    MEBIBYTE,
    GatewayProcess,
    gateway_process,
    somebody_beside,
)
from tests.support.raw_requests import BOUNDARY, FORM, HEAD, JSON, exchange, form, part, post
from tests.support.waiting import wait_for

SLOWEST_S = 2
"""Longest wait for `/healthz` beside an attack, on a machine that is busy with other tests."""

MOST_MEMORY = 1024 * MEBIBYTE
"""The bound that docs/reliability.md states. Bodies of 256 MiB together are copied while they are
read and parsed."""

pytestmark = pytest.mark.slow

N = 63_000_000

LATIN = b"application/json; charset=iso-8859-1"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

Pieces = Sequence[bytes]


@pytest.fixture(scope="module")
def process() -> Iterator[GatewayProcess]:
    with gateway_process() as process:
        yield process


def field(value: bytes, name: bytes = b"x") -> Pieces:
    return post(b'{"type": "vit_t", "%s": %s}' % (name, value))


def string(text: bytes, times: int) -> bytes:
    return b'"' + text * times + b'"'


def closed_lists() -> bytes:
    return b"[" * (N // 2) + b"]" * (N // 2)


IMAGE = part(b"image", b"picture")

BODIES: dict[str, tuple[Callable[[], Pieces], set[int]]] = {
    "nested lists": (lambda: field(b"[" * N), {413}),
    "closed lists": (lambda: field(closed_lists()), {413}),
    "nested objects": (lambda: field(b'{"":' * (N // 4)), {413}),
    "lists in a row": (lambda: field(b"[" + b"[]," * (N // 3) + b"1]"), {413}),
    "numbers": (lambda: field(b"[" + b"1," * (N // 2) + b"1]"), {413}),
    "long numbers": (lambda: field(b"[" + (b"9" * 4000 + b",") * (N // 4001) + b"1]"), {413}),
    "strings": (lambda: field(b"[" + b'"a",' * (N // 4) + b"1]"), {413}),
    "quotes": (lambda: field(string(b'\\"', N // 2)), {413}),
    "spaces": (lambda: post(b" " * N), {413}),
    "base64": (lambda: field(string(b"abcd", N // 4), b"b64img"), {503}),
    "base64 with slashes": (lambda: field(string(b"abc\\/", N // 5), b"b64img"), {503}),
    "code points": (lambda: field(string(b"\\u00e9", N // 6), b"b64img"), {503}),
    "NaN": (lambda: field(b'NaN, "b64img": ' + string(b"abcd", N // 4)), {503}),
    "a long type": (lambda: post(b'{"type": %s}' % string(b"a", N)), {422}),
    "a long address": (lambda: field(string(b"a", N), b"checkpoint_url"), {422}),
    "no JSON": (lambda: post(b'"' * N), {413}),
    "Latin-1": (lambda: post(b'{"b64img": %s}' % string(b"\xe9", N), LATIN), {503}),
    "UTF-16": (lambda: post(b"\xff\xfe" + b"[\0" * (N // 2)), {413}),
    "near boundaries": (
        lambda: form(part(b"image", (b"\r\n--" + BOUNDARY[:-1]) * (N // 34))),
        {503},
    ),
    "near boundaries of dashes": (
        lambda: form(part(b"image", (b"\r\n" + b"-" * 30) * (N // 32))),
        {503},
    ),
    "characters of the boundary": (lambda: form(part(b"image", b"b" * N)), {503}),
    "line breaks": (lambda: form(part(b"image", b"\r\n" * (N // 2))), {503}),
    "a preamble": (lambda: form(b"a" * N + b"\r\n", IMAGE), {503}),
    "an epilogue": (lambda: post(form(IMAGE)[-1] + b"--%s" % BOUNDARY * (N // 33), FORM), {503}),
    "many parts": (lambda: form(part(b"a", b"") * (N // 90)), {400}),
    "many headers of a part": (
        lambda: form(b"--%s\r\n" % BOUNDARY + b"A: b\r\n" * (N // 6)),
        {400},
    ),
    "a long header of a part": (lambda: form(part(b"a", b"", b"A: " + b"b" * N)), {400}),
    "a nested part": (lambda: form(IMAGE, part(b"request", b"[" * N)), {413}),
    "a part of a box": (lambda: form(IMAGE, part(b"bbox", b"[1," * (N // 3))), {413}),
    "a mask": (lambda: form(IMAGE, part(b"mask", b"a" * (N // 2))), {503}),
    "a long text part": (
        lambda: form(
            IMAGE, part(b"type", b"\xe9" * N, b"Content-Type: text/plain; charset=windows-1252")
        ),
        {422},
    ),
    "a long Content-Type": (
        lambda: post(b"{}", b"multipart/form-data; " + b"a=b;" * 15_000),
        {400},
    ),
    "gzip": (
        lambda: post(gzip.compress(b"[" * N), JSON, b"Content-Encoding: gzip"),
        {413},
    ),
    "zstd": (
        lambda: post(zstandard.compress(b"[" * N), JSON, b"Content-Encoding: zstd"),
        {413},
    ),
    "a body over the limit": (lambda: post(b"a" * 2 * N), {413}),
    "chunks of one byte": (lambda: [CHUNKED, *[b"1\r\n \r\n" * 2**17] * 80], {400}),
    "long chunk extensions": (
        lambda: [CHUNKED, *[b"1;" + b"a" * 60_000 + b"\r\n \r\n"] * 1600],
        {400},
    ),
    "one chunk extension": (lambda: [CHUNKED, b"1;", *[b"a" * MEBIBYTE] * 100], {431}),
    "one trailer": (lambda: [CHUNKED, b"0\r\nA: ", *[b"a" * MEBIBYTE] * 100], {431}),
    "many trailers": (lambda: [CHUNKED, b"0\r\n", *[b"A: b\r\n" * 2**17] * 80], {431}),
    "one header": (lambda: [HEAD, b"A: ", *[b"a" * MEBIBYTE] * 100, b"\r\n\r\n"], {431}),
    "many headers": (lambda: [HEAD, *[b"abc: d\r\n" * 2**17] * 50, b"\r\n"], {431}),
    "a long address of a request": (lambda: [b"GET /", *[b"a" * MEBIBYTE] * 100], {431}),
    "a long method": (lambda: [b"A" * 1000 + b" / HTTP/1.1\r\nHost: localhost\r\n\r\n"], {400}),
}  # fmt: skip


def wait_until_given_back(process: GatewayProcess) -> None:
    """Return once the gateway has not much more memory than after its start."""
    wait_for(lambda: process.memory() < 200 * MEBIBYTE)


def send(process: GatewayProcess, pieces: Pieces) -> tuple[int, bytes]:
    """Send a request while its answer is read. Return the answer's status and all its bytes."""
    with process.connect() as connection:
        received = exchange(connection, pieces, lambda answer: answer.endswith(b"}}"))
    match = re.match(rb"HTTP/1.1 (\d+)", received)
    return (int(match[1]) if match else 0), received


@pytest.mark.parametrize(("make", "statuses"), BODIES.values(), ids=BODIES.keys())
def test_the_largest_request_of_its_kind(
    process: GatewayProcess, make: Callable[[], Pieces], statuses: set[int]
) -> None:
    pieces = make()
    wait_until_given_back(process)
    process.forget_peak()
    with somebody_beside(process.port) as beside:
        status, answer = send(process, pieces)
    assert status in statuses, answer[:500]
    assert len(answer) < 4000
    assert beside.slowest_s < SLOWEST_S
    assert process.peak() < MOST_MEMORY


def test_many_large_bodies_that_are_held(process: GatewayProcess) -> None:
    wait_until_given_back(process)
    process.forget_peak()
    begun = b"Content-Length: 64000000\r\n\r\n" + b"a" * 60_000_000
    with ExitStack() as opened, somebody_beside(process.port) as beside:
        for _ in range(20):
            connection = opened.enter_context(process.connect())
            connection.sendall(HEAD + begun)
        assert process.get("/healthz").status == 200
    assert beside.slowest_s < SLOWEST_S
    assert process.peak() < MOST_MEMORY
    wait_until_given_back(process)


def test_many_large_bodies_at_once(process: GatewayProcess) -> None:
    process.forget_peak()
    pieces = field(string(b"abcd", N // 4), b"b64img")
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(send(process, pieces)[0])) for _ in range(8)
    ]
    with somebody_beside(process.port) as beside:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statuses == [503] * 8
    assert beside.slowest_s < SLOWEST_S
    assert process.peak() < MOST_MEMORY
    wait_until_given_back(process)


def test_hundreds_of_clients_that_leave(process: GatewayProcess) -> None:
    process.forget_peak()
    for _ in range(200):
        with process.connect() as connection:
            connection.sendall(HEAD + b"Content-Length: 64000000\r\n\r\n" + b"a" * 2_000_000)
    # Until the gateway has noticed that they left, they count as connections of this address.
    wait_for(lambda: process.get("/healthz").status == 200)
    assert process.peak() < MOST_MEMORY
    wait_until_given_back(process)
