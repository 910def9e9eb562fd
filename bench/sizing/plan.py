"""The least number of pods that is enough, and the tables that say so."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .costs import GIB, Prices, cluster, redis_bytes
from .figures import FIGURES
from .people import HOUR_S, HOURS, Habits
from .pods import Kind, Request
from .simulation import KINDS, Day, percentile, pictures_to_keep, simulate, times

BUSIEST = max(HOURS, key=HOURS.__getitem__)
"""The hour in which most work begins."""

PERSON_DAYS = 200
"""Few people ask too little in a day for percentiles, so several days are simulated."""

MAX_PODS = 30
"""HAProxy has 32 places for the pods of a type (haproxy.cfg); a rollout needs some of them."""

SPARE = 1
"""Pods beyond those that are enough: one may fail, or its node may be emptied."""


@dataclass(frozen=True)
class Wish:
    """What is to be served.

    Attributes:
        users: people.
        model: a key of FIGURES.
        habits: what one of them does in a day.
        patience: 95 of 100 answers of the busiest hour may take so many times as long as on an idle
            server, for each kind of request.
    """

    users: int
    model: str
    habits: Habits
    patience: float


@dataclass(frozen=True)
class Outcome:
    """What so many pods make of it.

    Attributes:
        pods: worker pods.
        answers: seconds of the answers of the busiest hour, the shortest first, by kind.
        refused: requests that were refused, in all hours.
        pictures: pictures that Redis must keep so that none is embedded twice.
        enough: whether the pods are enough.
    """

    pods: int
    answers: dict[Kind, list[float]]
    refused: int
    pictures: int
    enough: bool


def outcome(wish: Wish, pods: int) -> Outcome:
    """Simulate the people with so many pods, for one day or, if they are few, for several."""
    figures = FIGURES[wish.model]
    days: list[Day] = [
        simulate(wish.users, pods, figures, wish.habits, seed)
        for seed in range(-(-PERSON_DAYS // wish.users))
    ]
    busy: list[Request] = [request for day in days for request in day.in_hour(BUSIEST)]
    answers = {kind: times(busy, kind) for kind in KINDS}
    refused = sum(day.refused for day in days)
    limits = dict(zip(KINDS, figures.alone_s(), strict=True))
    quick = all(
        not answers[kind] or percentile(answers[kind], 95) <= wish.patience * limits[kind]
        for kind in KINDS
    )
    pictures = max(pictures_to_keep(day.requests) for day in days)
    return Outcome(pods, answers, refused, pictures, quick and not refused)


def outcomes(wish: Wish) -> Iterator[Outcome]:
    """Yield what comes of more and more pods, up to the first number that is enough, and its spare.

    The first number is the least that can do the work of the busiest hour within an hour. No number
    is enough if none of the last outcomes is.
    """
    spare = SPARE
    for pods in range(max(1, math.ceil(busy_pods(wish))), MAX_PODS + 1):
        result = outcome(wish, pods)
        yield result
        if result.enough:
            spare -= 1
        if spare < 0:
            return


def busy_pods(wish: Wish) -> float:
    """Return how many pods the mean work of the busiest hour keeps busy."""
    figures, habits = FIGURES[wish.model], wish.habits
    new = habits.clicks * habits.new_pictures + habits.automasks
    a_day = (habits.clicks + habits.automasks) * figures.click_s
    a_day += new * figures.encode_s + habits.automasks * figures.automask_s
    hour = wish.users * a_day * HOURS[BUSIEST] / sum(HOURS.values())
    return hour / HOUR_S / figures.cores


def needed(results: Sequence[Outcome]) -> Outcome | None:
    """Return the outcome of the least number of pods that is enough; None if none is."""
    return next((result for result in results if result.enough), None)


def answers_table(results: Sequence[tuple[Wish, Sequence[Outcome]]]) -> str:
    """Return the answer times of the busiest hour, as Markdown."""
    lines = [
        "| people | pods | click, ms | new picture, ms | automask, s | refused | enough |",
        "|--:|--:|--:|--:|--:|--:|---|",
    ]
    for wish, per_pods in results:
        for result in per_pods:
            click, new, automask = (result.answers[kind] for kind in KINDS)
            lines.append(
                f"| {wish.users} | {result.pods} "
                f"| {_three(click, 1000, 0)} | {_three(new, 1000, 0)} | {_three(automask, 1, 1)} "
                f"| {result.refused} | {'yes' if result.enough else 'no'} |"
            )
    return "\n".join(lines)


def _three(values: list[float], factor: float, digits: int) -> str:
    """Return p50 / p95 / p99."""
    if not values:
        return "–"
    return " / ".join(f"{factor * percentile(values, p):.{digits}f}" for p in (50, 95, 99))


def costs_table(results: Sequence[tuple[Wish, Sequence[Outcome]]], prices: Prices) -> str:
    """Return pods, cores, memory and money, as Markdown."""
    lines = [
        "| people | model | pods that are enough | pods to run | cores | GPUs "
        "| memory, GiB: requested / limit | of it Redis | € a month | € a person |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for wish, per_pods in results:
        least = needed(per_pods)
        if least is None:
            lines.append(f"| {wish.users} | {wish.model} | more than {MAX_PODS} |{' – |' * 7}")
            continue
        run = least.pods + SPARE
        pictures = max(result.pictures for result in per_pods if result.enough)
        whole = cluster(wish.model, run, pictures)
        euros = whole.euros_a_month(prices)
        lines.append(
            f"| {wish.users} | {wish.model} "
            f"| {least.pods} | {run} | {whole.cores:.1f} | {whole.gpus:.0f} "
            f"| {whole.memory / GIB:.0f} / {whole.memory_limit / GIB:.0f} "
            f"| {redis_bytes(pictures) / GIB:.1f} | {euros:,.0f} | {euros / wish.users:,.1f} |"
        )
    return "\n".join(lines)
