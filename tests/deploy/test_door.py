"""The HAProxy in front of a worker's TorchServe: what has no secret does not reach TorchServe.

Here, TorchServe is a listener that records every byte. `test_worker` has a real one.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest

from samserve_launcher.door import (
    APIS,
    SECOND_SECRET,
    SECRET,
    behind_the_door,
    start_door,
    take_secrets,
)
from samserve_launcher.errors import ServerError
from samserve_launcher.options import LOOPBACK, Options, free_ports
from tests.support.raw_requests import exchange
from tests.support.waiting import wait_for

GOOD = "s3cret-" * 6
OTHER = "0ther-" * 6
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
HEADER = b"X-Samserve-Secret: " + GOOD.encode() + b"\r\n"


class Recorder:
    """A server that records what it gets, and answers each connection once."""

    def __init__(self, port: int) -> None:
        self.answer = ANSWER
        self.received: list[bytes] = []
        self.listener = socket.create_server((LOOPBACK, port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it is closed
            while True:
                connection, _ = self.listener.accept()
                with connection, contextlib.suppress(ConnectionError):
                    self.received.append(connection.recv(65536))
                    connection.sendall(self.answer)


class Door:
    def __init__(self, options: Options, inside: Options, health_port: int) -> None:
        self.ports = {api: getattr(options, f"{api}_port") for api in APIS}
        self.ports["ready"] = options.port
        self.recorders = {api: Recorder(getattr(inside, f"{api}_port")) for api in APIS}
        self.recorders["ready"] = Recorder(health_port)

    def connect(self, api: str, sender: str = LOOPBACK) -> socket.socket:
        address = (LOOPBACK, self.ports[api])
        return socket.create_connection(address, timeout=30, source_address=(sender, 0))

    def send(self, api: str, *pieces: bytes, sender: str = LOOPBACK) -> bytes:
        """Return the whole answer to these bytes."""
        with self.connect(api, sender) as connection:
            return exchange(connection, pieces)

    def reached(self) -> list[bytes]:
        return [request for each in self.recorders.values() for request in each.received]

    def is_open(self) -> bool:
        with contextlib.suppress(OSError):
            return b"403" in self.send("metrics", b"GET / HTTP/1.0\r\n\r\n")
        return False


pytestmark = pytest.mark.needs("haproxy")


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Door, subprocess.Popen[bytes]]]:
    options = free_ports(Options())
    inside, health_port = behind_the_door(options)
    door = Door(options, inside, health_port)
    process = start_door(options, inside, health_port, {SECRET: GOOD, SECOND_SECRET: OTHER})
    try:
        wait_for(door.is_open)
        yield door, process
    finally:
        process.terminate()
        process.wait(timeout=30)
        for recorder in door.recorders.values():
            recorder.listener.close()


@pytest.fixture
def door(running: tuple[Door, subprocess.Popen[bytes]]) -> Door:
    for recorder in running[0].recorders.values():
        recorder.received.clear()
        recorder.answer = ANSWER
    return running[0]


def head(line: bytes, *headers: bytes) -> bytes:
    return line + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + b"".join(headers) + b"\r\n"


SHUT_OUT = {
    "no secret": head(b"GET /ping"),
    "its health": head(b"GET /healthz"),
    "another's": head(b"GET /ping", b"X-Samserve-Secret: " + b"x" * len(GOOD) + b"\r\n"),
    "an empty one": head(b"GET /ping", b"X-Samserve-Secret:\r\n"),
    "the beginning": head(b"GET /ping", HEADER[:-3] + b"\r\n"),
    "one more character": head(b"GET /ping", HEADER[:-2] + b"x\r\n"),
    "upper case": head(b"GET /ping", b"X-Samserve-Secret: " + GOOD.upper().encode() + b"\r\n"),
    "twice": head(b"GET /ping", HEADER, HEADER),
    "wrong, then right": head(b"GET /ping", b"X-Samserve-Secret: x\r\n", HEADER),
    "a list": head(b"GET /ping", HEADER[:-2] + b", x\r\n"),
    "another header": head(b"GET /ping", HEADER.replace(b"-", b"_", 2)),
    "in the query": head(b"GET /ping?X-Samserve-Secret=" + GOOD.encode()),
    "in a cookie": head(b"GET /ping", b"Cookie: X-Samserve-Secret=" + GOOD.encode() + b"\r\n"),
    "as a token": head(b"GET /ping", b"Authorization: Bearer " + GOOD.encode() + b"\r\n"),
    "in a trailer": head(b"POST /ping", b"Transfer-Encoding: chunked\r\n", b"Trailer: X\r\n")
    + b"1\r\na\r\n0\r\n"
    + HEADER
    + b"\r\n",
    "register": head(b"POST /models?url=http://evil/x.mar"),
    "scale": head(b"PUT /models/vit_t?min_worker=0"),
    "unregister": head(b"DELETE /models/vit_t"),
    "options": head(b"OPTIONS *"),
    "trace": head(b"TRACE /"),
    "connect": b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: 127.0.0.1:80\r\nConnection: close\r\n\r\n",
    "an absolute address": head(b"GET http://x/metrics/../ping"),
    "two slashes": head(b"GET //ping"),
    "an escape": head(b"GET /%70ing"),
    "up the path": head(b"GET /metrics/../models"),
    "an unknown method": head(b"BREW /models"),
    "a change of protocol": head(b"GET /ping", b"Upgrade: h2c\r\n", b"HTTP2-Settings: AAMA\r\n"),
    "a zero byte": head(b"GET /ping", HEADER[:-2] + b"\0\r\n"),
    "http/1.0": b"GET /ping HTTP/1.0\r\n\r\n",
}
MALFORMED = {
    "http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0",
    "http/0.9": b"GET /ping\r\n\r\n",
    "tls": b"\x16\x03\x01\x00\x05hello\r\n\r\n",
    "a space before the colon": head(b"GET /ping", HEADER.replace(b":", b" :")),
    "a folded header": head(b"GET /ping", b"X-A: b\r\n X-Samserve-Secret: c\r\n")[:-2]
    + b"x y\r\n\r\n",
    "two lengths": head(b"POST /ping", b"Content-Length: 5\r\nContent-Length: 6\r\n", HEADER),
    "a signed length": head(b"POST /ping", b"Content-Length: +5\r\n", HEADER),
}


@pytest.mark.parametrize("api", ["inference", "management", "metrics"])
@pytest.mark.parametrize("request_", SHUT_OUT.values(), ids=SHUT_OUT)
def test_nothing_without_the_secret(door: Door, api: str, request_: bytes) -> None:
    assert door.send(api, request_).startswith(b"HTTP/1.1 403 ")
    assert door.reached() == []


@pytest.mark.parametrize("api", ["inference", "management", "metrics", "ready"])
@pytest.mark.parametrize("request_", MALFORMED.values(), ids=MALFORMED)
def test_nothing_malformed(door: Door, api: str, request_: bytes) -> None:
    assert door.send(api, request_).split()[1] in (b"400", b"403")
    assert door.reached() == []


@pytest.mark.parametrize("api", ["inference", "management"])
@pytest.mark.parametrize("secret", [GOOD, OTHER])
def test_both_secrets_open_it(door: Door, api: str, secret: str) -> None:
    name = b"x-sAMSERVE-secret: " + secret.encode() + b"\r\n"
    answer = door.send(
        api, head(b"POST /predictions/vit_t", b"Content-Length: 2\r\n", name) + b"{}"
    )
    assert answer.endswith(b"hi")
    [request] = door.reached()
    assert request.startswith(b"POST /predictions/vit_t HTTP/1.1\r\n")
    assert secret.encode() not in request  # TorchServe does not learn it


SMUGGLED = {
    "after a body": [b"Content-Length: 2\r\n", b"{}"],
    "after chunks": [b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"],
    "both": [b"Content-Length: 50\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"],
    "none": [b"", b""],
}


@pytest.mark.parametrize("framing", SMUGGLED.values(), ids=SMUGGLED)
def test_the_secret_opens_for_one_request(door: Door, framing: list[bytes]) -> None:
    """A second request on the same connection has to carry the secret, too."""
    lines, body = framing
    first = b"POST /one HTTP/1.1\r\nHost: x\r\n" + lines + HEADER + b"\r\n" + body
    door.send("inference", first + head(b"DELETE /two"))
    assert not [request for request in door.reached() if b"/two" in request]


FOR_STRANGERS = [("metrics", b"/metrics"), ("ready", b"/readyz"), ("ready", b"/healthz")]


@pytest.mark.parametrize(("api", "path"), FOR_STRANGERS)
def test_what_strangers_may_ask_passes_without_what_they_add(
    door: Door, api: str, path: bytes
) -> None:
    request_ = head(b"GET " + path + b"?name[]=a", b"X-A: b\r\n", HEADER)
    assert door.send(api, request_).endswith(b"hi")
    [request] = door.reached()
    line, *headers = request.lower().splitlines()
    assert line == b"get " + path + b" http/1.1"
    assert set(headers) == {b"host: localhost", b"connection: close", b""}


@pytest.mark.parametrize(("api", "path"), FOR_STRANGERS)
@pytest.mark.parametrize(
    "request_",
    [
        head(b"GET /path", b"Content-Length: 2\r\n") + b"{}",
        head(b"GET /path", b"Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
        head(b"GET /path", b"Upgrade: websocket\r\n"),
        head(b"POST /path", b"Content-Length: 0\r\n"),
        head(b"HEAD /path"),
        head(b"GET /path/"),
        head(b"GET //path"),
        head(b"GET /path;a", HEADER),
        head(b"GET /", HEADER),
    ],
)
def test_strangers_may_ask_only_so(door: Door, api: str, path: bytes, request_: bytes) -> None:
    assert door.send(api, request_.replace(b"/path", path)).startswith(b"HTTP/1.1 403 ")
    assert door.reached() == []


@pytest.mark.parametrize("api", ["inference", "management"])
def test_it_answers_for_its_own_health(door: Door, api: str) -> None:
    assert door.send(api, head(b"GET /healthz", HEADER)).startswith(b"HTTP/1.1 200 ")
    assert door.reached() == []


@pytest.mark.parametrize(
    ("api", "path"), [*FOR_STRANGERS, ("inference", b"/a"), ("management", b"/a")]
)
def test_one_address_cannot_take_all_connections(door: Door, api: str, path: bytes) -> None:
    """It holds connections on which it sends nothing, until it gets no more."""
    greedy = "127.0.0.2"
    request = head(b"GET " + path, HEADER)
    with contextlib.ExitStack() as opened:

        def has_all_it_can_get() -> bool:
            for _ in range(450):
                with contextlib.suppress(ConnectionError):
                    opened.enter_context(door.connect(api, greedy))
            with contextlib.suppress(ConnectionError):
                return door.send(api, request, sender=greedy) == b""
            return True

        wait_for(has_all_it_can_get)
        assert door.send(api, request).endswith(b"hi")


def test_a_stranger_who_does_not_read_is_cut_off(door: Door) -> None:
    length = 2**23
    door.recorders["metrics"].answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length
    door.recorders["metrics"].answer += b"x" * length
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((LOOPBACK, door.ports["metrics"]))
        connection.sendall(head(b"GET /metrics"))
        ours = connection.getsockname()

        def is_open() -> bool:
            states = psutil.net_connections("tcp")
            return any(c.raddr == ours and c.status == psutil.CONN_ESTABLISHED for c in states)

        wait_for(is_open)
        wait_for(lambda: not is_open())


NOT_READY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}"
BROKEN = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}"


def test_the_log_has_faults_and_no_probes(capfd: pytest.CaptureFixture[str]) -> None:
    """A worker that is not ready yet says so to every probe; this is no line of the log each."""
    options = free_ports(Options())
    inside, health_port = behind_the_door(options)
    door = Door(options, inside, health_port)
    process = start_door(options, inside, health_port, {SECRET: GOOD})
    try:
        wait_for(door.is_open)
        door.recorders["ready"].answer = NOT_READY
        for path in (b"/readyz", b"/healthz"):
            assert door.send("ready", head(b"GET " + path)).startswith(b"HTTP/1.1 503 ")
        door.recorders["ready"].answer = BROKEN
        assert door.send("ready", head(b"GET /readyz")).startswith(b"HTTP/1.1 500 ")
        for api in ("inference", "ready"):  # nobody listens there now
            door.recorders[api].listener.shutdown(socket.SHUT_RDWR)
            door.recorders[api].listener.close()
        assert door.send("ready", head(b"GET /healthz")).startswith(b"HTTP/1.1 503 ")
        assert door.send("inference", head(b"GET /ping", HEADER)).startswith(b"HTTP/1.1 503 ")
        answers = [
            ("ready", "500", "GET /readyz"),
            ("ready", "503", "GET /healthz"),  # of HAProxy itself
            ("inference", "503", "GET /ping"),
        ]
        logged: list[tuple[str, ...]] = []

        def has_all() -> bool:
            line = r" (ready|inference) \S+ \S+ (\d+) .* \"(GET /\w+) HTTP"
            logged.extend(re.findall(line, capfd.readouterr().out))
            return len(logged) >= len(answers)

        wait_for(has_all)
        assert logged == answers
    finally:
        process.terminate()
        process.wait(timeout=30)
        for recorder in door.recorders.values():
            recorder.listener.close()


def test_the_refusal_says_which_header(door: Door) -> None:
    answer = door.send("inference", head(b"GET /ping"))
    assert "X-Samserve-Secret" in json.loads(answer.partition(b"\r\n\r\n")[2])["message"]


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({}, "SAMSERVE_WORKER_SECRET is not set"),
        ({SECRET: ""}, "SAMSERVE_WORKER_SECRET is not set"),
        ({SECOND_SECRET: GOOD}, "SAMSERVE_WORKER_SECRET is not set"),
        ({SECRET: "x" * 31}, "has 31 characters; it needs at least 32"),
        ({SECRET: GOOD, SECOND_SECRET: "short"}, "SAMSERVE_WORKER_SECOND_SECRET has 5 characters"),
        ({SECRET: "x" * 40 + "\n"}, "letters, digits"),
        ({SECRET: "ä" * 40}, "letters, digits"),
    ],
)
def test_a_secret_that_is_none(environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(ServerError, match=sentence) as raised:
        take_secrets(environ)
    assert not [value for value in environ.values() if value and value in str(raised.value)]


def test_children_do_not_inherit_the_secret() -> None:
    environ = {SECRET: GOOD, SECOND_SECRET: "", "A": "b"}
    assert take_secrets(environ) == {SECRET: GOOD}
    assert environ == {"A": "b"}


def test_no_haproxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    options = Options()
    with pytest.raises(ServerError, match="HAProxy is not installed"):
        start_door(options, replace(options, inference_port=1), 2, {SECRET: GOOD})
