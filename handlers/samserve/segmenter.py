"""A Segmenter is the library's interface: it embeds pictures, answers prompts and finds objects.

    segmenter = samserve.load("vit_t")
    picture = segmenter.embed("cells.png")
    masks = segmenter.prompt(picture, box=(10, 20, 200, 180))
    objects = segmenter.automask(picture, points_per_side=16)

TorchServe's handler uses the same class.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image as PillowImage

from . import automask, places, prompts
from .embeddings.cache import EmbeddedImage
from .errors import InvalidField, InvalidImage, TimedOut, TooLarge
from .local_picture import LocalPicture
from .masks.mask import AutoMask, CompactAutoMask, CompactPromptMask, PromptMask
from .model import MEMORY_CACHE, Model, load_model
from .model_types import MODEL_TYPES, Precision
from .network.devices import device_named
from .parameters import AutomaskParameters, check_keywords
from .pictures.picture import Picture
from .pictures.sources import Source as AnySource
from .pictures.sources import file_of, read_source, whole_number
from .progress import Job
from .prompts import Prompt, check_inside, prompt_of
from .weights.fetch import fetch

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .network.decoder import Image
    from .parameters import AutomaskKeywords

MAX_PIXELS = 100_000_000
"""Larger pictures are refused unless `embed` is told otherwise. The server's limit is the same."""

MAX_POINTS = 262_144
"""Points that one automask may have, over all crops or tiles: 512×512. The server's limit is the
same. It stops a slip of the pen, such as 3200 in place of 32, before it takes hours."""

Source: TypeAlias = "str | os.PathLike[str] | bytes | PillowImage.Image | NDArray[np.uint8]"


@dataclass(frozen=True, eq=False)
class EmbeddedPicture:
    """A picture that was encoded once and is ready for any number of prompts.

    Attributes:
        image: the embedding with what the decoder prepared from it.
        source: where the embedding came from: `memory`, `machine`, `redis` or `encoder`.
        pages: the number of pages in the picture's file.
        pixels: returns the H×W×3 uint8 RGB pixels.
    """

    image: Image = field(repr=False)
    source: str
    pages: int
    pixels: automask.Pixels = field(repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.embedding.original_size


class Segmenter:
    """A loaded model that segments pictures. Its methods may be called from several threads.

    Args:
        model: the loaded model; `load` makes one.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def picture(
        self,
        source: AnySource,
        page: int | None = None,
        *,
        max_pixels: int = MAX_PIXELS,
    ) -> LocalPicture:
        """Return a picture with the calls `segment` and `automask`, as `samserve.Client` has them.

        Args:
            source: a path, a URL, the bytes of an image file, a PIL image, or an array of bool,
                integers or floats; see `pictures.sources.read_source`.
            page: the page of a TIFF, from 0. None: the only one.
            max_pixels: a picture with more pixels is refused before it is decoded.

        Raises: as `pictures.sources.read_source`.
        """
        return LocalPicture(self, read_source(source, page), max_pixels)

    def embed(
        self, picture: Source, *, page: int = 0, max_pixels: int = MAX_PIXELS
    ) -> EmbeddedPicture:
        """Encode a picture. This is the slow step; a known picture comes from the cache.

        Args:
            picture: a path, the bytes of an image file (PNG, JPEG, TIFF, WebP, BMP), a PIL image,
                or an array: H×W×3 uint8 RGB or H×W uint8 grey. EXIF orientation is ignored.
            page: the page of a TIFF, from 0.
            max_pixels: a picture with more pixels is refused before it is decoded.

        Raises:
            OSError: the file cannot be read.
            InvalidImage: the picture cannot be decoded, or is too thin to encode.
            TooLarge: it has more than `max_pixels` pixels.
            InvalidField: there is no such page.

        The file is decoded in this process. A file from a stranger can take long, or crash a codec:
        the server decodes in a process of its own.
        """
        page = whole_number(page, "page")
        if isinstance(picture, np.ndarray):
            if page:
                raise InvalidField("An array has page 0 only.", "page")
            return self._embed_array(picture, max_pixels)
        if isinstance(picture, PillowImage.Image):
            content = file_of(picture)
        elif isinstance(picture, bytes):
            content = picture
        elif isinstance(picture, str | os.PathLike):
            content = Path(picture).read_bytes()
        else:
            raise TypeError(
                "picture must be a path, bytes, a PIL image or a NumPy array, not "
                f"{type(picture).__name__}"
            )
        return self.embed_file(Picture(content, max_pixels, "picture", page))

    def embed_file(self, picture: Picture) -> EmbeddedPicture:
        """Encode a picture that was sent as a file, as base64 text, or as a digest.

        Raises:
            SamserveError: it cannot be decoded, or only its digest is known.
        """
        embedded = self.model.embeddings.of_picture(picture)
        return _embedded(embedded, lambda: picture.pixels)

    def _embed_array(self, pixels: NDArray[Any], max_pixels: int) -> EmbeddedPicture:
        if pixels.dtype != np.uint8 or not (
            pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
        ):
            raise InvalidImage(
                f"The array has the shape {pixels.shape} and the type {pixels.dtype}; "
                "it must be H×W×3 or H×W, of type uint8.",
                "picture",
            )
        if not pixels.size:
            raise InvalidImage("The array has no pixels.", "picture")
        n_pixels = pixels.shape[0] * pixels.shape[1]
        if n_pixels > max_pixels:
            raise TooLarge(
                f"The array has {n_pixels} pixels; the limit is {max_pixels}.", "picture"
            )
        # A copy: crops and tiles read the pixels later, when the caller may have changed the array.
        rgb = pixels.copy() if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
        rgb.setflags(write=False)
        return _embedded(self.model.embeddings.of_pixels(rgb), lambda: rgb)

    def prompt(
        self,
        picture: EmbeddedPicture,
        *,
        box: ArrayLike | None = None,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = False,
        return_logits: bool = False,
    ) -> list[PromptMask]:
        """Return the mask of the object that a box, points or a mask point out.

        `segment_anything.SamPredictor.predict` has the same arguments and returns the same masks.
        With SAM 2, `sam2.sam2_image_predictor.SAM2ImagePredictor.predict` does.

        Args:
            box: XYXY in pixels of the picture, origin at the top left.
            point_coords: N×2 XY in pixels of the picture.
            point_labels: N labels, 1 for a point on the object and 0 for the background.
            mask_input: 256×256 logits in the network's input frame.
            multimask_output: return SAM's three masks instead of one.
            return_logits: give each mask its `low_res_logits`, which as `mask_input` refine it.

        Returns:
            One mask, or three.

        Raises:
            InvalidField: an argument is wrong, or lies outside the picture.
            OutOfMemory: the device ran out of memory.
        """
        prompt = prompt_of(
            box,
            point_coords,
            point_labels,
            mask_input,
            multimask_output=multimask_output,
            return_logits=return_logits,
        )
        _check_embedded(picture)
        check_inside(prompt, picture.size)
        [masks] = self.predict(picture, [[prompt]])
        return [mask.unpacked() for mask in masks]

    def predict(
        self, picture: EmbeddedPicture, requests: Sequence[Sequence[Prompt]]
    ) -> list[list[CompactPromptMask]]:
        """Return the masks of many prompts at once, which is faster than one call each.

        They are packed, and take little memory until they are unpacked.

        Args:
            requests: lists of checked prompts (`prompts.prompt_of`, `prompts.check_inside`).

        Returns:
            For each request its masks in the order of its prompts; `prompt_idx` is the place.
        """
        return prompts.predict(self.model, picture.image, requests)

    def automask(
        self,
        picture: EmbeddedPicture,
        *,
        progress: Callable[[int, int], object] | None = None,
        **parameters: Unpack[AutomaskKeywords],
    ) -> list[AutoMask]:
        """Return the masks of every object in a picture.

        `segment_anything.SamAutomaticMaskGenerator` returns the same masks in the same order. With
        SAM 2, `sam2.automatic_mask_generator.SAM2AutomaticMaskGenerator` does.

        Args:
            progress: called with (points done, points in all) from time to time, in the thread of
                the caller.
            parameters: the fields of `samserve.AutomaskParameters`, such as `points_per_side`.

        Raises:
            TypeError: there is no such parameter.
            InvalidField: a parameter has a wrong type or value.
            TimedOut: it took longer than `timeout_s`.
        """
        _check_embedded(picture)
        check_keywords(parameters)
        checked = AutomaskParameters.of(parameters)
        checked.check_work(MAX_POINTS, math.inf)

        def report(done: int, total: int) -> None:
            if progress is not None:
                progress(done, total)

        job = Job(deadline_s=checked.timeout_s, report=report)
        masks = self.find_objects(picture, checked, job)
        if job.stopped is not None:
            raise TimedOut(f"Stopped after {job.done} of {job.total} points: the time was over.")
        return [mask.unpacked() for mask in masks]

    def find_objects(
        self, picture: EmbeddedPicture, parameters: AutomaskParameters, job: Job
    ) -> Sequence[AutoMask | CompactAutoMask]:
        """Like `automask`, but the caller watches the job, and gets partial results if it stops.

        Most of the masks are packed, and take little memory until they are unpacked.
        """
        return automask.generate(self.model, picture.image, picture.pixels, parameters, job)


def load(
    model_type: str = "vit_t",
    weights: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    precision: Precision = "float32",
) -> Segmenter:
    """Load a model. Its weights are downloaded, with a progress bar, if they are not there yet.

    Args:
        model_type: `vit_t` (MobileSAM), `vit_b`, `vit_l`, `vit_h` (segment-anything), or `sam2_t`,
            `sam2_s`, `sam2_bp`, `sam2_l` (SAM 2.1).
        weights: a checkpoint of this type. None: the published one, in the state folder.
        device: PyTorch's name of the device. None: the first NVIDIA GPU, else the CPU.
        precision: the number format in which the image encoder computes.

    Raises:
        ValueError: there is no such model type, precision or device.
        FetchError: the weights cannot be downloaded.
        CheckpointError: the checkpoint is unreadable or another network's.
        DeviceError: the GPU cannot be used, or the device has too little memory.
    """
    if model_type not in MODEL_TYPES:
        raise ValueError(f"There is no model type {model_type!r}; use {', '.join(MODEL_TYPES)}.")
    if precision not in get_args(Precision):
        raise ValueError(
            f"There is no precision {precision!r}; use {', '.join(get_args(Precision))}."
        )
    where = device_named(device)
    if weights is None:
        weights = places.weights_folder() / f"{model_type}.pt"
        if not weights.is_file():
            fetch(MODEL_TYPES[model_type], weights.parent)
    return Segmenter(
        load_model(
            model_type,
            Path(weights),
            device=where,
            precision=precision,
            cache=MEMORY_CACHE,
        )
    )


def _check_embedded(picture: object) -> None:
    if not isinstance(picture, EmbeddedPicture):
        raise TypeError(
            f"picture must be what Segmenter.embed returned, not {type(picture).__name__}"
        )


def _embedded(embedded: EmbeddedImage, pixels: automask.Pixels) -> EmbeddedPicture:
    return EmbeddedPicture(embedded.image, embedded.source, embedded.pages, pixels)
