"""A gateway whose requests to TorchServe are recorded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fastapi.testclient import TestClient

from samserve_gateway.app import create_app
from samserve_gateway.settings import Settings
from samserve_launcher import loopback
from samserve_launcher.options import LOOPBACK
from tests.support.servers import Server


@contextmanager
def recorded(server: Server) -> Iterator[tuple[TestClient, list[tuple[int, int]]]]:
    """Yield a gateway, and (bytes of the body, status) of each request it sends to TorchServe."""
    passed: list[tuple[int, int]] = []

    class Recorder(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = loopback.post(
                server.options.inference_url + self.path,
                300,
                data=body,
                headers={name: self.headers[name] for name in ("Authorization", "Content-Type")},
            )
            passed.append((len(body), answer.status_code))
            self.send_response(answer.status_code)
            for name in ("Content-Type", "Server-Timing"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing."""

    between = ThreadingHTTPServer((LOOPBACK, 0), Recorder)
    threading.Thread(target=between.serve_forever, daemon=True).start()
    settings = Settings(
        inference_url=f"http://{LOOPBACK}:{between.server_port}",
        management_url=server.options.management_url,
        key_file=server.options.key_file,
    )
    try:
        with TestClient(create_app(settings), base_url="http://127.0.0.1") as gateway:
            yield gateway, passed
    finally:
        between.shutdown()
        between.server_close()
