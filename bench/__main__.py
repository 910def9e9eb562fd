"""Measure the reference, our handler and our server side by side in one run.

    python -m bench --help

Start the contenders, run the cases of `bench.cases` for each size of picture, and write the page
that `bench.report` makes. Every figure that this project publishes comes from here.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from PIL import Image
from tqdm import tqdm

from samserve.machine import memory_folder
from samserve_gateway.torchserve import TorchServeError
from samserve_launcher.errors import ServerError

from . import ROOT, report
from .agreement import compare_automask, compare_boxes
from .cases import PROMPT_CASES, Settings, Stage, automask
from .contenders import (
    MODEL,
    BenchError,
    check_files,
    copied_store,
    handler,
    reference,
    server,
)
from .pictures import Size, base64_png, named, pictures
from .plot import plot

AUTOMASK_LANE = f"{MODEL}-automask"
CASES = [*PROMPT_CASES, "automask", "agreement"]
LARGEST_ONLY = ("transport", "automask", "agreement")
SIZES: list[Size] = [(512, 512), (1024, 1024), (1800, 1200)]
POINTS = 32

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

PAGE = ROOT / "docs" / "benchmarks.md"
PLOT = PAGE.with_suffix(".svg")


def main() -> int:
    """Return the exit status: 0, 1 if a contender failed, 130 if the run was interrupted."""
    arguments = parse_arguments()
    for number in STOPPING:
        signal.signal(number, _interrupt)
    try:
        check_files()
        results = run(arguments)
    except (BenchError, ServerError, TorchServeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: stopped; no file was written", file=sys.stderr)
        return 130
    print(report.tables(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    if is_complete(arguments) and not arguments.no_write:
        plot(results, PLOT)
        PAGE.write_text(report.page(results, PLOT))
        print(f"{PAGE.relative_to(ROOT)} and {PLOT.relative_to(ROOT)} were written.")
    return 0


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments; exit with a message if one is wrong."""
    parser = argparse.ArgumentParser(
        prog="make bench",
        description="Measure samserve against the reference, side by side.",
        epilog=f"Only a complete run writes {PAGE.relative_to(ROOT)} and its plot: every case, "
        f"every size, {POINTS} points per side. Any other run prints its tables, and writes only "
        "the file that --json names. The cases transport, automask and agreement run at the last "
        "size only.",
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, metavar="CASE",
                        help=f"cases to run, of {' '.join(CASES)} (default: all)")  # fmt: skip
    parser.add_argument("--sizes", nargs="+", type=_size, default=SIZES, metavar="WxH",
                        help="sizes of the pictures "
                        f"(default: {' '.join(named(size) for size in SIZES)})")  # fmt: skip
    parser.add_argument("--image", action="append", type=_picture, default=[], metavar="PATH",
                        help="a picture to use in place of scikit-image's, resized to the sizes; "
                        "may be given several times: agreement uses all of them, the "
                        "other cases the first")  # fmt: skip
    parser.add_argument("--repeats", type=_natural, default=3,
                        help="number of rounds; each contender runs once per round "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--points", type=_natural, default=POINTS,
                        help="points along a side of the automask grid "
                        "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--seconds", type=_natural, default=5,
                        help="shortest time for each number of clients, who also get at least "
                        "12 times as many answers (default: %(default)s)")  # fmt: skip
    parser.add_argument("--json", type=_output, metavar="PATH",
                        help="write every measurement to this file")  # fmt: skip
    parser.add_argument("--no-write", action="store_true",
                        help="do not write to docs/ after a complete run")  # fmt: skip
    return parser.parse_args()


def is_complete(arguments: argparse.Namespace) -> bool:
    """Return whether the run is complete, so that docs/ may show it."""
    return (
        set(arguments.cases) == set(CASES)
        and arguments.sizes == SIZES
        and arguments.points == POINTS
    )


def run(arguments: argparse.Namespace) -> report.Results:
    """Run the cases of the command line, one size after the other, and return the results.

    Raises:
        BenchError: a contender failed.
        ServerError: the server did not start.
    """
    settings = Settings(arguments.repeats, arguments.points, arguments.seconds, arguments.image)
    shown = {**vars(settings), "images": [str(path) for path in settings.images]}
    last = arguments.sizes[-1]
    results: report.Results = {
        "about": report.about(shown, list(pictures(settings.images, (64, 64)))),
        **{name: [] for name in ("times", "clients", "automask", "boxes")},
    }
    plan = [
        (size, case)
        for size in arguments.sizes
        for case in CASES
        if case in arguments.cases and (case not in LARGEST_ONLY or size == last)
    ]
    started = time.monotonic()
    with (
        # In memory if possible: request bodies go to the child processes in files.
        tempfile.TemporaryDirectory(prefix="samserve-bench-", dir=memory_folder()) as scratch,
        Bars(len(plan)) as bars,
    ):
        store = copied_store(Path(scratch))
        for size in arguments.sizes:
            cases = [case for of, case in plan if of == size]
            folder = Path(scratch, named(size))
            measure(settings, size, cases, folder, store, results, bars)
            if "agreement" in cases:
                agreement(settings, size, folder, store, results, bars)
    results["about"]["minutes"] = (time.monotonic() - started) / 60
    return results


def measure(
    settings: Settings,
    size: Size,
    cases: list[str],
    folder: Path,
    store: Path,
    results: report.Results,
    bars: Bars,
) -> None:
    """Run the timed cases at one size, in new processes, so that peak memory is for this size."""
    lanes: dict[str, dict[str, Callable[[Stage], None]]] = {
        MODEL: {case: run for case, run in PROMPT_CASES.items() if case in cases},
        AUTOMASK_LANE: {"automask": automask} if "automask" in cases else {},
    }
    if not any(lanes.values()):
        return
    bars.begin(f"{named(size)}: starting", 0)
    with server(folder, store) as serving:
        for lane, runs in lanes.items():
            if not runs:
                continue
            with (
                reference(folder, kept_pages=False) as plain,
                reference(folder, kept_pages=True) as kept,
                handler(folder, store, lane) as ours,
            ):
                stage = Stage(settings, size, lane, serving, plain, kept, ours, results, bars)
                for run in runs.values():
                    run(stage)
                    bars.end()


def agreement(
    settings: Settings,
    size: Size,
    folder: Path,
    store: Path,
    results: report.Results,
    bars: Bars,
) -> None:
    """Compare our masks with the reference's, picture by picture."""
    images = pictures(settings.images, size)
    bars.begin(f"agreement {named(size)}", 2 * len(images))
    with (
        reference(folder, kept_pages=True) as kept,
        handler(folder, store, MODEL) as prompts,
        handler(folder, store, AUTOMASK_LANE) as automasks,
    ):
        for name, image in images.items():
            encoded = base64_png(image)
            results["boxes"].append(compare_boxes(kept, prompts, name, encoded, size))
            bars.step()
            results["automask"].append(
                compare_automask(kept, automasks, name, encoded, size, settings.points)
            )
            bars.step()
    bars.end()


class Bars:
    """Two progress bars on stderr: the cases of the plan, and the calls of the current case."""

    def __init__(self, cases: int) -> None:
        # Into a log, write one line per minute.
        interval = 0.1 if sys.stderr.isatty() else 60
        self._cases = tqdm(total=cases, unit="case", dynamic_ncols=True, mininterval=interval)
        self._calls = tqdm(unit="call", dynamic_ncols=True, mininterval=interval, leave=False)
        self._finished = threading.Event()
        self._clock = threading.Thread(target=self._tick)

    def __enter__(self) -> Bars:
        self._clock.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._finished.set()
        self._clock.join()
        self._calls.close()
        self._cases.close()

    def begin(self, name: str, calls: int) -> None:
        self._cases.set_description(name)
        self._calls.reset(calls)

    def step(self) -> None:
        self._calls.update()

    def end(self) -> None:
        """Count one more case as done."""
        self._cases.update()

    def _tick(self) -> None:
        """Refresh the bars' clocks, since a call may take minutes."""
        while sys.stderr.isatty() and not self._finished.wait(1):
            self._cases.refresh()
            self._calls.refresh()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the clean-up
    raise KeyboardInterrupt


def _size(text: str) -> Size:
    width, height = text.split("x")
    if min(int(width), int(height)) < 64:
        raise ValueError
    return int(width), int(height)


_size.__name__ = (
    "size as 1800x1200, of 64 pixels or more"  # argparse shows this name in its messages
)


def _natural(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_natural.__name__ = "number from 1"


def _picture(text: str) -> Path:
    try:
        Image.open(text).close()
    except OSError as exc:
        raise argparse.ArgumentTypeError(f"this picture cannot be read: {exc}") from exc
    return Path(text)


def _output(text: str) -> Path:
    """Try to open the file now, not after an hour of measuring."""
    try:
        open(text, "a").close()
    except OSError as exc:
        raise argparse.ArgumentTypeError(f"cannot be written: {exc}") from exc
    return Path(text)


if __name__ == "__main__":
    sys.exit(main())
