"""Compare our masks with the reference's, pixel by pixel, from the GeoJSON of our answers.

No time is measured here.
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
"""Two masks with this IoU or more count as the same."""

BOXES = 20

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scored:
    """A mask with its scores; `bits` are its pixels, packed row by row."""

    bits: NDArray[np.uint8]
    predicted_iou: float
    stability_score: float

    @property
    def area(self) -> int:
        return int(np.bitwise_count(self.bits).sum())


def compare_automask(
    reference: Child, ours: Child, name: str, image: str, size: Size, points: int
) -> dict[str, Any]:
    """Match each reference mask with our most similar mask, and the reverse."""
    request = Request(image, {"points_per_side": points})
    theirs = _masks(reference.ask("masks", request)[1])
    ours_scored = [_scored(feature, size) for feature in json.loads(ours.ask("handle", request)[1])]
    ious = np.array([[_iou(mask.bits, other.bits) for other in ours_scored] for mask in theirs])
    best, nearest_reference = ious.max(axis=1), ious.max(axis=0)
    return {
        "picture": name,
        "size": list(size),
        "points_per_side": points,
        "reference": len(theirs),
        "ours": len(ours_scored),
        "same": int((best >= SAME).sum()),
        "identical": int((best == 1).sum()),
        "missing": _strays(theirs, best),
        "extra": _strays(ours_scored, nearest_reference),
    }


def compare_boxes(
    reference: Child, ours: Child, name: str, image: str, size: Size
) -> dict[str, Any]:
    """Return, for random boxes, the share of pixels in which our mask and the reference differ."""
    boxes = random_boxes(size, BOXES, seed=1)
    request = Request(image, {"prompts": [{"bbox": box} for box in boxes]})
    reference.ask("prompt", request)  # encodes the picture
    theirs = _masks(reference.ask("predict", request)[1])
    # An empty mask has no Feature.
    bits = [np.zeros_like(mask.bits) for mask in theirs]
    for feature in json.loads(ours.ask("handle", request)[1]):
        bits[feature["properties"]["prompt_idx"]] = _scored(feature, size).bits
    pixels = size[0] * size[1]
    return {
        "picture": name,
        "size": list(size),
        "differing": [
            int(np.bitwise_count(mask.bits ^ our_bits).sum()) / pixels
            for mask, our_bits in zip(theirs, bits, strict=True)
        ],
        "iou": [
            float(_iou(mask.bits, our_bits)) for mask, our_bits in zip(theirs, bits, strict=True)
        ],
    }


def rasterise(geometry: dict[str, Any], size: Size) -> Mask:
    """Return the pixels inside the outline, H×W bool, by the even-odd rule.

    Our outlines run along the edges of pixels.
    """
    crossed = np.zeros((size[1], size[0] + 1), np.bool_)
    many = geometry["type"] == "MultiPolygon"
    polygons = geometry["coordinates"] if many else [geometry["coordinates"]]
    for ring in itertools.chain.from_iterable(polygons):
        for (x0, y0), (x1, y1) in itertools.pairwise(ring):
            if x0 == x1:
                crossed[min(y0, y1) : max(y0, y1), x0] ^= True
    inside: Mask = np.logical_xor.accumulate(crossed, axis=1)[:, :-1]
    return inside


def _scored(feature: dict[str, Any], size: Size) -> Scored:
    """Return a Feature's mask; raise BenchError if it encloses another area than it says."""
    properties = feature["properties"]
    mask = Scored(
        np.packbits(rasterise(feature["geometry"], size)),
        properties["quality"],
        properties.get("stability_score", float("nan")),
    )
    area = properties.get("area", mask.area)
    if mask.area != area:
        raise BenchError(f"an outline encloses {mask.area} pixels, but its Feature says {area}")
    return mask


def _masks(packed: bytes) -> list[Scored]:
    """Return the masks of the reference child's answer."""
    with np.load(io.BytesIO(packed)) as file:
        scores = json.loads(str(file["scores"]))
        return [
            Scored(bits, score["predicted_iou"], score.get("stability_score", float("nan")))
            for bits, score in zip(file["masks"], scores, strict=True)
        ]


def _iou(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    union = int(np.bitwise_count(a | b).sum())
    return int(np.bitwise_count(a & b).sum()) / union if union else 1.0


def _strays(masks: list[Scored], best: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Return the masks whose best IoU with the other side is below SAME, the lowest first."""
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
