"""The arguments of `segment` are checked before anything is sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from samserve.errors import InvalidField
from samserve.objects.frame import Frame
from samserve.objects.prompting import PlainPrompt, plain_prompts
from samserve.objects.segmented import SegmentedObject

FRAME = Frame((100, 200), lambda: np.zeros((100, 200, 3), np.uint8))


@pytest.mark.parametrize(
    ("arguments", "prompts"),
    [
        ({"box": (1, 2, 3, 4)}, [PlainPrompt([1, 2, 3, 4], [], [])]),
        ({"box": np.array([1, 2, 3, 4])}, [PlainPrompt([1, 2, 3, 4], [], [])]),
        ({"box": (-5, -5, 300, 300)}, [PlainPrompt([-5, -5, 300, 300], [], [])]),
        ({"points": [(1, 2)]}, [PlainPrompt(None, [[1, 2]], [1])]),
        (
            {"points": [(1, 2), (200, 100)], "labels": np.array([1, 0])},
            [PlainPrompt(None, [[1, 2], [200, 100]], [1, 0])],
        ),
        (
            {"box": [1, 2, 3, 4], "points": np.array([[1, 2]], np.float32), "labels": [0]},
            [PlainPrompt([1, 2, 3, 4], [[1, 2]], [0])],
        ),
        (
            {"boxes": [(1, 2, 3, 4), (5, 6, 7, 8)]},
            [PlainPrompt([1, 2, 3, 4], [], []), PlainPrompt([5, 6, 7, 8], [], [])],
        ),
        ({"boxes": []}, []),
    ],
    ids=str,
)
def test_good_arguments(arguments: dict[str, Any], prompts: list[PlainPrompt]) -> None:
    everything = dict.fromkeys(("box", "points", "labels", "boxes", "refine"), None) | arguments
    assert plain_prompts(**everything, frame=FRAME) == prompts


@pytest.mark.parametrize(
    ("arguments", "field", "words"),
    [
        ({}, "box", "Give a box"),
        ({"labels": [1]}, "box", "Give a box"),
        ({"box": (1, 2, 3)}, "box", r"shape \(3,\)"),
        ({"box": [(1, 2, 3, 4)]}, "box", r"shape \(1, 4\)"),
        ({"box": (3, 2, 1, 4)}, "box", "inverted"),
        ({"box": (1, 2, 1, 4)}, "box", "empty"),
        ({"box": "1,2,3,4"}, "box", "numbers only"),
        ({"box": (1, 2, 3, None)}, "box", "numbers only"),
        ({"box": (1, 2, 3, float("nan"))}, "box", "NaN"),
        ({"box": (1, 2, 3, float("inf"))}, "box", "infinity"),
        ({"box": (200, 2, 300, 4)}, "box", "lies outside the 200×100 picture"),
        ({"points": (1, 2)}, "points", r"points=\[\(x, y\)\]"),
        ({"points": []}, "points", "no point"),
        ({"points": [(1, 2), (201, 2)]}, "points.1", "lies outside"),
        ({"points": [(1, 2)], "labels": [1, 0]}, "labels", "2 labels for 1 points"),
        ({"points": [(1, 2)], "labels": [2]}, "labels", "must be 1"),
        ({"box": (1, 2, 3, 4), "labels": [1]}, "labels", "1 labels for 0 points"),
        ({"boxes": [(1, 2, 3, 4), (3, 2, 1, 4)]}, "boxes.1", "inverted"),
        ({"boxes": [(1, 2, 3, 4)], "box": (1, 2, 3, 4)}, "boxes", "either"),
        ({"boxes": [(1, 2, 3, 4)], "points": [(1, 2)]}, "boxes", "either"),
        ({"boxes": (1, 2, 3, 4)}, "boxes", r"shape \(4,\)"),
        ({"boxes": [(1, 2, 3), (1, 2, 3, 4)]}, "boxes", "numbers only"),
    ],
    ids=str,
)
def test_bad_arguments(arguments: dict[str, Any], field: str, words: str) -> None:
    everything = dict.fromkeys(("box", "points", "labels", "boxes", "refine"), None) | arguments
    with pytest.raises(InvalidField, match=words) as raised:
        plain_prompts(**everything, frame=FRAME)
    assert raised.value.field == field


def test_an_object_to_refine() -> None:
    logits = np.zeros((256, 256), np.float16)
    cell = SegmentedObject(FRAME, 0.9, {}, low_res_logits=logits)
    nothing = dict.fromkeys(("box", "labels", "boxes"), None)
    [prompt] = plain_prompts(points=[(1, 2)], refine=cell, frame=FRAME, **nothing)
    assert prompt.mask_input is logits
    [alone] = plain_prompts(points=None, refine=cell, frame=FRAME, **nothing)
    assert alone.mask_input is logits
    cell.low_res_logits = None
    with pytest.raises(InvalidField, match="return_logits=True"):
        plain_prompts(points=[(1, 2)], refine=cell, frame=FRAME, **nothing)
    with pytest.raises(InvalidField, match="another picture"):
        plain_prompts(points=None, refine=cell, frame=Frame((9, 9), FRAME.pixels), **nothing)
    with pytest.raises(InvalidField, match="either boxes"):
        plain_prompts(None, None, None, [(1, 2, 3, 4)], cell, FRAME)
