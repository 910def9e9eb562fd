"""This module writes objects as a COCO data set (cocodataset.org, "Data format")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pycocotools import mask as coco

from samserve.masks.run_lengths import counts_of, edges_of

from .frame import Frame
from .segmented import SegmentedObject


def data_set(objects: Sequence[SegmentedObject], frame: Frame) -> dict[str, Any]:
    """Return the data set of one image. Every object has pixels."""
    height, width = frame.size
    names = sorted({found.name for found in objects})
    return {
        "images": [{"id": 1, "file_name": frame.name, "height": height, "width": width}],
        "categories": [{"id": index, "name": name} for index, name in enumerate(names, 1)],
        "annotations": [
            {
                "id": index,
                "image_id": 1,
                "category_id": names.index(found.name) + 1,
                "segmentation": _run_lengths(found, height, width),
                "area": found.area,
                "bbox": [*found.box.origin, found.box.width, found.box.height],
                "iscrowd": 0,
                "score": found.quality,
            }
            for index, found in enumerate(objects, 1)
        ],
    }


def _run_lengths(found: SegmentedObject, height: int, width: int) -> dict[str, Any]:
    counts = counts_of(edges_of(found.mask, found.box.origin, height), (height, width))
    encoded = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}
