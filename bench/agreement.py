"""Do our masks equal the reference's? Compared pixel for pixel, from the GeoJSON that we send.

Measures no time.
"""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contenders import BenchError, Child
from .pictures import Request, Size, random_boxes

SAME = 0.99
"""IoU from which on two masks count as the same."""

BOXES = 20

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """A mask and what its maker says of it; `bits` are its pixels, packed row by row."""

    bits: NDArray[np.uint8]
    predicted_iou: float
    stability_score: float

    @property
    def area(self) -> int:
        return int(np.bitwise_count(self.bits).sum())


def compare_automask(
    reference: Child, ours: Child, name: str, image: str, size: Size, points: int
) -> dict[str, Any]:
    """Each reference mask's nearest of ours, and the reverse."""
    request = Request(image, {"points_per_side": points})
    theirs = _masks(reference.ask("masks", request)[1])
    own = [_found(feature, size) for feature in json.loads(ours.ask("handle", request)[1])]
    ious = np.array([[_iou(mask.bits, other.bits) for other in own] for mask in theirs])
    best, nearest_reference = ious.max(axis=1), ious.max(axis=0)
    return {
        "picture": name,
        "size": list(size),
        "points_per_side": points,
        "reference": len(theirs),
        "ours": len(own),
        "same": int((best >= SAME).sum()),
        "identical": int((best == 1).sum()),
        "missing": _strays(theirs, best),
        "extra": _strays(own, nearest_reference),
    }


def compare_boxes(
    reference: Child, ours: Child, name: str, image: str, size: Size
) -> dict[str, Any]:
    """For some boxes: the share of pixels in which our mask differs from `SamPredictor`'s."""
    boxes = random_boxes(size, BOXES, seed=1)
    request = Request(image, {"prompts": [{"bbox": box} for box in boxes]})
    reference.ask("prompt", request)  # sets the picture
    theirs = _masks(reference.ask("predict", request)[1])
    # An empty mask has no Feature.
    own = [np.zeros_like(mask.bits) for mask in theirs]
    for feature in json.loads(ours.ask("handle", request)[1]):
        own[feature["properties"]["prompt_idx"]] = _found(feature, size).bits
    pixels = size[0] * size[1]
    return {
        "picture": name,
        "size": list(size),
        "differing": [
            int(np.bitwise_count(mask.bits ^ bits).sum()) / pixels
            for mask, bits in zip(theirs, own, strict=True)
        ],
        "iou": [float(_iou(mask.bits, bits)) for mask, bits in zip(theirs, own, strict=True)],
    }


def rasterise(geometry: dict[str, Any], size: Size) -> Mask:
    """The pixels inside, even-odd; every outline runs along their edges."""
    crossed = np.zeros((size[1], size[0] + 1), np.bool_)
    many = geometry["type"] == "MultiPolygon"
    polygons = geometry["coordinates"] if many else [geometry["coordinates"]]
    for ring in itertools.chain.from_iterable(polygons):
        for (x0, y0), (x1, y1) in itertools.pairwise(ring):
            if x0 == x1:
                crossed[min(y0, y1) : max(y0, y1), x0] ^= True
    inside: Mask = np.logical_xor.accumulate(crossed, axis=1)[:, :-1]
    return inside


def _found(feature: dict[str, Any], size: Size) -> Found:
    """Raises BenchError if the outline does not hold as many pixels as its Feature says."""
    properties = feature["properties"]
    found = Found(
        np.packbits(rasterise(feature["geometry"], size)),
        properties["quality"],
        properties.get("stability_score", float("nan")),
    )
    told = properties.get("area", found.area)
    if found.area != told:
        raise BenchError(f"an outline holds {found.area} pixels, but its Feature says {told}")
    return found


def _masks(packed: bytes) -> list[Found]:
    """What the reference child sent."""
    with np.load(io.BytesIO(packed)) as file:
        scores = json.loads(str(file["scores"]))
        return [
            Found(bits, score["predicted_iou"], score.get("stability_score", float("nan")))
            for bits, score in zip(file["masks"], scores, strict=True)
        ]


def _iou(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    union = int(np.bitwise_count(a | b).sum())
    return int(np.bitwise_count(a & b).sum()) / union if union else 1.0


def _strays(masks: list[Found], best: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Those whose best IoU with a mask of the other side is below SAME, the worst first."""
    strays = [
        {
            "predicted_iou": mask.predicted_iou,
            "stability_score": mask.stability_score,
            "area": mask.area,
            "best_iou": float(iou),
        }
        for mask, iou in zip(masks, best, strict=True)
        if iou < SAME
    ]
    return sorted(strays, key=lambda stray: stray["best_iou"])
