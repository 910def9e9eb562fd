"""The `samserve` command. Each of its subcommands is a module with a `main` function."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module

from samserve import __version__

from .one_line import USAGE_STATUS

COMMANDS = {
    "automask": ("samserve_launcher.automask", "find every object in pictures, whole folders too"),
    "segment": ("samserve_launcher.segment", "find the object in a box, or at points"),
    "info": ("samserve_launcher.info", "say which server answers, and how busy it is"),
    "serve": ("samserve_launcher.serve", "run a server on this machine until Ctrl-C"),
    "scale": ("samserve_launcher.scale", "show the lanes of a running server, or scale one"),
    "weights": ("samserve.weights.fetch", "download and verify the weights of a model type"),
    "archive": ("samserve.archives.build", "build the .mar archive of a model type"),
    "worker": (
        "samserve_launcher.worker",
        "run TorchServe alone, as a container does",
    ),
    "gateway": ("samserve_gateway.__main__", "run the gateway alone, in front of other machines"),
    "keys": ("samserve_launcher.keys", "add, list and remove the API keys of a server"),
    "completion": ("samserve_launcher.completion", "print what a shell needs to complete words"),
    "doctor": ("samserve_launcher.doctor", "say what this machine lacks to run a server"),
}
"""Subcommand -> the module that runs it, and its line in `samserve --help`."""

EXTRA_OF = {"gateway": "gateway"}
"""The extra that installs a subcommand's packages, where it is not `server`."""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Leaves room for the longest subcommand. argparse forgets that subcommands are indented."""

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        self._action_max_length += 2


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand and return its exit status.

    Args:
        arguments: the words after `samserve`; None takes them from the command line.
    """
    parser = argparse.ArgumentParser(
        prog="samserve",
        description="Segment Anything: a server, and commands that segment pictures with it.",
        epilog="`samserve COMMAND --help` explains a command.\n\n"
        "Examples:\n  samserve serve\n"
        "  samserve automask pictures/ -f labels -o out      a label image of each picture\n"
        "  samserve segment cells.png --box 10,20,200,180 -o cell.geojson\n"
        "  samserve serve --port 9000 --models 'vit_t vit_b'\n"
        "  samserve scale vit_t-automask 2\n\n"
        "automask and segment ask a server, which `samserve serve` starts; with --local, they need "
        "none.\n",
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"samserve {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (_, what_it_does) in COMMANDS.items():
        commands.add_parser(name, help=what_it_does, add_help=False)
    parsed, rest = parser.parse_known_args(arguments)
    if parsed.command is None:
        if rest:
            parser.error(f"there is no option {rest[0]}")
        parser.print_help(sys.stderr)
        return USAGE_STATUS
    return run(parsed.command, rest)


def run(command: str, arguments: list[str]) -> int:
    """Run a subcommand with its own arguments and return its exit status."""
    module, _ = COMMANDS[command]
    try:
        entry = import_module(module).main
    except ModuleNotFoundError as exc:
        extra = EXTRA_OF.get(command, "server")
        print(
            f"samserve {command}: the package {exc.name} is not installed. "
            f"Install it with: pip install 'samserve[{extra}]'",
            file=sys.stderr,
        )
        return 1
    try:
        status: int | None = entry(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has gone, as in `samserve segment … | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as exc:
        # For example a folder that this user may not write, or output to a full disk. In the
        # second case, Python would try to write the rest at its end and fail again.
        if exc.filename is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        where = "" if exc.filename is None else f"{exc.filename}: "
        print(f"samserve {command}: {where}{exc.strerror or exc}", file=sys.stderr)
        return 1
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
