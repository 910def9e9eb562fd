"""Tells whether every lane can answer.

TorchServe reports itself healthy before any model is loaded. So a lane counts as ready only if it
has a READY worker, and has answered a probe (`probe.py`, a real inference on a tiny picture) since
one of its READY workers started. TorchServe also calls a worker READY that hangs: a prompt lane
that has requests and answers none of them is `silent`, and not ready.

Probes run in the background: `check` does not wait for them. While lanes are not ready, they are
looked at once a second, so that `check` finds them ready although it is called seldom.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from samserve.serving.lanes import family_of, mode_of, model_type_of

from . import probe
from .settings import Settings
from .torchserve import TorchServe
from .torchserve_answers import TorchServeError, ready_workers

logger = logging.getLogger(__name__)

LOOK_TIMEOUT_S = 3.0
"""A TorchServe that has not answered for this long is reported as unreachable. It answers these
requests in milliseconds, whatever its workers do."""

LOOK_EVERY_S = 1.0
"""The interval at which lanes that are not ready are looked at."""

LOOK_ON_S = 60.0
"""How long that goes on after somebody has asked."""

SILENT_S = {"vit_t": 20.0}
"""For how long a prompt lane may have requests and answer none, by its model type. Automask lanes
may be silent for hours."""

LONG_SILENT_S = 300.0
"""The same for the other model types: two cores embed a batch of four pictures in three minutes."""


@dataclass(frozen=True)
class _Probe:
    """A probe that is under way, or has ended.

    Attributes:
        workers: the READY workers when it was sent. One of them has it, or had it.
    """

    task: asyncio.Task[None]
    workers: frozenset[int]


class Readiness:
    """Remembers which workers have answered a probe, and probes the others.

    Args:
        joining: families that are being registered. Their lanes are left out.
        silent_s: returns for how many seconds a lane has had requests and has answered none.
    """

    def __init__(
        self,
        torchserve: TorchServe,
        settings: Settings,
        joining: Set[str],
        silent_s: Callable[[str], float] = lambda lane: 0.0,
    ) -> None:
        self._torchserve = torchserve
        self._settings = settings
        self._joining = joining
        self._silent_s = silent_s
        self._answered: dict[str, frozenset[int]] = {}
        self._probes: dict[str, _Probe] = {}
        self._asked_at = -math.inf
        self._looking: asyncio.Task[None] | None = None

    async def check(self) -> tuple[bool, dict[str, dict[str, Any]]]:
        """Return whether all lanes are ready, and each lane's `state` and number of `workers`.

        States: `missing` (not registered), `starting` (no READY worker), `warming` (probed, but
        not answered yet), `ready`, `silent` (it has requests and answers none), and `unreachable`
        if TorchServe itself does not answer.
        """
        self._asked_at = time.monotonic()
        ready, lanes = await self._look()
        if not ready and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._look_on())
        return ready, lanes

    async def _look_on(self) -> None:
        """Look at the lanes, and so probe them, until they are ready or nobody asks any more."""
        ready = False
        while not ready and time.monotonic() < self._asked_at + LOOK_ON_S:
            await asyncio.sleep(LOOK_EVERY_S)
            ready, _ = await self._look()

    async def _look(self) -> tuple[bool, dict[str, dict[str, Any]]]:
        try:
            registered = await self._torchserve.lanes(LOOK_TIMEOUT_S)
        except TorchServeError as error:
            logger.info("Not ready: %s %s", error, error.detail)
            return False, {name: _state("unreachable") for name in self._settings.lanes()}
        complete = [lane for lane in registered if family_of(lane) not in self._joining]
        names = list(dict.fromkeys([*self._settings.lanes(), *complete]))
        states = await asyncio.gather(*(self._lane(name) for name in names))
        lanes = dict(zip(names, states, strict=True))
        return all(lane["state"] == "ready" for lane in states), lanes

    async def _lane(self, name: str) -> dict[str, Any]:
        try:
            # A lane that is not in the list is asked for, too: behind a balancer, the list lacks
            # the lanes of a TorchServe that does not answer.
            description = await self._torchserve.lane(name, LOOK_TIMEOUT_S)
        except TorchServeError as error:
            return _state("missing" if error.status == HTTPStatus.NOT_FOUND else "unreachable")
        workers = ready_workers(description)
        if not workers:
            return _state("starting")
        if self._is_silent(name):
            self._answered.pop(name, None)  # it must answer a probe again
            return _state("silent", len(workers))
        if workers & self._answered.get(name, frozenset()):
            return _state("ready", len(workers))
        self._begin_probe(name, workers)
        return _state("warming", len(workers))

    def _begin_probe(self, name: str, workers: frozenset[int]) -> None:
        """Probe a lane, unless a probe is under way that can still be answered."""
        probe = self._probes.get(name)
        if probe is not None and not probe.task.done():
            if probe.workers <= workers:
                return
            probe.task.cancel()  # one of its workers has ended, perhaps the one that had it
        self._probes[name] = _Probe(asyncio.create_task(self._probe(name, workers)), workers)

    def _is_silent(self, name: str) -> bool:
        most_s = SILENT_S.get(model_type_of(name), LONG_SILENT_S)
        return mode_of(name) == "prompt" and self._silent_s(name) > most_s

    async def probe_now(self, name: str) -> None:
        """Probe a lane now, and wait for its answer.

        Raises:
            TorchServeError: the lane does not answer the probe with 200.
        """
        await self._send_probe(name, ready_workers(await self._torchserve.lane(name)))

    async def _probe(self, name: str, workers: frozenset[int]) -> None:
        try:
            await self._send_probe(name, workers)
        except TorchServeError as error:
            logger.warning("Lane %s failed its probe: %s", name, error)

    async def _send_probe(self, name: str, workers: frozenset[int]) -> None:
        request_of = probe.prompt if mode_of(name) == "prompt" else probe.automask
        body = json.dumps(request_of(model_type_of(name))).encode()
        answer = await self._torchserve.predict(
            name, body, {"Content-Type": "application/json"}, self._settings.automask_timeout_s
        )
        if answer.status != 200:
            raise TorchServeError(f"{name} answers {answer.content!r}", answer.status)
        self._answered[name] = workers

    async def close(self) -> None:
        """Cancel the probes under way, and look no more."""
        if self._looking is not None:
            await _cancel([self._looking])  # it begins probes
        await _cancel([probe.task for probe in self._probes.values()])


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _state(state: str, workers: int = 0) -> dict[str, Any]:
    return {"state": state, "workers": workers}
