"""`samserve segment` finds the objects that boxes and points name in a picture.

samserve segment cells.png --box 10,20,200,180
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import orjson

from samserve.objects.collection import Objects
from samserve.objects.interface import Progress, SegmentablePicture
from samserve.objects.segmented import SegmentedObject
from samserve_client.destinations import Work
from samserve_client.folder import FAILURES, in_words
from samserve_client.outputs import format_of

from . import picture_options
from .one_line import with_negative_numbers
from .picture_options import usage_error

EXAMPLES = """\
  samserve segment cells.png --box 10,20,200,180                GeoJSON to the terminal
  samserve segment cells.png --box 10,20,200,180 -o cell.png    a picture of it
  samserve segment cells.png --point 100,90 --point 30,40,0     on the object; beside it
  samserve segment cells.png --box 10,20,90,80 --box 90,20,170,80 -f labels,overlay -o out"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = picture_options.parser_of(
        "samserve segment",
        "Find the objects that boxes and points name in a picture. Coordinates are pixels, the "
        "origin is the top-left corner, y points down.",
        EXAMPLES,
    )
    made.add_argument("picture", metavar="PICTURE", help="a picture's file, or its URL")
    made.add_argument(
        "--box",
        action="append",
        type=_box,
        metavar="X0,Y0,X1,Y1",
        help="a box around an object; several boxes give an object each",
    )
    made.add_argument(
        "--point",
        action="append",
        type=_point,
        metavar="X,Y[,0]",
        help="a point on the object, or with ,0 beside it; all points belong to one object",
    )
    made.add_argument(
        "--multimask", action="store_true", help="all three masks of the model in place of one"
    )
    made.add_argument("--page", type=int, help="the page of a TIFF stack, from 0")
    made.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="the file to write, as cell.geojson or cell.png; or a folder. Without -o, the "
        "terminal gets GeoJSON",
    )
    picture_options.add_output_options(made)
    picture_options.add_model_options(made)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    made = parser()
    words = sys.argv[1:] if arguments is None else arguments
    parsed = made.parse_args(with_negative_numbers(words, ("--box", "--point")))
    boxes, points = parsed.box or [], parsed.point or []
    if not boxes and not points:
        usage_error(made, "give a --box, a --point, or both")
    if len(boxes) > 1 and points:
        usage_error(made, "give points with one box, or several boxes without points")

    def find(picture: SegmentablePicture, progress: Progress) -> Objects:
        return _found(picture, boxes, points, multimask=parsed.multimask)

    if Path(parsed.picture).is_dir():
        usage_error(
            made,
            f"{parsed.picture} is a folder: name one picture, or find everything in a folder with "
            f"`samserve automask {parsed.picture}`",
        )
    is_url = parsed.picture.lower().startswith(("http://", "https://"))
    if parsed.output is None and parsed.formats is None:
        return _to_terminal(made, parsed, find)
    if is_url:
        usage_error(made, "download the picture first, to write files about it")
    source, output = Path(parsed.picture), parsed.output or Path()
    named = output if format_of(output) is not None else None
    formats = picture_options.formats_in(parsed, (named and format_of(named)) or "geojson")
    if named is not None and len(formats) > 1:
        usage_error(made, f"-o must name a folder for {len(formats)} formats, not {named}")
    target = output / source.stem if named is None else output.with_suffix("")
    return picture_options.run(
        made,
        parsed,
        [Work(source, target, named)],
        find,
        formats=formats,
        jobs=1,
        pages=None if parsed.page is None else [parsed.page],
        pages_option="--page 0",
        again=True,
        single=True,
    )


def _found(
    picture: SegmentablePicture,
    boxes: list[list[float]],
    points: list[list[float]],
    *,
    multimask: bool,
) -> Objects:
    if len(boxes) > 1:
        return picture.segment(boxes=boxes, multimask_output=multimask)
    options: dict[str, Any] = {"multimask_output": multimask}
    if points:
        options["points"] = [point[:2] for point in points]
        options["labels"] = [point[2] if len(point) == 3 else 1 for point in points]
    found: SegmentedObject | Objects = picture.segment(boxes[0] if boxes else None, **options)
    return found if isinstance(found, Objects) else Objects([found], found.frame)


def _to_terminal(
    made: argparse.ArgumentParser, parsed: argparse.Namespace, find: picture_options.Find
) -> int:
    """Print the objects as GeoJSON."""
    try:
        with picture_options.opened(parsed, 60.0) as (opener, _):
            found = find(opener.picture(parsed.picture, parsed.page), None)
            text = orjson.dumps(found.to_geojson(georeferenced=parsed.georeferenced))
    except KeyboardInterrupt:
        return picture_options.INTERRUPTED
    except FAILURES as error:
        print(f"{made.prog}: {in_words(error, Path())}", file=sys.stderr)
        return picture_options.FAILED
    print(text.decode())
    return picture_options.DONE


def _box(text: str) -> list[float]:
    values = _numbers(text)
    if len(values) != 4 or not (values[0] < values[2] and values[1] < values[3]):
        raise argparse.ArgumentTypeError(
            f"it must be a box X0,Y0,X1,Y1 in pixels, with X0 < X1 and Y0 < Y1, not {text!r}"
        )
    return values


def _point(text: str) -> list[float]:
    values = _numbers(text)
    if len(values) not in (2, 3) or values[2:] not in ([], [0.0], [1.0]):
        raise argparse.ArgumentTypeError(
            f"it must be a point X,Y in pixels, or X,Y,0 for the background, not {text!r}"
        )
    return values


def _numbers(text: str) -> list[float]:
    """Return the finite numbers between commas; none if there is anything else."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        return []
    return values if all(map(math.isfinite, values)) else []


if __name__ == "__main__":
    sys.exit(main())
