"""The gateway's HTTP/1.1: uvicorn's protocol on h11, changed in these points.

- An offer to speak another protocol (`Upgrade: h2c`, as Java's `HttpClient` makes it by default)
  is ignored, as RFC 9110 allows, and the request is answered like any other.
- If a client that made such an offer hangs up, the gateway notices at once, not after the answer.
- A request that is not valid HTTP is refused in the one error shape of all refusals, and counted
  and logged as all others.
- The head of a request is bounded before it is parsed, and so is what frames the chunks of a body.
- A client that sends or reads too slowly loses its connection, and the number of connections is
  bounded (`connections.py`).

There is no HTTP/2: clients send one request at a time, for which it is no faster.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import sys
from http import HTTPStatus
from typing import Any

import h11
import orjson
from uvicorn.protocols.http.h11_impl import H11Protocol

from samserve.errors import error_body
from samserve.serving.headers import REQUEST_ID

from .connections import BUFFER_BYTES, STATE, Connections
from .pace import SLOW, Pace

MAX_HEAD_BYTES = 2**16
"""Most bytes of the request line and the headers together. A browser may send many cookies."""

MAX_TARGET_BYTES = 2**13
"""Most bytes of a request's address. RFC 9110 wants at least 8,000; the routes here have fewer than
100."""

MAX_METHOD_BYTES = 32
"""Most bytes of a method's name. Log lines have it."""

MAX_HEADERS = 100
"""Most headers of a request, and most trailers of a body."""

MAX_FRAMING_BYTES = 2**17
"""Most bytes of a chunked body that are not data, beyond a part of `1 / DATA_PER_FRAMING` of the
data. Small chunks and long chunk extensions cost much time for few bytes."""

DATA_PER_FRAMING = 8

READ_BYTES = 2**16
"""Bytes that are read at once. Chunks of one byte cost the event loop 10 µs each."""

BODY_READ_BYTES = BUFFER_BYTES
"""Bytes that are read at once of a body that is not chunked."""

HEAD_TIMEOUT_S = 20.0
"""Longest time for a request's head to arrive."""

BODY_STALL_S = 20.0
"""Longest time without a byte of a body."""

BODY_WINDOW_S = 30.0
"""Time over which the rate of a body is measured."""

ANSWER_WINDOW_S = 60.0
"""Time over which the rate is measured at which a client reads an answer."""

LINGER_S = 2.0
"""How long bytes are still read and dropped after a refusal. If the connection was closed while
bytes arrive, the client would see an error of its connection, and not the refusal."""

UNREAD_BODY_S = 20.0
"""Longest time for the rest of a body that arrives after its answer."""

HTTP_VERSIONS = (b"1.0", b"1.1")

MAX_REASON = 200
"""Most characters of h11's message that a refusal repeats."""

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
"""Control characters, which RFC 9110 forbids in headers. h11 accepts them, but the client that
forwards the header to TorchServe does not."""

_REFUSALS = {
    414: ("uri_too_long", f"The request's address has more than {MAX_TARGET_BYTES} bytes."),
    431: (
        "header_too_large",
        f"The request's first line and headers have more than {MAX_HEAD_BYTES} bytes together, or "
        f"there are more than {MAX_HEADERS} headers.",
    ),
}


class Connection(h11.Connection):
    """A client's connection, on which the server never switches to another protocol.

    Attributes:
        is_chunked: whether the current body is sent in chunks.
        sent: all bytes of answers so far.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self.is_chunked = False
        self.sent = 0
        self._received_of_body = 0
        self._data_of_body = 0

    def receive_data(self, data: bytes) -> None:
        """Add bytes to those that `next_event` reads."""
        super().receive_data(data)
        self._received_of_body += len(data)

    def send(self, event: Any) -> Any:
        """Return the bytes of an event of the answer."""
        data = super().send(event)
        self.sent += len(data or b"")
        return data

    def next_event(self) -> Any:
        """Return h11's next event. A request has no `Upgrade` header any more.

        Raises:
            h11.RemoteProtocolError: the client sent no valid HTTP, or too long a head.
        """
        if self.their_state is h11.IDLE:
            _check_head(self.trailing_data[0])
        event = super().next_event()
        if isinstance(event, h11.Request):
            # What came together with the head counts only as data, never as framing.
            self._received_of_body = self._data_of_body = 0
            self.is_chunked = any(name == b"transfer-encoding" for name, _ in event.headers)
            return _without_offers(event)
        if isinstance(event, h11.Data):
            self._data_of_body += len(event.data)
        elif isinstance(event, h11.EndOfMessage) and len(event.headers) > MAX_HEADERS:
            raise h11.RemoteProtocolError("it has too many trailers", error_status_hint=431)
        elif event is h11.NEED_DATA and self.their_state is h11.SEND_BODY:
            framing = self._received_of_body - self._data_of_body
            if framing > MAX_FRAMING_BYTES + self._data_of_body // DATA_PER_FRAMING:
                raise h11.RemoteProtocolError(
                    f"{framing} bytes frame the chunks of {self._data_of_body} bytes of data: send "
                    "larger chunks"
                )
        elif event is h11.PAUSED and not self.trailing_data[0]:
            # After an offered upgrade h11 pauses, because the bytes that follow may be another
            # protocol's. uvicorn stops reading from a paused connection, and then does not notice
            # that the client hangs up. Nothing is buffered, so reading can go on.
            return h11.NEED_DATA
        return event


class Protocol(H11Protocol, asyncio.BufferedProtocol):
    """uvicorn's protocol with the `Connection` above. uvicorn makes one for each connection.

    As a `BufferedProtocol` it says how many bytes are read at once.
    """

    conn: Connection

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = Connection()
        self.access_log = False  # whatever loggers there are: an address may contain an API key
        if STATE not in self.app_state:  # an application without settings of its own, in a test
            self.app_state[STATE] = Connections()
        self._connections: Connections = self.app_state[STATE]
        self._buffer: memoryview = self._connections.buffer
        self._unwelcome: str | None = None
        self._refused = False
        self._busy = False
        self._received = 0
        self._head_since_s: float | None = None
        self._unread_since_s: float | None = None
        self._body_pace = Pace(BODY_WINDOW_S, BODY_STALL_S)
        self._paced: object = None
        self._answer_pace = Pace(ANSWER_WINDOW_S)
        self._lingering: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection. One too many is told so when its request comes."""
        super().connection_made(transport)
        self._head_since_s = self.loop.time()
        if self._connections.sockets is not None:
            self._connections.sockets.shaken(transport.get_extra_info("socket").fileno())
        self._unwelcome = self._connections.add(self, self.client[0] if self.client else "")
        if self._unwelcome is not None:
            self._connections.record_end("too_many")
        if self._connections.are_far_too_many():
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the connection no longer."""
        self._connections.remove(self)
        super().connection_lost(exc)
        # A timer keeps the memory of its connection, with TLS 300 KB. If a client resets the
        # connection, uvicorn leaves the timer of an idle connection running.
        for timer in (self.timeout_keep_alive_task, self._lingering):
            if timer is not None:
                timer.cancel()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where asyncio writes the bytes that it reads next."""
        plain_body = self.conn.their_state is h11.SEND_BODY and not self.conn.is_chunked
        return self._buffer[: BODY_READ_BYTES if plain_body else READ_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        """Read bytes that have arrived."""
        self._received += nbytes
        if self._refused:
            return
        if self._unwelcome is not None:
            self._refuse(503, "busy", self._unwelcome)
            return
        # h11 copies the bytes, so the buffer can serve all connections.
        self.data_received(self._buffer[:nbytes])  # type: ignore[arg-type]
        self._note_business()
        if self.conn.their_state is not h11.IDLE:
            self._head_since_s = None
        elif self._head_since_s is None:
            self._head_since_s = self.loop.time()

    def on_response_complete(self) -> None:
        """Go on after an answer. uvicorn calls this."""
        super().on_response_complete()
        self._note_business()

    def _note_business(self) -> None:
        """Say whether a request is under way, if that has changed."""
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy != self._busy:
            self._busy = busy
            self._connections.set_busy(self, busy)

    def unsent(self) -> int:
        """Return the bytes of answers that the client has not taken yet."""
        return self.transport.get_write_buffer_size()

    def abandon(self) -> None:
        """Close the connection, and drop what is unsent."""
        self.transport.abort()

    def check(self, now: float) -> None:
        """Close the connection if its client sends or reads too slowly.

        Args:
            now: seconds of the event loop's clock.
        """
        waiting = self.transport.get_write_buffer_size()
        if not waiting:
            self._answer_pace.pause()
        elif self._answer_pace.check(now, self.conn.sent - waiting) is not None:
            self._connections.record_end("slow_answer")
            self.transport.abort()
            return
        if self._refused or self.transport.is_closing():
            return
        if self._head_since_s is not None and now - self._head_since_s > HEAD_TIMEOUT_S:
            self._connections.record_end("slow_head")
            self._refuse(
                408,
                "request_timeout",
                f"The request's head did not arrive in {HEAD_TIMEOUT_S:.0f} seconds.",
            )
        elif self.conn.their_state is h11.SEND_BODY and self.cycle is not None:
            self._check_body(now)
        else:
            self._body_pace.pause()
            self._unread_since_s = None

    def _check_body(self, now: float) -> None:
        if self.cycle.response_complete:
            self._unread_since_s = now if self._unread_since_s is None else self._unread_since_s
            if now - self._unread_since_s > UNREAD_BODY_S:
                self._connections.record_end("unread_body")
                self.transport.abort()
        elif (
            self._paced is not self.cycle
            or self.flow.read_paused
            or self.cycle.waiting_for_100_continue
        ):
            self._paced = self.cycle
            self._body_pace.pause()
        else:
            problem = self._body_pace.check(now, self._received)
            if problem is not None:
                # The application answers, so that this refusal is logged as all others.
                self.cycle.scope["state"][SLOW] = f"The body arrives too slowly: {problem}."
                self.cycle.message_event.set()

    def shutdown(self) -> None:
        """End the connection when the server stops."""
        if self._refused:
            self.transport.close()
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that is not valid HTTP, and close the connection.

        uvicorn calls this while it handles h11's exception, which says more than `msg`.
        """
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        if status not in _REFUSALS:
            status = 400  # h11 also suggests 501, but the error is the client's
        reason = str(error or msg).partition(": bytearray")[0]  # h11 appends the bytes received
        unread = ("bad_request", f"This is not valid HTTP/1.1: {reason[:MAX_REASON]}.")
        self._refuse(status, *_REFUSALS.get(status, unread))

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer a request that the application does not get, and close the connection soon."""
        self._refused = True
        body = orjson.dumps(error_body(code, message))
        request_id = secrets.token_hex(16)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # no answer has begun
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                (REQUEST_ID, request_id),
                ("X-Content-Type-Options", "nosniff"),
                ("Connection", "close"),
            ]
            if status == 503:
                headers.append(("Retry-After", "1"))
            self._connections.record_refusal(request_id, status, code, len(body))
            reason = HTTPStatus(status).phrase
            response = h11.Response(status_code=status, headers=headers, reason=reason)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.flow.resume_reading()  # what arrives is dropped
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._lingering = self.loop.call_later(LINGER_S, self.transport.close)


def _check_head(received: bytes) -> None:
    """Check the size of a head before h11 parses it.

    Args:
        received: the head, or its beginning, or the head and what follows it.

    Raises:
        h11.RemoteProtocolError: it is too long, or has too many headers.
    """
    ends = [end for end in (received.find(b"\n\r\n"), received.find(b"\n\n")) if end >= 0]
    size = min(ends, default=len(received))
    if size > MAX_HEAD_BYTES or received.count(b"\n", 0, size) > MAX_HEADERS:
        raise h11.RemoteProtocolError("its head is too long", error_status_hint=431)


def _without_offers(request: h11.Request) -> h11.Request:
    """Return the request without its `Upgrade` header, so that uvicorn sees no offer."""
    if request.http_version not in HTTP_VERSIONS:
        version = request.http_version.decode()
        raise h11.RemoteProtocolError(f"it is HTTP/{version}, but only HTTP/1.1 is supported")
    if len(request.method) > MAX_METHOD_BYTES:
        raise h11.RemoteProtocolError(f"its method has more than {MAX_METHOD_BYTES} characters")
    if len(request.target) > MAX_TARGET_BYTES:
        raise h11.RemoteProtocolError("its address is too long", error_status_hint=414)
    for name, value in request.headers:
        if _CONTROL.search(value):
            shown = name.decode()[:99]
            raise h11.RemoteProtocolError(f"the header {shown} has control characters")
    kept = [(name, value) for name, value in request.headers if name != b"upgrade"]
    if len(kept) == len(request.headers):
        return request
    return h11.Request(
        method=request.method,
        headers=kept,
        target=request.target,
        http_version=request.http_version,
    )
