"""`samserve serve` runs a server until Ctrl-C: TorchServe, and the gateway in front of it.

It first makes what is missing: it downloads the weights and builds the archives.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import signal
import sys
import time
from types import FrameType

from samserve import __version__
from samserve.archives.build import build_if_stale, weights_of
from samserve.model_types import MODEL_TYPES
from samserve.weights.fetch import FetchError, fetch
from samserve_gateway import probe
from samserve_gateway.torchserve import TorchServe

from .access import access, keys_file
from .errors import ServerError
from .health import Health
from .options import Options, parse_options
from .processes import Processes
from .pulses import Pulses
from .server import running
from .supervision import Supervisor

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

POLL_S = 0.5
"""The interval at which the processes are looked at."""


def main(arguments: list[str] | None = None) -> int:
    """Serve, and return the exit status: 0 after a signal, 1 if a process ended too often."""
    options = parse_options(arguments)
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    started = time.monotonic()
    try:
        who = access(options)
        prepare(options)
        print(f"starting {', '.join(options.lanes())}; logs in {options.run_dir}/logs", flush=True)
        with running(options) as children:
            print(ready_block(options, time.monotonic() - started, who), flush=True)
            with contextlib.closing(supervisor_of(children, options)) as supervisor:
                while True:
                    supervisor.check()
                    time.sleep(POLL_S)
    except KeyboardInterrupt:
        print("stopped", flush=True)
        return 0
    except (FetchError, ServerError) as error:
        print(f"samserve: {error}", file=sys.stderr, flush=True)
        return 1


def prepare(options: Options) -> None:
    """Make each model type's archive, unless it is there and up to date.

    An archive without its weights stays as it is: it was built on another machine.

    Raises:
        FetchError: the weights cannot be downloaded.
        SystemExit: the archive cannot be built; the message names the reason.
    """
    for model_type in options.model_types():
        archive = options.model_store / f"{model_type}.mar"
        weights = options.weights_dir / f"{model_type}.pt"
        if archive.is_file() and not weights.is_file():
            continue
        fetch(MODEL_TYPES[model_type], options.weights_dir)
        for path in weights_of(model_type, options.weights_dir):
            build_if_stale(options.model_store / f"{path.stem}.mar", model_type, path)


def supervisor_of(children: Processes, options: Options) -> Supervisor:
    """Return the supervisor of a server that has started."""
    return Supervisor(
        children,
        options.run_dir / "logs",
        pulses=Pulses(options.pulse_dir),
        health={
            "torchserve": Health(f"{options.inference_url}/ping"),
            "gateway": Health(f"{options.url}/healthz", options.tls_certificate),
        },
    )


def _interrupt(signum: int, frame: FrameType | None) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the server is stopping already: let it finish
    raise KeyboardInterrupt


def ready_block(options: Options, seconds: float, who: str) -> str:
    """Return what a person wants to know about a server that has just started.

    Args:
        seconds: how long the start took.
        who: who may use it.
    """
    body = json.dumps(probe.prompt(options.model_types()[0]))
    key = "" if keys_file() is None else " -H 'X-API-Key: YOUR KEY'"
    certificate = options.tls_certificate
    # A certificate that an authority has signed is trusted without this, too.
    trust = "" if certificate is None else f" --cacert {shlex.quote(str(certificate.absolute()))}"
    return f"""
samserve {__version__} is ready after {seconds:.0f} s

  API         {options.url}/sam/
              {options.url}/sam/automask/
  pages       {options.url}/docs
  access      {who}
  models      {asyncio.run(_loaded(options))}
  TorchServe  {options.inference_url} (inference), {options.management_url} (management)
  files       {options.run_dir}

Try it:
curl -sS{trust} {options.url}/sam/ -H 'Content-Type: application/json'{key} -d '{body}'

Ctrl-C stops everything.
"""


async def _loaded(options: Options) -> str:
    """Return a line for each lane: its workers, threads, device and the source of its weights."""
    lines = []
    async with TorchServe(
        options.inference_url, options.management_url, options.key_file
    ) as torchserve:
        for lane in options.lanes():
            workers = len((await torchserve.lane(lane))["workers"])
            worker = await torchserve.worker_description(lane)
            lines.append(
                f"{lane}: {workers} worker(s) x {worker['threads']} thread(s) on "
                f"{worker['device']}; weights: {worker['weights']['source']}"
            )
    return "\n              ".join(lines)


if __name__ == "__main__":
    sys.exit(main())
