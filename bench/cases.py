"""The cases that the benchmark measures, each with its contenders.

A case sends requests and records their times. `bench.__main__` starts the contenders, and
`bench.report` turns the figures into tables.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from .contenders import Child, Sample, Server
from .pictures import Request, Size, base64_png, named, picture, random_boxes, stamped

REFERENCE = "reference"
KEPT_PAGES = "reference, kept pages"
SAME_PICTURE = "reference, same picture again"
BARE = "bare predict"
BARE_KEPT_PAGES = "bare predict, kept pages"
IN_PROCESS = "samserve in process"
TORCHSERVE = "TorchServe"
GATEWAY = "gateway"

CLIENTS = (1, 4, 8, 16)
ANSWERS_A_SECOND = 12  # times --seconds: the least number of answers for each number of clients
TURNS_OF_REFERENCE = 2  # before each number of clients

TRANSPORT_BYTES = 1e6
TRANSPORT_REPEATS = 10  # times --repeats, because the differences are milliseconds

MANY = 16  # boxes in one request

_numbers = itertools.count()  # each new picture gets the next number


class Progress(Protocol):
    """The progress that the user sees."""

    def begin(self, name: str, calls: int) -> None: ...

    def step(self) -> None: ...


@dataclass(frozen=True)
class Settings:
    """How much to measure, and on which pictures. No images: scikit-image's."""

    repeats: int
    points: int
    seconds: int
    images: list[Path]


@dataclass(frozen=True)
class Contender:
    """A program that answers a request. `once`: it takes minutes, so it runs only once."""

    name: str
    ask: Callable[[Request], tuple[Sample, bytes]]
    once: bool = False


@dataclass(frozen=True)
class Stage:
    """The contenders at one size of picture, and the results of their cases.

    Attributes:
        kept: the reference with our allocator's settings.
        ours: the handler of `lane`, called without a server.
        results: the cases append their figures here.
    """

    settings: Settings
    size: Size
    lane: str
    server: Server
    reference: Child
    kept: Child
    ours: Child
    results: dict[str, Any]
    progress: Progress

    def doors(self) -> list[Contender]:
        """Return our handler without a server, in TorchServe, and behind the gateway."""
        return [
            Contender(IN_PROCESS, functools.partial(self.ours.ask, "handle")),
            Contender(TORCHSERVE, functools.partial(self.server.ask, "TorchServe", self.lane)),
            Contender(GATEWAY, functools.partial(self.server.ask, "gateway", self.lane)),
        ]

    def references(
        self, do: str, name: str, kept_name: str, *, once: bool = False
    ) -> list[Contender]:
        """Return the reference with the system's allocator settings and with our workers'.

        Args:
            do: the command of `bench.child`.
        """
        return [
            Contender(name, functools.partial(self.reference.ask, do), once),
            Contender(kept_name, functools.partial(self.kept.ask, do), once),
        ]

    def boxes(self) -> list[list[int]]:
        """Return as many different boxes as any case needs."""
        return random_boxes(self.size, MANY)

    @functools.cached_property
    def picture(self) -> Image.Image:
        return picture(self.settings.images, self.size)

    def new_picture(self) -> str:
        """Return a picture in base64 that differs from all before in a corner's colour."""
        return base64_png(stamped(self.picture, next(_numbers)))

    def alternate(
        self,
        case: str,
        contenders: Sequence[Contender],
        requests: Callable[[int], Request],
        repeats: int,
        size: Size | None = None,
    ) -> None:
        """Run each contender once per round, and add its times to the results.

        Args:
            requests: round -> request; called for each contender. Round -1 is the warm-up,
                which is not timed.
            repeats: number of rounds.
            size: the picture's size, if it is not the stage's.
        """
        calls = sum(1 if contender.once else repeats for contender in contenders)
        self.progress.begin(f"{case} {named(size or self.size)}", calls)
        for contender in contenders:
            contender.ask(requests(-1))
        samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
        for turn in range(repeats):
            for contender in contenders:
                if turn == 0 or not contender.once:
                    samples[contender.name].append(contender.ask(requests(turn))[0])
                    self.progress.step()
        self.results["times"] += [
            {
                "case": case,
                "size": list(size or self.size),
                "contender": name,
                "wall": [sample.wall for sample in taken],
                "cpu": [sample.cpu for sample in taken],
                "peak": [sample.peak for sample in taken],
            }
            for name, taken in samples.items()
        ]


def first_box(stage: Stage) -> None:
    """One box on a new picture."""
    boxes = stage.boxes()

    def requests(turn: int) -> Request:
        return Request(stage.new_picture(), {"bbox": boxes[turn % MANY]})

    contenders = [*stage.references("prompt", REFERENCE, KEPT_PAGES), *stage.doors()]
    stage.alternate("first-box", contenders, requests, stage.settings.repeats)


def known_box(stage: Stage) -> None:
    """One box on a known picture, which is sent again in full."""
    known, boxes = stage.new_picture(), stage.boxes()

    def requests(turn: int) -> Request:
        return Request(known, {"bbox": boxes[turn % MANY]})

    contenders = [
        *stage.references("prompt", REFERENCE, KEPT_PAGES),
        # These use the picture that the contenders above have encoded.
        Contender(SAME_PICTURE, functools.partial(stage.reference.ask, "prompt-again")),
        *stage.references("predict", BARE, BARE_KEPT_PAGES),
        *stage.doors(),
    ]
    stage.alternate("known-box", contenders, requests, stage.settings.repeats)


def many_boxes(stage: Stage) -> None:
    """Many boxes on one known picture. The reference predicts one after the other."""
    known = stage.new_picture()
    fields = {"prompts": [{"bbox": box} for box in stage.boxes()]}

    def requests(turn: int) -> Request:
        return Request(known, fields)

    contenders = [
        *stage.references("prompt", REFERENCE, KEPT_PAGES),
        Contender(SAME_PICTURE, functools.partial(stage.reference.ask, "prompt-again")),
        *stage.doors(),
    ]
    stage.alternate("16-boxes", contenders, requests, stage.settings.repeats)


def transport(stage: Stage) -> None:
    """One box on a known picture of about a megabyte: the contenders differ by their transport."""
    size, known = _of_bytes(stage.settings.images, TRANSPORT_BYTES)
    boxes = random_boxes(size, MANY)

    def requests(turn: int) -> Request:
        return Request(known, {"bbox": boxes[turn % MANY]})

    stage.results["transport_bytes"] = len(requests(0).body())
    repeats = TRANSPORT_REPEATS * stage.settings.repeats
    stage.alternate("transport", stage.doors(), requests, repeats, size)


def _of_bytes(images: list[Path], n_bytes: float) -> tuple[Size, str]:
    """Return a picture in base64 of about `n_bytes`, and its size in pixels."""
    size = (1024, 768)
    for _ in range(3):
        encoded = base64_png(picture(images, size))
        scale = math.sqrt(n_bytes / len(encoded))
        size = (round(size[0] * scale), round(size[1] * scale))
    return size, base64_png(picture(images, size))


def clients_known(stage: Stage) -> None:
    """Several clients send boxes on one known picture at the same time."""
    known = stage.new_picture()
    bodies = [Request(known, {"bbox": box}).body() for box in stage.boxes()]
    turns = itertools.count()

    def request() -> Request:
        return Request(known, {"bbox": stage.boxes()[next(turns) % MANY]})

    commands = {REFERENCE: "prompt", SAME_PICTURE: "prompt-again"}
    _clients(stage, "clients-known", commands, request, lambda _: itertools.cycle(bodies))


def clients_new(stage: Stage) -> None:
    """Several clients send boxes at the same time, each on a new picture."""
    box = stage.boxes()[0]

    def request() -> Request:
        return Request(stage.new_picture(), {"bbox": box})

    def bodies(count: int) -> Iterator[bytes]:
        # Encode the PNGs before the clock starts: that takes CPU time from the server.
        return iter([request().body() for _ in range(count)])

    _clients(stage, "clients-new", {REFERENCE: "prompt"}, request, bodies)


def _clients(
    stage: Stage,
    case: str,
    commands: dict[str, str],
    request: Callable[[], Request],
    bodies: Callable[[int], Iterator[bytes]],
) -> None:
    """Measure each number of clients, and the reference before it, one request after the other.

    Args:
        commands: name -> command of the reference (`bench.child`).
        bodies: count -> at least so many bodies for one number of clients.
    """
    levels = {clients: f"{GATEWAY}, clients: {clients}" for clients in CLIENTS}
    rows: dict[str, dict[str, Any]] = {
        name: {"case": case, "size": list(stage.size), "contender": name}
        for name in (*commands, *levels.values())
    }
    samples: dict[str, list[Sample]] = {name: [] for name in commands}
    stage.progress.begin(f"{case} {named(stage.size)}", len(CLIENTS))
    for do in commands.values():
        stage.reference.ask(do, request())
    warm, _ = stage.server.ask("gateway", stage.lane, request())
    least = ANSWERS_A_SECOND * stage.settings.seconds
    enough = max(least, math.ceil(2 * stage.settings.seconds / warm.wall))
    for clients in CLIENTS:
        for _ in range(TURNS_OF_REFERENCE):
            for name, do in commands.items():
                samples[name].append(stage.reference.ask(do, request())[0])
        load = stage.server.load(stage.lane, clients, bodies(enough), least, stage.settings.seconds)
        rows[levels[clients]].update(vars(load))
        stage.progress.step()
    for name, taken in samples.items():
        rows[name].update(
            latencies=[sample.wall for sample in taken],
            errors=0,
            seconds=sum(sample.wall for sample in taken),
            cpu=sum(sample.cpu for sample in taken),
            peak=max(sample.peak for sample in taken),
        )
    stage.results["clients"] += rows.values()


def automask(stage: Stage) -> None:
    """All objects of a new picture. The reference runs only once, because it takes minutes."""

    def requests(turn: int) -> Request:
        points = 2 if turn == -1 else stage.settings.points
        return Request(stage.new_picture(), {"points_per_side": points})

    contenders = [
        *stage.references("automask", REFERENCE, KEPT_PAGES, once=True),
        *stage.doors(),
    ]
    stage.alternate("automask", contenders, requests, stage.settings.repeats)


PROMPT_CASES: dict[str, Callable[[Stage], None]] = {
    "first-box": first_box,
    "known-box": known_box,
    "16-boxes": many_boxes,
    "transport": transport,
    "clients-known": clients_known,
    "clients-new": clients_new,
}
