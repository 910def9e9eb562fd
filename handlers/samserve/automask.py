"""Every object in the image: a grid of points prompted, the good masks kept.

Equal to `segment_anything.SamAutomaticMaskGenerator` in what it keeps and in what order,
for every field that has; `output_type` and `include_image_edge` are samapi's additions.
Unlike it, only masks that pass `pred_iou_thresh` are brought to full size, a few at a
time, and each is kept as the crop around its object.

Does not tile: the whole picture goes through the encoder at once, and objects much
smaller than 1/1000 of its long side want `crop_n_layers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from mobile_sam.modeling import Sam
from mobile_sam.utils.amg import (
    batched_mask_to_box,
    build_point_grid,
    generate_crop_boxes,
    is_box_near_crop_edge,
    remove_small_regions,
)
from numpy.typing import NDArray
from torchvision.ops.boxes import batched_nms

from .decoder import MASK_THRESHOLD, decode, upscale
from .encoder import Embedding, encode
from .errors import InvalidField
from .features import AutoMask
from .requests import AutomaskRequest, OutputType

MAX_POINTS_PER_BATCH = 64
"""Points decoded at once, at most, whatever `points_per_batch` asks: about 2 GB of memory."""

IMAGE_EDGE_TOLERANCE = 20
"""Pixels within which a box's side counts as on the edge (segment-anything's own)."""


@dataclass(frozen=True)
class _Candidate:
    """A mask on its way through the filters.

    Attributes:
        mask: h×w bool, the pixels within `box`.
        box: XYXY of the mask's pixels in the image, both ends included, as the reference.
        point: the (x, y) that prompted it, in the image.
        crop_area: pixels of the crop it was found in.
    """

    mask: NDArray[np.bool_]
    box: tuple[int, int, int, int]
    predicted_iou: float
    stability_score: float
    point: tuple[float, float]
    crop_area: int

    @property
    def area(self) -> int:
        return int(np.count_nonzero(self.mask))


def generate(model: Sam, image: NDArray[np.uint8], request: AutomaskRequest) -> list[AutoMask]:
    """Masks of every object, in the reference's order.

    Args:
        image: H×W×3 uint8 RGB.

    Raises:
        InvalidField: more layers of crops than the image has pixels for.
        InvalidImage: too thin to encode.
    """
    height, width = image.shape[:2]
    sides = request.points_a_side()
    crops, layers = generate_crop_boxes(
        (height, width), request.crop_n_layers, request.crop_overlap_ratio
    )
    if any(x0 >= x1 or y0 >= y1 for x0, y0, x1, y1 in crops):
        raise InvalidField(
            f"crop_n_layers: a {width}x{height} image has no room for "
            f"{request.crop_n_layers} layers of crops.",
            "crop_n_layers",
        )
    found: list[_Candidate] = []
    for crop, layer in zip(crops, layers, strict=True):
        found += _masks_of_crop(model, image, crop, sides[layer], request)
    if len(crops) > 1:
        # Smaller crops see more detail, so their masks win.
        smallness = 1 / torch.tensor([c.crop_area for c in found], dtype=torch.float)
        found = _suppress(found, smallness, request.crop_nms_thresh)
    if request.min_mask_region_area > 0:
        found = _without_small_regions(found, (height, width), request)
    return [
        AutoMask(
            mask=c.mask,
            origin=c.box[:2],
            predicted_iou=c.predicted_iou,
            stability_score=c.stability_score,
            bbox=(c.box[0], c.box[1], c.box[2] - c.box[0], c.box[3] - c.box[1]),
            point_coords=[list(c.point)],
        )
        for c in found
    ]


def _masks_of_crop(
    model: Sam,
    image: NDArray[np.uint8],
    crop: list[int],
    points_a_side: int,
    request: AutomaskRequest,
) -> list[_Candidate]:
    """The masks that one crop's grid of points gives, less duplicates."""
    x0, y0, x1, y1 = crop
    embedding = encode(model, image[y0:y1, x0:x1])
    points = build_point_grid(points_a_side) * [[x1 - x0, y1 - y0]]
    at_once = min(request.points_per_batch, MAX_POINTS_PER_BATCH)
    found: list[_Candidate] = []
    for start in range(0, len(points), at_once):
        batch = points[start : start + at_once]
        found += _masks_of_points(model, embedding, batch, crop, image.shape[:2], request)

    if request.output_type is OutputType.ALL:
        return found
    if request.output_type is OutputType.BEST_QUALITY:
        scores = [c.predicted_iou for c in found]
    elif request.output_type is OutputType.LARGEST:
        scores = [c.area for c in found]
    else:  # SMALLEST, and SINGLE_MASK, where the smallest is the least merged
        scores = [-c.area for c in found]
    return _suppress(found, torch.tensor(scores, dtype=torch.float), request.box_nms_thresh)


@torch.inference_mode()
def _masks_of_points(
    model: Sam,
    embedding: Embedding,
    points: NDArray[np.float64],
    crop: list[int],
    image_size: tuple[int, ...],
    request: AutomaskRequest,
) -> Iterator[_Candidate]:
    """The masks of one batch of points (N×2 XY in the crop) that pass every threshold."""
    # float64, as the reference leaves it: rounding here would move masks by a pixel
    coords = torch.as_tensor(embedding.to_input_frame(points), device=model.device)[:, None]
    labels = torch.ones(coords.shape[:2], dtype=torch.int, device=model.device)
    low_res_masks, iou_predictions = decode(
        model,
        embedding,
        points=(coords, labels),
        multimask_output=request.output_type is not OutputType.SINGLE_MASK,
    )
    prompt_index = torch.arange(len(points), device=model.device)
    prompt_index = prompt_index.repeat_interleave(iou_predictions.shape[1])
    low_res_masks, iou_predictions = low_res_masks.flatten(0, 1), iou_predictions.flatten()
    if request.pred_iou_thresh > 0:
        good = iou_predictions > request.pred_iou_thresh
        low_res_masks, iou_predictions = low_res_masks[good], iou_predictions[good]
        prompt_index = prompt_index[good]

    x0, y0, x1, y1 = crop
    rest = iter(zip(iou_predictions.tolist(), prompt_index.tolist(), strict=True))
    for logits in upscale(model, low_res_masks, embedding):
        stability = stability_score(logits, request.stability_score_offset)
        masks = logits > MASK_THRESHOLD
        boxes = batched_mask_to_box(masks)
        keep = stability >= request.stability_score_thresh
        keep &= ~is_box_near_crop_edge(boxes, crop, [0, 0, image_size[1], image_size[0]])
        if not request.include_image_edge:
            keep &= ~_spans_image(boxes, crop, image_size)
        # `rest` runs on over all chunks, so it comes last and is not used up by the others' end.
        chunk = zip(masks, boxes.tolist(), stability.tolist(), keep.tolist(), rest, strict=False)
        for mask, box, score, kept, (predicted_iou, index) in chunk:
            left, top, right, bottom = box
            # An empty mask's box is (0, 0, 0, 0), as is that of its first pixel alone.
            if not kept or not mask[top, left : right + 1].any():
                continue
            # A copy: a view would keep the whole chunk of full frames in memory.
            yield _Candidate(
                mask=mask[top : bottom + 1, left : right + 1].cpu().numpy().copy(),
                box=(left + x0, top + y0, right + x0, bottom + y0),
                predicted_iou=predicted_iou,
                stability_score=score,
                point=(float(points[index, 0] + x0), float(points[index, 1] + y0)),
                crop_area=(x1 - x0) * (y1 - y0),
            )


def stability_score(logits: torch.Tensor, offset: float) -> torch.Tensor:
    """N×H×W logits -> N: IoU of the masks cut at `offset` above and below the threshold.

    segment-anything's, with sums wide enough for rows over 32,767 pixels.
    """
    intersections = (logits > MASK_THRESHOLD + offset).sum((-1, -2), dtype=torch.int32)
    unions = (logits > MASK_THRESHOLD - offset).sum((-1, -2), dtype=torch.int32)
    return intersections / unions


def _spans_image(boxes: torch.Tensor, crop: list[int], image_size: tuple[int, ...]) -> torch.Tensor:
    """N×4 XYXY boxes in the crop -> N bool: near all four edges of the picture."""
    x0, y0, _, _ = crop
    in_image = boxes + torch.tensor([x0, y0, x0, y0], device=boxes.device)
    edges = torch.tensor([0, 0, image_size[1], image_size[0]], device=boxes.device)
    return ((in_image - edges).abs() <= IMAGE_EDGE_TOLERANCE).all(dim=1)


def _suppress(
    candidates: list[_Candidate], scores: torch.Tensor, iou_threshold: float
) -> list[_Candidate]:
    """Non-maximum suppression by box: the kept ones, best score first."""
    if not candidates:
        return []
    boxes = torch.tensor([c.box for c in candidates], dtype=torch.float)
    keep = batched_nms(boxes, scores, torch.zeros(len(boxes)), iou_threshold)
    return [candidates[i] for i in keep.tolist()]


def _without_small_regions(
    candidates: list[_Candidate], image_size: tuple[int, int], request: AutomaskRequest
) -> list[_Candidate]:
    """Fill small holes, drop small islands, then drop what has become a duplicate."""
    cleaned, scores = [], []
    for candidate in candidates:
        # On the full frame: a hole's size must not depend on where the crop cuts it.
        full = np.zeros(image_size, dtype=np.bool_)
        left, top, right, bottom = candidate.box
        full[top : bottom + 1, left : right + 1] = candidate.mask
        full, filled = remove_small_regions(full, request.min_mask_region_area, mode="holes")
        full, dropped = remove_small_regions(full, request.min_mask_region_area, mode="islands")
        touched = filled or dropped
        scores.append(0.0 if touched else 1.0)  # untouched masks win
        if not touched:
            cleaned.append(candidate)
            continue
        box = tuple(batched_mask_to_box(torch.as_tensor(full)).tolist())
        left, top, right, bottom = box
        mask = full[top : bottom + 1, left : right + 1].copy()
        cleaned.append(replace(candidate, mask=mask, box=box))
    threshold = max(request.box_nms_thresh, request.crop_nms_thresh)
    return _suppress(cleaned, torch.tensor(scores), threshold)
