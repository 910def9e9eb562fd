"""In the strict mode a misspelled field is an error that names it, and the field that was meant."""

from __future__ import annotations

from typing import Any

import pytest

from samserve.errors import InvalidField
from samserve.serving.forms import to_json
from samserve.serving.requests import AutomaskRequest, PromptRequest
from samserve.serving.strictness import check_known, prefers_strict


@pytest.mark.parametrize(
    ("prefer", "strict"),
    [
        ("handling=strict", True),
        ('Handling = "Strict"', True),
        ("respond-async, handling=strict; reason=x, wait=10", True),
        ("handling=lenient", False),
        ("handling=lenient, handling=strict", False),  # the first one counts
        ("handling", False),
        ("strict", False),
        ("xhandling=strict", False),
        ("", False),
        (None, False),
    ],
)
def test_what_the_header_says(prefer: str | None, strict: bool) -> None:
    assert prefers_strict(prefer) is strict


@pytest.mark.parametrize(
    ("model", "fields", "field", "meant"),
    [
        (PromptRequest, {"bboxes": [1, 2, 3, 4]}, "bboxes", "bbox"),
        (PromptRequest, {"multimask": True}, "multimask", "multimask_output"),
        (PromptRequest, {"points_per_side": 8}, "points_per_side", None),
        (AutomaskRequest, {"bbox": [1, 2, 3, 4]}, "bbox", None),
        (AutomaskRequest, {"point_per_side": 8}, "point_per_side", "points_per_side"),
        (PromptRequest, {"prompts": [{"bbox": []}, {"bbx": []}]}, "prompts.1.bbx", "bbox"),
        (PromptRequest, {"prompts": [{"type": "vit_t"}]}, "prompts.0.type", None),
        (PromptRequest, {"mask_input": {"dtyp": "float16"}}, "mask_input.dtyp", "dtype"),
        (
            PromptRequest,
            {"prompts": [{"mask_input": {"sape": 1}}]},
            "prompts.0.mask_input.sape",
            "shape",
        ),
        (PromptRequest, {"": 1}, "", None),
        (PromptRequest, {"\n": 1}, "\n", None),
        (PromptRequest, {"x" * 10**6: 1}, "x" * 1999 + "…", None),
    ],
)
def test_unknown_fields(model: Any, fields: dict[str, Any], field: str, meant: str | None) -> None:
    with pytest.raises(InvalidField, match="there is no such field here") as refused:
        check_known({"type": "vit_t", "strict": True, **fields}, model)
    assert refused.value.field == field
    assert len(refused.value.message) < 2100
    assert "\n" not in refused.value.message
    hint = f"Did you mean {meant}?"
    assert (hint in refused.value.message) if meant else ("mean" not in refused.value.message)


@pytest.mark.parametrize("model", [PromptRequest, AutomaskRequest])
def test_all_known_fields_pass(model: Any) -> None:
    check_known(dict.fromkeys(model.model_fields), model)
    odd = {"prompts": [7, None, [{"bbx": 1}]], "mask_input": [7]}  # wrong, but not unknown
    check_known({name: odd[name] for name in odd if name in model.model_fields}, model)


def test_parts_of_a_form() -> None:
    parts = {"image": b"file", "bbx": b"[1, 2, 3, 4]"}
    to_json(parts)
    for strict in ({"strict": b"true"}, {"request": b'{"strict": true}'}):
        with pytest.raises(InvalidField, match=r"bbx: .*Did you mean bbox") as refused:
            to_json({**parts, **strict})
        assert refused.value.field == "bbx"
        to_json({"image": b"file", "mask": b"file", "bbox": b"[1, 2, 3, 4]", **strict})
    with pytest.raises(InvalidField, match="bbx"):
        to_json(parts, strict=True)
