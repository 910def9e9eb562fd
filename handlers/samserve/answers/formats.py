"""The forms that an answer can have, each a line in `FORMATS`: that is where one is added.

A client names one by `output_format`, or by media type in `Accept`, as HTTP has it; samapi's
array of Features is what it gets otherwise. Makes bytes of masks, and leaves to `features` what
a mask says of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pycocotools import mask as coco

from samserve.errors import NotAcceptable

from samserve.masks.mask import ObjectMask

from .features import features


@dataclass(frozen=True)
class Answered:
    """What there is to write.

    Attributes:
        masks: the objects, in the answer's order.
        size: (height, width) of the image in pixels.
        sam_model: the model type.
        simplify: tolerance of outlines in pixels.
        pages: how many the picture has, of which this is the answer for one.
    """

    masks: Sequence[ObjectMask]
    size: tuple[int, int]
    sam_model: str
    simplify: float
    pages: int = 1


@dataclass(frozen=True)
class Format:
    """One form of an answer.

    Attributes:
        name: what `output_format` calls it.
        media_type: what `Accept` calls it, and the answer's Content-Type.
        content: what there is to write -> what JSON is made of.
    """

    name: str
    media_type: str
    content: Callable[[Answered], Any]

    def dumps(self, answered: Answered) -> bytes:
        """The answer's bytes. NaN becomes null, for JSON has none."""
        return orjson.dumps(self.content(answered))


def lines(answered: Answered) -> bytes:
    """The objects as a stream of events has them: a Feature a line."""
    found = features(answered.masks, answered.sam_model, answered.simplify)
    return b"".join(event("feature", **feature) for feature in found)


def event(kind: str, **said: Any) -> bytes:
    """A line of a stream of events (application/x-ndjson)."""
    return orjson.dumps({"event": kind, **said}, option=orjson.OPT_APPEND_NEWLINE)


def _features(answered: Answered) -> list[dict[str, Any]]:
    return features(answered.masks, answered.sam_model, answered.simplify)


def _feature_collection(answered: Answered) -> dict[str, Any]:
    # A foreign member (RFC 7946, 6.1).
    return {
        "type": "FeatureCollection",
        "features": _features(answered),
        "pages": answered.pages,
    }


def _coco_rle(answered: Answered) -> list[dict[str, Any]]:
    """segment-anything's own records (`output_mode="coco_rle"`), less `crop_box`."""
    return [
        {
            "segmentation": _rle(mask, answered.size),
            "area": mask.area,
            "bbox": [int(side) for side in mask.box.xywh],
            "predicted_iou": float(mask.predicted_iou),
            **mask.properties(),
        }
        for mask in answered.masks
        if mask.area
    ]


FORMATS = (
    Format("features", "application/json", _features),
    Format("feature_collection", "application/geo+json", _feature_collection),
    Format("coco_rle", "application/vnd.coco-rle+json", _coco_rle),
)
DEFAULT = FORMATS[0]

EVENTS = "application/x-ndjson"
"""Media type of a stream of events."""


def chosen(output_format: str | None, accept: str | None) -> Format:
    """The format that a request wants.

    Args:
        output_format: by name; decides alone if it is there.
        accept: the `Accept` header. Where it names none of ours the default is given, as samapi
            does.

    Raises:
        NotAcceptable: `output_format` is none of them.
    """
    if output_format is not None:
        for known in FORMATS:
            if output_format == known.name:
                return known
        names = ", ".join(known.name for known in FORMATS)
        raise NotAcceptable(
            f"output_format: there is no {output_format!r}; there are {names}.", "output_format"
        )
    ranges = _media_ranges(accept or "")
    # The default wins a draw, for it is the first; a wildcard means it, too.
    best = max(FORMATS, key=lambda known: ranges.get(known.media_type, 0.0))
    wildcard = max(ranges.get("*/*", 0.0), ranges.get("application/*", 0.0))
    return best if ranges.get(best.media_type, 0.0) >= max(wildcard, 1e-9) else DEFAULT


def _media_ranges(accept: str) -> dict[str, float]:
    """Media range -> how much it is wanted, 0 to 1 (RFC 9110, 12.5.1)."""
    ranges = {}
    for part in accept.lower().split(","):
        name, *parameters = (word.strip() for word in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                try:
                    quality = min(1.0, max(0.0, float(value)))
                except ValueError:
                    quality = 0.0
        ranges[name] = quality
    return ranges


def _rle(mask: ObjectMask, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's compressed run lengths of the whole image, columns first, from the mask's crop."""
    height, width = size
    left, top = mask.box.origin
    rows, columns = mask.mask.shape
    # Where each run of a column of the crop starts and ends, counted from the image's first pixel.
    padded = np.zeros((columns, rows + 2), np.int8)
    padded[:, 1:-1] = mask.mask.T
    steps: NDArray[np.int8] = np.diff(padded, axis=1)
    above = (left + np.arange(columns)) * height + top
    starts, ends = (above[column] + row for column, row in map(np.nonzero, (steps > 0, steps < 0)))
    # A run to the bottom and one from the top of the next column are one.
    apart = ends[:-1] != starts[1:]
    edges = np.stack([starts[np.r_[True, apart]], ends[np.r_[apart, True]]], axis=1).ravel()
    counts = np.trim_zeros(np.diff(edges, prepend=0, append=height * width), "b")
    encoded = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}
