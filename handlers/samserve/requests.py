"""What may be asked of the two modes, with defaults, limits and meaning.

The models serve twice: the worker checks bodies with them, and the gateway's OpenAPI
pages are made from them. Field names and defaults are samapi's; the automask fields
mean what `segment_anything.SamAutomaticMaskGenerator` means by them.

Does not look at the image: what depends on its size (is the box inside?) is checked by
the methods that take the size, once the image is decoded.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .errors import InvalidField, InvalidRequest, NotFound

if TYPE_CHECKING:
    from typing_extensions import Self

DEFAULT_MODEL_TYPE = "vit_h"
"""samapi's default: what a body without `type` asks for."""

MAX_PROMPTS = 1024
"""Prompts in one request. Each answers with a full outline, so this bounds the answer."""


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
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_integral)]

_Coordinate = Annotated[float, Field(ge=-1e6, le=1e6)]


def _check_box(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    if x1 >= x2 or y1 >= y2:
        raise ValueError(f"is empty or inverted: needs x1 < x2 and y1 < y2, got {list(box)}")
    return box


Box = Annotated[
    tuple[_Coordinate, _Coordinate, _Coordinate, _Coordinate], AfterValidator(_check_box)
]
"""XYXY in pixels of the image sent, `x1 < x2` and `y1 < y2`; bounded, so that float32
keeps it finite on its way to the network."""

_BOX = Field(
    description="Box prompt `[x1, y1, x2, y2]` in pixels of the image sent, origin top-left.",
    examples=[[10, 20, 200, 180]],
)


class _Model(BaseModel):
    # Unknown fields are ignored, as samapi does, so that a newer client still gets its
    # mask; a known field of the wrong JSON type is refused, never coerced.
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


def _refuse(value: object) -> object:
    if value is not None:
        raise ValueError("is not served yet; send bbox, or prompts with one each")
    return value


_NotServed = Annotated[None, BeforeValidator(_refuse), Field(description="Not served yet.")]


class _OtherPrompts(_Model):
    """samapi's other prompts: refused by name, since a mask without them would be wrong."""

    point_coords: _NotServed = None
    point_labels: _NotServed = None
    b64mask: _NotServed = None


class Prompt(_OtherPrompts):
    """One object to segment."""

    bbox: Annotated[Box, _BOX]


class RoutedRequest(_Model):
    """As much of a body as it takes to know who answers it."""

    type: str = Field(
        DEFAULT_MODEL_TYPE,
        description="Model type: `vit_h`, `vit_l`, `vit_b` (segment-anything) "
        "or `vit_t` (MobileSAM). It must be loaded.",
        examples=["vit_t"],
    )

    @classmethod
    def parse(cls, body: bytes | bytearray) -> Self:
        """A request from its JSON bytes.

        Raises:
            InvalidRequest: the body is not JSON, or not an object.
            InvalidField: a field is missing or wrong; names the first.
        """
        try:
            return cls.model_validate_json(body)
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        message = first["msg"].removeprefix("Value error, ").removeprefix("Invalid JSON: ")
        if first["type"] == "json_invalid":
            raise InvalidRequest(f"The body is not JSON: {message}.")
        path = ".".join(str(part) for part in first["loc"])
        if not path:
            raise InvalidRequest(f"The body must be a JSON object: {message}.")
        # Our own messages are made to follow the field's name.
        colon = "" if first["type"] == "value_error" else ":"
        raise InvalidField(f"{path}{colon} {message}.", path)


class SegmentRequest(RoutedRequest):
    """What both modes take."""

    b64img: str = Field(
        description="The image: base64 of a PNG, JPEG, TIFF, WebP or BMP file, with or "
        "without a `data:` URL prefix. EXIF orientation is not applied: coordinates refer "
        "to the pixels as stored. For a picture sent before, `sha256:` and the SHA-256 in hex of "
        "that base64 text does; 409 where the server no longer knows it.",
        examples=["iVBORw0KGgo…"],
    )
    checkpoint_url: str | None = Field(
        None,
        description="Name or URL of registered weights, as `GET /sam/weights/` lists them. "
        "Nothing is ever downloaded for a request.",
        examples=["default"],
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
        if wanted is not None and wanted not in (weights["name"], weights["url"]):
            raise NotFound(
                f"No weights {wanted!r} are registered for {model_type}; "
                f"{weights['name']!r} ({weights['url']}) are.",
                "checkpoint_url",
            )


class PromptRequest(_OtherPrompts, SegmentRequest):
    """`POST /sam/`: masks for given boxes.

    One object: `bbox`. Several objects of one image: `prompts`, so that the image is
    sent and encoded once.
    """

    bbox: Annotated[Box | None, _BOX] = None
    prompts: list[Prompt] | None = Field(
        None,
        min_length=1,
        max_length=MAX_PROMPTS,
        description="Several prompts on this one image, in place of `bbox`. Each Feature "
        "says in `prompt_idx` which of them it answers.",
        examples=[[{"bbox": [10, 20, 200, 180]}, {"bbox": [220, 40, 300, 160]}]],
    )
    multimask_output: bool = Field(
        False,
        description="Return SAM's three masks of each prompt in place of one.",
    )

    def boxes(self, height: int, width: int) -> list[tuple[float, float, float, float]]:
        """Each prompt's box, XYXY in pixels, in the order sent.

        A box may reach over the edge (clients round), but not lie outside.

        Raises:
            InvalidField: no prompt, two ways of prompting at once, or a box outside the
                `height` × `width` image.
        """
        if self.bbox is not None and self.prompts is not None:
            raise InvalidField("Send either bbox or prompts, not both.", "prompts")
        if self.prompts is not None:
            named = [(f"prompts.{i}.bbox", prompt.bbox) for i, prompt in enumerate(self.prompts)]
        elif self.bbox is not None:
            named = [("bbox", self.bbox)]
        else:
            raise InvalidField("No prompt: send bbox, or prompts with one bbox each.", "bbox")
        for field, (x1, y1, x2, y2) in named:
            if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
                raise InvalidField(
                    f"{field}: {[x1, y1, x2, y2]} lies outside the {width}x{height} image.", field
                )
        return [box for _, box in named]


class AutomaskRequest(SegmentRequest):
    """`POST /sam/automask/`: every object in the image.

    Source of the fields from `points_per_side` to `min_mask_region_area`:
    segment-anything's `SamAutomaticMaskGenerator`; of `output_type` and
    `include_image_edge`: samapi 0.3.
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
        512 / 1500, ge=0, le=1, description="Overlap of the first layer's crops, of the short side."
    )
    crop_n_points_downscale_factor: Integer = Field(
        1, ge=1, description="Layer n samples points_per_side / this^n points a side."
    )
    min_mask_region_area: Integer = Field(
        0, ge=0, description="Remove holes and islands smaller than this many pixels."
    )
    output_type: Annotated[OutputType, BeforeValidator(OutputType.parse)] = Field(
        OutputType.BEST_QUALITY,
        description="Which of a point's masks survive; letter case does not matter. "
        "`Multi-mask (best quality)` is segment-anything's own behaviour.",
    )
    include_image_edge: bool = Field(
        True, description="False: a mask near all four edges of the picture goes too."
    )

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

    def check_work(self, max_points: int) -> None:
        """Refuse, before any work, more point prompts than `max_points` over all crops.

        Raises:
            InvalidField: names the number asked for and the limit.
        """
        points = sum(4**layer * side**2 for layer, side in enumerate(self.points_a_side()))
        if points > max_points:
            raise InvalidField(
                f"points_per_side and crop_n_layers ask for {points} points; "
                f"this server's limit is {max_points}.",
                "points_per_side",
            )
