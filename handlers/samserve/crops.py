"""This module prompts one part of an image with a grid of points and filters the masks.

The part is a crop in segment-anything's sense (`crop_n_layers`), a tile of a large picture, or the
whole image. A mask is made only if its `predicted_iou` passes. It is brought to full size only
along its outline, and completed only if it is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops.boxes import batched_nms

from .boxes import Box
from .masks.compact import CompactMask
from .masks.full_size import FullSize, Logits
from .masks.on_gpu import scored
from .model import Model
from .network.decoded import Masks
from .network.decoder import Image, masks_at_once
from .network.devices import in_halves
from .parameters import AutomaskParameters, OutputType
from .progress import Job

IMAGE_EDGE_TOLERANCE = 20
"""A side of a box within so many pixels of an edge counts as on it (segment-anything's value)."""


@dataclass(frozen=True)
class Candidate:
    """A mask that passed the thresholds and may still be a duplicate.

    Attributes:
        mask: the mask, in the frame of its crop.
        box: the box around the mask, in pixels of the image.
        predicted_iou: the model's estimate of the mask's IoU with the true object.
        point: the (x, y) that prompted it, in pixels of the image.
        crop_area: the crop's area in pixels.
    """

    mask: CompactMask
    box: Box
    predicted_iou: float
    point: tuple[float, float]
    crop_area: int


class _HasBox(Protocol):
    @property
    def box(self) -> Box: ...


_Mask = TypeVar("_Mask", bound=_HasBox)


@dataclass(frozen=True)
class Crop:
    """A part of the image that is prompted by itself. The first crop is the whole image.

    Attributes:
        image: the embedding of this part, ready for prompts.
        origin: (x0, y0) of its top left pixel in the whole image.
        image_size: (height, width) of the whole image.
        keeps_fragments: whether a mask may end at the crop's edge, as in tiles.
    """

    model: Model
    image: Image
    origin: tuple[int, int]
    image_size: tuple[int, int]
    parameters: AutomaskParameters
    job: Job
    keeps_fragments: bool = False

    def masks(self, points: NDArray[np.float64]) -> list[Candidate]:
        """Return the masks that these points give, without duplicates.

        Args:
            points: N×2 XY, in pixels of the crop.
        """
        parameters = self.parameters
        at_once = self.model.decoder.prompts_at_once
        if self.model.device.type == "cpu":
            # On a GPU, `prompts_at_once` limits the memory already; smaller batches leave it idle.
            share = -(-len(points) // self.model.threads.count)
            at_once = min(parameters.points_per_batch, at_once, share)
        batches = [points[i : i + at_once] for i in range(0, len(points), at_once)]
        full_size = FullSize(self.image.embedding)

        def masks_of(batch: NDArray[np.float64]) -> list[Candidate] | None:
            if not self.job.may_go_on():
                return None
            return in_halves(
                lambda points: list(self._masks_of_points(np.stack(points), full_size)), list(batch)
            )

        candidates: list[Candidate] = []
        for batch, masks in zip(batches, self.model.threads.map(masks_of, batches), strict=True):
            if masks is None:
                continue
            candidates += masks
            # Report from the caller's thread: a callback that prompts would block a decoder thread.
            self.job.advance(len(batch))
        if parameters.output_type is OutputType.ALL:
            return candidates
        scores: list[float]
        if parameters.output_type is OutputType.BEST_QUALITY:
            scores = [c.predicted_iou for c in candidates]
        elif parameters.output_type is OutputType.LARGEST:
            scores = [c.mask.area for c in candidates]
        else:  # SMALLEST, and SINGLE_MASK, where the smallest is the least merged
            scores = [-c.mask.area for c in candidates]
        return suppress(candidates, scores, parameters.box_nms_thresh)

    def _masks_of_points(
        self, points: NDArray[np.float64], full_size: FullSize
    ) -> Iterator[Candidate]:
        """Yield the masks of one batch of points that pass every threshold."""
        embedding, parameters = self.image.embedding, self.parameters
        # float64 like the reference: rounding to float32 here would move masks by a pixel.
        coords = torch.as_tensor(embedding.to_input_frame(points))
        labels = torch.ones(len(points), 1, dtype=torch.int)
        decoded = self.model.decoder.decode(self.image, points=(coords[:, None], labels))
        channels = decoded.channels(parameters.output_type is not OutputType.SINGLE_MASK)
        predicted_iou = np.take_along_axis(decoded.iou_predictions.cpu().numpy(), channels, 1)
        threshold = parameters.pred_iou_thresh
        if threshold is None:
            threshold = embedding.family.pred_iou_thresh
        good = predicted_iou > (threshold or -np.inf)  # 0 turns the filter off
        if self.model.device.type != "cpu":
            masks = [(i, int(channels[i, c])) for i, c in np.argwhere(good).tolist()]
            ious = predicted_iou[good].tolist()
            yield from self._scored_on_gpu(decoded, masks, ious, points)
            return
        for index in np.flatnonzero(good.any(axis=1)).tolist():
            kept = np.flatnonzero(good[index])
            low_res_masks = decoded.low_res_masks(index, channels[index, kept].tolist())
            low_res_mask: Logits
            for channel, low_res_mask in zip(kept, low_res_masks.cpu().numpy(), strict=True):
                mask = full_size.stable(
                    low_res_mask,
                    parameters.stability_score_offset,
                    parameters.stability_score_thresh,
                )
                if mask is not None:
                    iou = float(predicted_iou[index, channel])
                    yield from self._candidates(mask, iou, points[index])

    def _scored_on_gpu(
        self,
        decoded: Masks,
        masks: list[tuple[int, int]],
        predicted_ious: list[float],
        points: NDArray[np.float64],
    ) -> Iterator[Candidate]:
        """Yield these (point, channel) masks if they are stable; the GPU makes and scores them."""
        for scored_mask in scored(
            decoded,
            masks,
            self.image.embedding,
            self.parameters.stability_score_offset,
            self.parameters.stability_score_thresh,
            masks_at_once(self.model.decoder.prompts_at_once),
        ):
            point, _ = masks[scored_mask.index]
            iou = predicted_ious[scored_mask.index]
            yield from self._candidates(scored_mask.mask, iou, points[point])

    def _candidates(
        self, mask: CompactMask, predicted_iou: float, point: NDArray[np.float64]
    ) -> Iterator[Candidate]:
        """Yield the mask unless it is empty, cut by the crop, or an unwanted background."""
        if not mask.box.area:
            return
        x0, y0 = self.origin
        box = mask.box.shifted(x0, y0)
        crop = Box.at(self.origin, self.image.embedding.original_size)
        if not self.keeps_fragments and self._is_cut(box, crop):
            return
        if not self.parameters.include_image_edge and is_background(box, self.image_size):
            return
        yield Candidate(
            mask=mask,
            box=box,
            predicted_iou=predicted_iou,
            point=(float(point[0] + x0), float(point[1] + y0)),
            crop_area=crop.area,
        )

    def _is_cut(self, box: Box, crop: Box) -> bool:
        """Return whether a mask ends near an edge of the crop that is no edge of the picture.

        Another crop then sees the whole object.
        """
        return any(
            _near(side, edge) and not _near(side, picture_edge)
            for side, edge, picture_edge in zip(
                box.inclusive, crop, Box.at((0, 0), self.image_size), strict=True
            )
        )


def is_background(box: Box, image_size: tuple[int, int]) -> bool:
    """Return whether a box is near all four edges of an image of this (height, width)."""
    return all(map(_near, box.inclusive, Box.at((0, 0), image_size)))


def _near(side: int, edge: int) -> bool:
    return abs(side - edge) <= IMAGE_EDGE_TOLERANCE


def suppress(masks: Sequence[_Mask], scores: Sequence[float], iou_threshold: float) -> list[_Mask]:
    """Return the masks that survive non-maximum suppression of their boxes, best score first."""
    if not masks:
        return []
    boxes = torch.tensor([mask.box.inclusive for mask in masks], dtype=torch.float)
    kinds = torch.zeros(len(boxes))
    keep = batched_nms(boxes, torch.tensor(scores, dtype=torch.float), kinds, iou_threshold)
    return [masks[i] for i in keep.tolist()]
