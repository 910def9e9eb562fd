"""The keywords of `automask` are the parameters; NumPy's numbers are numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from samserve.errors import InvalidField
from samserve.parameters import AutomaskKeywords, AutomaskParameters, check_keywords


def test_the_keywords_are_the_parameters() -> None:
    assert list(AutomaskKeywords.__annotations__) == list(AutomaskParameters.model_fields)


@pytest.mark.parametrize(
    ("name", "value", "plain"),
    [
        ("points_per_side", np.int64(8), 8),
        ("points_per_side", np.uint8(8), 8),
        ("points_per_side", np.array(8), 8),
        ("points_per_side", np.float64(8.0), 8),
        ("min_area", np.int32(5), 5),
        ("tile_size", np.int16(512), 512),
        ("pred_iou_thresh", np.float32(0.5), 0.5),
        ("timeout_s", np.float64(2.5), 2.5),
        ("timeout_s", np.int64(2), 2),
        ("include_image_edge", np.bool_(False), False),
    ],
    ids=str,
)
def test_numbers_of_numpy(name: str, value: Any, plain: Any) -> None:
    assert getattr(AutomaskParameters.of({name: value}), name) == plain


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("points_per_side", np.float64(8.5)),
        ("points_per_side", np.array([8])),
        ("points_per_side", np.bool_(True)),
        ("pred_iou_thresh", np.float32("nan")),
        ("include_image_edge", np.int64(1)),
        ("output_type", np.str_("none")),
    ],
    ids=str,
)
def test_what_is_no_such_number(name: str, value: Any) -> None:
    with pytest.raises(InvalidField, match=name):
        AutomaskParameters.of({name: value})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("points_per_sid", "did you mean points_per_side?"),
        ("pred_iou_threshold", "did you mean pred_iou_thresh?"),
        ("colour", "there are points_per_side, "),
    ],
)
def test_a_misspelled_keyword(name: str, words: str) -> None:
    with pytest.raises(TypeError, match=f"no parameter {name}") as raised:
        check_keywords([name])
    assert words in str(raised.value)
