"""A parser of command lines whose errors are one line, without the whole usage."""

from __future__ import annotations

import argparse
import re
import sys
from typing import NoReturn

USAGE_STATUS = 2


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the words of a command."""

    def error(self, message: str) -> NoReturn:
        """End with status 2."""
        # argparse begins with "argument --box: ".
        plain = re.sub(r"^argument (\S+): ", r"\1: ", message)
        print(f"{self.prog}: {plain} (`{self.prog} --help` explains it)", file=sys.stderr)
        sys.exit(USAGE_STATUS)


def with_negative_numbers(words: list[str], options: tuple[str, ...]) -> list[str]:
    """Join `--box -5,2,…` to `--box=-5,2,…`, because argparse takes `-5,2,…` for an option."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] in options and re.match(r"-[\d.]", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined
