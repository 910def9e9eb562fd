"""What the pictures of both clients have in common: the file, its size, and the exchanges."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samserve.objects.collection import Objects
from samserve.objects.frame import Frame
from samserve.objects.georeference import georeference_of
from samserve.objects.prompting import plain_prompts
from samserve.objects.segmented import SegmentedObject
from samserve.parameters import AutomaskKeywords, AutomaskParameters, check_keywords
from samserve.pictures.decoding import decode_page
from samserve.pictures.sources import PictureFile

from . import exchanges
from .exchanges import Report, SentPicture, ServerState
from .wire import Exchange


class PictureCore:
    """A picture that a server segments. Coordinates are pixels, origin at the top left.

    Args:
        server: what the client knows of the server.
        file: the picture's file.

    Attributes:
        frame: what the picture's objects need of it.
        pages: the number of pages in the file.
    """

    def __init__(self, server: ServerState, file: PictureFile) -> None:
        self._server = server
        self._sent = SentPicture(file.content, file.page)
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
        return decode_page(self._sent.content, sys.maxsize, "picture", self._sent.page).pixels

    def _segment(
        self,
        box: ArrayLike | None,
        points: ArrayLike | None,
        labels: ArrayLike | None,
        boxes: ArrayLike | None,
        refine: SegmentedObject | None,
        multimask_output: bool,
        return_logits: bool,
    ) -> Exchange[Objects]:
        prompts = plain_prompts(box, points, labels, boxes, refine, self.frame)
        return exchanges.segment(
            self._server,
            self._sent,
            self.frame,
            prompts,
            multimask_output=multimask_output,
            return_logits=return_logits or refine is not None,
        )

    def _automask(self, parameters: AutomaskKeywords, report: Report | None) -> Exchange[Objects]:
        check_keywords(parameters.keys())
        checked = AutomaskParameters.of(parameters)
        return exchanges.automask(self._server, self._sent, self.frame, checked, report)

    def __repr__(self) -> str:
        height, width = self.size
        return f"<picture {self.frame.name or 'without a name'}, {width}×{height} pixels>"
