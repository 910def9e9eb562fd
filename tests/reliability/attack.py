"""Sends each attack while others click, and tells what the others noticed."""

from __future__ import annotations

import itertools
import re
import socket
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from samserve_launcher.options import Options
from tests.support.raw_requests import exchange

from .attacks import ATTACKS, MANNERS, Manner
from .watching import GIBIBYTE, watched

HEALTH_S = 0.25
CLICK_S = 1.5
WORKER_BYTES = 3 * GIBIBYTE
GATEWAY_BYTES = GIBIBYTE

ROUNDS_S = 3.0
"""A short attack is repeated for so long, so that the others meet it."""


def run(options: Options, names: Iterable[str] = ATTACKS) -> list[dict[str, Any]]:
    """Return a row for each attack."""
    return [row_of(options, name) for name in names]


def row_of(options: Options, name: str, rounds_s: float = ROUNDS_S) -> dict[str, Any]:
    """Send an attack again and again for `rounds_s`, at least once, and measure the others."""
    manner, make = MANNERS.get(name, Manner()), ATTACKS[name]
    pieces = [list(make()) for _ in range(manner.clients if manner.fresh else 1)]
    statuses: list[str] = []
    rounds = 0
    with watched(options) as seen, ThreadPoolExecutor(manner.clients) as clients:
        start = time.perf_counter()
        while rounds < manner.rounds or time.perf_counter() - start < rounds_s:
            together = manner.clients if rounds or manner.rounds == 1 else 1
            sent = itertools.islice(itertools.cycle(pieces), together)
            statuses += clients.map(partial(send, options.port), sent)
            rounds += 1
            if manner.fresh:
                pieces = [list(make()) for _ in pieces]
        seconds = (time.perf_counter() - start) / rounds
    failures = [*seen.clicks.failures, *seen.health.failures, *seen.ended]
    row = {
        "attack": name,
        "status": " ".join(dict.fromkeys(statuses)),
        "seconds": seconds,
        "healthz_s": seen.health.slowest_s,
        "click_s": seen.clicks.slowest_s,
        "clicks": len(seen.clicks.latencies),
        "gateway": seen.gateway_peak / GIBIBYTE,
        "worker": seen.worker_peak / GIBIBYTE,
        "failures": failures[:3],
    }
    row["held"] = not failures and (
        seen.health.slowest_s <= HEALTH_S
        and seen.clicks.slowest_s <= CLICK_S
        and seen.gateway_peak <= GATEWAY_BYTES
        and seen.worker_peak <= WORKER_BYTES
    )
    return row


def send(port: int, pieces: Iterable[bytes]) -> str:
    """Send bytes while the answer is read. Return the answer's status, and its error's code."""
    with socket.create_connection(("127.0.0.1", port), timeout=300) as connection:
        start = exchange(connection, pieces)[:4096]
    status = re.match(rb"HTTP/1.1 (\d+)", start)
    code = re.search(rb'"code":"(\w+)"', start)
    return " ".join(m[1].decode() for m in (status, code) if m) or "closed"


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown."""
    lines = [
        "| request | answer | after, s | slowest `/healthz`, ms | slowest click, ms | gateway, GiB "
        "| worker, GiB | |",
        "|---|---|--:|--:|--:|--:|--:|---|",
    ]
    lines += [
        f"| {row['attack']} | {row['status']} | {row['seconds']:.1f} "
        f"| {1000 * row['healthz_s']:.0f} "
        f"| {1000 * row['click_s']:.0f} | {row['gateway']:.2f} | {row['worker']:.2f} "
        f"| {'held' if row['held'] else 'MISSED ' + '; '.join(row['failures'])} |"
        for row in rows
    ]
    return "\n".join(lines)
