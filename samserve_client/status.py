"""What a server says about itself: its models, and how busy it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from .exchanges import ServerState
from .retries import refusal
from .wire import Answer, Call, Exchange

_SAMPLE = re.compile(r"^(samserve_gateway_\w+)(?:\{(.*)\})? ([-+.\deE]+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class LaneStatus:
    """One lane of a server.

    Attributes:
        name: the model type, with `-automask` for the lane of automasks.
        state: `ready`, or why it is not.
        workers: its processes.
        waiting: requests that wait for a worker; None if the server does not say.
    """

    name: str
    state: str
    workers: int
    waiting: int | None


@dataclass(frozen=True)
class ServerStatus:
    """What a server says about itself.

    Attributes:
        version: its version.
        ready: whether all lanes answer.
        lanes: its lanes; empty if the server shows them only to clients with a key.
        weights: the weights that requests may choose: `type` and `name`.
        in_work: the requests that it works on now; None if it does not say.
    """

    version: str
    ready: bool
    lanes: tuple[LaneStatus, ...]
    weights: tuple[Mapping[str, str], ...]
    in_work: int | None


def status(server: ServerState) -> Exchange[ServerStatus]:
    """Ask a server for its version, readiness, weights and queues.

    Raises:
        SamserveError: there is no such server, or it wants a key.
    """
    version = (yield from _asked(server, "/sam/version/")).content.decode(errors="replace")
    readiness = yield from _asked(server, "/readyz", also=(503,))
    state = orjson.loads(readiness.content)
    weights: list[Mapping[str, str]] = []
    if state["ready"]:
        weights = orjson.loads((yield from _asked(server, "/sam/weights/")).content)
    metrics = (yield from _asked(server, "/metrics")).content.decode(errors="replace")
    waiting, in_work = _queues(metrics)
    lanes = tuple(
        LaneStatus(name, lane["state"], lane.get("workers", 0), waiting.get(name))
        for name, lane in state.get("lanes", {}).items()
    )
    return ServerStatus(version.strip().strip('"'), state["ready"], lanes, tuple(weights), in_work)


def _asked(server: ServerState, path: str, also: tuple[int, ...] = ()) -> Exchange[Answer]:
    answer = yield Call("GET", path, server.headers, timeout_s=server.timeout_s)
    if answer is None:
        raise TypeError("an exchange needs an Answer for each Call")
    if answer.status >= 300 and answer.status not in also:
        raise refusal(answer, server.where)
    return answer


def _queues(metrics: str) -> tuple[dict[str, int], int | None]:
    """Return the waiting requests of each lane, and the requests in work, from a metrics page."""
    waiting: dict[str, int] = {}
    in_work: float | None = None
    for name, text, value in _SAMPLE.findall(metrics):
        labels: dict[str, Any] = dict(_LABEL.findall(text))
        if name == "samserve_gateway_waiting" and "lane" in labels:
            lane = labels["lane"]
            waiting[lane] = waiting.get(lane, 0) + int(float(value))
        elif name == "samserve_gateway_in_flight" and labels.get("route", "").startswith("/sam"):
            in_work = (in_work or 0) + float(value)
    return waiting, None if in_work is None else int(in_work)
