"""`samserve scale` sets the number of a lane's workers, and shows the lanes.

samserve scale                      show the lanes
samserve scale vit_t-automask 2     two workers for the automasks of vit_t
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from samserve import places
from samserve_gateway.torchserve import TorchServe, TorchServeError, ready_workers

from .options import Options

SCALE_TIMEOUT_S = 300.0

POLL_S = 0.25
"""The interval at which a lane is looked at until its workers are ready."""


def main(arguments: list[str] | None = None) -> int:
    """Scale a lane, if one is named, and print all lanes.

    It exits non-zero, with the reason, if there is no such server or lane.
    """
    parser = argparse.ArgumentParser(
        prog="samserve scale",
        description="Show the lanes of a running server, or set how many workers one has.",
        epilog="Example: samserve scale vit_t-automask 2",
    )
    parser.add_argument("lane", nargs="?", help="for example vit_t or vit_t-automask")
    parser.add_argument("workers", nargs="?", type=int, help="worker processes to set")
    parser.add_argument("--port", type=int, help="the port of the server, if several servers run")
    parsed = parser.parse_args(arguments)
    if parsed.lane is not None and (parsed.workers is None or parsed.workers < 0):
        parser.error("name the number of workers to set: 0 or more")
    try:
        print(asyncio.run(scale(find_server(parsed.port), parsed.lane, parsed.workers)))
    except TorchServeError as error:
        print(f"samserve: {error}", file=sys.stderr)
        return 1
    return 0


def find_server(port: int | None) -> dict[str, Any]:
    """Return the contents of a running server's `server.json`.

    Args:
        port: the port of the server. None: the default port, or the only server that runs.

    It exits with the ports of the running servers if there is no such server.
    """
    written = {
        int(path.parent.name): json.loads(path.read_text())
        for path in sorted(places.run_folder().glob("*/server.json"))
    }
    # A server that was killed could not remove its file.
    running: dict[int, dict[str, Any]] = {
        name: server for name, server in written.items() if psutil.pid_exists(server["pid"])
    }
    default = Options.port if Options.port in running or len(running) != 1 else min(running)
    wanted = default if port is None else port
    if wanted not in running:
        names = ", ".join(map(str, running)) or "none"
        sys.exit(f"samserve: no server runs on port {wanted}. Running: {names}.")
    return running[wanted]


async def scale(server: dict[str, Any], lane: str | None, workers: int | None) -> str:
    """Set the workers of a lane, if one is named, wait for them, and return the table of lanes."""
    async with TorchServe(
        server["inference_url"], server["management_url"], Path(server["key_file"])
    ) as torchserve:
        if lane is not None and workers is not None:
            await torchserve.scale(lane, workers, SCALE_TIMEOUT_S)
            await _wait_for_workers(torchserve, lane, workers)
        names = await torchserve.lanes()
        return table([await torchserve.lane(name) for name in names])


async def _wait_for_workers(torchserve: TorchServe, lane: str, workers: int) -> None:
    """Return once so many workers of a lane are ready.

    TorchServe answers a change of the number of workers when each new worker has started or ended
    once. A worker that ended is started again, and TorchServe does not wait for that.

    Raises:
        TorchServeError: they are not ready after `SCALE_TIMEOUT_S`.
    """
    deadline = time.monotonic() + SCALE_TIMEOUT_S
    while (ready := len(ready_workers(await torchserve.lane(lane)))) != workers:
        if time.monotonic() > deadline:
            raise TorchServeError(
                f"{ready} of {workers} workers of {lane} are ready after {SCALE_TIMEOUT_S:.0f} s. "
                "TorchServe's log says why the others are not."
            )
        await asyncio.sleep(POLL_S)


def table(lanes: list[dict[str, Any]]) -> str:
    """Return a table of the lanes that TorchServe described, one row for each."""
    rows = [("LANE", "WORKERS", "READY", "BATCH", "WAITING", "PIDS")]
    for lane in lanes:
        ready = ready_workers(lane)
        rows.append(
            (
                lane["modelName"],
                str(lane["minWorkers"]),
                str(len(ready)),
                str(lane["batchSize"]),
                str(lane["jobQueueStatus"]["pendingRequests"]),
                " ".join(map(str, sorted(ready))),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
