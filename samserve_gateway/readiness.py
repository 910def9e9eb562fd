"""Tells whether every lane can answer.

TorchServe reports itself healthy before any model is loaded. So a lane counts as ready only if it
has a READY worker, and has answered a probe (`probe.py`, a real inference on a tiny picture) since
one of its READY workers started. TorchServe also calls a worker READY that hangs: a prompt lane
that has requests and answers none of them is `silent`, and not ready.

Probes run in the background: `check` does not wait for them.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Set
from typing import Any

from samserve.serving.lanes import family_of, mode_of, model_type_of

from . import probe
from .settings import Settings
from .torchserve import TorchServe
from .torchserve_answers import TorchServeError, ready_workers

logger = logging.getLogger(__name__)

SILENT_S = {"vit_t": 20.0}
"""For how long a prompt lane may have requests and answer none, by its model type. Automask lanes
may be silent for hours."""

LONG_SILENT_S = 300.0
"""The same for the other model types: two cores embed a batch of four pictures in three minutes."""


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
        self._probes: dict[str, asyncio.Task[None]] = {}

    async def check(self) -> tuple[bool, dict[str, dict[str, Any]]]:
        """Return whether all lanes are ready, and each lane's `state` and number of `workers`.

        States: `missing` (not registered), `starting` (no READY worker), `warming` (probed, but
        not answered yet), `ready`, `silent` (it has requests and answers none), and `unreachable`
        if TorchServe itself does not answer.
        """
        try:
            registered = await self._torchserve.lanes()
        except TorchServeError as error:
            logger.info("Not ready: %s %s", error, error.detail)
            return False, self.unreachable()
        complete = [lane for lane in registered if family_of(lane) not in self._joining]
        names = list(dict.fromkeys([*self._settings.lanes(), *complete]))
        states = await asyncio.gather(*(self._lane(name, registered) for name in names))
        lanes = dict(zip(names, states, strict=True))
        return all(lane["state"] == "ready" for lane in states), lanes

    def unreachable(self) -> dict[str, dict[str, Any]]:
        """Return the lanes' states as `check` does if TorchServe does not answer."""
        return {name: _state("unreachable") for name in self._settings.lanes()}

    async def _lane(self, name: str, registered: list[str]) -> dict[str, Any]:
        if name not in registered:
            return _state("missing")
        try:
            description = await self._torchserve.lane(name)
        except TorchServeError:  # unregistered since the list was made
            return _state("missing")
        workers = ready_workers(description)
        if not workers:
            return _state("starting")
        if self._is_silent(name):
            self._answered.pop(name, None)  # it must answer a probe again
            return _state("silent", len(workers))
        if workers & self._answered.get(name, frozenset()):
            return _state("ready", len(workers))
        if name not in self._probes:
            self._probes[name] = asyncio.create_task(self._probe(name, workers))
        return _state("warming", len(workers))

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
        finally:
            del self._probes[name]

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
        """Cancel the probes under way."""
        probes = list(self._probes.values())
        for task in probes:
            task.cancel()
        await asyncio.gather(*probes, return_exceptions=True)


def _state(state: str, workers: int = 0) -> dict[str, Any]:
    return {"state": state, "workers": workers}
