"""`bench.sizing.check` measures and compares rightly. The server is a stand-in with known times."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from bench.contenders import BenchError
from bench.sizing import check
from bench.sizing.figures import FIGURES
from bench.sizing.simulation import KINDS

TAKES = {"click": (0.02, 0.025), "new picture": (0.7, 0.4), "automask": (15, 8)}
"""CPU seconds and seconds of each kind of request."""


class StandIn:
    """A server whose requests take known times. It has seen a picture once somebody sent it."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.asked: Counter[tuple[str, str]] = Counter()

    def kind_of(self, lane: str, body: dict[str, Any]) -> str:
        if "points_per_side" in body:
            kind = "automask"
        else:
            kind = "click" if body["b64img"] in self.known else "new picture"
        self.known.add(body["b64img"])
        self.asked[lane, kind] += 1
        return kind

    def ask(self, way: str, lane: str, request: Any) -> tuple[SimpleNamespace, bytes]:
        cpu, wall = TAKES[self.kind_of(lane, json.loads(request.body()))]
        return SimpleNamespace(cpu=cpu, wall=wall), b""

    def load(
        self, lane: str, clients: int, bodies: Iterator[bytes], every: int, seconds: float
    ) -> SimpleNamespace:
        assert self.kind_of(lane, json.loads(next(bodies))) == "click"
        return SimpleNamespace(latencies=[0.03] * int(seconds * clients / 0.03))

    def arrivals(self, sent: Sequence[tuple[float, str, bytes]]) -> list[float]:
        kinds = [self.kind_of(lane, json.loads(body)) for _, lane, body in sent]
        # Each is a little faster than the one before.
        return [TAKES[kind][1] - at / 10_000 for kind, (at, *_) in zip(kinds, sent, strict=True)]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(check, "SIZE", (64, 64))
    monkeypatch.setattr(check, "CLICKS", 5)
    monkeypatch.setattr(check, "NEW", 3)
    return StandIn()


def test_the_figures_are_those_of_the_server(stand_in: Any) -> None:
    figures = check.measured_figures(stand_in, check.Bodies())
    assert figures.click_s == pytest.approx(0.02)
    assert figures.encode_s == pytest.approx(0.7 - 0.02)  # a new picture is clicked on, too
    assert figures.encode_cores == pytest.approx(0.7 / 0.4)
    assert figures.automask_s == 15
    assert figures.automask_cores == pytest.approx(15 / 8)
    # One of each kind warms up; the first click is the first on its picture. One more click shows
    # what the client itself costs.
    assert stand_in.asked == {
        ("vit_t", "click"): 5 + 1,
        ("vit_t", "new picture"): 1 + 1 + 3,
        ("vit_t-automask", "automask"): 1 + 3,
    }


@pytest.mark.parametrize("kind", ["click", "new picture", "automask"])
def test_figures_that_cannot_be(kind: str, stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system counts CPU time in steps of 10 ms, and other programs disturb it."""
    monkeypatch.setitem(TAKES, kind, (0.0, 0.001))
    with pytest.raises(BenchError, match="which cannot be"):
        check.measured_figures(stand_in, check.Bodies())


def test_loads_are_compared_with_their_own_simulation(
    stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "CLIENTS_S", 1.0)
    bodies = check.Bodies()
    stand_in.ask("gateway", "vit_t", bodies.of("click"))
    rows = [
        *check.clients(stand_in, bodies, FIGURES["vit_t"]),
        *check.arrivals(stand_in, bodies, FIGURES["vit_t"]),
    ]
    each = [kind for _ in check.RATES for kind in KINDS]
    assert [row.kind for row in rows] == ["click"] * len(check.CLIENTS) + each
    for row in rows:
        assert list(row.measured) == sorted(row.measured)
        if row.load.startswith("at random"):
            assert row.measured[-1] == pytest.approx(TAKES[row.kind][1], abs=0.01)
            # Every request of the schedule is measured once, and simulated once.
            assert len(row.measured) == len(row.simulated) > 0


@pytest.mark.parametrize("name", check.RATES)
def test_requests_come_as_often_as_the_load_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "ARRIVALS_S", 20_000.0)
    schedule = list(check.arrival_times(check.RATES[name], random.Random(1)))
    times = [at for at, _ in schedule]
    assert times == sorted(times)
    assert times[-1] <= 20_000
    counted = Counter(kind for _, kind in schedule)
    for kind, rate in check.RATES[name].items():
        assert counted[kind] == pytest.approx(20_000 * rate, rel=0.15)


def test_the_same_load_again_is_the_same() -> None:
    rates = check.RATES["a third of the cores"]
    one, two = (list(check.arrival_times(rates, random.Random("a"))) for _ in range(2))
    assert one == two


def test_the_table() -> None:
    row = check.Compared("4 clients", "click", [0.1] * 90 + [0.2] * 10, [0.05] * 90 + [0.3] * 10)
    *_, line = check.table([row]).splitlines()
    assert line == "| 4 clients | click | 100 | 100 / 200 | 50 / 300 | -50% / +50% |"
