"""The arguments of `segment` are checked before anything is sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from samserve.errors import InvalidField
from samserve.objects.prompting import PlainPrompt, plain_prompts

SIZE = (100, 200)


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
    everything = dict.fromkeys(("box", "points", "labels", "boxes"), None) | arguments
    assert plain_prompts(**everything, size=SIZE) == prompts


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
    everything = dict.fromkeys(("box", "points", "labels", "boxes"), None) | arguments
    with pytest.raises(InvalidField, match=words) as raised:
        plain_prompts(**everything, size=SIZE)
    assert raised.value.field == field
