"""TorchServe's two HTTP APIs, with its tokens held and renewed.

TorchServe writes an inference and a management token, good for an hour, and an API key
to `key_file.json`; a token is renewed with the API key, which makes the old one invalid
at once, for everybody. So a refused token is first read again, since somebody else may
have renewed it, and only then renewed. Source: TorchServe 0.12's token_authorization_api.

Knows nothing of samapi; `app.py` and the scripts build on it.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Literal

import httpx2 as httpx

Role = Literal["inference", "management"]

CONTROL_TIMEOUT_S = 30.0


class TorchServeError(Exception):
    """TorchServe refused or could not be reached.

    Attributes:
        status: its HTTP status, or None where there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class TorchServe:
    """A client of one TorchServe.

    Args:
        inference_url: its inference address, without a path.
        management_url: its management address, without a path.
        key_file: where it wrote its tokens; read when first needed.
    """

    def __init__(self, inference_url: str, management_url: str, key_file: Path) -> None:
        self._urls: dict[Role, str] = {"inference": inference_url, "management": management_url}
        self._key_file = key_file
        self._keys: dict[str, str] = {}
        self._renewing = asyncio.Lock()
        # No proxy of the environment stands between two processes of one machine.
        self._http = httpx.AsyncClient(
            trust_env=False,
            timeout=CONTROL_TIMEOUT_S,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )

    async def __aenter__(self) -> TorchServe:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._http.aclose()

    async def predict(self, lane: str, body: bytes, timeout_s: float) -> httpx.Response:
        """The lane's answer to a JSON body, whatever its status.

        Raises:
            TorchServeError: no connection, no token, or no answer within `timeout_s`.
        """
        return await self._send(
            "inference",
            "POST",
            f"/predictions/{lane}",
            content=body,
            headers={"Content-Type": "application/json"},
            timeout=httpx.Timeout(timeout_s, connect=CONTROL_TIMEOUT_S),
        )

    async def lanes(self) -> list[str]:
        """Names of the registered lanes."""
        # TorchServe pages its list at 100.
        models = await self._manage("GET", "/models", params={"limit": "100"})
        return [model["modelName"] for model in models["models"]]

    async def lane(self, name: str) -> dict[str, Any]:
        """TorchServe's description of a lane: workers and their states, batch, queue."""
        described: list[dict[str, Any]] = await self._manage("GET", f"/models/{name}")
        return described[0]

    async def worker_description(self, name: str) -> dict[str, Any]:
        """What a worker of the lane says of itself; it waits in the lane's queue."""
        described = await self._manage("GET", f"/models/{name}", params={"customized": "true"})
        metadata: dict[str, Any] = described[0]["customizedMetadata"]
        return metadata

    async def scale(self, name: str, workers: int, timeout_s: float) -> None:
        """Set a lane's workers and wait until they are up or gone."""
        await self._manage(
            "PUT",
            f"/models/{name}",
            params={
                "min_worker": str(workers),
                "max_worker": str(workers),
                "synchronous": "true",
            },
            timeout=timeout_s,
        )

    async def _manage(self, method: str, path: str, **request: Any) -> Any:
        response = await self._send("management", method, path, **request)
        if response.status_code != 200:
            raise TorchServeError(message_of(response), response.status_code)
        return response.json()

    async def _send(self, role: Role, method: str, path: str, **request: Any) -> httpx.Response:
        key = self._keys.get(role) or self._read_keys()[role]
        response = await self._request(role, key, method, path, **request)
        for _ in range(2):  # twice, for the file may hold another refused one
            if not _is_refused_token(response):
                break
            key = await self._renew(role, key)
            response = await self._request(role, key, method, path, **request)
        return response

    async def _request(
        self, role: Role, key: str, method: str, path: str, **request: Any
    ) -> httpx.Response:
        headers = {**request.pop("headers", {}), "Authorization": f"Bearer {key}"}
        url = self._urls[role] + path
        try:
            return await self._http.request(method, url, headers=headers, **request)
        except httpx.TimeoutException as exc:
            raise TorchServeError(f"TorchServe gave no answer in time: {path}", 504) from exc
        except httpx.TransportError as exc:
            raise TorchServeError(f"TorchServe cannot be reached: {exc!r}") from exc

    async def _renew(self, role: Role, refused: str) -> str:
        """A token that is not the refused one."""
        async with self._renewing:
            keys = self._read_keys()
            if keys[role] == refused:
                params = {"type": role}
                renewed = await self._request(
                    "management", keys["API"], "GET", "/token", params=params
                )
                if renewed.status_code != 200:
                    raise TorchServeError(f"no new {role} token: {message_of(renewed)}")
                keys = self._read_keys()
            return keys[role]

    def _read_keys(self) -> dict[str, str]:
        try:
            entries = json.loads(self._key_file.read_bytes())
            names = ("inference", "management", "API")
            self._keys = {name: entries[name]["key"] for name in names}
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise TorchServeError(f"no tokens in {self._key_file}: {exc}") from exc
        return self._keys


def message_of(response: httpx.Response) -> str:
    """TorchServe's own message in a refusal, or its status line."""
    try:
        return str(response.json()["message"]).strip()
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"


def _is_refused_token(response: httpx.Response) -> bool:
    if response.status_code != 400:
        return False
    try:
        return bool(response.json()["type"] == "InvalidKeyException")
    except (ValueError, KeyError, TypeError):
        return False
