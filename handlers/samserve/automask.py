"""Every object in the image: a grid of points prompted, the good masks kept.

Equal to `segment_anything.SamAutomaticMaskGenerator` in what it keeps and in what order,
for every field that has; `output_type` and `include_image_edge` are samapi's additions.
It does less for it: a mask is made only if its `predicted_iou` passes, brought to full size
only along its outline, and whole only if it is kept.

A picture much larger than the network's input is taken tile by tile (`tiles.py`), for which
the reference has no equal; its own way to smaller objects is `crop_n_layers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops.boxes import batched_nms

from samserve.answers.features import AutoMask
from samserve.masks.full_size import FoundMask, FullSize, Logits
from samserve.masks.on_gpu import masks_at_once, scored
from samserve.network.decoder import Image, Masks, single_or_three
from samserve.network.devices import in_halves
from samserve.network.originals import build_point_grid, generate_crop_boxes, remove_small_regions
from samserve.pictures.picture import Picture
from samserve.progress import Job
from samserve.serving.requests import AutomaskRequest, OutputType, Tiling

from . import tiles
from .errors import InvalidField
from .segmenter import Segmenter

IMAGE_EDGE_TOLERANCE = 20
"""Pixels within which a box's side counts as on the edge (segment-anything's own)."""


@dataclass(frozen=True)
class _Candidate:
    """A mask on its way through the filters.

    Attributes:
        found: the mask, in the crop it was found in.
        box: XYXY of the mask's pixels in the image, both ends included, as the reference.
        point: the (x, y) that prompted it, in the image.
        crop_area: pixels of that crop.
    """

    found: FoundMask
    box: tuple[int, int, int, int]
    predicted_iou: float
    point: tuple[float, float]
    crop_area: int


_Found = TypeVar("_Found", _Candidate, AutoMask, tiles.Piece)


def generate(
    segmenter: Segmenter,
    image: Image,
    picture: Picture,
    request: AutomaskRequest,
    job: Job | None = None,
) -> list[AutoMask]:
    """Masks of every object, in the reference's order.

    Args:
        image: the picture's; its pixels are decoded only if crops are asked for.
        job: told how far this is, and asked whether to go on; where it is stopped, the masks
            are those of the points done until then.

    Raises:
        SamserveError: there are more layers of crops than the picture has pixels for, or a
            crop is too thin to encode.
    """
    height, width = image.embedding.original_size
    job = job or Job()
    tiling = request.tiling(height, width)
    if tiling is not None:
        masks = _tiled(segmenter, picture.pixels, request, tiling, job)
    else:
        masks = _whole_and_crops(segmenter, image, picture, request, job)
    if request.min_mask_region_area > 0:
        masks = _without_small_regions(masks, (height, width), request)
    return masks


def check_tiles(request: AutomaskRequest, size: tuple[int, int], max_points: int) -> None:
    """Refuse, before any work, tiles whose grids have more than `max_points` together.

    Args:
        size: (height, width) of the image in pixels.

    Raises:
        InvalidField: names the number asked for and the limit; or the tiles are impossible.
    """
    height, width = size
    tiling = request.tiling(height, width)
    if tiling is not None:
        count = len(tiles.tiles(width, height, tiling.tile_size, tiling.overlap))
        points = count * request.points_per_side**2
        if points > max_points:
            raise InvalidField(
                f"points_per_side: {count} tiles ask for {points} points together; "
                f"this server's limit is {max_points}.",
                "points_per_side",
            )


def _whole_and_crops(
    segmenter: Segmenter, image: Image, picture: Picture, request: AutomaskRequest, job: Job
) -> list[AutoMask]:
    """As segment-anything: the whole image, and the crops that were asked for."""
    height, width = image.embedding.original_size
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
    pixels = picture.pixels if request.crop_n_layers else None  # or refused before it begins
    job.begin(sum(sides[layer] ** 2 for layer in layers))
    found: list[_Candidate] = []
    for (x0, y0, x1, y1), layer in zip(crops, layers, strict=True):
        if not job.may_go_on():
            break
        if pixels is not None and layer > 0:
            image = segmenter.embeddings.of_pixels(pixels[y0:y1, x0:x1]).image
        crop = _Crop(segmenter, image, (x0, y0), (height, width), request, job)
        found += crop.masks(build_point_grid(sides[layer]) * [[x1 - x0, y1 - y0]])
    if len(crops) > 1:
        # Smaller crops see more detail, so their masks win.
        smallness = [1 / candidate.crop_area for candidate in found]
        found = _suppress(found, smallness, request.crop_nms_thresh)
    return [_automask(candidate) for candidate in found]


def _tiled(
    segmenter: Segmenter,
    pixels: NDArray[np.uint8],
    request: AutomaskRequest,
    tiling: Tiling,
    job: Job,
) -> list[AutoMask]:
    """Tile by tile, objects cut by a seam made one again; best predicted IoU first."""
    height, width = pixels.shape[:2]
    windows = tiles.tiles(width, height, tiling.tile_size, tiling.overlap)
    [side] = request.points_a_side()
    job.begin(len(windows) * side**2)
    whole: list[tiles.Piece] = []
    fragments: list[tiles.Piece] = []
    for window in windows:
        if not job.may_go_on():
            break
        x0, y0, x1, y1 = window
        image = segmenter.embeddings.of_tile(pixels[y0:y1, x0:x1])
        crop = _Crop(
            segmenter, image, (x0, y0), (height, width), request, job, keeps_fragments=True
        )
        for candidate in crop.masks(build_point_grid(side) * [[x1 - x0, y1 - y0]]):
            piece = _piece(candidate, window)
            cut = tiles.is_fragment(piece.window, window, (height, width))
            (fragments if cut else whole).append(piece)
    once = _suppress(whole, [piece.predicted_iou for piece in whole], request.crop_nms_thresh)
    objects = [[piece] for piece in once] + tiles.joined(once, fragments, tiling.tile_size)
    masks = [_of_pieces(pieces) for pieces in objects]
    # A whole mask before what was put together.
    trust = [(mask.predicted_iou + (i < len(once))) for i, mask in enumerate(masks)]
    masks = tiles.distinct(
        _suppress(masks, trust, request.crop_nms_thresh), request.crop_nms_thresh
    )
    if not request.include_image_edge:
        masks = [mask for mask in masks if not _is_background(mask.box, (height, width))]
    return sorted(masks, key=lambda mask: -mask.predicted_iou)


@dataclass(frozen=True)
class _Crop:
    """A part of the image that is prompted by itself; the first is the whole.

    Attributes:
        image: this part's.
        origin: (x0, y0) of its top left in the whole image.
        image_size: (height, width) of the whole.
        keeps_fragments: whether a mask may end where the part does.
    """

    segmenter: Segmenter
    image: Image
    origin: tuple[int, int]
    image_size: tuple[int, int]
    request: AutomaskRequest
    job: Job
    keeps_fragments: bool = False

    def masks(self, points: NDArray[np.float64]) -> list[_Candidate]:
        """The masks that these points (N×2 XY in the crop) give, less duplicates."""
        request = self.request
        at_once = self.segmenter.decoder.prompts_at_once
        if self.segmenter.device.type == "cpu":
            # Elsewhere what is to bound the device's memory would only leave it idle: that
            # is bounded already.
            share = -(-len(points) // self.segmenter.threads.count)
            at_once = min(request.points_per_batch, at_once, share)
        batches = [points[i : i + at_once] for i in range(0, len(points), at_once)]
        full_size = FullSize(self.image.embedding)

        def masks_of(batch: NDArray[np.float64]) -> list[_Candidate]:
            if not self.job.may_go_on():
                return []
            candidates = in_halves(
                lambda points: list(self._masks_of_points(np.stack(points), full_size)), list(batch)
            )
            self.job.advance(len(batch))
            return candidates

        per_batch = self.segmenter.threads.map(masks_of, batches)
        found = [candidate for candidates in per_batch for candidate in candidates]
        if request.output_type is OutputType.ALL:
            return found
        scores: list[float]
        if request.output_type is OutputType.BEST_QUALITY:
            scores = [c.predicted_iou for c in found]
        elif request.output_type is OutputType.LARGEST:
            scores = [c.found.area for c in found]
        else:  # SMALLEST, and SINGLE_MASK, where the smallest is the least merged
            scores = [-c.found.area for c in found]
        return _suppress(found, scores, request.box_nms_thresh)

    def _masks_of_points(
        self, points: NDArray[np.float64], full_size: FullSize
    ) -> Iterator[_Candidate]:
        """The masks of one batch of points that pass every threshold."""
        embedding, request = self.image.embedding, self.request
        # float64, as the reference leaves it: rounding here would move masks by a pixel
        coords = torch.as_tensor(embedding.to_input_frame(points))
        labels = torch.ones(len(points), 1, dtype=torch.int)
        decoded = self.segmenter.decoder.decode(self.image, points=(coords[:, None], labels))
        channels = single_or_three(request.output_type is not OutputType.SINGLE_MASK)
        predicted_iou = decoded.iou_predictions[:, channels].cpu().numpy()
        good = predicted_iou > (request.pred_iou_thresh or -np.inf)  # 0 switches the filter off
        if self.segmenter.device.type != "cpu":
            masks = [(i, c + channels.start) for i, c in np.argwhere(good).tolist()]
            ious = predicted_iou[good].tolist()
            yield from self._scored_on_device(decoded, masks, ious, points)
            return
        for index in np.flatnonzero(good.any(axis=1)).tolist():
            wanted = np.flatnonzero(good[index])
            low_res_masks = decoded.low_res_masks(index, (wanted + channels.start).tolist())
            low_res_mask: Logits
            for channel, low_res_mask in zip(wanted, low_res_masks.cpu().numpy(), strict=True):
                found = full_size.stable(
                    low_res_mask, request.stability_score_offset, request.stability_score_thresh
                )
                if found is not None:
                    iou = float(predicted_iou[index, channel])
                    yield from self._candidates(found, iou, points[index])

    def _scored_on_device(
        self,
        decoded: Masks,
        wanted: list[tuple[int, int]],
        predicted_ious: list[float],
        points: NDArray[np.float64],
    ) -> Iterator[_Candidate]:
        """The same of these (point, channel) masks, brought to full size where they are made."""
        embedding, request = self.image.embedding, self.request
        for found in scored(
            decoded,
            wanted,
            embedding,
            request.stability_score_offset,
            request.stability_score_thresh,
            masks_at_once(self.segmenter.decoder.prompts_at_once),
        ):
            point, _ = wanted[found.index]
            yield from self._candidates(found.mask, predicted_ious[found.index], points[point])

    def _candidates(
        self, found: FoundMask, predicted_iou: float, point: NDArray[np.float64]
    ) -> Iterator[_Candidate]:
        """This mask, if it is not empty and not cut by the crop."""
        (left, top), (height, width) = found.origin, found.size
        if width == 0:
            return
        x0, y0 = self.origin
        box = (left + x0, top + y0, left + x0 + width - 1, top + y0 + height - 1)
        crop = self.image.embedding.original_size
        if self._is_cut(box, crop):
            return
        if not self.request.include_image_edge and _is_background(box, self.image_size):
            return
        yield _Candidate(
            found=found,
            box=box,
            predicted_iou=predicted_iou,
            point=(float(point[0] + x0), float(point[1] + y0)),
            crop_area=crop[0] * crop[1],
        )

    def _is_cut(self, box: tuple[int, int, int, int], size: tuple[int, ...]) -> bool:
        """Near an edge of the crop that is not the picture's: another crop sees it whole."""
        if self.keeps_fragments:
            return False
        x0, y0 = self.origin
        edges = (x0, y0, x0 + size[1], y0 + size[0])
        return any(
            _near(side, edge) and not _near(side, picture_edge)
            for side, edge, picture_edge in zip(
                box, edges, _picture_edges(self.image_size), strict=True
            )
        )


def _is_background(box: tuple[int, int, int, int], image_size: tuple[int, int]) -> bool:
    """Near all four edges of the picture, whose (height, width) this is."""
    return all(map(_near, box, _picture_edges(image_size)))


def _picture_edges(image_size: tuple[int, int]) -> tuple[int, int, int, int]:
    height, width = image_size
    return 0, 0, width, height


def _near(side: int, edge: int) -> bool:
    return abs(side - edge) <= IMAGE_EDGE_TOLERANCE


def _automask(candidate: _Candidate) -> AutoMask:
    left, top, _, _ = candidate.box
    return AutoMask(
        mask=candidate.found.pixels(),
        origin=(left, top),
        predicted_iou=candidate.predicted_iou,
        stability_score=float(candidate.found.stability_score),
        point_coords=[list(candidate.point)],
    )


def _piece(candidate: _Candidate, tile: tiles.Window) -> tiles.Piece:
    left, top, right, bottom = candidate.box
    return tiles.Piece(
        window=(left, top, right + 1, bottom + 1),
        bits=np.packbits(candidate.found.pixels(), axis=1),
        tile=tile,
        area=candidate.found.area,
        predicted_iou=candidate.predicted_iou,
        stability_score=float(candidate.found.stability_score),
        point=candidate.point,
    )


def _of_pieces(pieces: Sequence[tiles.Piece]) -> AutoMask:
    """One object; its scores are the pieces' means by area, its point is the largest one's."""
    left, top, _, _ = tiles.bounds(pieces)
    areas = [piece.area for piece in pieces]
    return AutoMask(
        mask=tiles.union(pieces),
        origin=(left, top),
        predicted_iou=float(np.average([p.predicted_iou for p in pieces], weights=areas)),
        stability_score=float(np.average([p.stability_score for p in pieces], weights=areas)),
        point_coords=[list(max(pieces, key=lambda piece: piece.area).point)],
    )


def _suppress(
    found: Sequence[_Found], scores: Sequence[float], iou_threshold: float
) -> list[_Found]:
    """Non-maximum suppression by box: the kept ones, best score first."""
    if not found:
        return []
    boxes = torch.tensor([mask.box for mask in found], dtype=torch.float)
    kinds = torch.zeros(len(boxes))
    keep = batched_nms(boxes, torch.tensor(scores, dtype=torch.float), kinds, iou_threshold)
    return [found[i] for i in keep.tolist()]


def _without_small_regions(
    masks: list[AutoMask], image_size: tuple[int, int], request: AutomaskRequest
) -> list[AutoMask]:
    """Fill small holes, drop small islands, then drop what has become a duplicate."""
    cleaned, scores = [], []
    for found in masks:
        mask, origin = _with_surroundings(found, image_size, request.min_mask_region_area)
        mask, filled = remove_small_regions(mask, request.min_mask_region_area, mode="holes")
        mask, dropped = remove_small_regions(mask, request.min_mask_region_area, mode="islands")
        scores.append(0.0 if filled or dropped else 1.0)  # untouched masks win
        cleaned.append(found.reshaped(mask, origin) if filled or dropped else found)
    threshold = max(request.box_nms_thresh, request.crop_nms_thresh)
    return _suppress(cleaned, scores, threshold)


def _with_surroundings(
    found: AutoMask, image_size: tuple[int, int], area: int
) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """The mask with so much of the image around it that no region there looks smaller than `area`.

    A hole's size must not depend on where the crop cuts it, and the whole frame would be a
    hundred million pixels for every mask of a large picture.

    Returns:
        The mask's pixels, and the (x0, y0) they start at.
    """
    (left, top), (height, width) = found.origin, found.mask.shape
    margin = area // max(1, min(height, width)) + 1
    above, before = min(top, margin), min(left, margin)
    below = min(image_size[0] - top - height, margin)
    after = min(image_size[1] - left - width, margin)
    mask = np.pad(found.mask, ((above, below), (before, after)))
    return mask, (left - before, top - above)
