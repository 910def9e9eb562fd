"""A client of TorchServe's two HTTP APIs, inference and management.

Each API wants its token (`tokens.py`), unless TorchServe was started without tokens. Several
TorchServes behind one address must be started so, because each would make its own tokens.

This module knows nothing of samapi; the gateway, the launcher and the benchmarks use it.
"""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from .tokens import Role, Tokens
from .torchserve_answers import (
    RESTART_S,
    Answer,
    ConnectionLost,
    TorchServeError,
    is_refused_token,
    message_of,
    read,
    ready_workers,
)

__all__ = ["Answer", "TorchServe", "TorchServeError", "ready_workers"]

CONTROL_TIMEOUT_S = 30.0
"""Longest time for an answer of the management API."""

CONNECT_TIMEOUT_S = 5.0
"""Longest time for a connection. A balancer that was started again may have another address, and
nobody refuses connections to the one that it had. So names are looked up as often."""

SENT_AT_ONCE_BYTES = 2**20
"""A larger body is sent in pieces, so that other requests go on meanwhile."""


class TorchServe:
    """A client of one TorchServe. Use it within `async with`.

    Args:
        inference_url: address of the inference API, without a path.
        management_url: address of the management API, without a path.
        key_file: TorchServe's token file; None if TorchServe wants no tokens.
        model_types: behind a balancer each model type has TorchServes of its own, each with its
            own list of lanes; so the list is requested once for each of these types.
    """

    def __init__(
        self,
        inference_url: str,
        management_url: str,
        key_file: Path | None,
        model_types: Sequence[str] = ("",),
    ) -> None:
        self._model_types = model_types
        self._urls: dict[Role, str] = {"inference": inference_url, "management": management_url}
        self._tokens = None if key_file is None else Tokens(key_file, self._request_token)

    async def __aenter__(self) -> TorchServe:
        # limit=0: TorchServe's queue decides how many requests are too many, not the connection
        # pool. aiohttp uses no proxy from the environment unless it is told to.
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=int(CONNECT_TIMEOUT_S))
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._http.close()

    async def predict(
        self, lane: str, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> Answer:
        """Return the lane's answer, whatever its status.

        Args:
            headers: Content-Type at least.

        Raises:
            TorchServeError: no connection, no token, or no answer within `timeout_s`.
        """
        return await self._send(
            "inference",
            "POST",
            f"/predictions/{lane}",
            data=body,
            headers=headers,
            timeout_s=timeout_s,
        )

    @asynccontextmanager
    async def stream(
        self, lane: str, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the lane's open response, whose content is still to be read.

        Args, Raises: as `predict`. Reading the content within the block raises the same.
        """
        path = f"/predictions/{lane}"
        with _as_our_errors(path, timeout_s):
            async with await self._open(
                "inference", "POST", path, data=body, headers=headers, timeout_s=timeout_s
            ) as response:
                yield response

    async def lanes(self, timeout_s: float = CONTROL_TIMEOUT_S) -> list[str]:
        """Return the names of the registered lanes.

        A balancer may reach the TorchServes of some model types only; then the list has theirs.

        Args:
            timeout_s: the longest time for the list.

        Raises:
            TorchServeError: no TorchServe gives a list.
        """
        # TorchServe's pages have 100 entries at most. It ignores the parameter `type`, by which a
        # balancer chooses the TorchServe.
        queries = [{"limit": "100", "type": model_type} for model_type in self._model_types]
        results = await asyncio.gather(
            *(self._manage("GET", "/models", params=q, timeout_s=timeout_s) for q in queries),
            return_exceptions=True,
        )
        lists = [models for models in results if not isinstance(models, BaseException)]
        if not lists:
            raise next(error for error in results if isinstance(error, BaseException))
        return list(dict.fromkeys(m["modelName"] for models in lists for m in models["models"]))

    async def lane(self, name: str, timeout_s: float = CONTROL_TIMEOUT_S) -> dict[str, Any]:
        """Return TorchServe's description of a lane: its workers, their states, batch and queue."""
        path = f"/models/{name}"
        descriptions: list[dict[str, Any]] = await self._manage("GET", path, timeout_s=timeout_s)
        return descriptions[0]

    async def worker_description(self, name: str) -> dict[str, Any]:
        """Return a worker's description of itself. The request waits in the lane's queue."""
        descriptions = await self._manage("GET", f"/models/{name}", params={"customized": "true"})
        metadata: dict[str, Any] = descriptions[0]["customizedMetadata"]
        return metadata

    async def scale(self, name: str, workers: int, timeout_s: float) -> None:
        """Set a lane's number of workers, and wait until they have started or ended."""

        async def put() -> None:
            await self._manage(
                "PUT",
                f"/models/{name}",
                params={
                    "min_worker": str(workers),
                    "max_worker": str(workers),
                    "synchronous": "true",
                },
                timeout_s=timeout_s,
            )

        try:
            await put()
        except TorchServeError as error:
            # TorchServe 0.12 answers 500 if a worker ends before it looks at the worker's process
            # (`WorkLoadManager.modelChanged`). That worker is gone, but others may be left.
            if error.status != 500:
                raise
            await put()

    async def register(
        self,
        name: str,
        archive: str,
        *,
        workers: int,
        batch_size: int,
        max_batch_delay: int,
        timeout_s: float,
    ) -> None:
        """Register an archive of the model store as a lane, and wait until its workers are up."""
        await self._manage(
            "POST",
            "/models",
            params={
                "url": archive,
                "model_name": name,
                "initial_workers": str(workers),
                "batch_size": str(batch_size),
                "max_batch_delay": str(max_batch_delay),
                "synchronous": "true",
            },
            timeout_s=timeout_s,
        )

    async def unregister(self, name: str) -> None:
        """End a lane and its workers. An unknown lane is no error."""
        try:
            await self._manage("DELETE", f"/models/{name}")
        except TorchServeError as error:
            if error.status != 404:
                raise

    async def _manage(self, method: str, path: str, **request: Any) -> Any:
        answer = await self._send("management", method, path, **request)
        if answer.status != 200:
            status = f"HTTP {answer.status}"
            said = message_of(answer).rstrip(".")  # the status, if it says nothing
            reason = status if said == status else f"{status}: {said}"
            message = f"TorchServe's management API answered with {reason}."
            raise TorchServeError(message, answer.status, f"{method} {path}")
        return answer.json()

    async def _send(self, role: Role, method: str, path: str, **request: Any) -> Answer:
        timeout_s = request.get("timeout_s", CONTROL_TIMEOUT_S)
        with _as_our_errors(path, timeout_s):
            async with await self._open(role, method, path, **request) as response:
                return await read(response)

    async def _open(
        self, role: Role, method: str, path: str, **request: Any
    ) -> aiohttp.ClientResponse:
        """Send a request with the current token, and again with a new one if it is refused."""
        if self._tokens is None:
            return await self._request(role, None, method, path, **request)
        token = self._tokens.current(role)
        response = await self._request(role, token, method, path, **request)
        for _ in range(2):  # twice: the token in the key file may be refused, too
            if not await is_refused_token(response):
                break
            token = await self._tokens.renew(role, token)
            response = await self._request(role, token, method, path, **request)
        return response

    async def _request(
        self,
        role: Role,
        token: str | None,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = CONTROL_TIMEOUT_S,
        **request: Any,
    ) -> aiohttp.ClientResponse:
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        headers = dict(headers or {})
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        url = self._urls[role] + path
        body = request.get("data")
        if isinstance(body, bytes) and len(body) > SENT_AT_ONCE_BYTES:
            # aiohttp would copy it at once; a file is sent piece by piece.
            request["data"] = io.BytesIO(body)
        return await self._http.request(method, url, headers=headers, timeout=timeout, **request)

    async def _request_token(self, role: Role, api_key: str) -> Answer:
        """Make TorchServe write a new token of the role to its key file."""
        params = {"type": role}
        async with await self._request(
            "management", api_key, "GET", "/token", params=params
        ) as response:
            return await read(response)


@contextmanager
def _as_our_errors(path: str, timeout_s: float) -> Iterator[None]:
    """Raise aiohttp's errors as TorchServeError."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as exc:
        waited_s = math.ceil(min(timeout_s, CONNECT_TIMEOUT_S))
        message = f"TorchServe, which runs the models, took no connection within {waited_s} s."
        raise ConnectionLost(message, detail=path, retry_after_s=RESTART_S) from exc
    except asyncio.TimeoutError as exc:
        message = f"TorchServe gave no answer within {math.ceil(timeout_s)} s."
        raise TorchServeError(message, 504, path) from exc
    except aiohttp.ClientConnectorError as exc:
        message = (
            "TorchServe, which runs the models, cannot be reached: it is starting, or it has ended."
        )
        detail = f"{path}: {exc!r}"
        raise ConnectionLost(message, detail=detail, retry_after_s=RESTART_S) from exc
    except aiohttp.ClientError as exc:
        message = (
            "TorchServe, or a balancer in front of it, closed the connection before its answer was "
            "complete."
        )
        raise ConnectionLost(message, detail=f"{path}: {exc!r}") from exc
