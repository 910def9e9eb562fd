"""A simulated day of people and pods, and what came of it."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import simpy

from .figures import Figures
from .people import HOUR_S, Habits, People
from .pods import Kind, Request, Service, Steps

KINDS: tuple[Kind, ...] = ("click", "new picture", "automask")


@dataclass(frozen=True)
class Day:
    """What came of a day.

    Attributes:
        requests: all requests.
        worked: seconds of a core that the pods worked.
    """

    requests: Sequence[Request]
    worked: float

    @property
    def refused(self) -> int:
        return sum(request.took is None for request in self.requests)

    def in_hour(self, hour: int) -> list[Request]:
        """Return the requests that were sent in an hour of the day."""
        return [request for request in self.requests if request.at // HOUR_S == hour]


def simulate(users: int, pods: int, figures: Figures, habits: Habits, seed: int = 0) -> Day:
    """Let so many people work for a day. The same seed gives the same day."""
    env = simpy.Environment()
    service = Service(env, figures, pods)
    people = People(env, service, habits)
    for person in range(users):
        people.add_one(random.Random(f"{seed} {person}"))
    env.run()
    return _day(service)


def simulate_clients(clients: int, seconds: float, figures: Figures) -> Day:
    """Let clients click on one known picture, each again as soon as it has its answer."""
    env = simpy.Environment()
    service = Service(env, figures, 1)

    def client() -> Steps:
        while env.now < seconds:
            yield from service.ask("click", 1)

    for _ in range(clients):
        env.process(client())
    env.run()
    return _day(service)


def simulate_arrivals(arrivals: Iterable[tuple[float, Kind]], figures: Figures) -> Day:
    """Send requests at their times to one pod, whether or not earlier ones are answered."""
    env = simpy.Environment()
    service = Service(env, figures, 1)

    def one(at: float, kind: Kind, picture: int) -> Steps:
        yield env.timeout(at)
        yield from service.ask(kind, picture)

    for picture, (at, kind) in enumerate(arrivals):
        env.process(one(at, kind, picture))
    env.run()
    return _day(service)


def _day(service: Service) -> Day:
    return Day(service.requests, sum(pod.cores.worked for pod in service.pods))


def times(requests: Iterable[Request], kind: Kind) -> list[float]:
    """Return the seconds of the answers to requests of a kind, the shortest first."""
    return sorted(r.took for r in requests if r.kind == kind and r.took is not None)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of the sorted values that so many percent do not exceed; NaN of none."""
    if not values:
        return math.nan
    return values[max(0, math.ceil(len(values) * percent / 100) - 1)]


def pictures_to_keep(requests: Sequence[Request]) -> int:
    """Return how many pictures Redis must keep so that none is embedded twice.

    Redis evicts the picture that was used longest ago. So a picture is still there if no more than
    the others were used since its own last use.
    """
    last: dict[int, float] = {}
    used: list[float] = []  # the last use of each picture, the oldest first
    most = 0
    for request in requests:
        if (before := last.get(request.picture)) is not None:
            index = bisect_right(used, before) - 1
            most = max(most, len(used) - index)
            del used[index]
        last[request.picture] = request.at
        used.append(request.at)
    return max(most, min(1, len(used)))
