"""Holds TorchServe's tokens, and renews them.

TorchServe writes an inference token, a management token and an API key to `key_file.json`. A token
is valid for an hour. Whoever has the API key can renew it, which makes the old token invalid at
once, for everybody. So after a refused token the file is read again, as another process may have
renewed the token, and only if it still has the refused token is the token renewed.

Source: TorchServe 0.12's token_authorization_api.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

from .torchserve_answers import RESTART_S, Answer, TorchServeError, message_of

Role = Literal["inference", "management"]
"""Which of TorchServe's two APIs a token is for."""


class Tokens:
    """The tokens of one TorchServe.

    Args:
        key_file: TorchServe's token file; read when a token is first needed.
        request_renewal: sends `GET /token` for the role with this API key. TorchServe then writes
            the new token to the key file.
    """

    def __init__(
        self, key_file: Path, request_renewal: Callable[[Role, str], Awaitable[Answer]]
    ) -> None:
        self._key_file = key_file
        self._request_renewal = request_renewal
        self._keys: dict[str, str] = {}
        self._renewing = asyncio.Lock()

    def current(self, role: Role) -> str:
        """Return the token of the role.

        Raises:
            TorchServeError: the key file cannot be read.
        """
        return self._keys.get(role) or self._read()[role]

    async def renew(self, role: Role, refused: str) -> str:
        """Return a token other than the refused one.

        Raises:
            TorchServeError: the key file cannot be read, or TorchServe does not renew the token.
        """
        async with self._renewing:
            keys = self._read()
            if keys[role] == refused:
                renewed = await self._request_renewal(role, keys["API"])
                if renewed.status != 200:
                    raise TorchServeError(
                        f"TorchServe gives the gateway no new {role} token: {message_of(renewed)}"
                    )
                keys = self._read()
            return keys[role]

    def _read(self) -> dict[str, str]:
        try:
            entries = json.loads(self._key_file.read_bytes())
            names = ("inference", "management", "API")
            self._keys = {name: entries[name]["key"] for name in names}
        except (OSError, ValueError, KeyError, TypeError) as exc:
            detail = f"no tokens in {self._key_file} (SAMSERVE_KEY_FILE): {exc}"
            message = "The gateway has no token for TorchServe, which is starting or has ended."
            raise TorchServeError(message, detail=detail, retry_after_s=RESTART_S) from exc
        return self._keys
