"""The calls that a picture has at a server and in the library in process: the same ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, overload

from numpy.typing import ArrayLike

from .collection import Objects
from .segmented import SegmentedObject

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from samserve.parameters import AutomaskKeywords

Progress: TypeAlias = "bool | Callable[[int, int], object] | None"
"""True: show a bar. A function: it is called with (points done, points in all)."""


class SegmentablePicture(Protocol):
    """A picture in which objects can be found: `Client.picture` and `Segmenter.picture` return one.

    Coordinates are pixels of the picture. The origin is the top-left corner of the first pixel; x
    points right, y points down.
    """

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        ...

    @property
    def pages(self) -> int:
        """The number of pages in the picture's file."""
        ...

    def prepare(self) -> None:
        """Send and encode the picture now, so that the first call finds it encoded."""
        ...

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
        """Return the object that a box, points, or both point out; or the objects in several boxes.

        Args:
            box: (x0, y0, x1, y1).
            points: [(x, y), …].
            labels: for each point 1 (on the object) or 0 (beside it). None: all are 1.
            boxes: several boxes. They give one object each, in their order.
            refine: an object of an earlier call with `return_logits`. The points, old and new
                ones, then correct its mask.
            multimask_output: return SAM's three masks of each prompt as Objects. Masks without
                pixels are left out; `prompt_idx` says which box an object answers.
            return_logits: keep what `refine` needs, 128 kB an object. It is on with `refine`.

        Returns:
            One object, or Objects with `boxes` or `multimask_output`. If nothing was found, the
            object has no pixels: its area is 0.
        """
        ...

    def automask(
        self, *, progress: Progress = None, **parameters: Unpack[AutomaskKeywords]
    ) -> Objects:
        """Return every object in the picture.

        Args:
            progress: True shows a bar; a function is called with (points done, points in all).
            parameters: the fields of `samserve.AutomaskParameters`, such as `points_per_side`.

        Raises:
            TypeError: there is no such parameter.
        """
        ...
