"""The gateway's HTTP/1.1: uvicorn's protocol on h11, changed in three points.

- An offer to speak another protocol (`Upgrade: h2c`, as Java's `HttpClient` makes it by default)
  is ignored, as RFC 9110 allows, and the request is answered like any other.
- If a client that made such an offer hangs up, the gateway notices at once, not after the answer.
- A request that is not valid HTTP is refused in the one error shape of all refusals.

There is no HTTP/2: clients send one request at a time, for which it is no faster.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import h11
import orjson
from uvicorn.protocols.http.h11_impl import H11Protocol

from samserve.errors import error_body

MAX_HEAD_BYTES = 2**16
"""Most bytes of the request line and the headers together. A browser may send many cookies."""

MAX_TARGET_BYTES = 2**13
"""Most bytes of a request's address. RFC 9110 wants at least 8,000; the routes here have fewer than
100."""

HTTP_VERSIONS = (b"1.0", b"1.1")

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
"""Control characters, which RFC 9110 forbids in headers. h11 accepts them, but the client that
forwards the header to TorchServe does not."""

_REFUSALS = {
    414: ("uri_too_long", f"The request's address has more than {MAX_TARGET_BYTES} bytes."),
    431: (
        "header_too_large",
        f"The request's first line and headers have more than {MAX_HEAD_BYTES} bytes together.",
    ),
}


class Connection(h11.Connection):
    """A client's connection, on which the server never switches to another protocol."""

    def next_event(self) -> Any:
        """Return h11's next event. A request has no `Upgrade` header any more.

        Raises:
            h11.RemoteProtocolError: the client sent no valid HTTP, or too long a head.
        """
        event = super().next_event()
        if isinstance(event, h11.Request):
            return _without_offers(event)
        if event is h11.PAUSED and not self.trailing_data[0]:
            # After an offered upgrade h11 pauses, because the bytes that follow may be another
            # protocol's. uvicorn stops reading from a paused connection, and then does not notice
            # that the client hangs up. Nothing is buffered, so reading can go on.
            return h11.NEED_DATA
        return event


class Protocol(H11Protocol):
    """uvicorn's protocol with the `Connection` above. uvicorn makes one for each connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = Connection(h11.SERVER, MAX_HEAD_BYTES)
        self.access_log = False  # whatever loggers there are: an address may contain an API key

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that is not valid HTTP, and close the connection.

        uvicorn calls this while it handles h11's exception, which says more than `msg`.
        """
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        if status not in _REFUSALS:
            status = 400  # h11 also suggests 501, but the error is the client's
        reason = str(error or msg).partition(": bytearray")[0]  # h11 appends the bytes received
        unread = ("bad_request", f"This is not valid HTTP/1.1: {reason}.")
        body = orjson.dumps(error_body(*_REFUSALS.get(status, unread)))
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # no answer has begun
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            response = h11.Response(status_code=status, headers=headers)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _without_offers(request: h11.Request) -> h11.Request:
    """Return the request without its `Upgrade` header, so that uvicorn sees no offer."""
    if request.http_version not in HTTP_VERSIONS:
        version = request.http_version.decode()
        raise h11.RemoteProtocolError(f"it is HTTP/{version}, but only HTTP/1.1 is supported")
    if len(request.target) > MAX_TARGET_BYTES:
        raise h11.RemoteProtocolError("its address is too long", error_status_hint=414)
    # h11 bounds the head only if it arrives in several reads.
    fields = sum(len(name) + len(value) + 4 for name, value in request.headers)
    size = len(request.target) + fields
    if size > MAX_HEAD_BYTES:
        raise h11.RemoteProtocolError("its head is too long", error_status_hint=431)
    for name, value in request.headers:
        if _CONTROL.search(value):
            raise h11.RemoteProtocolError(f"the header {name.decode()} has control characters")
    kept = [(name, value) for name, value in request.headers if name != b"upgrade"]
    if len(kept) == len(request.headers):
        return request
    return h11.Request(
        method=request.method,
        headers=kept,
        target=request.target,
        http_version=request.http_version,
    )
