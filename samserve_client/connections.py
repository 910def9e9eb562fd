"""The HTTP connections of the synchronous client."""

from __future__ import annotations

import contextlib
import socket
import threading
import weakref
from typing import Any

from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

POOL_SIZE = 32
"""Connections that are kept open for the next request."""

_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6))
        if hasattr(socket, name)
    ),
]
"""An automask may be silent for an hour. These probes find out within two minutes that the machine
at the other end is gone."""


class Adapter(HTTPAdapter):
    """Keeps connections open, and can end those that other threads wait for."""

    def __init__(self) -> None:
        self._opened: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()
        self._lock = threading.Lock()
        super().__init__(pool_connections=2, pool_maxsize=POOL_SIZE)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Make the pools of connections."""
        alive = [*HTTPConnection.default_socket_options, *_ALIVE]
        super().init_poolmanager(*args, socket_options=alive, **options)
        adapter = self

        class Plain(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                adapter._remember(self)

        class Encrypted(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                adapter._remember(self)

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class EncryptedPool(HTTPSConnectionPool):
            ConnectionCls = Encrypted

        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": EncryptedPool}

    def _remember(self, connection: HTTPConnection) -> None:
        with self._lock:
            self._opened.add(connection)

    def end_all(self) -> None:
        """End every connection. A thread that waits for an answer gets an error at once."""
        with self._lock:
            opened = list(self._opened)
        for connection in opened:
            if connection.sock is not None:
                with contextlib.suppress(OSError):  # the other side was faster
                    connection.sock.shutdown(socket.SHUT_RDWR)


class NoOtherKey(AuthBase):
    """Changes nothing. Without it, requests puts a password of ~/.netrc in the key's place."""

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        return request
