"""A server that hangs is told from one that is slow, one that refuses, and one that never began."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from samserve_launcher import health
from samserve_launcher.health import Health
from tests.support.waiting import wait_for


class Server:
    """A server that answers every request with the same bytes, or with silence."""

    def __init__(self, listening: socket.socket) -> None:
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        self.held: list[socket.socket] = []
        self._listening = listening
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                if self.answer:
                    with connection:
                        connection.recv(1000)
                        connection.sendall(self.answer)
                else:
                    self.held.append(connection)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(health, "EVERY_S", 0.02)
    monkeypatch.setattr(health, "SILENT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server(listening)
        yield server
    for connection in server.held:
        connection.close()


@pytest.fixture
def watched(server: Server) -> Iterator[Health]:
    with contextlib.closing(Health(server.url)) as watched:
        yield watched


def test_a_server_that_stops_answering_is_silent(server: Server, watched: Health) -> None:
    wait_for(lambda: watched._heard is not None)
    time.sleep(0.6)
    assert not watched.is_silent()
    server.answer = b""
    wait_for(watched.is_silent, 10)
    watched.restart()
    assert not watched.is_silent()


def test_a_refusal_is_an_answer(server: Server, watched: Health) -> None:
    server.answer = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    wait_for(lambda: watched._heard is not None)
    time.sleep(0.6)
    assert not watched.is_silent()


def test_a_server_that_has_not_begun_is_not_silent(server: Server) -> None:
    server.answer = b""
    with contextlib.closing(Health(server.url)) as watched:
        time.sleep(1)
        assert not watched.is_silent()
