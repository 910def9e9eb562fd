"""Measure the work of a request, and compare the simulation with a real server.

    python -m bench.sizing.check

The server runs on this machine, with vit_t. First one client asks, so that nothing waits: that
gives the figures. Then come loads that the simulation predicts from these figures. Leave the
machine otherwise idle. The client runs on the same cores, so its CPU time counts as work of the
requests.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..contenders import BenchError, Server, check_files, copied_store, server
from ..pictures import Request as Body
from ..pictures import base64_png, picture, random_boxes, stamped
from .figures import FIGURES, Figures
from .pods import Kind
from .simulation import KINDS, percentile, simulate_arrivals, simulate_clients, times

SIZE = (1024, 1024)
CLIENTS = (1, 4, 8, 16)
CLIENTS_S = 8.0
ARRIVALS_S = 70.0
RATES: dict[str, dict[Kind, float]] = {
    "a third of the cores": {"click": 6.0, "new picture": 0.25, "automask": 0.03},
    "two thirds of the cores": {"click": 12.0, "new picture": 0.5, "automask": 0.05},
}
"""Requests a second."""

CLICKS, NEW, AUTOMASKS = 200, 20, 3
"""Requests of each kind that give the figures."""


@dataclass(frozen=True)
class Compared:
    """Answer times in seconds, measured and simulated, the shortest first."""

    load: str
    kind: Kind
    measured: Sequence[float]
    simulated: Sequence[float]


class Bodies:
    """Bodies of requests of each kind."""

    def __init__(self) -> None:
        self._picture = picture([], SIZE)
        self._known = base64_png(self._picture)
        self._boxes = iter(random_boxes(SIZE, 100_000))
        self._pictures = 0

    def of(self, kind: Kind) -> Body:
        if kind == "automask":
            return Body(self._known, {"points_per_side": 32})
        if kind == "click":
            return Body(self._known, {"bbox": next(self._boxes)})
        self._pictures += 1
        return Body(base64_png(stamped(self._picture, self._pictures)), {"bbox": next(self._boxes)})

    def clicks(self) -> Iterator[bytes]:
        while True:
            yield self.of("click").body()


def lane_of(kind: Kind) -> str:
    return "vit_t-automask" if kind == "automask" else "vit_t"


def main() -> None:
    """Print the figures and the comparison."""
    check_files()
    with tempfile.TemporaryDirectory() as folder:
        store = copied_store(Path(folder))
        with server(Path(folder), store) as serving:
            bodies = Bodies()
            figures = measured_figures(serving, bodies)
            compared = [*clients(serving, bodies, figures), *arrivals(serving, bodies, figures)]
    print(
        f"Seconds of a core: click {figures.click_s:.4f} on {figures.click_cores:.2f} cores, "
        f"encode {figures.encode_s:.3f} on {figures.encode_cores:.2f} cores, "
        f"automask {figures.automask_s:.2f} on {figures.automask_cores:.2f} cores.\n\n"
        f"{table(compared)}"
    )


def measured_figures(serving: Server, bodies: Bodies) -> Figures:
    """Return the figures, from the CPU time of requests that come one after another.

    Raises:
        BenchError: a new picture took no more work than a known one, or something took none.
    """

    def ask(kind: Kind, count: int) -> tuple[float, float]:
        """Return the mean CPU seconds of a request, and the cores that it kept busy."""
        requests = [bodies.of(kind) for _ in range(count)]
        samples = [serving.ask("gateway", lane_of(kind), request)[0] for request in requests]
        cpu = statistics.fmean(sample.cpu for sample in samples)
        return cpu, cpu / statistics.fmean(sample.wall for sample in samples)

    for kind in KINDS:  # the first of each kind warms up
        ask(kind, 1)
    click, _ = ask("click", CLICKS)
    new, new_cores = ask("new picture", NEW)
    automask, automask_cores = ask("automask", AUTOMASKS)
    # The client's work is a large part of a click's, and the answer waits for it, too.
    latencies, client_s = one_after_another(serving, bodies, 1)
    if not 0 < click < new or automask <= 0:
        raise BenchError(
            f"A click took {click:.4f} s of a core, a new picture {new:.4f} s, and an automask "
            f"{automask:.2f} s, which cannot be. Stop what else this machine does, and start again."
        )
    return replace(
        FIGURES["vit_t"],
        click_s=click,
        click_cores=(click + client_s) / statistics.median(latencies),
        encode_s=new - click,
        encode_cores=new_cores,
        automask_s=automask,
        automask_cores=automask_cores,
    )


def one_after_another(
    serving: Server, bodies: Bodies, clients: int
) -> tuple[Sequence[float], float]:
    """Let clients click. Return the times of the answers, and the client's CPU seconds for one."""
    before = time.process_time()
    latencies = serving.load("vit_t", clients, bodies.clicks(), 1, CLIENTS_S).latencies
    return latencies, (time.process_time() - before) / len(latencies)


def clients(serving: Server, bodies: Bodies, figures: Figures) -> Iterator[Compared]:
    """Compare clients that click again as soon as they have their answers."""
    for count in CLIENTS:
        latencies, client_s = one_after_another(serving, bodies, count)
        day = simulate_clients(count, CLIENTS_S, with_client(figures, client_s))
        simulated = times(day.requests, "click")
        rates = f"{len(latencies) / CLIENTS_S:.0f} and {len(simulated) / CLIENTS_S:.0f}"
        yield Compared(
            f"clients: {count}; answers a second: {rates}",
            "click",
            sorted(latencies),
            simulated,
        )


def arrivals(serving: Server, bodies: Bodies, figures: Figures) -> Iterator[Compared]:
    """Compare requests that come at random, whatever the server does."""
    for name, rates in RATES.items():
        schedule = list(arrival_times(rates, random.Random(name)))
        sent = [(at, lane_of(kind), bodies.of(kind).body()) for at, kind in schedule]
        before = time.process_time()
        took = serving.arrivals(sent)
        client_s = (time.process_time() - before) / len(sent)
        day = simulate_arrivals(schedule, with_client(figures, client_s))
        for kind in KINDS:
            measured = sorted(t for t, (_, k) in zip(took, schedule, strict=True) if k == kind)
            yield Compared(f"at random, {name}", kind, measured, times(day.requests, kind))


def arrival_times(rates: dict[Kind, float], rng: random.Random) -> Iterator[tuple[float, Kind]]:
    """Yield times and kinds of requests, in order, with exponential pauses."""
    at = 0.0
    while True:
        at += rng.expovariate(sum(rates.values()))
        if at > ARRIVALS_S:
            return
        yield at, rng.choices(list(rates), list(rates.values()))[0]


def with_client(figures: Figures, client_s: float) -> Figures:
    return replace(figures, click_s=figures.click_s + client_s)


def table(compared: Sequence[Compared]) -> str:
    """Return the comparison as Markdown."""
    lines = [
        "| load | request | count | measured p50 / p95, ms | simulated, ms | difference |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in compared:
        measured = [1000 * percentile(row.measured, percent) for percent in (50, 95)]
        simulated = [1000 * percentile(row.simulated, percent) for percent in (50, 95)]
        errors = [f"{s / m - 1:+.0%}" for s, m in zip(simulated, measured, strict=True)]
        lines.append(
            f"| {row.load} | {row.kind} | {len(row.measured)} "
            f"| {measured[0]:.0f} / {measured[1]:.0f} | {simulated[0]:.0f} / {simulated[1]:.0f} "
            f"| {' / '.join(errors)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
