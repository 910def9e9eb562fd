"""A LocalPicture has the calls of a client's picture, and answers them in this process."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bars import reporting
from .masks.mask import AutoMask, PromptMask
from .objects.collection import Objects
from .objects.frame import Frame
from .objects.georeference import georeference_of
from .objects.interface import Progress
from .objects.prompting import plain_prompts
from .objects.segmented import LOGITS, SegmentedObject
from .pictures.picture import Picture
from .pictures.sources import PictureFile
from .prompts import Prompt, prompt_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .parameters import AutomaskKeywords
    from .segmenter import EmbeddedPicture, Segmenter


class LocalPicture:
    """A picture in which this process finds objects; see `objects.interface.SegmentablePicture`.

    `Segmenter.picture` makes it. The picture is encoded when it is first needed.

    Args:
        segmenter: the loaded model.
        file: the picture's file.
        max_pixels: a picture with more pixels is refused before it is decoded.
    """

    def __init__(self, segmenter: Segmenter, file: PictureFile, max_pixels: int) -> None:
        self._segmenter = segmenter
        self._picture = Picture(file.content, max_pixels, "picture", file.page)
        self.pages = file.pages
        self.frame = Frame(
            file.size,
            self._pixels,
            file.name,
            file.page,
            None if file.tags is None else georeference_of(file.tags),
        )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.frame.size

    def _pixels(self) -> NDArray[np.uint8]:
        return self._picture.pixels

    @cached_property
    def _embedded(self) -> EmbeddedPicture:
        return self._segmenter.embed_file(self._picture)

    def prepare(self) -> None:
        """Encode the picture now, so that the first call finds it encoded."""
        _ = self._embedded

    @overload
    def segment(
        self,
        box: ArrayLike | None = None,
        *,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        refine: SegmentedObject | None = None,
        multimask_output: Literal[False] = False,
        return_logits: bool = False,
    ) -> SegmentedObject: ...

    @overload
    def segment(
        self,
        box: ArrayLike | None = None,
        *,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        refine: SegmentedObject | None = None,
        multimask_output: Literal[True],
        return_logits: bool = False,
    ) -> Objects: ...

    @overload
    def segment(
        self, *, boxes: ArrayLike, multimask_output: bool = False, return_logits: bool = False
    ) -> Objects: ...

    def segment(
        self,
        box: ArrayLike | None = None,
        *,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        refine: SegmentedObject | None = None,
        multimask_output: bool = False,
        return_logits: bool = False,
    ) -> SegmentedObject | Objects:
        """Return the object of a prompt, or those of several; see `SegmentablePicture.segment`."""
        plain = plain_prompts(box, points, labels, boxes, refine, self.frame)
        prompts = [
            prompt_of(
                prompt.box,
                prompt.points or None,
                prompt.labels or None,
                prompt.mask_input,
                multimask_output=multimask_output,
                return_logits=return_logits or refine is not None,
            )
            for prompt in plain
        ]
        found = self._predicted(prompts) if prompts else Objects([], self.frame)
        return found if boxes is not None or multimask_output else found[0]

    def _predicted(self, prompts: list[Prompt]) -> Objects:
        [masks] = self._segmenter.predict(self._embedded, [prompts])
        objects = [self._object(mask.unpacked()) for mask in masks]
        if prompts[0].multimask_output:
            objects = [found for found in objects if found.area]
        return Objects(objects, self.frame)

    def automask(
        self, *, progress: Progress = None, **parameters: Unpack[AutomaskKeywords]
    ) -> Objects:
        """Return every object in the picture; see `SegmentablePicture.automask`."""
        with reporting(progress, self.frame.name or "automask") as report:
            masks = self._segmenter.automask(self._embedded, progress=report, **parameters)
        return Objects(map(self._object, masks), self.frame)

    def _object(self, mask: PromptMask | AutoMask) -> SegmentedObject:
        properties = {"sam_model": self._segmenter.model.model_type, **mask.properties()}
        properties.pop(LOGITS, None)
        logits = mask.low_res_logits if isinstance(mask, PromptMask) else None
        return SegmentedObject.from_mask(
            self.frame, float(mask.predicted_iou), properties, mask.mask, mask.box, logits
        )
