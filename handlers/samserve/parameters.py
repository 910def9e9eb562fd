"""The parameters of automask, with their defaults and limits.

They are the keywords of `Segmenter.automask`, and the fields of a request to `/sam/automask/`
(`serving.requests`). Most are those of `segment_anything.SamAutomaticMaskGenerator`, with its
defaults.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from .errors import InvalidField
from .region import SCHEMA, Region

if TYPE_CHECKING:
    from typing_extensions import Self


class OutputType(enum.Enum):
    """An OutputType says which of a point's masks automask keeps. The names are samapi's.

    The value is the text that clients send; letter case does not matter.
    """

    BEST_QUALITY = "Multi-mask (best quality)"
    LARGEST = "Multi-mask (largest)"
    SMALLEST = "Multi-mask (smallest)"
    ALL = "Multi-mask (all)"
    SINGLE_MASK = "Single mask"

    @classmethod
    def parse(cls, value: object) -> OutputType:
        """Return the type that this text names.

        Raises:
            ValueError: there is no such type; the message lists the types.
        """
        if isinstance(value, cls):
            return value
        for choice in cls:
            if isinstance(value, str) and value.lower() == choice.value.lower():
                return choice
        raise ValueError("must be one of " + ", ".join(repr(c.value) for c in cls))


def _integral(value: object) -> object:
    # JSON has a single kind of number: 32.0 is the integer 32.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    # A number in JSON may have any size, but the libraries below take 64 bits.
    if isinstance(value, int) and value.bit_length() >= 64:
        raise ValueError("is beyond 64 bits")
    return value


Integer = Annotated[int, BeforeValidator(_integral)]


def _region(value: object) -> Region | None:
    return None if value is None else Region.parse(value)


class Model(BaseModel):
    """Values that were checked and do not change.

    A field of the wrong type is refused, never converted.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


def first_error(error: ValidationError) -> InvalidField:
    """Return the first of pydantic's errors as an `InvalidField`, whose message names the field."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    # The validators here write messages that follow the field's name.
    colon = "" if first["type"] == "value_error" else ":"
    return InvalidField(f"{path}{colon} {message}.", path)


TILE_SIZE = 1024
"""Pixels of a tile's side by default. It is the size of the network's input: nothing is scaled."""

TILED_BEYOND = 4 * TILE_SIZE
"""A picture whose long side has more pixels is cut into tiles by default.

Up to this size the answer equals segment-anything's. Above it, segment-anything would shrink every
object to less than a quarter of its size."""

SMALLEST_TILE = 64
"""Smallest allowed side of a tile in pixels."""


@dataclass(frozen=True)
class Tiling:
    """How a large picture is cut into tiles.

    Attributes:
        tile_size: pixels of a tile's side.
        overlap: pixels that neighbouring tiles share.
    """

    tile_size: int
    overlap: int


class AutomaskParameters(Model):
    """The parameters of one automask.

    Source of the fields from `points_per_side` to `min_mask_region_area` and of their defaults:
    segment-anything's `SamAutomaticMaskGenerator`, and sam2's `SAM2AutomaticMaskGenerator`.
    `output_type` and `include_image_edge` come from samapi; their defaults keep
    segment-anything's behaviour.
    """

    model_config = ConfigDict(extra="forbid")

    points_per_side: Integer = Field(
        default=32,
        ge=1,
        description="Points along one side of the grid; the square of this number is prompted.",
    )
    points_per_batch: Integer = Field(
        default=64,
        ge=1,
        description="Points decoded at once, at most. It does not change the answer.",
    )
    pred_iou_thresh: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Keep masks whose predicted IoU is above this. Absent: the default of the "
        "reference, 0.88 for SAM 1 and MobileSAM and 0.8 for SAM 2. A server with "
        "`SAMSERVE_DEFAULTS=samapi` has samapi's 0.88 for all types.",
    )
    stability_score_thresh: float = Field(
        default=0.95, ge=0, le=1, description="Keep masks whose stability score is at least this."
    )
    stability_score_offset: float = Field(
        default=1.0, ge=0, description="Shift of the logit cutoff by which stability is scored."
    )
    box_nms_thresh: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="Of two masks whose boxes have a larger IoU, the worse one is dropped.",
    )
    crop_n_layers: Integer = Field(
        default=0,
        ge=0,
        le=4,
        description="Layers of crops to run besides the whole image; layer i has 4^i crops.",
    )
    crop_nms_thresh: float = Field(
        default=0.7, ge=0, le=1, description="As box_nms_thresh, between masks of different crops."
    )
    crop_overlap_ratio: float = Field(
        default=512 / 1500,
        description="Overlap of the first layer's crops as a share of the short side: 0 to 1. "
        "It is ignored without crop layers.",
    )
    crop_n_points_downscale_factor: Integer = Field(
        default=1,
        description="Layer n has points_per_side / this^n points a side: 1 or more. It is ignored "
        "without crop layers, where 0 is allowed too.",
    )
    min_mask_region_area: Integer = Field(
        default=0, ge=0, description="Remove holes and islands smaller than this many pixels."
    )
    output_type: Annotated[OutputType, BeforeValidator(OutputType.parse)] = Field(
        default=OutputType.BEST_QUALITY,
        description="Which of a point's masks are kept; letter case does not matter. "
        "`Multi-mask (best quality)` is segment-anything's behaviour. samapi's default is "
        "`Single mask`, and it is the default of a server with `SAMSERVE_DEFAULTS=samapi`.",
    )
    include_image_edge: bool = Field(
        default=True,
        description="False: a mask near all four edges of the picture is dropped. samapi's default "
        "is false, and it is the default of a server with `SAMSERVE_DEFAULTS=samapi`.",
    )
    tile_size: Integer | None = Field(
        default=None,
        ge=0,
        le=4096,
        description="Pixels of a side of the tiles into which a large picture is cut. Each tile "
        "has a grid of points, and objects cut by a seam are joined. 0: no tiles. Absent: 1024 if "
        "the picture's long side is over 4096 and there are no crop layers, else no tiles.",
    )
    overlap: Integer | None = Field(
        default=None,
        ge=0,
        description="Pixels that neighbouring tiles share, at most half of tile_size. Absent: a "
        "quarter of tile_size. An object no larger than this lies whole in some tile.",
    )
    region: Annotated[Region | None, PlainValidator(_region), WithJsonSchema(SCHEMA)] = Field(
        default=None,
        description="Where to look for objects, in pixels of the picture: a box "
        "`[x1, y1, x2, y2]`, a polygon `[[x, y], …]`, or a GeoJSON Polygon or MultiPolygon, which "
        "may have holes. Only points of the grid in it are prompted, which saves the work of the "
        "others. A mask that such a point gives is kept whole.",
        examples=[[10, 20, 200, 180]],
    )
    min_area: Integer | None = Field(
        default=None,
        ge=0,
        description="Drop objects with fewer pixels than this, at the very end: the others are "
        "those of the answer without `min_area`. See `min_mask_region_area` for parts of objects.",
        examples=[50],
    )
    max_area: Integer | None = Field(
        default=None,
        ge=0,
        description="Drop objects with more pixels than this, likewise.",
        examples=[5000],
    )
    timeout_s: float | None = Field(
        default=None,
        gt=0,
        description="Seconds that automask may take, at most the server's limit, which is the "
        "default. After that the answer is 504, with the objects found so far.",
        examples=[60],
    )

    @field_validator("max_area")
    @classmethod
    def _check_areas(cls, value: int | None, others: ValidationInfo) -> int | None:
        smallest = others.data.get("min_area")
        if value is not None and smallest is not None and value < smallest:
            raise ValueError(f"is {value}; it must be at least min_area, {smallest}")
        return value

    @field_validator("crop_overlap_ratio")
    @classmethod
    def _check_overlap_of_crops(cls, value: float, others: ValidationInfo) -> float:
        if others.data.get("crop_n_layers") and not 0 <= value <= 1:
            raise ValueError(f"is {value:g}; with crop layers it must be 0 to 1")
        return value

    @field_validator("crop_n_points_downscale_factor")
    @classmethod
    def _check_downscale_factor(cls, value: int, others: ValidationInfo) -> int:
        # segment-anything divides by factor**layer, which is 1 for the whole image.
        if others.data.get("crop_n_layers") and value < 1:
            raise ValueError(f"is {value}; with crop layers it must be at least 1")
        return value

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the parameters with these values; a missing one has its default.

        Raises:
            InvalidField: a value is of the wrong type or outside its limits.
        """
        try:
            return cls.model_validate({name: _plain(value) for name, value in values.items()})
        except ValidationError as exc:
            raise first_error(exc) from exc

    def points_a_side(self) -> list[int]:
        """Return the points along a side of the grid, for the whole image and for each layer.

        Raises:
            InvalidField: the downscale factor leaves a layer without points.
        """
        sides = [
            self.points_per_side // self.crop_n_points_downscale_factor**layer
            for layer in range(self.crop_n_layers + 1)
        ]
        if min(sides) < 1:
            raise InvalidField(
                "crop_n_points_downscale_factor leaves the last crop layer without points.",
                "crop_n_points_downscale_factor",
            )
        return sides

    def tiling(self, height: int, width: int) -> Tiling | None:
        """Return how a picture of this size is cut into tiles; None if it is not cut.

        Raises:
            InvalidField: the tiles are too small, the overlap is too large, or there are both
                tiles and crops.
        """
        tile_size = self.tile_size
        if tile_size is None:
            large = max(height, width) > TILED_BEYOND and self.crop_n_layers == 0
            tile_size = TILE_SIZE if large else 0
        if tile_size == 0:
            return None
        if tile_size < SMALLEST_TILE:
            raise InvalidField(
                f"tile_size is {tile_size}; it must be 0 or at least {SMALLEST_TILE}.", "tile_size"
            )
        if self.crop_n_layers > 0:
            raise InvalidField("Send either tile_size or crop_n_layers, not both.", "tile_size")
        overlap = tile_size // 4 if self.overlap is None else self.overlap
        if overlap > tile_size // 2:
            raise InvalidField(
                f"overlap is {overlap}; it must be at most half of tile_size, {tile_size // 2}.",
                "overlap",
            )
        return Tiling(tile_size, overlap)

    def check_work(self, max_points: int, max_seconds: float) -> None:
        """Check the number of points over all crops, and the seconds, before any work.

        Raises:
            InvalidField: one is over its limit; the message names the number and the limit.
        """
        if self.timeout_s is not None and self.timeout_s > max_seconds:
            raise InvalidField(
                f"timeout_s is {self.timeout_s:g}; this server's limit is {max_seconds:g}.",
                "timeout_s",
            )
        points = sum(4**layer * side**2 for layer, side in enumerate(self.points_a_side()))
        if points > max_points:
            raise InvalidField(
                f"points_per_side and crop_n_layers ask for {points} points; "
                f"this server's limit is {max_points}.",
                "points_per_side",
            )


class AutomaskKeywords(TypedDict, total=False):
    """The keywords of `automask`, for type checkers and editors: `AutomaskParameters`' fields."""

    points_per_side: int
    points_per_batch: int
    pred_iou_thresh: float | None
    stability_score_thresh: float
    stability_score_offset: float
    box_nms_thresh: float
    crop_n_layers: int
    crop_nms_thresh: float
    crop_overlap_ratio: float
    crop_n_points_downscale_factor: int
    min_mask_region_area: int
    output_type: OutputType | str
    include_image_edge: bool
    tile_size: int | None
    overlap: int | None
    region: Any
    min_area: int | None
    max_area: int | None
    timeout_s: float | None


def check_keywords(names: Collection[str]) -> None:
    """Check the names of the keywords of `automask`.

    Raises:
        TypeError: there is no such parameter; the message names one that is spelled alike.
    """
    known = AutomaskParameters.model_fields
    for name in sorted(names):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
            raise TypeError(f"automask() has no parameter {name}{hint}")


def _plain(value: object) -> object:
    """Return a NumPy scalar as Python's own number, and any other value as it is."""
    is_scalar = getattr(value, "shape", None) == () and hasattr(value, "item")
    return value.item() if is_scalar else value  # type: ignore[attr-defined]
