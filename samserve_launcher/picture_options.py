"""The options that `samserve segment` and `samserve automask` share, and how both run."""

from __future__ import annotations

import argparse
import queue
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tqdm import tqdm

from samserve.bars import reporting
from samserve.model_types import MODEL_TYPES
from samserve.objects.collection import Objects
from samserve.objects.files import remove_left_parts
from samserve.objects.interface import Progress, SegmentablePicture
from samserve_client.address import DEFAULT_URL, KEY_VARIABLE, URL_VARIABLE
from samserve_client.client import Client
from samserve_client.destinations import Work, check_writable, refuse_to_overwrite
from samserve_client.folder import (
    FAILURES,
    Opener,
    Outcome,
    Run,
    Task,
    Watch,
    in_words,
)
from samserve_client.outputs import OUTPUTS, chosen_outputs

from .one_line import Parser

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

EXIT_STATUS = (
    "exit status:\n  0  everything is done\n  1  something failed; the last lines say what\n"
    "  2  the command is wrong, and nothing was begun\n  130  interrupted by Ctrl-C"
)

PATIENCE_S = 600.0
"""A folder waits longer for a busy server than a person does."""

Find = Callable[[SegmentablePicture, Progress], Objects]


def parser_of(prog: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Return a parser whose help ends with examples and the exit statuses."""
    return Parser(
        prog=prog,
        description=description,
        epilog=f"examples:\n{examples}\n\n{EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which server is asked."""
    group = parser.add_argument_group("server")
    group.add_argument(
        "--server", metavar="URL", help=f"the server's address [{URL_VARIABLE}] ({DEFAULT_URL})"
    )
    group.add_argument(
        "--key",
        help=f"an API key [{KEY_VARIABLE}]. The variable is safer: other users of a machine see "
        "the words of a command",
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which model segments, and where."""
    add_server_options(parser)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", choices=list(MODEL_TYPES), help="the model type (the one that is loaded)"
    )
    group.add_argument(
        "--local",
        action="store_true",
        help="without a server: load the model in this process (vit_t unless --model says "
        "otherwise). Needs pip install 'samserve[worker]'",
    )


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is written, and where."""
    group = parser.add_argument_group("output")
    meanings = "; ".join(f"{name}: {output.meaning}" for name, output in OUTPUTS.items())
    group.add_argument(
        "-f",
        "--format",
        metavar="FORMAT,…",
        dest="formats",
        help=f"what to write, one or several (geojson). {meanings}".replace("%", "%%"),
    )
    group.add_argument(
        "--georeferenced",
        action="store_true",
        help="for GeoTIFFs: geojson in longitude and latitude in place of pixels",
    )
    group.add_argument(
        "--quiet", action="store_true", help="no progress bars, and no summary of what succeeded"
    )


def formats_in(parsed: argparse.Namespace, default: str) -> list[str]:
    """Return the formats that the command line names."""
    named = default if parsed.formats is None else parsed.formats
    return [name.strip() for name in named.split(",") if name.strip()]


@contextmanager
def opened(
    parsed: argparse.Namespace, patience_s: float
) -> Iterator[tuple[Opener, Callable[[], None]]]:
    """Yield what opens pictures, and a function that ends its work from another thread."""
    if parsed.local:
        import samserve  # PyTorch is imported only here

        yield samserve.load(parsed.model or "vit_t"), lambda: None
        return
    with Client(parsed.server, parsed.key, model_type=parsed.model, patience=patience_s) as client:
        yield client, client.close


def usage_error(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """End with status 2 and one line, without the whole usage."""
    print(f"{parser.prog}: {message}", file=sys.stderr)
    sys.exit(USAGE)


def run(
    parser: argparse.ArgumentParser,
    parsed: argparse.Namespace,
    works: Sequence[Work],
    find: Find,
    *,
    formats: Sequence[str],
    jobs: int,
    pages: Sequence[int] | str | None,
    pages_option: str,
    again: bool,
    single: bool = False,
) -> int:
    """Segment the pictures, print a summary, and return the exit status.

    Args:
        single: whether the command is about one picture, so that a failure is one line.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    # A library's warning about a picture is no line for a person at a terminal.
    warnings.simplefilter("ignore")
    try:
        outputs = chosen_outputs(formats, georeferenced=parsed.georeferenced)
        task = Task(find, outputs, pages, again, pages_option)
        refuse_to_overwrite(works, outputs.values())
    except ValueError as error:
        usage_error(parser, str(error))
    try:
        for folder in {work.named.parent if work.named else work.target.parent for work in works}:
            check_writable(folder)
            remove_left_parts(folder)
        with ExitStack() as stack:
            opener, close = stack.enter_context(opened(parsed, PATIENCE_S))
            bars = stack.enter_context(_bars(len(works), jobs, shown=_is_shown(parsed)))
            outcome = Run(opener, task, *bars).over(works, jobs, close)
    except KeyboardInterrupt:
        outcome = Outcome(left=len(works), interrupted=True)
    except FAILURES as error:
        print(f"{parser.prog}: {in_words(error, Path())}", file=sys.stderr)
        return USAGE if isinstance(error, ValueError) else FAILED
    if single and not outcome.interrupted and (outcome.failed or outcome.stopped):
        reason = outcome.stopped or next(iter(outcome.failed.values()))
        print(f"{parser.prog}: {reason}", file=sys.stderr)
        return FAILED
    for line in summary(outcome, len(works), quiet=parsed.quiet):
        print(line, file=sys.stderr)
    if outcome.interrupted:
        return INTERRUPTED
    return FAILED if outcome.failed or outcome.stopped else DONE


def summary(outcome: Outcome, total: int, *, quiet: bool) -> Iterator[str]:
    """Yield the last lines: what is done, and what failed and why."""
    pictures = "picture" if total == 1 else "pictures"
    parts = [
        f"{outcome.done} of {total} {pictures} segmented, {outcome.objects} "
        f"object{'' if outcome.objects == 1 else 's'}"
    ]
    if outcome.skipped:
        parts.append(f"{outcome.skipped} skipped, because their files exist (--again)")
    if outcome.failed:
        parts.append(f"{len(outcome.failed)} failed")
    if outcome.interrupted:
        parts.append("interrupted")
    if outcome.left:
        parts.append(f"{outcome.left} left")
    good = not (outcome.failed or outcome.stopped or outcome.interrupted)
    if not (quiet and good):
        yield "; ".join(parts)
    for source, reason in outcome.failed.items():
        yield f"  {source}: {reason}"
    if outcome.stopped:
        yield f"stopped: {outcome.stopped}"
    if outcome.left:
        yield "The same command goes on where this one ended."


def _is_shown(parsed: argparse.Namespace) -> bool:
    return sys.stderr.isatty() and not parsed.quiet


@contextmanager
def _bars(total: int, jobs: int, *, shown: bool) -> Iterator[tuple[Watch, Callable[[], object]]]:
    """Yield two functions: one shows the progress within a picture, one counts the pictures."""
    if not shown:

        @contextmanager
        def nothing(name: str) -> Iterator[Progress]:
            yield None

        yield nothing, lambda: None
        return
    # tqdm draws a bar at each place. The first place is that of the pictures.
    places: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(1, jobs + 1):
        places.put(place)

    @contextmanager
    def watch(name: str) -> Iterator[Progress]:
        place = places.get()
        try:
            with reporting(True, name[:40], position=place, leave=False) as report:
                yield report
        finally:
            places.put(place)

    with tqdm(total=total, unit=" pictures", disable=total == 1, position=0) as bar:
        yield watch, bar.update


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
