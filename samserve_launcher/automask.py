"""`samserve automask` finds every object in each picture of a folder.

samserve automask pictures/ -f labels -o out
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from samserve.errors import InvalidField
from samserve.objects.collection import Objects
from samserve.objects.interface import Progress, SegmentablePicture
from samserve.parameters import AutomaskParameters
from samserve_client.destinations import Work, works_of
from samserve_client.folder import find_pictures
from samserve_client.outputs import format_of

from . import picture_options
from .picture_options import usage_error

EXAMPLES = """\
  samserve automask pictures/ -o out                       outlines of all pictures of a folder
  samserve automask pictures/ -f labels -o out             a label image for each
  samserve automask 'scans/*.tif' -f geojson,overlay -o out
  samserve automask stack.tif --pages all -f labels -o out
  samserve automask map.tif -f gpkg -o map.gpkg            georeferenced, if the picture is
  samserve automask pictures/ --local -o out               without a server"""

LAST_PAGE = 99_999
"""A file has at most 100000 pages."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = picture_options.parser_of(
        "samserve automask",
        "Find every object in each picture, and write files about them. If it is interrupted, the "
        "same command goes on where it ended.",
        EXAMPLES,
    )
    made.add_argument(
        "paths", nargs="+", metavar="PATH", help="pictures, folders of pictures, or globs in quotes"
    )
    made.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("out"),
        metavar="FOLDER",
        help="the folder to write to (out); for one picture also a file, as cells.geojson",
    )
    made.add_argument(
        "--pages",
        help="pages of TIFF stacks, from 0: all, or as 0,2,5-9. Without it, stacks are refused",
    )
    made.add_argument(
        "-r", "--recursive", action="store_true", help="also look into the folders of folders"
    )
    made.add_argument(
        "--again", action="store_true", help="also segment pictures whose files exist already"
    )
    made.add_argument(
        "-j", "--jobs", type=_jobs, help="pictures at once, 1 to 64 (2; 1 with --local)"
    )
    picture_options.add_output_options(made)
    picture_options.add_model_options(made)
    _add_parameters(made)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    made = parser()
    parsed = made.parse_args(arguments)
    parameters = {
        name: value
        for name in AutomaskParameters.model_fields
        if (value := getattr(parsed, name)) is not None
    }
    try:
        AutomaskParameters.of(parameters)
        works = _works(parsed)
        pages = pages_in(parsed.pages)
    except InvalidField as error:
        usage_error(made, f"--{error.message.replace('_', '-')}")
    except ValueError as error:
        usage_error(made, str(error))

    def find(picture: SegmentablePicture, progress: Progress) -> Objects:
        return picture.automask(progress=progress, **parameters)

    named = works[0].named
    default = "geojson" if named is None else format_of(named) or "geojson"
    formats = picture_options.formats_in(parsed, default)
    if named is not None and len(formats) > 1:
        usage_error(made, f"-o must name a folder for {len(formats)} formats, not {named}")
    return picture_options.run(
        made,
        parsed,
        works,
        find,
        formats=formats,
        jobs=parsed.jobs or (1 if parsed.local else 2),
        pages=pages,
        pages_option="--pages all, or some of them as --pages 0,2,5-9",
        again=parsed.again,
    )


def _works(parsed: argparse.Namespace) -> list[Work]:
    """Return the pictures to segment.

    Raises:
        ValueError: there are none, or several for one file.
    """
    pictures = find_pictures(parsed.paths, recursive=parsed.recursive)
    if format_of(parsed.output) is None:
        return works_of(pictures, parsed.output)
    if len(pictures) > 1:
        raise ValueError(
            f"-o must name a folder for {len(pictures)} pictures, not the file {parsed.output}"
        )
    [(source, _)] = pictures
    return [Work(source, parsed.output.with_suffix(""), parsed.output)]


def pages_in(text: str | None) -> list[int] | str | None:
    """Return the pages that `all` or `0,2,5-9` names; None for no text.

    Raises:
        ValueError: the text names no pages.
    """
    if text in (None, "all"):
        return text
    pages: list[int] = []
    for part in str(text).split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"--pages must be all, or numbers from 0 as 0,2,5-9, not {text!r}")
        begin, end = int(first), int(last or first)
        if begin > end or end > LAST_PAGE:
            raise ValueError(
                f"--pages {part.strip()}: the first page must not be after the last one, and the "
                f"last one not after {LAST_PAGE}"
            )
        pages += range(begin, end + 1)
    return pages


def _jobs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"it must be a number from 1 to 64, not {text!r}")
    return int(text)


def _add_parameters(made: argparse.ArgumentParser) -> None:
    """Add an option for each parameter of automask, with its description."""
    group = made.add_argument_group("parameters of automask")
    for name, field in AutomaskParameters.model_fields.items():
        default = getattr(field.default, "value", field.default)
        shown = (
            ""
            if default is None
            else f" ({default:g})"
            if type(default) is float
            else f" ({default})"
        )
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=_value,
            metavar="VALUE",
            help=f"{field.description}{shown}".replace("%", "%%"),
        )


def _value(text: str) -> Any:
    """Return a number, a list or a boolean as JSON has it; any other text as it is."""
    try:
        return json.loads({"True": "true", "False": "false"}.get(text, text))
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    sys.exit(main())
