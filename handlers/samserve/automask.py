"""This module finds every object in an image: it prompts a grid of points and keeps good masks.

The masks and their order equal those of `segment_anything.SamAutomaticMaskGenerator` for every
parameter that it has. `output_type` and `include_image_edge` are additions of samapi.

A picture much larger than the network's input is cut into tiles (`tiles`). The reference has
nothing like it; its own way to find smaller objects is `crop_n_layers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from . import tiles
from .boxes import Box
from .crops import Candidate, Crop, is_background, suppress
from .errors import InvalidField
from .grids import grids_of
from .masks.mask import AutoMask, CompactAutoMask
from .model import Model
from .network.decoder import Image
from .network.originals import generate_crop_boxes, remove_small_regions
from .parameters import AutomaskParameters, Tiling
from .progress import Job

Pixels = Callable[[], NDArray[np.uint8]]
"""Returns the H×W×3 uint8 RGB pixels of an image, which it may have to decode first."""


def generate(
    model: Model,
    image: Image,
    pixels: Pixels,
    parameters: AutomaskParameters,
    job: Job | None = None,
) -> Sequence[AutoMask | CompactAutoMask]:
    """Return the masks of every object, in the reference's order.

    Most of them are packed: the pixels of all masks of a large picture can take gigabytes.

    Args:
        image: the embedding of the whole image.
        pixels: returns the image's pixels; called only if there are crops or tiles.
        job: receives the progress, and says whether to go on. If it stops, the masks are those of
            the points that were done.

    Raises:
        SamserveError: the image has no room for so many layers of crops, or a crop is too thin
            to encode.
    """
    height, width = image.embedding.original_size
    job = job or Job()
    tiling = parameters.tiling(height, width)
    masks: Sequence[AutoMask | CompactAutoMask]
    if tiling is not None:
        masks = _tiled(model, pixels(), parameters, tiling, job)
    else:
        masks = _whole_and_crops(model, image, pixels, parameters, job)
    if parameters.min_mask_region_area > 0:
        masks = _without_small_regions(masks, (height, width), parameters)
    return _within_areas(masks, parameters)


def _whole_and_crops(
    model: Model, image: Image, pixels: Pixels, parameters: AutomaskParameters, job: Job
) -> list[CompactAutoMask]:
    """Return the masks of the whole image and of its crops, as segment-anything does."""
    height, width = size = image.embedding.original_size
    sides = parameters.points_a_side()
    boxes, layers = generate_crop_boxes(
        size, parameters.crop_n_layers, parameters.crop_overlap_ratio
    )
    if any(x0 >= x1 or y0 >= y1 for x0, y0, x1, y1 in boxes):
        raise InvalidField(
            f"crop_n_layers: a {width}x{height} image has no room for "
            f"{parameters.crop_n_layers} layers of crops.",
            "crop_n_layers",
        )
    crops = [Box(*box) for box in boxes]
    grids = grids_of(parameters.region, crops, [sides[layer] for layer in layers], size)
    # Decoded before the job begins: an image that cannot be decoded fails at once.
    whole = pixels() if parameters.crop_n_layers else None
    job.begin(sum(map(len, grids)))
    candidates: list[Candidate] = []
    for box, layer, points in zip(crops, layers, grids, strict=True):
        if not job.may_go_on():
            break
        if not len(points):
            continue  # outside of the region
        seen = image
        if whole is not None and layer > 0:
            x0, y0, x1, y1 = box
            seen = model.embeddings.of_pixels(whole[y0:y1, x0:x1]).image
        candidates += Crop(model, seen, box.origin, size, parameters, job).masks(points)
    if len(crops) > 1:
        # A smaller crop sees more detail, so its masks win.
        smallness = [1 / candidate.crop_area for candidate in candidates]
        candidates = suppress(candidates, smallness, parameters.crop_nms_thresh)
    return [_automask(candidate, size) for candidate in candidates]


def _tiled(
    model: Model,
    pixels: NDArray[np.uint8],
    parameters: AutomaskParameters,
    tiling: Tiling,
    job: Job,
) -> list[AutoMask]:
    """Return the masks of all tiles with their seams joined, best predicted IoU first."""
    size = (pixels.shape[0], pixels.shape[1])
    boxes = tiles.tiles(size[1], size[0], tiling.tile_size, tiling.overlap)
    [side] = parameters.points_a_side()
    grids = grids_of(parameters.region, boxes, [side] * len(boxes), size)
    job.begin(sum(map(len, grids)))
    whole: list[tiles.Piece] = []
    fragments: list[tiles.Piece] = []
    for tile, points in zip(boxes, grids, strict=True):
        if not job.may_go_on():
            break
        if not len(points):
            continue  # outside of the region
        x0, y0, x1, y1 = tile
        image = model.embeddings.of_tile(pixels[y0:y1, x0:x1])
        crop = Crop(model, image, tile.origin, size, parameters, job, keeps_fragments=True)
        for candidate in crop.masks(points):
            piece = _piece(candidate, tile)
            cut = tiles.is_fragment(piece.box, tile, size)
            (fragments if cut else whole).append(piece)
    threshold = parameters.crop_nms_thresh
    distinct = suppress(whole, [piece.predicted_iou for piece in whole], threshold)
    objects = [[piece] for piece in distinct]
    objects += tiles.joined(distinct, fragments, tiling.tile_size)
    masks = [_of_pieces(pieces, size) for pieces in objects]
    # A mask that some tile saw whole wins over one that was joined.
    trust = [mask.predicted_iou + (i < len(distinct)) for i, mask in enumerate(masks)]
    masks = tiles.distinct(suppress(masks, trust, threshold), threshold)
    if not parameters.include_image_edge:
        masks = [mask for mask in masks if not is_background(mask.box, size)]
    return sorted(masks, key=lambda mask: -mask.predicted_iou)


def _automask(candidate: Candidate, image_size: tuple[int, int]) -> CompactAutoMask:
    return CompactAutoMask(
        compact=candidate.mask,
        box=candidate.box,
        image_size=image_size,
        predicted_iou=candidate.predicted_iou,
        point=candidate.point,
    )


def _piece(candidate: Candidate, tile: Box) -> tiles.Piece:
    return tiles.Piece(
        box=candidate.box,
        bits=np.packbits(candidate.mask.pixels(), axis=1),
        tile=tile,
        area=candidate.mask.area,
        predicted_iou=candidate.predicted_iou,
        stability_score=float(candidate.mask.stability_score),
        point=candidate.point,
    )


def _of_pieces(pieces: Sequence[tiles.Piece], image_size: tuple[int, int]) -> AutoMask:
    """Join the pieces of one object.

    Its scores are the means of the pieces' scores, weighted by area. Its point is that of the
    largest piece.
    """
    areas = [piece.area for piece in pieces]
    return AutoMask(
        mask=tiles.union(pieces),
        box=tiles.bounds(pieces),
        image_size=image_size,
        predicted_iou=float(np.average([p.predicted_iou for p in pieces], weights=areas)),
        stability_score=float(np.average([p.stability_score for p in pieces], weights=areas)),
        point_coords=[list(max(pieces, key=lambda piece: piece.area).point)],
    )


def _within_areas(
    masks: Sequence[AutoMask | CompactAutoMask], parameters: AutomaskParameters
) -> Sequence[AutoMask | CompactAutoMask]:
    """Return the masks that are neither too small nor too large, in their order.

    They are dropped last of all, so that no other mask of the answer changes.
    """
    smallest, largest = parameters.min_area, parameters.max_area
    if smallest is None and largest is None:
        return masks
    most = math.inf if largest is None else largest
    return [mask for mask in masks if (smallest or 0) <= mask.area <= most]


def _without_small_regions(
    masks: Sequence[AutoMask | CompactAutoMask],
    image_size: tuple[int, int],
    parameters: AutomaskParameters,
) -> list[AutoMask]:
    """Fill small holes, drop small islands, then drop the masks that became duplicates."""
    cleaned, scores = [], []
    for packed in masks:
        mask = packed.unpacked()
        pixels, origin = _with_margin(mask, image_size, parameters.min_mask_region_area)
        pixels, filled = remove_small_regions(pixels, parameters.min_mask_region_area, mode="holes")
        pixels, dropped = remove_small_regions(
            pixels, parameters.min_mask_region_area, mode="islands"
        )
        scores.append(0.0 if filled or dropped else 1.0)  # an unchanged mask wins
        cleaned.append(mask.with_mask(pixels, origin) if filled or dropped else mask)
    threshold = max(parameters.box_nms_thresh, parameters.crop_nms_thresh)
    return suppress(cleaned, scores, threshold)


def _with_margin(
    mask: AutoMask, image_size: tuple[int, int], area: int
) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Return the mask with a margin so wide that no region in it looks smaller than `area`.

    A hole's size must not depend on where the crop cuts it. The whole frame would take a hundred
    million pixels for every mask of a large picture.

    Returns:
        The mask's pixels, and the (x0, y0) of their first pixel in the image.
    """
    (left, top), (height, width) = mask.box.origin, mask.mask.shape
    margin = area // max(1, min(height, width)) + 1
    above, before = min(top, margin), min(left, margin)
    below = min(image_size[0] - top - height, margin)
    after = min(image_size[1] - left - width, margin)
    pixels = np.pad(mask.mask, ((above, below), (before, after)))
    return pixels, (left - before, top - above)
