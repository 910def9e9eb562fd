"""The requests that the two modes take: their fields, defaults and limits.

These models serve twice: the worker checks bodies with them, and the gateway makes its OpenAPI
pages from them. Field names are samapi's. The fields of automask are in `samserve.parameters`.

An empty list or text in an optional field of a prompt means that the field is absent. samapi does
the same, because it tests whether a field is true.

The image is not needed here: `prompts.check_inside` checks what depends on its size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError

from samserve.errors import InvalidField, InvalidRequest, NotFound, quoted
from samserve.model_types import DEFAULT_WEIGHTS, is_default_address
from samserve.parameters import AutomaskParameters, Integer, Model, OutputType, first_error

from .json_text import check_size, to_utf8
from .model_settings import Defaults

if TYPE_CHECKING:
    from typing_extensions import Self

DEFAULT_MODEL_TYPE = "vit_h"
"""The model type of a body without `type`. It is samapi's default."""

MAX_PROMPTS = 1024
"""Prompts in one request. Each has an outline in the answer, so this limits the answer's size."""

MAX_POINTS = 256
"""Points in one prompt. The decoder's work grows with their square."""

MAX_POINTS_IN_ALL = 2 * MAX_PROMPTS
"""Points in all prompts of one request together."""

MAX_MASKS = 64
"""Mask prompts in one request, and prompts whose logits are returned. Each mask is a picture that
must be decoded, and the logits of one take 170 kB in the answer."""

MAX_TYPE_LENGTH = 100
"""Characters of `type`. Errors repeat it."""

MAX_URL_LENGTH = 2000
"""Characters of `checkpoint_url`. Errors repeat it."""

_T = TypeVar("_T")


def _absent_if_empty(value: _T) -> _T | None:
    return value or None


def _absent_if_empty_list(value: object) -> object:
    return None if value == [] else value


# Limited so that a coordinate stays finite in float32 on its way to the network.
_Coordinate = Annotated[float, Field(ge=-1e6, le=1e6)]


def _check_box(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    if x1 >= x2 or y1 >= y2:
        raise ValueError(f"is empty or inverted: needs x1 < x2 and y1 < y2, got {list(box)}")
    return box


_BoxField = Annotated[
    tuple[_Coordinate, _Coordinate, _Coordinate, _Coordinate],
    # A strict tuple would refuse the list that `_absent_if_empty_list` returns.
    Field(strict=False),
    AfterValidator(_check_box),
]


def _check_label(value: int) -> int:
    if value not in (0, 1):
        raise ValueError(f"is {value}; it must be 1 (object) or 0 (background)")
    return value


class LowResLogits(Model):
    """The logits of a mask as an answer has them in `low_res_logits`, for a further prompt."""

    shape: Annotated[tuple[Literal[256], Literal[256]], Field(strict=False)] = Field(
        description="Rows and columns: `[256, 256]`.", examples=[[256, 256]]
    )
    dtype: Literal["float16"] = Field(description="The type of each number.")
    data: str = Field(
        description="Base64 of the numbers, row by row, each in two bytes, the lower one first.",
        examples=["AMAAwA…"],
    )


class PromptFields(Model):
    """The fields that point out one object: any of them, or several together."""

    bbox: Annotated[_BoxField | None, BeforeValidator(_absent_if_empty_list)] = Field(
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
        description="A label for each point: 1 if it lies on the object, 0 if on the background.",
        examples=[[1, 0]],
    )
    b64mask: Annotated[str | None, AfterValidator(_absent_if_empty)] = Field(
        None,
        description="Mask: base64 of an image file. The object is what is brighter than half of "
        "its brightest pixel. Its size is the size of the image sent, or 256x256. With 256x256 it "
        "is in SAM's frame: the image is scaled so that its long side has 256 pixels, and the rest "
        "at the right or at the bottom is empty; with SAM 2, it is the whole image, stretched. SAM "
        "was trained to refine masks: with a mask alone, without a box or a point, it often finds "
        "nothing.",
    )
    mask_input: LowResLogits | None = Field(
        None,
        description="The `low_res_logits` of an earlier answer on this image, as it had them (see "
        "`return_logits`). With one more point they refine that mask, as in "
        "`SamPredictor.predict`. Send either them or `b64mask`.",
    )

    def present(self) -> list[str]:
        """Return the names of the fields that are present."""
        names = ("bbox", "point_coords", "point_labels", "b64mask", "mask_input")
        return [name for name in names if getattr(self, name) is not None]


class JsonBody(Model):
    """A JSON body whose fields were checked.

    Unknown fields are ignored, as samapi does, so that a newer client still gets its answer.
    """

    @classmethod
    def parse(cls, body: bytes | bytearray) -> Self:
        """Parse the bytes of a JSON body.

        Raises:
            InvalidRequest: the body is not JSON, or not an object.
            InvalidField: a field is missing or wrong; the message names the first such field.
            TooLarge: the body has too many parts.
        """
        text = to_utf8(body)
        check_size(text)
        try:
            return cls.model_validate_json(text)
        except ValidationError as exc:
            error = exc
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid" and not text.strip():
            raise InvalidRequest("The body is empty.")
        message = first["msg"].removeprefix("Value error, ").removeprefix("Invalid JSON: ")
        if first["type"] == "json_invalid":
            raise InvalidRequest(f"The body is not JSON: {message}.")
        if not first["loc"]:
            raise InvalidRequest(f"The body must be a JSON object: {message}.")
        raise first_error(error)


class RoutedRequest(JsonBody):
    """The fields that choose the model and its weights. The gateway reads no others."""

    type: str = Field(
        DEFAULT_MODEL_TYPE,
        max_length=MAX_TYPE_LENGTH,
        description="Model type: `vit_h`, `vit_l`, `vit_b` (segment-anything), `vit_t` "
        "(MobileSAM), or `sam2_l`, `sam2_bp`, `sam2_s`, `sam2_t` (SAM 2.1). It must be loaded.",
        examples=["vit_t"],
    )
    checkpoint_url: Annotated[str | None, AfterValidator(_absent_if_empty)] = Field(
        None,
        max_length=MAX_URL_LENGTH,
        description="Name or URL of registered weights, as `GET /sam/weights/` lists them. The "
        "address from which samapi downloads a type's own weights means `default`. A request "
        "never starts a download.",
        examples=["default"],
    )


class PictureRequest(RoutedRequest):
    """The fields of every request about a picture."""

    b64img: str = Field(
        description="The image: base64 of a PNG, JPEG, TIFF, WebP or BMP file, with or "
        "without a `data:` URL prefix. EXIF orientation is not applied: coordinates refer "
        "to the pixels as stored. For a picture that was sent before, `sha256:` and the SHA-256 in "
        "hex of that base64 text is enough; the answer is 409 if the server no longer knows it.",
        examples=["iVBORw0KGgo…"],
    )
    page: Integer = Field(
        0,
        ge=0,
        le=2**31 - 1,
        description="Page of a TIFF, counted from 0: the number of its directory in the file, or "
        "of its plane in an ImageJ stack. Each answer says how many pages there are: in the "
        "header `X-Image-Pages`, in the member `pages` of a FeatureCollection, and in the event "
        "`done` of a stream. Other formats have page 0 only; page 0 of an animation is its first "
        "frame.",
        examples=[0],
    )
    strict: bool = Field(
        False,
        description="Refuse fields that are not known, instead of ignoring them: a misspelled "
        "field is then an error. The header `Prefer: handling=strict` does the same.",
    )

    def check_weights(self, model_type: str, weights: Mapping[str, str]) -> None:
        """Refuse a request that names another model or other weights than this worker's.

        A body without `type` accepts every model type.

        Args:
            model_type: the model type that this worker has loaded.
            weights: the `name` and `url` of its weights.

        Raises:
            NotFound: the message names the model type or the weights that are loaded.
        """
        if "type" in self.model_fields_set and self.type != model_type:
            raise NotFound(f"{quoted(self.type)} is not served here; {model_type} is.", "type")
        wanted = self.checkpoint_url
        if wanted is None or wanted in (weights["name"], weights["url"]):
            return
        if weights["name"] != DEFAULT_WEIGHTS or not is_default_address(model_type, wanted):
            raise NotFound(
                f"No weights {quoted(wanted)} are registered for {model_type}; "
                f"{weights['name']!r} ({weights['url']}) are.",
                "checkpoint_url",
            )


class SegmentRequest(PictureRequest):
    """The fields that both modes have."""

    simplify: float = Field(
        0,
        ge=0,
        le=1000,
        description="Pixels by which an outline may differ from its mask to have fewer vertices. "
        "All pieces and holes stay. 0: exact outlines.",
    )
    output_format: str | None = Field(
        None,
        description="`features`: a JSON array of GeoJSON Features, as samapi returns; "
        "`feature_collection`: one GeoJSON object; `coco_rle`: segment-anything's records with "
        "masks as COCO run lengths; `label_png`: a PNG of 16 bits that numbers the objects; "
        "`mask_png`: a PNG that is white where there is any object. Without this field the "
        "`Accept` header decides.",
        examples=["features"],
    )


class EmbedRequest(PictureRequest):
    """`PUT /sam/images/`: a picture that is only embedded, so that later requests find it."""


class PromptRequest(PromptFields, SegmentRequest):
    """`POST /sam/`: masks for boxes, points and drawn masks.

    For one object send `bbox`, `point_coords` with `point_labels`, `b64mask`, or several of these
    together. For several objects of one image send `prompts`: then the image is sent and encoded
    once.
    """

    prompts: list[PromptFields] | None = Field(
        None,
        max_length=MAX_PROMPTS,
        description="Several prompts on this image instead of one. The property `prompt_idx` of a "
        "Feature is the place of the prompt that it answers.",
        examples=[[{"bbox": [10, 20, 200, 180]}, {"point_coords": [[9, 9]], "point_labels": [1]}]],
    )
    multimask_output: bool = Field(
        False,
        description="Return SAM's three masks for each prompt instead of one.",
    )
    return_logits: bool = Field(
        False,
        description="Give each object the property `low_res_logits`, from which `mask_input` "
        "refines its mask. At most 64 prompts.",
    )

    def each_prompt(self) -> list[tuple[str, PromptFields]]:
        """Return every prompt in the body's order, with the prefix of its fields' paths.

        Raises:
            InvalidField: there is no prompt, or both one prompt and a list; the numbers of points
                and labels differ; or there are more points or masks than are allowed.
        """
        if not self.prompts:
            named: list[tuple[str, PromptFields]] = [("", self)]
        elif self.present():
            raise InvalidField(f"Send either {self.present()[0]} or prompts, not both.", "prompts")
        else:
            named = [(f"prompts.{index}.", prompt) for index, prompt in enumerate(self.prompts)]
        for path, prompt in named:
            if not prompt.present():
                empty_list = self.prompts is not None and not self.prompts
                raise InvalidField(
                    f"{path or 'No prompt: '}"
                    "send bbox, point_coords with point_labels, b64mask, mask_input, or prompts.",
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
        self._check_masks(named)
        return named

    def _check_masks(self, named: list[tuple[str, PromptFields]]) -> None:
        masks = 0
        for path, prompt in named:
            if prompt.b64mask is not None and prompt.mask_input is not None:
                field = f"{path}mask_input"
                raise InvalidField(f"{field}: send either b64mask or mask_input.", field)
            masks += prompt.b64mask is not None or prompt.mask_input is not None
        if masks > MAX_MASKS:
            raise InvalidField(f"prompts: {masks} masks; at most {MAX_MASKS}.", "prompts")
        if self.return_logits and len(named) > MAX_MASKS:
            raise InvalidField(
                f"return_logits: {len(named)} prompts; at most {MAX_MASKS} with logits.",
                "return_logits",
            )


class AutomaskRequest(AutomaskParameters, SegmentRequest):
    """`POST /sam/automask/`: every object in the image.

    Source of the fields from `points_per_side` to `min_mask_region_area` and of their defaults:
    segment-anything's `SamAutomaticMaskGenerator`. `output_type` and `include_image_edge` come
    from samapi 0.3. If they are absent, the answer is that of segment-anything and not that of
    samapi (`Single mask`, and no image edge). `with_defaults` changes that.
    """

    # samapi ignores unknown fields, so that a newer client still gets its answer.
    model_config = ConfigDict(extra="ignore")

    def with_defaults(self, defaults: Defaults) -> Self:
        """Return the same request with these defaults for its absent fields.

        Args:
            defaults: `segment-anything` changes nothing.
        """
        if defaults == "segment-anything":
            return self
        absent = SAMAPI_DEFAULTS.keys() - self.model_fields_set
        if self.pred_iou_thresh is None:
            absent |= {"pred_iou_thresh"}
        return self.model_copy(update={name: SAMAPI_DEFAULTS[name] for name in absent})


SAMAPI_DEFAULTS: dict[str, object] = {
    "output_type": OutputType.SINGLE_MASK,
    "include_image_edge": False,
    "pred_iou_thresh": 0.88,
}
"""The defaults of samapi (version 0.3 and later) that differ from the references' behaviour. For
SAM 2 too, samapi has the threshold of SAM 1."""
