"""TorchServe's answers and errors: who refused, and why.

A refusal can come from three places: the worker (`{"error": …}`), TorchServe itself (an object with
`code`, `type` and `message`), or a balancer in front of several TorchServes (anything).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from samserve.errors import Heavy

RESTART_S = 5
"""When to try again if TorchServe has ended. It is started again a second later, and its workers
have loaded their models some seconds after that."""


class TorchServeError(Exception):
    """TorchServe refused a request, or could not be reached.

    Args:
        message: a sentence that a client may read: what happened.

    Attributes:
        status: its HTTP status; None if there was no answer.
        detail: what the log says in addition. No client reads it.
        retry_after_s: whole seconds after which the client may try again.
    """

    def __init__(
        self, message: str, status: int | None = None, detail: str = "", retry_after_s: int = 1
    ) -> None:
        super().__init__(message)
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s


class ConnectionLost(TorchServeError):
    """There was no connection, or it ended before the answer did."""


@dataclass(frozen=True)
class Answer:
    """A complete answer of TorchServe.

    Attributes:
        status: HTTP status.
        headers: by name, in any letter case.
        content: the body.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> Any:
        """Return the content as JSON, or raise ValueError if it is not JSON."""
        return json.loads(self.content)


async def read(response: aiohttp.ClientResponse) -> Answer:
    """Read an open response to its end."""
    return Answer(response.status, response.headers, await response.read())


def message_of(answer: Answer) -> str:
    """Return TorchServe's message in a refusal, or its status if it has none."""
    try:
        return str(answer.json()["message"]).strip()
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status}"


def is_torchserves(answer: Answer) -> bool:
    """Return whether a refusal comes from TorchServe itself, not from a balancer."""
    try:
        return "type" in answer.json()
    except (ValueError, TypeError):
        return False


def is_workers(answer: Answer) -> bool:
    """Return whether a refusal comes from the worker, not from TorchServe itself."""
    return answer.content.startswith(b'{"error":')


def died_with_worker(answer: Answer) -> bool:
    """Return whether the worker ended while it had the request: it crashed, or was scaled down.

    TorchServe gives some of those requests to another worker, and fails the others with this.
    """
    return answer.status >= 500 and message_of(answer) == "Worker died."


def is_queue_full(answer: Answer) -> bool:
    """Return whether TorchServe refused the request because the lane's queue is full.

    Its message speaks of workers, whatever workers there are.
    """
    return answer.status == 503 and "has no worker to serve" in message_of(answer)


def is_heavy(answer: Answer) -> bool:
    """Return whether the prompt lane refused the request because it takes too much work."""
    return answer.status == Heavy.status and is_workers(answer)


async def is_refused_token(response: aiohttp.ClientResponse) -> bool:
    """Return whether TorchServe refused the request because of its token."""
    if response.status != 400:
        return False
    try:
        return bool((await read(response)).json()["type"] == "InvalidKeyException")
    except (ValueError, KeyError, TypeError):
        return False


def ready_workers(description: Mapping[str, Any]) -> frozenset[int]:
    """Return the pids of the READY workers in TorchServe's description of a lane.

    A worker that died is replaced by one with the same id and start time, but another pid.
    """
    return frozenset(
        int(worker["pid"]) for worker in description["workers"] if worker["status"] == "READY"
    )


def has_gpu(description: Mapping[str, Any]) -> bool:
    """Return whether a worker in TorchServe's description of a lane has a GPU."""
    return any(worker.get("gpu", False) for worker in description["workers"])
