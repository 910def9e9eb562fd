"""This module writes answers in the output formats. A new format is a new line in `FORMATS`.

The masks of an answer are written one after the other. So only one of them has to be in memory,
with its outline; the pixels of all masks of a large picture would take gigabytes.

A client chooses a format by `output_format`, or by media type in the `Accept` header. Without
either it gets samapi's array of GeoJSON Features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson
from pycocotools import mask as coco

from samserve.errors import NotAcceptable, TooLarge, quoted
from samserve.masks.mask import ObjectMask
from samserve.masks.run_lengths import counts_of, edges_of

from .features import Allow, allow_all, features
from .images import IMAGE_FORMATS, ImageFormat, Written

RUN_S = 5e-7
"""Seconds that a run of pixels takes to be written as COCO's run lengths. An EPYC core."""


@dataclass(frozen=True)
class Content:
    """The content of an answer, before it is written in a format.

    Attributes:
        masks: the objects, in the answer's order; they are read once.
        size: (height, width) of the image in pixels.
        sam_model: the model type.
        simplify: pixels by which an outline may differ from its mask.
        pages: the number of pages in the picture's file; the answer is about one of them.
        max_bytes: the largest answer in bytes, or None.
        allow: is asked before each step.
    """

    masks: Iterable[ObjectMask]
    size: tuple[int, int]
    sam_model: str
    simplify: float
    pages: int = 1
    max_bytes: int | None = None
    allow: Allow = allow_all


@dataclass(frozen=True)
class Format:
    """One output format.

    Attributes:
        name: its name in `output_format`.
        media_type: its name in the `Accept` header, and the answer's Content-Type.
        entries: yields a dictionary for each object. The answer is a list of them.
        around: returns what stands before and behind that list.
    """

    name: str
    media_type: str
    entries: Callable[[Content], Iterator[dict[str, Any]]]
    around: Callable[[Content], tuple[bytes, bytes]] = lambda content: (b"", b"")

    def write(self, content: Content) -> Written:
        """Return what `dumps` returns, as an image's `write` does."""
        return Written(self.dumps(content))

    def dumps(self, content: Content) -> bytes:
        """Return the answer's bytes. NaN becomes null, because JSON has no NaN.

        Raises:
            TooLarge: the answer has more than `content.max_bytes`.
        """
        before, behind = self.around(content)
        written = map(orjson.dumps, self.entries(content))
        return before + b"[" + b",".join(_within(written, content.max_bytes)) + b"]" + behind


def lines(content: Content) -> bytes:
    """Return the objects as events of a stream, one line for each Feature.

    Raises:
        TooLarge: the lines have more than `content.max_bytes`.
    """
    written = (event("feature", **feature) for feature in _features(content))
    return b"".join(_within(written, content.max_bytes))


def _within(parts: Iterable[bytes], limit: int | None) -> Iterator[bytes]:
    """Yield these parts of an answer, as long as they have no more bytes than `limit`."""
    size = 0
    for part in parts:
        size += len(part) + 1
        if limit is not None and size > limit:
            raise TooLarge(
                f"The answer has more than {limit} bytes, this server's limit. Ask for fewer "
                "objects, or for outlines with fewer vertices (simplify)."
            )
        yield part


def event(kind: str, **members: Any) -> bytes:
    """Return one line of a stream of events (application/x-ndjson)."""
    return orjson.dumps({"event": kind, **members}, option=orjson.OPT_APPEND_NEWLINE)


def _features(content: Content) -> Iterator[dict[str, Any]]:
    return features(content.masks, content.sam_model, content.simplify, content.allow)


def _collection(content: Content) -> tuple[bytes, bytes]:
    # `pages` is a foreign member, which RFC 7946 allows (section 6.1).
    return b'{"type":"FeatureCollection","features":', b',"pages":%d}' % content.pages


def _coco_rle(content: Content) -> Iterator[dict[str, Any]]:
    """Yield segment-anything's records (`output_mode="coco_rle"`) without `crop_box`."""
    for mask in content.masks:
        if mask.area:
            yield {
                "segmentation": _rle(mask, content.size, content.allow),
                "area": mask.area,
                "bbox": [int(side) for side in mask.box.xywh],
                "predicted_iou": float(mask.predicted_iou),
                **mask.properties(),
            }


DEFAULT = Format("features", "application/json", _features)
FORMATS: tuple[Format | ImageFormat, ...] = (
    DEFAULT,
    Format("feature_collection", "application/geo+json", _features, _collection),
    Format("coco_rle", "application/vnd.coco-rle+json", _coco_rle),
    *IMAGE_FORMATS,
)

EVENTS = "application/x-ndjson"
"""The media type of a stream of events."""


def chosen(output_format: str | None, accept: str | None) -> Format | ImageFormat:
    """Return the format that a request chose.

    Args:
        output_format: the format's name. If it is present, `accept` is ignored.
        accept: the `Accept` header. If it names none of the formats, the answer has the default
            format, as in samapi.

    Raises:
        NotAcceptable: there is no format of this name.
    """
    if output_format is not None:
        for known in FORMATS:
            if output_format == known.name:
                return known
        names = ", ".join(known.name for known in FORMATS)
        raise NotAcceptable(
            f"output_format: there is no {quoted(output_format)}; there are {names}.",
            "output_format",
        )
    ranges = _media_ranges(accept or "")
    # The default stands first and so wins a draw. A wildcard means the default, too.
    best = max(FORMATS, key=lambda known: ranges.get(known.media_type, 0.0))
    wildcard = max(ranges.get("*/*", 0.0), ranges.get("application/*", 0.0))
    return best if ranges.get(best.media_type, 0.0) >= max(wildcard, 1e-9) else DEFAULT


def _media_ranges(accept: str) -> dict[str, float]:
    """Return the quality, 0 to 1, of each media range in the header (RFC 9110, 12.5.1)."""
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


def _rle(mask: ObjectMask, size: tuple[int, int], allow: Allow) -> dict[str, Any]:
    """Return COCO's compressed run lengths of the whole image, column by column.

    They are computed from the mask's crop: the whole image may have a hundred million pixels.
    """
    height, width = size
    edges = edges_of(mask.mask, mask.box.origin, height)
    allow(edges.size, edges.size * RUN_S)
    counts = counts_of(edges, size)
    encoded = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}
