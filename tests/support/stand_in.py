"""A worker without a model, for tests of haproxy.cfg: `python -m tests.support.stand_in NAME`.

It answers its name after the seconds that the body of a request gives. `POST :8090/state` with a
JSON object changes its state: `ready`, `full` for a TorchServe whose queue is full, and `secret`,
without which it answers 403 on the other ports.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAME = sys.argv[1]
PORTS = (8080, 8081, 8090)

state: dict[str, Any] = {"ready": True, "full": False, "secret": None}
seen: list[str] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/readyz":
            self._answer(200 if state["ready"] else 503, state)
        elif self.path == "/seen":
            self._answer(200, seen)
        elif self._is_shut_out():
            self._answer(403, {})
        else:
            secrets = self.headers.get_all("X-Samserve-Secret")
            self._answer(200, {"name": NAME, "path": self.path, "secrets": secrets})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/state":
            state.update(json.loads(body))
            self._answer(200, state)
            return
        if self._is_shut_out():
            self._answer(403, {})
            return
        seen.append(self.path)
        time.sleep(json.loads(body)["seconds"])
        error = {"code": 503, "type": "ServiceUnavailableException", "message": "full"}
        self._answer(*((503, error) if state["full"] else (200, {"name": NAME})))

    def _is_shut_out(self) -> bool:
        return state["secret"] not in (None, self.headers["X-Samserve-Secret"])

    def _answer(self, status: int, content: object) -> None:
        encoded = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)


for port in PORTS:
    server = ThreadingHTTPServer(("", port), Handler)
    threading.Thread(target=server.serve_forever).start()
