"""A form says what the JSON says."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from samserve.errors import InvalidField, InvalidRequest
from samserve.pictures.base64_text import decode_base64
from samserve.serving.forms import MAX_TEXT_BYTES, to_json

FILE = b"\x89PNG and so on"
REFERENCE = "sha256:" + hashlib.sha256(FILE).hexdigest()


def read(**parts: bytes) -> tuple[Any, bytes | None]:
    body, image = to_json(parts)
    return json.loads(body), image


def test_fields_are_json_and_texts_are_texts() -> None:
    asked, image = read(
        image=FILE,
        type=b"vit_t",
        bbox=b"[10, 20.5, 200, 180]",
        multimask_output=b"true",
        output_type=b"Single mask",
        checkpoint_url=b"123",
        points_per_side=b" 8 ",
    )
    assert image == FILE
    assert asked == {
        "b64img": REFERENCE,
        "type": "vit_t",
        "bbox": [10, 20.5, 200, 180],
        "multimask_output": True,
        "output_type": "Single mask",
        "checkpoint_url": "123",
        "points_per_side": 8,
    }


def test_one_part_for_all_fields() -> None:
    assert read(image=FILE, request=b'{"type": "vit_t", "bbox": [1, 2, 3, 4]}') == (
        {"b64img": REFERENCE, "type": "vit_t", "bbox": [1, 2, 3, 4]},
        FILE,
    )


def test_the_image_and_its_reference() -> None:
    said = json.dumps({"b64img": REFERENCE}).encode()
    assert read(image=FILE, request=said) == ({"b64img": REFERENCE}, FILE)


def test_no_image_at_all() -> None:
    with pytest.raises(InvalidField, match="file part image") as refused:
        read(bbox=b"[1, 2, 3, 4]")
    assert refused.value.field == "image"


@pytest.mark.parametrize(("written", "meant"), [(b"True", True), (b"False", False)])
def test_pythons_true_and_false(written: bytes, meant: bool) -> None:
    asked, _ = read(image=FILE, multimask_output=written)
    assert asked["multimask_output"] is meant


def test_a_box_without_brackets_is_told_how_to_write_it() -> None:
    with pytest.raises(InvalidField, match=r"\[10,20,200,180\]") as refused:
        read(image=FILE, bbox=b"10,10,70,70")
    assert refused.value.field == "bbox"


def test_a_mask_is_a_file_too() -> None:
    asked, _ = read(image=FILE, mask=b"mask")
    assert decode_base64(asked["b64mask"], "b64mask") == b"mask"


def test_base64_is_welcome_in_a_form() -> None:
    assert read(b64img=b"QUJD", bbox=b"[1,2,3,4]") == (
        {"b64img": "QUJD", "bbox": [1, 2, 3, 4]},
        None,
    )


def test_unknown_parts_are_ignored_as_unknown_fields_are() -> None:
    assert read(image=FILE, colour=b"not JSON")[0] == {"b64img": REFERENCE}


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"bbox": b"10,20,30,40"}, "bbox"),
        ({"bbox": b"[1,2,NaN,4]"}, "bbox"),
        ({"bbox": b"\xff"}, "bbox"),
        ({"type": b"\xff"}, "type"),
        ({"b64img": b"QUJD"}, "b64img"),
        ({"b64mask": b"QUJD", "mask": b"mask"}, "b64mask"),
        ({"type": b"vit_t", "request": b'{"type": "vit_b"}'}, "type"),
        ({"request": b'{"b64img": "sha256:' + b"0" * 64 + b'"}'}, "b64img"),
    ],
)
def test_contradictions_and_nonsense(parts: dict[str, bytes], field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        read(image=FILE, **parts)
    assert refused.value.field == field


@pytest.mark.parametrize("request_part", [b"", b"{", b"[]", b"7", b'{"a": NaN}', b"\xff"])
def test_a_request_part_that_is_none(request_part: bytes) -> None:
    with pytest.raises(InvalidRequest, match="request"):
        read(image=FILE, request=request_part)


@pytest.mark.parametrize("name", ["type", "checkpoint_url", "output_type", "output_format"])
def test_a_long_text_is_refused(name: str) -> None:
    assert read(image=FILE, **{name: b"a" * MAX_TEXT_BYTES})
    with pytest.raises(InvalidField, match=str(MAX_TEXT_BYTES)) as refused:
        read(image=FILE, **{name: b"a" * (MAX_TEXT_BYTES + 1)})
    assert refused.value.field == name


@pytest.mark.parametrize("name", ["b64img", "b64mask"])
@pytest.mark.parametrize("text", ["ä".encode(), b"\xff", "QUJD\N{SNOWMAN}".encode()])
def test_base64_is_ascii(name: str, text: bytes) -> None:
    assert read(**{"b64img": b"QUJD", name: b"QUJD" * 100_000})
    with pytest.raises(InvalidField, match=f"{name} is not base64") as refused:
        read(**{"b64img": b"QUJD", name: text})
    assert refused.value.field == name
