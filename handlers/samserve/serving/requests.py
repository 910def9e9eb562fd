"""What may be asked of the two modes, with defaults, limits and meaning.

The models serve twice: the worker checks bodies with them, and the gateway's OpenAPI
pages are made from them. Field names are samapi's. The automask fields mean what
`segment_anything.SamAutomaticMaskGenerator` means by them, and their defaults are its
defaults; for who wants samapi's, `AutomaskRequest.with_defaults` puts those in place.

An empty list or text in an optional field of a prompt means that the field is absent, as it
does in samapi, which tests whether a field is true.

Does not look at the image: what depends on its size (is the box inside?) is checked in
`prompts.py`, once the size is known.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from samserve.errors import InvalidField, InvalidRequest, NotFound
from samserve.model_types import DEFAULT_WEIGHTS, is_default_address
from samserve.serving.json_text import to_utf8

from .model_settings import Defaults

if TYPE_CHECKING:
    from typing_extensions import Self

DEFAULT_MODEL_TYPE = "vit_h"
"""samapi's default: what a body without `type` asks for."""

MAX_PROMPTS = 1024
"""Prompts in one request. Each answers with a full outline, so this bounds the answer."""

MAX_POINTS = 256
"""Points in one prompt; the decoder's work grows with the square of them."""

MAX_POINTS_IN_ALL = 2 * MAX_PROMPTS
"""Points in one request."""

MAX_MASKS = 64
"""Mask prompts in one request: each is a picture to decode."""


class OutputType(enum.Enum):
    """How automask chooses among the masks of a point, in samapi's words.

    The value is what clients send; letter case does not matter.
    """

    BEST_QUALITY = "Multi-mask (best quality)"
    LARGEST = "Multi-mask (largest)"
    SMALLEST = "Multi-mask (smallest)"
    ALL = "Multi-mask (all)"
    SINGLE_MASK = "Single mask"

    @classmethod
    def parse(cls, value: object) -> OutputType:
        """Raises ValueError, naming the choices, for anything else."""
        if isinstance(value, cls):
            return value
        for choice in cls:
            if isinstance(value, str) and value.lower() == choice.value.lower():
                return choice
        raise ValueError("must be one of " + ", ".join(repr(c.value) for c in cls))


def _integral(value: object) -> object:
    # JSON has one kind of number: 32.0 is the integer 32.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    # JSON's numbers have no bound, and those of the libraries that work with them have 64 bits.
    if isinstance(value, int) and value.bit_length() >= 64:
        raise ValueError("is beyond 64 bits")
    return value


Integer = Annotated[int, BeforeValidator(_integral)]

_T = TypeVar("_T")


def _absent_if_empty(value: _T) -> _T | None:
    return value or None


_Coordinate = Annotated[float, Field(ge=-1e6, le=1e6)]


def _check_box(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    if x1 >= x2 or y1 >= y2:
        raise ValueError(f"is empty or inverted: needs x1 < x2 and y1 < y2, got {list(box)}")
    return box


Box = Annotated[
    tuple[_Coordinate, _Coordinate, _Coordinate, _Coordinate],
    # A strict tuple would refuse the list that a validator before it has looked at.
    Field(strict=False),
    AfterValidator(_check_box),
]
"""XYXY in pixels of the image sent, `x1 < x2` and `y1 < y2`; bounded, so that float32
keeps it finite on its way to the network."""


def _absent_if_empty_list(value: object) -> object:
    return None if value == [] else value


class _Model(BaseModel):
    # Unknown fields are ignored, as samapi does, so that a newer client still gets its
    # mask; a known field of the wrong JSON type is refused, never coerced.
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


def _check_label(value: int) -> int:
    if value not in (0, 1):
        raise ValueError(f"is {value}; it must be 1 (object) or 0 (background)")
    return value


class Prompt(_Model):
    """What says which object is meant: any of these, or several together."""

    bbox: Annotated[Box | None, BeforeValidator(_absent_if_empty_list)] = Field(
        None,
        description="Box `[x1, y1, x2, y2]` in pixels of the image sent, origin top-left.",
        examples=[[10, 20, 200, 180]],
    )
    point_coords: Annotated[
        Annotated[list[tuple[_Coordinate, _Coordinate]], Field(max_length=MAX_POINTS)] | None,
        AfterValidator(_absent_if_empty),
    ] = Field(
        None,
        description="Points `[[x, y], …]` in pixels of the image sent, with a label each.",
        examples=[[[100, 90], [30, 40]]],
    )
    point_labels: Annotated[
        Annotated[
            list[Annotated[Integer, AfterValidator(_check_label)]], Field(max_length=MAX_POINTS)
        ]
        | None,
        AfterValidator(_absent_if_empty),
    ] = Field(
        None,
        description="For each point: 1, it lies on the object; 0, on the background.",
        examples=[[1, 0]],
    )
    b64mask: Annotated[str | None, AfterValidator(_absent_if_empty)] = Field(
        None,
        description="Mask: base64 of an image file, the object brighter than half of its "
        "brightest pixel. Of the size of the image sent, or 256x256: then it is SAM's own frame, "
        "the image scaled so that its long side fills it, the rest at the right or bottom empty. "
        "SAM has learned to refine masks: without a box or a point it often finds nothing.",
    )

    def given(self) -> list[str]:
        """Names of the fields that prompt."""
        names = ("bbox", "point_coords", "point_labels", "b64mask")
        return [name for name in names if getattr(self, name) is not None]


class JsonBody(_Model):
    """What is read from JSON, or refused with the name of what is wrong."""

    @classmethod
    def parse(cls, body: bytes | bytearray) -> Self:
        """A request from its JSON bytes.

        Raises:
            InvalidRequest: the body is not JSON, or not an object.
            InvalidField: a field is missing or wrong; names the first.
        """
        text = to_utf8(body)
        try:
            return cls.model_validate_json(text)
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        message = first["msg"].removeprefix("Value error, ").removeprefix("Invalid JSON: ")
        if first["type"] == "json_invalid" and not text.strip():
            raise InvalidRequest("The body is empty.")
        if first["type"] == "json_invalid":
            raise InvalidRequest(f"The body is not JSON: {message}.")
        path = ".".join(str(part) for part in first["loc"])
        if not path:
            raise InvalidRequest(f"The body must be a JSON object: {message}.")
        # Our own messages are made to follow the field's name.
        colon = "" if first["type"] == "value_error" else ":"
        raise InvalidField(f"{path}{colon} {message}.", path)


class RoutedRequest(JsonBody):
    """As much of a body as it takes to know who answers it."""

    type: str = Field(
        DEFAULT_MODEL_TYPE,
        description="Model type: `vit_h`, `vit_l`, `vit_b` (segment-anything) "
        "or `vit_t` (MobileSAM). It must be loaded.",
        examples=["vit_t"],
    )
    checkpoint_url: Annotated[str | None, AfterValidator(_absent_if_empty)] = Field(
        None,
        description="Name or URL of registered weights, as `GET /sam/weights/` lists them. The "
        "address from which samapi takes a type's own weights means `default`. Nothing is ever "
        "downloaded for a request.",
        examples=["default"],
    )


class SegmentRequest(RoutedRequest):
    """What both modes take."""

    b64img: str = Field(
        description="The image: base64 of a PNG, JPEG, TIFF, WebP or BMP file, with or "
        "without a `data:` URL prefix. EXIF orientation is not applied: coordinates refer "
        "to the pixels as stored. For a picture sent before, `sha256:` and the SHA-256 in hex of "
        "that base64 text does; 409 where the server no longer knows it.",
        examples=["iVBORw0KGgo…"],
    )
    page: Integer = Field(
        0,
        ge=0,
        le=2**31 - 1,
        description="Page of a TIFF, counted from 0: the number of its directory in the file, or "
        "of its plane in a stack as ImageJ writes it. Each answer says how many pages there are: "
        "in the header `X-Image-Pages`, in the member `pages` of a FeatureCollection, and in the "
        "event `done` of a stream. Other formats have page 0 only: of an animation it is the "
        "first frame.",
        examples=[0],
    )
    simplify: float = Field(
        0,
        ge=0,
        le=1000,
        description="Pixels by which an outline may differ from its mask so as to have fewer "
        "vertices; pieces and holes stay. 0: exact.",
    )
    output_format: str | None = Field(
        None,
        description="`features`: a JSON array of GeoJSON Features, as samapi; "
        "`feature_collection`: one GeoJSON object; `coco_rle`: segment-anything's records with "
        "masks as COCO run lengths. Without it the `Accept` header decides.",
        examples=["features"],
    )

    def check_weights(self, model_type: str, weights: Mapping[str, str]) -> None:
        """Refuse a request for another model than the one that is asked.

        A body without `type` is for whoever it was sent to.

        Args:
            model_type: the type loaded here.
            weights: its weights' `name` and `url`.

        Raises:
            NotFound: names what is loaded.
        """
        if "type" in self.model_fields_set and self.type != model_type:
            raise NotFound(f"{self.type} is not served here; {model_type} is.", "type")
        wanted = self.checkpoint_url
        if wanted is None or wanted in (weights["name"], weights["url"]):
            return
        if weights["name"] != DEFAULT_WEIGHTS or not is_default_address(model_type, wanted):
            raise NotFound(
                f"No weights {wanted!r} are registered for {model_type}; "
                f"{weights['name']!r} ({weights['url']}) are.",
                "checkpoint_url",
            )


class PromptRequest(Prompt, SegmentRequest):
    """`POST /sam/`: masks for given boxes, points and masks.

    One object: `bbox`, `point_coords` with `point_labels`, `b64mask`, or several of these
    together. Several objects of one image: `prompts`, so that the image is sent and encoded
    once.
    """

    prompts: list[Prompt] | None = Field(
        None,
        max_length=MAX_PROMPTS,
        description="Several prompts on this one image, in place of one. Each Feature says in "
        "`prompt_idx` which of them it answers.",
        examples=[[{"bbox": [10, 20, 200, 180]}, {"point_coords": [[9, 9]], "point_labels": [1]}]],
    )
    multimask_output: bool = Field(
        False,
        description="Return SAM's three masks of each prompt in place of one.",
    )

    def each_prompt(self) -> list[tuple[str, Prompt]]:
        """Every prompt in the order sent, each behind what its fields' paths begin with.

        Raises:
            InvalidField: no prompt, two ways of prompting at once, points without as many
                labels, or more of them than are allowed.
        """
        if not self.prompts:
            named: list[tuple[str, Prompt]] = [("", self)]
        elif self.given():
            raise InvalidField(
                f"Send either {self.given()[0]} or prompts, not both: a list says all.", "prompts"
            )
        else:
            named = [(f"prompts.{index}.", prompt) for index, prompt in enumerate(self.prompts)]
        for path, prompt in named:
            if not prompt.given():
                empty_list = self.prompts is not None and not self.prompts
                raise InvalidField(
                    f"{path or 'No prompt: '}"
                    "send bbox, point_coords with point_labels, b64mask, or prompts.",
                    "prompts" if empty_list else f"{path}bbox",
                )
            points, labels = len(prompt.point_coords or ()), len(prompt.point_labels or ())
            if points != labels:
                raise InvalidField(
                    f"{path}point_labels: {labels} labels for {points} points.",
                    f"{path}point_labels",
                )
        in_all = sum(len(prompt.point_coords or ()) for _, prompt in named)
        if in_all > MAX_POINTS_IN_ALL:
            raise InvalidField(
                f"prompts: {in_all} points in all; at most {MAX_POINTS_IN_ALL}.", "prompts"
            )
        masks = sum(prompt.b64mask is not None for _, prompt in named)
        if masks > MAX_MASKS:
            raise InvalidField(f"prompts: {masks} masks; at most {MAX_MASKS}.", "prompts")
        return named


TILE_SIZE = 1024
"""Pixels a side of a tile: the network's own input, so that nothing is scaled."""

TILED_BEYOND = 4 * TILE_SIZE
"""Pixels of a picture's long side over which it is taken in tiles by default. Below, the answer
is segment-anything's own; above, that sees each object at less than a quarter of its size."""

SMALLEST_TILE = 64


@dataclass(frozen=True)
class Tiling:
    """Pixels a side of each tile, and pixels that neighbours share."""

    tile_size: int
    overlap: int


class AutomaskRequest(SegmentRequest):
    """`POST /sam/automask/`: every object in the image.

    Source of the fields from `points_per_side` to `min_mask_region_area` and of their defaults:
    segment-anything's `SamAutomaticMaskGenerator`. `output_type` and `include_image_edge` come
    from samapi 0.3; where they are absent, this does what segment-anything does, and not what
    samapi does (`Single mask`, and no image edge). `with_defaults` changes that.
    """

    points_per_side: Integer = Field(
        32, ge=1, description="Points along one side of the grid; their square is prompted."
    )
    points_per_batch: Integer = Field(
        64, ge=1, description="Points run at once, at most. Does not change the answer."
    )
    pred_iou_thresh: float = Field(
        0.88, ge=0, le=1, description="Keep masks whose predicted IoU is above this."
    )
    stability_score_thresh: float = Field(
        0.95, ge=0, le=1, description="Keep masks whose stability score is at least this."
    )
    stability_score_offset: float = Field(
        1.0, ge=0, description="Shift of the logit cutoff by which stability is scored."
    )
    box_nms_thresh: float = Field(
        0.7, ge=0, le=1, description="Box IoU above which the lesser of two masks goes."
    )
    crop_n_layers: Integer = Field(
        0,
        ge=0,
        le=4,
        description="Layers of crops to run besides the whole image; layer i has 4^i.",
    )
    crop_nms_thresh: float = Field(
        0.7, ge=0, le=1, description="As box_nms_thresh, between masks of different crops."
    )
    crop_overlap_ratio: float = Field(
        512 / 1500,
        description="Overlap of the first layer's crops, of the short side: 0 to 1. Without crop "
        "layers it is not looked at.",
    )
    crop_n_points_downscale_factor: Integer = Field(
        1,
        description="Layer n samples points_per_side / this^n points a side: 1 or more. Without "
        "crop layers it is not looked at, so that 0 does as well.",
    )
    min_mask_region_area: Integer = Field(
        0, ge=0, description="Remove holes and islands smaller than this many pixels."
    )
    output_type: Annotated[OutputType, BeforeValidator(OutputType.parse)] = Field(
        OutputType.BEST_QUALITY,
        description="Which of a point's masks survive; letter case does not matter. "
        "`Multi-mask (best quality)` is segment-anything's own behaviour. Where the field is "
        "absent, samapi takes `Single mask`; so does a server with `SAMSERVE_DEFAULTS=samapi`.",
    )
    include_image_edge: bool = Field(
        True,
        description="False: a mask near all four edges of the picture goes too. Where the field "
        "is absent, samapi takes false; so does a server with `SAMSERVE_DEFAULTS=samapi`.",
    )
    tile_size: Integer | None = Field(
        None,
        ge=0,
        le=4096,
        description="Pixels a side of the tiles in which a large picture is taken, each with a "
        "grid of its own; objects cut by a seam are joined. 0: never; absent: 1024 where the "
        "picture's long side is over 4096 and there are no crop layers, else never.",
    )
    overlap: Integer | None = Field(
        None,
        ge=0,
        description="Pixels that neighbouring tiles share, at most half of tile_size; absent: a "
        "quarter of it. Objects no larger than this are never put together from pieces.",
    )
    timeout_s: float | None = Field(
        None,
        gt=0,
        description="Seconds that it may take, up to the server's limit, which is the default. "
        "Beyond it 504, with what was found until then.",
        examples=[60],
    )

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

    def with_defaults(self, defaults: Defaults) -> Self:
        """The same request with these defaults for what it leaves open.

        Args:
            defaults: `segment-anything` leaves everything as it is.
        """
        if defaults == "segment-anything":
            return self
        absent = SAMAPI_DEFAULTS.keys() - self.model_fields_set
        return self.model_copy(update={name: SAMAPI_DEFAULTS[name] for name in absent})

    def points_a_side(self) -> list[int]:
        """Points a side of the grid for each layer, the whole image first.

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
        """How a picture of this size is taken in tiles; None where it is not.

        Raises:
            InvalidField: tiles too small, an overlap too large, or tiles and crops at once.
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
        """Refuse, before any work, more than the limits: points over all crops, and seconds.

        Raises:
            InvalidField: names what was asked for and the limit.
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


SAMAPI_DEFAULTS: dict[str, object] = {
    "output_type": OutputType.SINGLE_MASK,
    "include_image_edge": False,
}
"""Where samapi's defaults (version 0.3 and later) differ from segment-anything's behaviour."""
