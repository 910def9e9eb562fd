"""A small HTTP server that gives answers in a prepared order, for clients whose server fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        body: JSON, or bytes as they are.
        breaks: whether the connection ends after half of the body.
    """

    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    breaks: bool = False

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass(frozen=True)
class Received:
    """One request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class ScriptedServer:
    """The requests that came, and the answers that are left."""

    url: str
    replies: list[Reply]
    received: list[Received] = field(default_factory=list)
    connections: set[tuple[str, int]] = field(default_factory=set)


def refusal(status: int, code: str, message: str, **headers: str) -> Reply:
    """Return an error in the server's one shape."""
    error = {"code": code, "message": message, "field": None}
    shown = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"error": error}, shown)


LOADED = Reply(200, [{"type": "vit_t", "name": "default", "url": ""}])
"""The answer to `GET /sam/weights/` of a server with vit_t."""


@contextmanager
def scripted(*replies: Reply) -> Iterator[ScriptedServer]:
    """Run a server that gives these answers, one for each request, within the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            script.connections.add(self.client_address)
            headers = {name.lower(): value for name, value in self.headers.items()}
            script.received.append(Received(self.command, self.path, headers, body))
            if not script.replies:
                self.close_connection = True
                return
            reply = script.replies.pop(0)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.content)))
            self.end_headers()
            half = len(reply.content) // 2
            self.wfile.write(reply.content[:half] if reply.breaks else reply.content)
            self.close_connection = reply.breaks

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script = ScriptedServer(f"http://127.0.0.1:{httpd.server_address[1]}", list(replies))
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield script
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()
