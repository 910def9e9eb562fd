"""Simulated pods: requests, HAProxy's choice of a pod, lanes, workers, and the cores they share."""

from __future__ import annotations

import math
import random
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Literal

import simpy

from .figures import NICE_0, Figures

Kind = Literal["click", "new picture", "automask"]
Steps = Generator[simpy.Event, object, None]

BALANCE = 1.5
"""No pod gets more than this multiple of the mean load (hash-balance-factor in haproxy.cfg)."""

_DONE = 1e-9
"""Work that is only an error of rounding, in seconds of a core."""


@dataclass(eq=False)
class Request:
    """One request and its fate.

    Attributes:
        kind: what is asked.
        picture: its number. HAProxy sends the same picture to the same pod if it can.
        at: when it was sent, in seconds of the day.
        took: seconds until the answer; None until then, or if it was refused.
    """

    kind: Kind
    picture: int
    at: float
    took: float | None = None


@dataclass(eq=False)
class _Task:
    left: float
    weight: float
    most: float
    done: simpy.Event
    rate: float = 0.0


class Cores:
    """Cores that share their time among busy threads by weight, as the kernel does.

    A task has busy threads of one priority, and a limit of cores, because they wait for each other.
    """

    def __init__(self, env: simpy.Environment, cores: int) -> None:
        self.worked = 0.0
        self._env = env
        self._cores = cores
        self._tasks: list[_Task] = []
        self._since = 0.0
        self._wakes = 0

    def run(self, work: float, threads: int, most: float, weight: float) -> simpy.Event:
        """Begin a task of so many seconds of one core. The event happens when it is done.

        Args:
            threads: its busy threads.
            most: the cores that it can use.
            weight: of each thread, by its priority.
        """
        self._advance()
        done = self._env.event()
        self._tasks.append(_Task(work, threads * weight, most, done))
        self._share()
        return done

    def _advance(self) -> None:
        """Bring the work that is left up to the present, and end the tasks without any."""
        elapsed = self._env.now - self._since
        self._since = self._env.now
        for task in self._tasks:
            task.left -= task.rate * elapsed
            self.worked += task.rate * elapsed
        ended = [task for task in self._tasks if task.left <= _DONE]
        if ended:
            self._tasks = [task for task in self._tasks if task.left > _DONE]
            for task in ended:
                task.done.succeed()

    def _share(self) -> None:
        """Give each task its rate, and wake up when the first one will be done."""
        free, waiting = float(self._cores), list(self._tasks)
        while waiting:
            each = free / sum(task.weight for task in waiting)
            capped = [task for task in waiting if task.weight * each >= task.most]
            for task in capped or waiting:
                task.rate = min(task.most, task.weight * each)
            if not capped:
                break
            free -= sum(task.rate for task in capped)
            waiting = [task for task in waiting if task not in capped]
        self._wakes += 1
        if self._tasks:
            # A task that gets no core at all waits until another one has ended.
            first = min(task.left / task.rate for task in self._tasks if task.rate > 0)
            wake = self._env.timeout(first, self._wakes)
            wake.callbacks.append(self._wake)

    def _wake(self, event: simpy.Event) -> None:
        if event.value == self._wakes:  # else the shares have changed since
            self._advance()
            self._share()


@dataclass(eq=False)
class _Lane:
    queue: simpy.Store
    waiting: int = 0
    asked: dict[Request, simpy.Event] = field(default_factory=dict)


class Pod:
    """A TorchServe with two lanes, whose workers share the cores."""

    def __init__(self, env: simpy.Environment, figures: Figures) -> None:
        self.cores = Cores(env, figures.cores)
        self.unanswered = 0
        self._env = env
        self._figures = figures
        self._prompts, self._automasks = _Lane(simpy.Store(env)), _Lane(simpy.Store(env))
        for _ in range(figures.prompt_workers):
            env.process(self._work(self._prompts, figures.batch_size, NICE_0))
        for _ in range(figures.automask_workers):
            env.process(self._work(self._automasks, 1, figures.automask_weight))

    def ask(self, request: Request) -> simpy.Event | None:
        """Put the request into its lane. Return the event of its answer; None if it is refused."""
        lane = self._automasks if request.kind == "automask" else self._prompts
        if lane.waiting >= self._figures.queue_size:
            return None
        lane.waiting += 1
        self.unanswered += 1
        lane.asked[request] = answered = self._env.event()
        lane.queue.put(request)
        return answered

    def _work(self, lane: _Lane, batch_size: int, weight: float) -> Steps:
        """Answer batches for ever. As in TorchServe, a batch's answers go out together."""
        figures = self._figures
        while True:
            batch = [(yield lane.queue.get())]
            if batch_size > 1:
                yield self._env.timeout(figures.batch_delay_s)
            while lane.queue.items and len(batch) < batch_size:
                batch.append((yield lane.queue.get()))
            lane.waiting -= len(batch)
            kinds = [request.kind for request in batch if isinstance(request, Request)]
            for _ in range(kinds.count("new picture")):
                yield self._run(figures.encode_s, figures.encode_cores, weight)
            if clicks := len(kinds) - kinds.count("automask"):
                yield self._run(clicks * figures.click_s, clicks * figures.click_cores, weight)
            for _ in range(kinds.count("automask")):
                yield self._run(figures.automask_s, figures.automask_cores, weight)
            for request in batch:
                if isinstance(request, Request):
                    self.unanswered -= 1
                    lane.asked.pop(request).succeed()

    def _run(self, work: float, cores: float, weight: float) -> simpy.Event:
        """Begin the work of a worker, which keeps so many cores busy if they are free."""
        cores = min(cores, self._figures.threads)
        return self.cores.run(work, round(cores), cores, weight)


class Service:
    """Pods behind HAProxy.

    Attributes:
        requests: every request so far, refused ones too.
    """

    def __init__(self, env: simpy.Environment, figures: Figures, pods: int) -> None:
        self.pods = [Pod(env, figures) for _ in range(pods)]
        self.requests: list[Request] = []
        self._env = env

    def ask(self, kind: Kind, picture: int) -> Steps:
        """Send a request and wait for its answer. (A process of simpy.)"""
        request = Request(kind, picture, self._env.now)
        self.requests.append(request)
        answered = self._pod_for(picture).ask(request)
        if answered is not None:
            yield answered
            request.took = self._env.now - request.at

    def _pod_for(self, picture: int) -> Pod:
        """Return the picture's own pod; if that has too many requests, the next in its order.

        HAProxy counts the requests of both lanes (consistent hashing with bounded loads).
        """
        if len(self.pods) == 1:
            return self.pods[0]
        requests = sum(pod.unanswered for pod in self.pods) + 1
        slots = math.ceil(math.ceil(BALANCE * requests) / len(self.pods))
        order = random.Random(picture).sample(self.pods, len(self.pods))
        return next((pod for pod in order if pod.unanswered < slots), order[0])
