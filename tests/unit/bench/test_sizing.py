"""The simulated day keeps the laws of queues, and works with the server's own settings."""

from __future__ import annotations

import math
import random
import re
from collections import Counter, OrderedDict
from dataclasses import replace
from statistics import fmean

import pytest
import simpy
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.sizing.figures import FIGURES, NICE_0, NICE_10, Figures
from bench.sizing.people import HOUR_S, HOURS, Habits, time_of_day
from bench.sizing.pods import BALANCE, Cores, Kind, Request, Service, Steps
from bench.sizing.simulation import (
    KINDS,
    pictures_to_keep,
    simulate,
    simulate_arrivals,
    simulate_clients,
    times,
)
from tests.support.paths import ROOT

VIT_T = FIGURES["vit_t"]
BUSY = Habits(clicks=1000, automasks=20)


def alone(figures: Figures) -> Figures:
    """Return a pod of one core and one worker that takes one request at a time."""
    return replace(figures, cores=1, threads=1, prompt_workers=1, batch_size=1, batch_delay_s=0)


def ends(cores: int, *tasks: tuple[float, float, float, float]) -> list[float]:
    """Return when each task ends that begins at a time, with its work, threads and weight."""
    env = simpy.Environment()
    shared = Cores(env, cores)
    ended = [0.0] * len(tasks)

    def run(index: int, at: float, work: float, threads: float, weight: float) -> Steps:
        yield env.timeout(at)
        yield shared.run(work, math.ceil(threads), threads, weight)
        ended[index] = env.now

    for index, task in enumerate(tasks):
        env.process(run(index, *task))
    env.run()
    assert shared.worked == pytest.approx(sum(work for _, work, _, _ in tasks))
    return ended


@pytest.mark.parametrize(
    ("cores", "tasks", "expected"),
    [
        (2, [(0, 4, 1, NICE_0)], [4]),  # a thread uses one core only
        (2, [(0, 4, 2, NICE_0)], [2]),
        (2, [(0, 4, 1.6, NICE_0)], [2.5]),  # its two threads wait for each other
        (1, [(0, 1, 1, NICE_0), (0, 1, 1, NICE_0)], [2, 2]),
        (1, [(0, 2, 1, NICE_0), (1, 1, 1, NICE_0)], [3, 3]),
        (2, [(0, 1, 1, NICE_0), (0, 2, 2, NICE_0)], [1.5, 1.5]),
        (1, [(0, 1024, 1, 1024), (0, 110, 1, 110)], [1134, 1134]),
        # One thread uses one core only; the low priority gets what is left.
        (2, [(0, 5, 1, NICE_0), (0, 5, 2, NICE_10)], [5, 5]),
    ],
)
def test_cores_are_shared_by_threads_and_weights(
    cores: int, tasks: list[tuple[float, float, float, float]], expected: list[float]
) -> None:
    assert ends(cores, *tasks) == pytest.approx(expected)


task = st.tuples(
    st.floats(0, 10), st.floats(0.01, 5), st.sampled_from([1, 1.8, 2]), st.sampled_from([110, 1024])
)


@given(st.integers(1, 4), st.lists(task, min_size=1, max_size=8))
@settings(deadline=None)
def test_no_work_is_lost_and_none_is_faster_than_its_threads(
    cores: int, tasks: list[tuple[float, float, float, float]]
) -> None:
    for end, (at, work, threads, _) in zip(ends(cores, *tasks), tasks, strict=True):
        assert end >= at + work / min(threads, cores) - 1e-6
    earliest = min(at for at, *_ in tasks)
    assert max(ends(cores, *tasks)) >= earliest + sum(work for _, work, *_ in tasks) / cores - 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_a_single_worker_keeps_the_law_of_pollaczek_and_khinchin(load: float) -> None:
    """Work of equal length and exponential pauses (M/D/1): the mean wait is known."""
    service_s, rng, at = VIT_T.click_s, random.Random(7), 0.0
    arrivals: list[tuple[float, Kind]] = []
    for _ in range(40_000):
        at += rng.expovariate(load / service_s)
        arrivals.append((at, "click"))
    day = simulate_arrivals(arrivals, replace(alone(VIT_T), queue_size=10**6))
    waited = fmean(times(day.requests, "click")) - service_s
    assert waited == pytest.approx(load * service_s / (2 * (1 - load)), rel=0.06)


@pytest.mark.parametrize(("clients", "busy"), [(1, VIT_T.click_cores), (2, 2), (16, 2)])
def test_clients_get_as_many_answers_as_the_cores_can_give(clients: int, busy: float) -> None:
    figures = replace(VIT_T, batch_delay_s=0)
    day = simulate_clients(clients, 60, figures)
    assert len(day.requests) == pytest.approx(60 * busy / VIT_T.click_s, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("pods", [1, 3])
def test_every_request_is_answered_or_refused_and_its_work_done(pods: int) -> None:
    day = simulate(30, pods, VIT_T, BUSY)
    answered = Counter(request.kind for request in day.requests if request.took is not None)
    assert sum(answered.values()) + day.refused == len(day.requests)
    assert all(len(times(day.requests, kind)) == answered[kind] for kind in KINDS)
    work = (answered["click"] + answered["new picture"]) * VIT_T.click_s
    work += answered["new picture"] * VIT_T.encode_s + answered["automask"] * VIT_T.automask_s
    assert day.worked == pytest.approx(work)
    for kind, least in zip(KINDS, VIT_T.alone_s(), strict=True):
        assert times(day.requests, kind)[0] >= least - 1e-6


@pytest.mark.slow
def test_more_pods_are_never_worse() -> None:
    days = [simulate(40, pods, VIT_T, Habits(clicks=300, automasks=100)) for pods in (1, 2, 3, 4)]
    refused = [day.refused for day in days]
    assert refused[0] > 0
    assert refused == sorted(refused, reverse=True)
    for kind in KINDS:
        means = [fmean(times(day.requests, kind)) for day in days]
        assert means == sorted(means, reverse=True)


def test_a_full_lane_refuses() -> None:
    burst: list[tuple[float, Kind]] = [(at / 1000, "automask") for at in range(150)]
    day = simulate_arrivals(burst, VIT_T)
    assert day.refused == 150 - VIT_T.queue_size - VIT_T.automask_workers
    assert not simulate_arrivals(burst[:100], VIT_T).refused


def test_clicks_do_not_wait_for_a_new_picture_or_an_automask() -> None:
    click, new, automask = VIT_T.alone_s()
    day = simulate_arrivals([(0, "automask"), (0.1, "new picture"), (0.2, "click")], VIT_T)
    took = {request.kind: request.took or 0 for request in day.requests}
    assert click < took["click"] < new / 2
    assert new < took["new picture"] < 2 * new
    assert automask < took["automask"] < automask + 2 * new


def test_a_picture_keeps_its_pod_and_no_pod_gets_far_more_than_the_others() -> None:
    service = Service(simpy.Environment(), VIT_T, 4)
    own = [service._pod_for(picture) for picture in range(400)]
    assert own == [service._pod_for(picture) for picture in range(400)]
    assert all(70 < count < 130 for count in Counter(map(id, own)).values())
    for _ in range(40):  # one popular picture
        service._pod_for(7).ask(Request("click", 7, 0.0))
    counts = [pod.unanswered for pod in service.pods]
    assert sum(counts) == 40
    assert max(counts) <= BALANCE * 40 / 4 + 1


@pytest.mark.slow
def test_people_ask_for_what_they_are_said_to() -> None:
    habits = Habits(clicks=200, automasks=5, new_pictures=0.25)
    day = simulate(200, 8, VIT_T, habits)
    counts = Counter(request.kind for request in day.requests)
    assert counts["automask"] == pytest.approx(200 * 5, rel=0.09)
    clicks = counts["click"] + counts["new picture"] - counts["automask"]
    assert clicks == pytest.approx(200 * 200, rel=0.02)
    first_of_a_session = 200 * habits.sessions
    new = first_of_a_session + (200 * 200 - first_of_a_session) * 0.25
    assert counts["new picture"] - counts["automask"] == pytest.approx(new, rel=0.03)


def test_work_begins_in_the_hours_that_are_stated() -> None:
    rng = random.Random(3)
    hours = Counter(int(time_of_day(rng) // HOUR_S) for _ in range(20_000))
    assert set(hours) == set(HOURS)
    assert all(hours[hour] == pytest.approx(200 * share, abs=200) for hour, share in HOURS.items())


def test_a_day_depends_on_its_seed_only() -> None:
    def asked(pods: int, seed: int) -> list[tuple[float, str]]:
        return [(r.at, r.kind) for r in simulate(5, pods, VIT_T, Habits(), seed).requests]

    assert asked(1, 1) == asked(1, 1)
    assert asked(1, 1) != asked(1, 2)
    assert Counter(kind for _, kind in asked(1, 1)) == Counter(kind for _, kind in asked(4, 1))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_redis_keeps_every_picture_that_is_asked_for_again(pictures: list[int]) -> None:
    def misses(size: int) -> int:
        kept: OrderedDict[int, None] = OrderedDict()
        missed = 0
        for picture in pictures:
            missed += picture not in kept
            kept[picture] = None
            kept.move_to_end(picture)
            if len(kept) > size:
                kept.popitem(last=False)
        return missed

    size = pictures_to_keep([Request("click", picture, at) for at, picture in enumerate(pictures)])
    assert misses(size) == len(set(pictures))
    assert size == 1 or misses(size - 1) > len(set(pictures))


def test_the_pods_have_the_settings_of_the_server() -> None:
    properties = (ROOT / "config" / "config.properties").read_text()
    for model in ("vit_t", "vit_b", "vit_l", "vit_h"):
        figures = FIGURES[model]
        lanes = re.findall(
            rf'"{model}(-automask)?".*?"minWorkers": (\d+).*?"batchSize": (\d+).*?Delay": (\d+)',
            properties,
            re.DOTALL,
        )
        assert lanes == [
            (
                "",
                str(figures.prompt_workers),
                str(figures.batch_size),
                f"{1000 * figures.batch_delay_s:.0f}",
            ),
            ("-automask", str(figures.automask_workers), "1", "1"),
        ]
        assert f"\njob_queue_size={figures.queue_size}\n" in properties
    haproxy = (ROOT / "deploy" / "haproxy" / "haproxy.cfg").read_text()
    assert f"hash-balance-factor {100 * BALANCE:.0f}\n" in haproxy
    defaults = yaml.safe_load((ROOT / "config" / "models" / "defaults.yaml").read_text())
    assert re.findall(r"'nice': (\d+)", str(defaults)) == ["0", "10"]
    operations = (ROOT / "docs" / "operations.md").read_text()
    for model in ("vit_b", "vit_l", "vit_h"):
        row = re.search(rf"^\| `{model}` \|.*$", operations, re.MULTILINE)
        assert row is not None
        assert f"| {FIGURES[model].encode_s / 2:.0f} s |" in row[0]
