"""Says who sent a request: whose key it has, or from which address it comes.

A request may have its key in three places: `Authorization: Bearer <key>`, `X-API-Key: <key>`, or at
the beginning of its path, `/key/<key>/…`, for clients that can send no headers.

The key itself is in no log, no metric and no error, and goes to no other process.
"""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from urllib.parse import quote, unquote_to_bytes

from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from samserve.errors import Forbidden, TooManyRequests, Unauthorized

from .access_modes import MEANING, check_access
from .addresses import client_at
from .keys import KeysFile, digest_of
from .settings import ADMIN_TOKEN, Settings
from .shares import Counters

logger = logging.getLogger(__name__)

MAX_KEY_BYTES = 512
"""A longer key is wrong, and is not even hashed."""

MAX_KEYS_IN_REQUEST = 8
"""The others are ignored: a head could have thousands."""

WRONG_KEYS_A_MINUTE = 10
"""Beyond it, wrong keys from one address get 429. A right key is always accepted: others may share
its address."""

_IN_PATH = re.compile(rb"((?i:https?://[^/?#]*)?)/+key/+([^/]*)(/.*|)", re.DOTALL)
_WHO = "samserve.client"
_KEY = "samserve.key"
NO_SLASH = "samserve.no_slash"
"""In the scope of a request for `/key/<key>`: the page's relative addresses need the last slash."""


@dataclass(frozen=True)
class Client:
    """Who sent a request.

    Attributes:
        name: the name of its key, or its address; for counting and fair shares.
        has_key: whether it has a right key.
        admin: whether it may register weights.
        sent_key: whether it sent any key.
    """

    name: str
    has_key: bool = False
    admin: bool = False
    sent_key: bool = False


class Keyring:
    """The keys that the gateway accepts.

    Args:
        counters: counts wrong keys.

    Attributes:
        mode: who may use the gateway.

    Raises:
        KeysFileError: as `check_access`.
    """

    def __init__(self, settings: Settings, counters: Counters) -> None:
        self.mode = check_access(settings)
        path = settings.api_keys_file
        self._file = None if path is None else KeysFile(path)
        logger.warning("Access: %s.", MEANING[self.mode])
        self._admin = _digest_of_token(settings.admin_token)
        self._counters = counters

    def identify(self, scope: Scope) -> Client:
        """Return who sent the request, and keep it in the scope for `client_of`."""
        address = scope.get("client")
        name = client_at(address[0] if address else None)
        sent = False
        found = None
        for key in islice(filter(None, _keys_in(scope)), MAX_KEYS_IN_REQUEST):
            sent = True
            found = self._owner(key) or found
            if found is not None and found.admin:
                break
        who = found or Client(name, sent_key=sent)
        scope[_WHO] = who
        return who

    async def require_key(self, scope: Scope, who: Client) -> None:
        """Check that the client has a key, if the gateway wants one.

        Raises:
            Unauthorized: it has none.
            TooManyRequests: wrong keys came from its address again and again.
        """
        if self.mode == "keys" and not who.has_key:
            await self._refuse(
                who,
                "This server wants an API key: send it as Authorization: Bearer <key>, as "
                "X-API-Key: <key>, or in the address, /key/<key>/sam/.",
            )

    async def require_admin(self, scope: Scope) -> None:
        """Check that the client is an administrator.

        Raises:
            Forbidden: its key is not an administrator's, or nobody is one on this server.
            Unauthorized: it sent no key, or a wrong one.
            TooManyRequests: wrong keys came from its address again and again.
        """
        who = client_of(scope)
        if who.admin:
            return
        admins = self._file is not None and any(key.admin for key in self._file.known())
        if self._admin is None and not admins:
            raise Forbidden(
                "Registering weights is off, because this server has no administrator. Start it "
                f"with a token in {ADMIN_TOKEN}, or make a key: samserve keys new NAME --admin"
            )
        if who.has_key:
            raise Forbidden("This needs an administrator's key. Yours is not one.")
        await self._refuse(
            who,
            "Send an administrator's key or token as Authorization: Bearer <key>, as "
            "X-API-Key: <key>, or in the address, /key/<key>/sam/weights/.",
        )

    async def _refuse(self, who: Client, message: str) -> None:
        if who.sent_key:
            wait_s = await self._counters.hit("wrong-key", who.name, WRONG_KEYS_A_MINUTE)
            if wait_s:
                raise TooManyRequests(
                    f"More than {WRONG_KEYS_A_MINUTE} wrong keys a minute came from this address. "
                    f"Try again in {wait_s} s.",
                    wait_s,
                )
        raise Unauthorized(message)

    def _owner(self, key: bytes) -> Client | None:
        if len(key) > MAX_KEY_BYTES:
            return None
        digest = digest_of(key)
        if self._admin is not None and hmac.compare_digest(self._admin, digest):
            return Client(f"token of {ADMIN_TOKEN}", has_key=True, admin=True, sent_key=True)
        found = self._file.find(digest) if self._file is not None else None
        if found is None:
            return None
        return Client(f"key {found.name}", has_key=True, admin=found.admin, sent_key=True)


def client_of(scope: Scope) -> Client:
    """Return who sent the request. `Keyring.identify` must have seen it."""
    client: Client = scope[_WHO]
    return client


class KeyPaths:
    """An ASGI application that wraps another one, and takes a key out of the path.

    What it wraps sees the path as if there were no key in it; nothing there can log the key.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with its key kept aside for `Keyring`."""
        found = _IN_PATH.fullmatch(scope["raw_path"]) if scope["type"] == "http" else None
        if found is not None:
            authority, key, path = found.groups()
            scope = {**scope, "raw_path": (authority or b"") + (path or b"/"), _KEY: key}
            if not path:
                scope[NO_SLASH] = True
        await self._app(scope, receive, send)


def put_key_back(scope: Scope) -> Scope:
    """Return the scope with the key as the application's root, so that its pages link to it."""
    if _KEY not in scope:
        return scope
    # Quoted anew: the pages contain their root, and some characters would end a string there.
    root = "/key/" + quote(unquote_to_bytes(scope[_KEY]), safe="")
    return {**scope, "root_path": root, "path": root + scope["path"]}


def _keys_in(scope: Scope) -> Iterator[bytes]:
    """Yield every key that the request has."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer":
                yield key.strip()
        elif name == b"x-api-key":
            yield value.strip()
    if _KEY in scope:
        yield unquote_to_bytes(scope[_KEY])


def _digest_of_token(token: SecretStr | None) -> str | None:
    return None if token is None else digest_of(token.get_secret_value().encode())
