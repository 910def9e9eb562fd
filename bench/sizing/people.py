"""Simulated people: when they work, how long they think, and what they ask for.

Nothing here is measured. Each number is an assumption, which the page states and the command takes
as an option.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import accumulate, count, takewhile

import simpy

from .pods import Service, Steps

HOUR_S = 3600.0

HOURS = {8: 3, 9: 10, 10: 15, 11: 15, 12: 6, 13: 10, 14: 15, 15: 13, 16: 9, 17: 4}
"""Hour of the day -> the percentage of the day's work that begins in it. Lunch is at twelve."""


@dataclass(frozen=True)
class Habits:
    """What one person does in a day.

    Attributes:
        clicks: clicks (prompts), on average.
        automasks: automasks, on average.
        sessions: spells of annotation. Each has the same number of clicks.
        new_pictures: the share of clicks on a picture that the server has not seen. QuPath sends
            the view, so each view that somebody has moved or zoomed is a new picture.
        think_s: the median time between an answer and the next click.
        spread: of the logarithm of that time: 0.8 makes the mean 1.4 times the median, and one
            pause in twenty 3.7 times the median.
    """

    clicks: float = 300.0
    automasks: float = 5.0
    sessions: int = 4
    new_pictures: float = 0.2
    think_s: float = 4.0
    spread: float = 0.8


class People:
    """Everybody who uses a service. They share no pictures."""

    def __init__(self, env: simpy.Environment, service: Service, habits: Habits) -> None:
        self._env = env
        self._service = service
        self._habits = habits
        self._pictures = count(1)

    def add_one(self, rng: random.Random) -> None:
        """Plan one person's day."""
        habits = self._habits
        clicks = _poisson(rng, habits.clicks)
        for session in range(habits.sessions):
            share = clicks // habits.sessions + (session < clicks % habits.sessions)
            own = random.Random(rng.random())
            self._env.process(self._session(share, time_of_day(own), own))
        for _ in range(_poisson(rng, habits.automasks)):
            self._env.process(self._automask(time_of_day(rng)))

    def _session(self, clicks: int, start: float, rng: random.Random) -> Steps:
        """Click, wait for the answer, think, and click again."""
        habits = self._habits
        yield self._env.timeout(start)
        picture = 0
        for _ in range(clicks):
            if picture == 0 or rng.random() < habits.new_pictures:
                picture = next(self._pictures)
                yield from self._service.ask("new picture", picture)
            else:
                yield from self._service.ask("click", picture)
            yield self._env.timeout(rng.lognormvariate(math.log(habits.think_s), habits.spread))

    def _automask(self, start: float) -> Steps:
        """Open a picture with a click, and look for every object in it."""
        yield self._env.timeout(start)
        picture = next(self._pictures)
        yield from self._service.ask("new picture", picture)
        yield self._env.timeout(self._habits.think_s)
        yield from self._service.ask("automask", picture)


def time_of_day(rng: random.Random) -> float:
    """Return a second of the day, drawn from HOURS."""
    hour = rng.choices(list(HOURS), list(HOURS.values()))[0]
    return (hour + rng.random()) * HOUR_S


def _poisson(rng: random.Random, mean: float) -> int:
    """Return how many events happen where `mean` are expected."""
    happened = takewhile(lambda at: at < mean, accumulate(rng.expovariate(1) for _ in count()))
    return sum(1 for _ in happened)
