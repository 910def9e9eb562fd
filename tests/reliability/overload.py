"""More clients than the server can answer, none of which waits after a refusal."""

from __future__ import annotations

import http.client
import multiprocessing
import os
import statistics
import threading
import time
from typing import Any

from samserve_launcher.options import Options

from .watching import CLICK, JSON

BASE_CLIENTS = 8
FACTORS = (1, 4, 20, 50)
"""The queue has room for the requests of 160 clients. 400 are more, so some get refusals."""

CLIENTS_PER_ADDRESS = 40
"""Each address may have a limited number of connections, so the clients use several."""

NICE = 10
"""The clients stand for other machines, so they leave the processor to the server."""

Outcomes = tuple[list[float], list[float], list[str]]
"""Seconds until each answer and until each refusal, and what else happened."""


def run(options: Options, seconds: float) -> list[dict[str, Any]]:
    """Return a row for 1, 4, 20 and 50 times the clients that use the server fully."""
    return [row_of(options, factor * BASE_CLIENTS, seconds) for factor in FACTORS]


def row_of(options: Options, clients: int, seconds: float) -> dict[str, Any]:
    """Let clients click as fast as they are answered, and count answers and refusals."""
    groups = range(0, clients, CLIENTS_PER_ADDRESS)
    arguments = [
        (options.port, f"127.0.1.{1 + i}", min(CLIENTS_PER_ADDRESS, clients - first), seconds)
        for i, first in enumerate(groups)
    ]
    with multiprocessing.get_context("spawn").Pool(len(arguments), os.nice, (NICE,)) as pool:
        outcomes = pool.starmap(click_as_fast_as_answered, arguments, chunksize=1)
    answers = [took for one in outcomes for took in one[0]]
    refusals = [took for one in outcomes for took in one[1]]
    return {
        "clients": clients,
        "answers": len(answers) / seconds,
        "p50_s": statistics.median(answers) if answers else 0,
        "p99_s": _p99(answers),
        "refusals": len(refusals) / seconds,
        "refusal_p99_s": _p99(refusals),
        "others": sorted({other for one in outcomes for other in one[2]})[:3],
    }


def click_as_fast_as_answered(port: int, address: str, clients: int, seconds: float) -> Outcomes:
    """Let some clients click from one address of this machine."""
    answers: list[float] = []
    refusals: list[float] = []
    others: list[str] = []
    end = time.perf_counter() + seconds

    def client() -> None:
        connection = http.client.HTTPConnection(
            "127.0.0.1", port, timeout=120, source_address=(address, 0)
        )
        while time.perf_counter() < end:
            start = time.perf_counter()
            try:
                connection.request("POST", "/sam/", CLICK, JSON)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as exc:
                others.append(repr(exc))
                connection.close()
                continue
            took = time.perf_counter() - start
            if answer.status == 200:
                answers.append(took)
            elif answer.status in (429, 503):
                refusals.append(took)
            else:
                others.append(str(answer.status))
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers, refusals, others


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98] if len(values) > 1 else 0.0


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table in Markdown."""
    base = rows[0]["answers"] or 1
    lines = [
        "| clients | answers a second | of capacity | p50, ms | p99, ms | refusals a second "
        "| p99 of refusals, ms | other outcomes |",
        "|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    lines += [
        f"| {row['clients']} | {row['answers']:.1f} | {row['answers'] / base:.0%} "
        f"| {1000 * row['p50_s']:.0f} | {1000 * row['p99_s']:.0f} | {row['refusals']:.0f} "
        f"| {1000 * row['refusal_p99_s']:.0f} | {'; '.join(row['others']) or 'none'} |"
        for row in rows
    ]
    return "\n".join(lines)
