"""`samserve info` says which server answers, which models it has, and how busy it is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from samserve.errors import SamserveError
from samserve_client.client import Client
from samserve_client.status import ServerStatus

from . import picture_options
from .one_line import Parser

TIMEOUT_S = 20.0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = Parser(
        prog="samserve info",
        description="Say which server answers, which models it has loaded, and how busy it is.",
        epilog="exit status:\n  0  it is ready\n  1  it is not, or there is none\n"
        "  2  the command is wrong",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    picture_options.add_server_options(made)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    made = parser()
    parsed = made.parse_args(arguments)
    try:
        with Client(parsed.server, parsed.key, timeout=TIMEOUT_S) as client:
            status = client.info()
            for line in lines(client.url, status):
                print(line)
    except KeyboardInterrupt:
        return picture_options.INTERRUPTED
    except ValueError as error:
        picture_options.usage_error(made, str(error))
    except SamserveError as error:
        print(f"{made.prog}: {error.message}", file=sys.stderr)
        return 1
    return 0 if status.ready else 1


def lines(url: str, status: ServerStatus) -> Iterator[str]:
    """Yield what is printed."""
    yield f"{url}: samserve {status.version}, {'ready' if status.ready else 'not ready'}"
    for lane in status.lanes:
        workers = "1 worker" if lane.workers == 1 else f"{lane.workers} workers"
        waiting = "" if lane.waiting is None else f", {lane.waiting} waiting"
        yield f"  {lane.name}: {lane.state}, {workers}{waiting}"
    if status.in_work is not None:
        yield f"requests in work: {status.in_work}"
    for weights in status.weights:
        yield f"weights: {weights['type']} {weights['name']}"


if __name__ == "__main__":
    sys.exit(main())
