"""One TorchServe alone, as a container runs it: started, watched, drained and stopped.

    samserve worker

takes the flags and variables of `make serve`. `host` is the address of all its doors, and `port`
that of a small one of its own, which anybody may ask:

    GET /readyz    200: each lane has answered a real inference; 503: not yet, or no longer
    GET /healthz   200: TorchServe answers, whatever its lanes do; 503: it hangs

TorchServe has no such door. `/ping` is healthy before there is a model, and its management API
tells only who can read its answers. So a balancer, a kubelet and Docker ask here.

TorchServe itself runs without tokens, since it takes none but those it makes up at its start and
a gateway can't hold those of several. Its ports are for the balancer, Prometheus and the
operator: that must be seen to by the network, or by leaving `host` on loopback.

SIGTERM drains: `/readyz` says 503, what is under way is answered, and only then all of it stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import sys
import time
from subprocess import Popen
from typing import Any

import psutil
from aiohttp import web

from samserve.serving.logs import JsonFormatter
from samserve_gateway.readiness import Readiness
from samserve_gateway.settings import Settings
from samserve_gateway.torchserve import TorchServe

from .options import Options, parse_options
from .server import ServerError, torchserve_running

logger = logging.getLogger("samserve_launcher.worker")  # not "__main__"

POLL_S = 1.0
STALE_S = 10.0
"""TorchServe that has said nothing for so long hangs."""

NOTICE_S = 5.0
"""From the signal until no balancer sends anything more: haproxy.cfg wants two refusals, a second
apart, and Kubernetes has to tell its proxies."""

DRAIN_S = 7200.0
"""Longest wait for what is under way: the gateway gives up on an automask after as long."""


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0 after a signal, 1 if TorchServe could not start or ended."""
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[console], level=logging.WARNING)
    logger.setLevel(logging.INFO)
    options = parse_options(arguments, prog="samserve worker")
    try:
        with torchserve_running(options, worker_host=options.host) as children:
            return asyncio.run(_run(options, children["torchserve"]))
    except ServerError as error:
        logger.error("%s", error)
        return 1


async def _run(options: Options, torchserve: Popen[bytes]) -> int:
    leave = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave.set)
    async with Door(options) as door:
        while not leave.is_set():
            if torchserve.poll() is not None:
                logger.error("TorchServe ended with status %d.", torchserve.returncode)
                return 1
            await _wait(leave, POLL_S)
        leave.clear()  # a second signal is impatience
        await door.leave()
        logger.info("Draining.")
        await _wait(leave, NOTICE_S)
        deadline = loop.time() + DRAIN_S
        while requests_under_way(options.inference_port) and not leave.is_set():
            if loop.time() > deadline:
                logger.warning("Stopping although requests are under way.")
                break
            await _wait(leave, POLL_S)
    return 0


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


def requests_under_way(inference_port: int) -> int:
    """Connections to the inference API; TorchServe itself doesn't tell.

    One that is kept alive counts until its client lets go of it: haproxy.cfg does so at once,
    others after seconds.
    """
    return sum(
        connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == inference_port
        for connection in psutil.net_connections("tcp")
    )


class Door:
    """`/readyz` and `/healthz`, open within `async with`.

    TorchServe is asked once a second, however many ask us.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._ready = False
        self._lanes: dict[str, dict[str, Any]] = {}
        self._heard = -math.inf

    async def __aenter__(self) -> Door:
        app = web.Application()
        app.add_routes([web.get("/readyz", self._readyz), web.get("/healthz", self._healthz)])
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._options.host, self._options.port).start()
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.leave()
        await self._runner.cleanup()

    async def leave(self) -> None:
        """From now on it is not ready, and nothing of ours is connected to TorchServe."""
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        self._ready, self._lanes = False, {}

    async def _watch(self) -> None:
        options = self._options
        settings = Settings(models=options.models)
        async with TorchServe(options.inference_url, options.management_url, None) as torchserve:
            readiness = Readiness(torchserve, settings, joining=set())
            try:
                while True:
                    self._ready, self._lanes = await readiness.check()
                    if any(lane["state"] != "unreachable" for lane in self._lanes.values()):
                        self._heard = time.monotonic()
                    await asyncio.sleep(POLL_S)
            finally:
                await readiness.close()

    def _alive(self) -> bool:
        return time.monotonic() - self._heard < STALE_S

    async def _readyz(self, _: web.Request) -> web.Response:
        ready = self._ready and self._alive()
        return web.json_response(
            {"ready": ready, "lanes": self._lanes}, status=200 if ready else 503
        )

    async def _healthz(self, _: web.Request) -> web.Response:
        # Who drains lets go of TorchServe, and is alive.
        alive = self._alive() or self._watching.done()
        status = {"status": "alive" if alive else "TorchServe gives no answer"}
        return web.json_response(status, status=200 if alive else 503)


if __name__ == "__main__":
    sys.exit(main())
