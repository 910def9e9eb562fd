"""`samserve worker` runs TorchServe alone, as a container of a cluster does, and drains it.

    samserve worker

It takes the flags and variables of `samserve serve`. `host` is the address of TorchServe's APIs and
of a small health server, with HAProxy in front (`door.py`). The health server is at `port` and
answers anybody:

    GET /readyz    200: each lane has answered a real inference; 503: not yet, or no longer
    GET /healthz   200: TorchServe answers, whatever its lanes do; 503: it hangs

A load balancer, a kubelet and Docker need these. TorchServe's `/ping` is healthy before a model is
loaded, and its management API needs a client that reads JSON.

TorchServe runs without tokens here. It accepts only tokens that it creates at its start, and a
gateway cannot hold those of several TorchServes. It listens on loopback. HAProxy passes on only
requests that carry the secret of the variable SAMSERVE_WORKER_SECRET, `GET /metrics`, and those for
the health server.

SIGTERM drains: `/readyz` answers 503, running requests get their answers, and then all processes
stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
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

from .checks import check_ports
from .door import behind_the_door, start_door, take_secrets
from .errors import ServerError
from .health import SILENT_S
from .options import LOOPBACK, Options, parse_options
from .processes import Processes
from .pulses import Pulses
from .server import torchserve_running

logger = logging.getLogger("samserve_launcher.worker")  # not "__main__"

DESCRIPTION = (
    "Run TorchServe alone, behind a secret and without a gateway. --host is the address of all its "
    "APIs and of the health server, which listens on --port. SAMSERVE_WORKER_SECRET is the secret."
)

POLL_S = 1.0
STALE_S = 10.0
"""TorchServe hangs if it has not answered for so long."""

NOTICE_S = 5.0
"""Time from the signal until no load balancer sends new requests.

haproxy.cfg waits for two refusals, one second apart, and Kubernetes has to update its proxies."""

DRAIN_S = 7200.0
"""Longest wait for running requests. It is the gateway's timeout of an automask."""


CLOSE_S = 10.0
"""Longest wait for clients that read the end of their answers slowly."""


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0 after a signal, 1 if a process could not start or ended."""
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[console], level=logging.WARNING)
    logger.setLevel(logging.INFO)
    options = parse_options(arguments, prog="samserve worker", description=DESCRIPTION)
    try:
        secrets = take_secrets(os.environ)
        check_ports(options)
        inside, health_port = behind_the_door(options)
        with torchserve_running(inside, worker_host=LOOPBACK) as children:
            children.start("haproxy", lambda: start_door(options, inside, health_port, secrets))
            return asyncio.run(_run(inside, health_port, children))
    except ServerError as error:
        logger.error("%s", error)
        return 1


async def _run(options: Options, health_port: int, children: Processes) -> int:
    names = {"torchserve": "TorchServe", "haproxy": "HAProxy"}
    leave = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave.set)
    pulses = Pulses(options.pulse_dir)
    async with HealthServer(options, health_port) as health:
        while not leave.is_set():
            for name, child in children.items():
                if child.poll() is not None:
                    logger.error("%s ended with status %d.", names[name], child.returncode)
                    return 1
            if health.is_silent():
                logger.error("TorchServe has not answered for %g s. This process ends.", SILENT_S)
                return 1
            for pid in pulses.check():
                logger.error("The worker with process id %d stood still and was killed.", pid)
            reap_orphans(children)
            await _wait(leave, POLL_S)
        leave.clear()  # a second signal ends the wait below
        await health.leave()
        logger.info("Draining.")
        await _wait(leave, NOTICE_S)
        deadline = loop.time() + DRAIN_S
        while requests_under_way(options.inference_port) and not leave.is_set():
            if loop.time() > deadline:
                logger.warning("Stopping although requests are under way.")
                break
            await _wait(leave, POLL_S)
        await _close(children["haproxy"], leave)
    return 0


def reap_orphans(children: Processes) -> None:
    """Let the kernel forget ended processes that are ours only because their parents ended first.

    In a container, we are the first process, and inherit such processes. Each keeps its place in
    the table of processes, which is bounded, until its status is read.
    """
    if os.getpid() != 1:
        return
    known = {child.pid for child in children.values()}
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
            if process.pid not in known and process.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(process.pid, os.WNOHANG)


async def _close(haproxy: Popen[bytes], leave: asyncio.Event) -> None:
    """Let HAProxy send what it has of the last answers. It ends by itself after SIGUSR1."""
    haproxy.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + CLOSE_S
    while haproxy.poll() is None and time.monotonic() < deadline and not leave.is_set():
        await _wait(leave, 0.1)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


def requests_under_way(inference_port: int) -> int:
    """Return the number of connections to the inference API. TorchServe does not publish it.

    HAProxy opens one for each request and closes it after the answer (`worker-haproxy.cfg`).
    """
    return sum(
        connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == inference_port
        for connection in psutil.net_connections("tcp")
    )


class HealthServer:
    """The server of `/readyz` and `/healthz`; it listens within `async with`.

    It asks TorchServe once a second, however many clients ask.
    """

    def __init__(self, options: Options, port: int) -> None:
        self._options = options
        self._port = port
        self._ready = False
        self._lanes: dict[str, dict[str, Any]] = {}
        self._heard = -math.inf

    async def __aenter__(self) -> HealthServer:
        app = web.Application()
        app.add_routes([web.get("/readyz", self._readyz), web.get("/healthz", self._healthz)])
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, LOOPBACK, self._port).start()
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.leave()
        await self._runner.cleanup()

    def is_silent(self) -> bool:
        """Return whether TorchServe answered once, and has not answered for `SILENT_S` since."""
        return self._heard > -math.inf and time.monotonic() - self._heard > SILENT_S

    async def leave(self) -> None:
        """Answer "not ready" from now on, and close our connections to TorchServe."""
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
        # While it drains, it no longer asks TorchServe, but it is alive.
        alive = self._alive() or self._watching.done()
        status = {"status": "alive" if alive else "TorchServe gives no answer"}
        return web.json_response(status, status=200 if alive else 503)


if __name__ == "__main__":
    sys.exit(main())
