"""`samserve completion` prints what a shell needs to complete the command's words.

samserve completion bash > ~/.local/share/bash-completion/completions/samserve
samserve completion zsh > ~/.zfunc/_samserve
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

import shtab

from .one_line import Parser

SHELLS = ("bash", "zsh", "tcsh")

WITH_PARSER = ("segment", "automask", "info", "completion")
"""The subcommands whose options are completed, too."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = Parser(
        prog="samserve completion",
        description="Print a script by which a shell completes the words of `samserve`.",
        epilog=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("shell", choices=SHELLS)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Print the script."""
    parsed = parser().parse_args(arguments)
    print(shtab.complete(_whole(), parsed.shell))
    return 0


def _whole() -> argparse.ArgumentParser:
    """Return one parser with all subcommands; `samserve` itself parses each in its own module."""
    from .__main__ import COMMANDS

    whole = argparse.ArgumentParser(prog="samserve")
    subcommands = whole.add_subparsers()
    for name, (module, meaning) in COMMANDS.items():
        if name not in WITH_PARSER:
            subcommands.add_parser(name, help=meaning)
            continue
        own: argparse.ArgumentParser = import_module(module).parser()
        _complete_files(own)
        # shtab takes the options of a parser that `add_parser` made, or of its parents.
        subcommands.add_parser(name, help=meaning, parents=[own], add_help=False)
    return whole


def _complete_files(own: argparse.ArgumentParser) -> None:
    for action in own._actions:
        if action.dest in ("paths", "picture", "output"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
