"""Which counts of bytes grow too slowly."""

from __future__ import annotations

import pytest

from samserve_gateway.pace import RATE, Pace


def first_problem(counts: list[tuple[float, int]]) -> tuple[float, str] | None:
    """Return the time and the text of the first problem of a pace of 30 s that may stall 20 s."""
    pace = Pace(30, 20)
    for now, count in counts:
        problem = pace.check(now, count)
        if problem is not None:
            return now, problem
    return None


def every_two_seconds(rate: float, until: int = 120) -> list[tuple[float, int]]:
    return [(float(now), int(rate * now)) for now in range(0, until + 1, 2)]


@pytest.mark.parametrize("rate", [RATE, RATE + 1, 100 * RATE])
def test_a_good_rate_is_good_for_ever(rate: int) -> None:
    assert first_problem(every_two_seconds(rate)) is None


@pytest.mark.parametrize("rate", [1, 1000, RATE - 1])
def test_a_low_rate_is_noticed_after_the_window(rate: int) -> None:
    problem = first_problem(every_two_seconds(rate))
    assert problem is not None
    assert problem[0] == 30
    assert str(RATE) in problem[1]


def test_a_stall_is_noticed_before() -> None:
    counts = every_two_seconds(100 * RATE, 10)
    stalled = [(float(now), counts[-1][1]) for now in range(12, 60, 2)]
    assert first_problem(counts + stalled) == (30, "no byte in 20 seconds")


def test_a_fast_beginning_does_not_pay_for_a_slow_end() -> None:
    fast = every_two_seconds(1000 * RATE, 30)
    slow = [(float(now), fast[-1][1] + now) for now in range(32, 120, 2)]
    problem = first_problem(fast + slow)
    assert problem is not None
    assert problem[0] <= 62


def test_a_pause_begins_anew() -> None:
    pace = Pace(30, 20)
    for now in range(0, 200, 2):
        if now % 16 == 0:
            pace.pause()
        assert pace.check(now, 0) is None
