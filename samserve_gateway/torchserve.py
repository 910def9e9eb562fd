"""TorchServe's two HTTP APIs, with its tokens held and renewed.

TorchServe writes an inference and a management token, good for an hour, and an API key
to `key_file.json`; a token is renewed with the API key, which makes the old one invalid
at once, for everybody. So a refused token is first read again, since somebody else may
have renewed it, and only then renewed. Source: TorchServe 0.12's token_authorization_api.
It can be given no tokens, so several behind one address cannot have the same, and want none.

Knows nothing of samapi; `app.py` and the scripts build on it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp

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


class ConnectionLost(TorchServeError):
    """No connection, or it ended before the answer did."""


@dataclass(frozen=True)
class Answer:
    """What TorchServe answered, read to its end.

    Attributes:
        status: HTTP status.
        headers: by name, in whatever letter case.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> Any:
        """Raises ValueError where the content is not JSON."""
        return json.loads(self.content)


class TorchServe:
    """A client of one TorchServe, within `async with`.

    Args:
        inference_url: its inference address, without a path.
        management_url: its management address, without a path.
        key_file: where it wrote its tokens; read when first needed. None where it wants none.
        model_types: behind a balancer each has TorchServes of its own, with a list of lanes each;
            so the list is asked for each of these.
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
        self._key_file = key_file
        self._keys: dict[str, str] = {}
        self._renewing = asyncio.Lock()

    async def __aenter__(self) -> TorchServe:
        # TorchServe's queue says how many requests are too many. (No proxy of the environment
        # is used: aiohttp wants to be told to.)
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._http.close()

    async def predict(
        self, lane: str, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> Answer:
        """The lane's answer, whatever its status.

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
        """The lane's answer as it comes: its status is there, its content is still to be read.

        Args, Raises: as `predict`'s; reading raises the same within the block.
        """
        path = f"/predictions/{lane}"
        with _as_our_errors(path):
            async with await self._open(
                "inference", "POST", path, data=body, headers=headers, timeout_s=timeout_s
            ) as response:
                yield response

    async def lanes(self) -> list[str]:
        """Names of the registered lanes.

        Raises:
            TorchServeError: there is no list at all. A balancer that reaches only some types'
                TorchServes gives the lists of those.
        """
        # TorchServe pages its list at 100, and passes over what it doesn't know.
        asked = [{"limit": "100", "type": model_type} for model_type in self._model_types]
        lists = await asyncio.gather(
            *(self._manage("GET", "/models", params=params) for params in asked),
            return_exceptions=True,
        )
        found = [models for models in lists if not isinstance(models, BaseException)]
        if not found:
            raise next(error for error in lists if isinstance(error, BaseException))
        return list(dict.fromkeys(m["modelName"] for models in found for m in models["models"]))

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
            # TorchServe 0.12 fails, now and then, over a worker that has ended faster than it
            # looked (`WorkLoadManager.modelChanged`). The worker is gone, others may be left.
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
        """Make a lane of an archive in the model store, and wait until its workers are up."""
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
        """End a lane and its workers; no matter if there is none."""
        try:
            await self._manage("DELETE", f"/models/{name}")
        except TorchServeError as error:
            if error.status != 404:
                raise

    async def _manage(self, method: str, path: str, **request: Any) -> Any:
        answer = await self._send("management", method, path, **request)
        if answer.status != 200:
            raise TorchServeError(message_of(answer), answer.status)
        return answer.json()

    async def _send(self, role: Role, method: str, path: str, **request: Any) -> Answer:
        with _as_our_errors(path):
            async with await self._open(role, method, path, **request) as response:
                return await read(response)

    async def _open(
        self, role: Role, method: str, path: str, **request: Any
    ) -> aiohttp.ClientResponse:
        if self._key_file is None:
            return await self._request(role, None, method, path, **request)
        key = self._keys.get(role) or self._read_keys(self._key_file)[role]
        response = await self._request(role, key, method, path, **request)
        for _ in range(2):  # twice, for the file may hold another refused one
            if not await _is_refused_token(response):
                break
            key = await self._renew(role, key, self._key_file)
            response = await self._request(role, key, method, path, **request)
        return response

    async def _request(
        self,
        role: Role,
        key: str | None,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = CONTROL_TIMEOUT_S,
        **request: Any,
    ) -> aiohttp.ClientResponse:
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONTROL_TIMEOUT_S)
        headers = dict(headers or {})
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        url = self._urls[role] + path
        return await self._http.request(method, url, headers=headers, timeout=timeout, **request)

    async def _renew(self, role: Role, refused: str, key_file: Path) -> str:
        """A token that is not the refused one."""
        async with self._renewing:
            keys = self._read_keys(key_file)
            if keys[role] == refused:
                params = {"type": role}
                async with await self._request(
                    "management", keys["API"], "GET", "/token", params=params
                ) as response:
                    renewed = await read(response)
                if renewed.status != 200:
                    raise TorchServeError(f"no new {role} token: {message_of(renewed)}")
                keys = self._read_keys(key_file)
            return keys[role]

    def _read_keys(self, key_file: Path) -> dict[str, str]:
        try:
            entries = json.loads(key_file.read_bytes())
            names = ("inference", "management", "API")
            self._keys = {name: entries[name]["key"] for name in names}
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise TorchServeError(f"no tokens in {key_file}: {exc}") from exc
        return self._keys


async def read(response: aiohttp.ClientResponse) -> Answer:
    """The whole of an answer that has begun."""
    return Answer(response.status, response.headers, await response.read())


def message_of(answer: Answer) -> str:
    """TorchServe's own message in a refusal, or its status."""
    try:
        return str(answer.json()["message"]).strip()
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status}"


def is_torchserves(answer: Answer) -> bool:
    """Whether a refusal is TorchServe's own, not of something between it and us."""
    try:
        return "type" in answer.json()
    except (ValueError, TypeError):
        return False


def is_workers(answer: Answer) -> bool:
    """Whether a refusal comes from our worker, not from TorchServe itself."""
    return answer.content.startswith(b'{"error":')


def ready_workers(described: Mapping[str, Any]) -> frozenset[int]:
    """The READY workers in a lane's description.

    By pid: a worker that died comes back under its old id and start time.
    """
    return frozenset(
        int(worker["pid"]) for worker in described["workers"] if worker["status"] == "READY"
    )


def died_with_worker(answer: Answer) -> bool:
    """Whether the worker ended while it had the request: crashed, or its lane was scaled down.

    TorchServe hands some of those requests to another worker, and fails the others with this.
    """
    return answer.status >= 500 and message_of(answer) == "Worker died."


async def _is_refused_token(response: aiohttp.ClientResponse) -> bool:
    if response.status != 400:
        return False
    try:
        return bool((await read(response)).json()["type"] == "InvalidKeyException")
    except (ValueError, KeyError, TypeError):
        return False


@contextmanager
def _as_our_errors(path: str) -> Iterator[None]:
    try:
        yield
    except asyncio.TimeoutError as exc:
        raise TorchServeError(f"TorchServe gave no answer in time: {path}", 504) from exc
    except aiohttp.ClientError as exc:
        raise ConnectionLost(f"TorchServe cannot be reached: {exc!r}") from exc
