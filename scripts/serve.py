"""Serve until Ctrl-C: start TorchServe and the gateway, say where everything is, stop both.

python -m scripts.serve --help
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from types import FrameType

from gateway import example
from gateway.torchserve import TorchServe
from samserve import __version__

from .options import Options, parse_options
from .server import ServerError, check_alive, running


def main() -> int:
    """Exit status: 0 stopped by a signal, 1 could not start or a process ended."""
    options = parse_options()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    started = time.monotonic()
    try:
        print(f"starting {', '.join(options.lanes())}; logs in {options.run_dir}/logs", flush=True)
        with running(options) as children:
            print(ready_block(options, time.monotonic() - started), flush=True)
            while True:
                check_alive(options, children)
                time.sleep(1)
    except KeyboardInterrupt:
        print("stopped", flush=True)
        return 0
    except ServerError as error:
        print(f"samserve: {error}", file=sys.stderr, flush=True)
        return 1


def _interrupt(signum: int, frame: FrameType | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # stopping is under way; let it finish
    raise KeyboardInterrupt


def ready_block(options: Options, seconds: float) -> str:
    """What a person wants to know of a server that has just started."""
    body = json.dumps(example.prompt(options.model_types()[0]))
    return f"""
samserve {__version__} is ready after {seconds:.0f} s

  API         {options.url}/sam/
              {options.url}/sam/automask/
  pages       {options.url}/docs
  models      {asyncio.run(_loaded(options))}
  TorchServe  {options.inference_url} (inference), {options.management_url} (management)
  files       {options.run_dir}

Try it:
curl -s {options.url}/sam/ -H 'Content-Type: application/json' -d '{body}'

Ctrl-C stops everything.
"""


async def _loaded(options: Options) -> str:
    """A line a lane: workers, threads, device, and where the weights came from."""
    lines = []
    async with TorchServe(
        options.inference_url, options.management_url, options.key_file
    ) as torchserve:
        for lane in options.lanes():
            workers = len((await torchserve.lane(lane))["workers"])
            told = await torchserve.worker_description(lane)
            lines.append(
                f"{lane}: {workers} worker(s) x {told['threads']} thread(s) on {told['device']}; "
                f"weights: {told['weights']['source']}"
            )
    return "\n              ".join(lines)


if __name__ == "__main__":
    sys.exit(main())
