"""Which text a JSON body is, and numbers of any size."""

from __future__ import annotations

import json

import pytest

from samserve.errors import InvalidField, InvalidRequest, UnsupportedMediaType
from samserve.serving.json_text import dumps, to_utf8
from samserve.serving.requests import AutomaskRequest, PromptRequest, RoutedRequest

TEXT = '{"type": "vit_t", "checkpoint_url": "Zellkerne für Ärzte ☃ 𝄞"}'


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig"]
    + [f"utf-{bits}{order}" for bits in (16, 32) for order in ("", "-le", "-be")],
)
@pytest.mark.parametrize("charset", [None, "utf-8", "UTF8", "utf-16", "us-ascii"])
def test_unicode_is_told_by_its_bytes(encoding: str, charset: str | None) -> None:
    sent = TEXT.encode(encoding)
    assert to_utf8(sent, charset) == TEXT.encode()
    assert to_utf8(bytearray(sent), charset) == TEXT.encode()
    assert RoutedRequest.parse(sent).checkpoint_url == json.loads(TEXT)["checkpoint_url"]


@pytest.mark.parametrize("text", ["", "1", "{}", "12", '"a"'])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
def test_short_texts(text: str, encoding: str) -> None:
    assert to_utf8(text.encode(encoding)) == text.encode()


@pytest.mark.parametrize("charset", ["latin-1", "ISO-8859-1", "windows-1252", "cp1252"])
def test_single_bytes_where_they_are_declared(charset: str) -> None:
    text = '{"type": "Zellkerne für Ärzte"}'
    assert to_utf8(text.encode("latin-1"), charset) == text.encode()
    assert to_utf8(text.encode("utf-16"), charset) == text.encode()


@pytest.mark.parametrize("charset", ["utf-7", "shift_jis", "ebcdic", "", "a\0b", "../utf8", "é"])
def test_other_charsets_are_refused_by_name(charset: str) -> None:
    if not charset:
        assert to_utf8(b"{}", charset) == b"{}"
        return
    with pytest.raises(UnsupportedMediaType, match="UTF-8"):
        to_utf8(b"{}", charset)


@pytest.mark.parametrize(
    "sent",
    [
        b"{\0\x00\xd8}\0",  # half of a pair
        '{"type": "a"}'.encode("utf-16")[:-1],
        b"\xff\xfe\0\0{\0\0",
        b"\xfe\xff\xd8\0\0{",
    ],
)
def test_bytes_that_are_not_in_their_encoding(sent: bytes) -> None:
    with pytest.raises(InvalidRequest, match="UTF"):
        RoutedRequest.parse(sent)


def test_windows_1252_has_holes() -> None:
    with pytest.raises(InvalidRequest, match="CP1252"):
        to_utf8(b'{"a": "\x81"}', "windows-1252")


@pytest.mark.parametrize("number", [2**63, 2**64, -(2**64), 1 << 70, 10**4000])
def test_integers_of_any_size_are_written(number: int) -> None:
    fields = {"a": [{"b": number}], "text": "ä"}
    assert json.loads(dumps(fields)) == fields


BIG = ["1180591620717411303424", "-1180591620717411303424", "1" + "0" * 400, "9" * 4299]


@pytest.mark.parametrize("number", BIG, ids=["2^70", "-2^70", "10^400", "4299 digits"])
@pytest.mark.parametrize("name", [*sorted(AutomaskRequest.model_fields), "colour"])
def test_automask_with_a_big_integer(name: str, number: str) -> None:
    """Refused by name or, where it is a number's right value, taken."""
    asked: dict[str, str] = {"b64img": '"QUJD"', name: number}
    body = "{" + ", ".join(f'"{key}": {value}' for key, value in asked.items()) + "}"
    # The fields in which 2^70 is a right value. Without crop layers the overlap is not used.
    right = {"colour", "stability_score_offset", "crop_overlap_ratio"}
    if number == BIG[0]:
        taken = name in right
    elif number == BIG[1]:
        taken = name in ("colour", "crop_overlap_ratio")
    else:
        taken = name == "colour"
    if taken:
        AutomaskRequest.parse(body.encode()).check_work(65536, 600)
        return
    with pytest.raises(InvalidField) as refused:
        AutomaskRequest.parse(body.encode()).check_work(65536, 600)
    assert refused.value.field == name


@pytest.mark.parametrize("number", BIG, ids=["2^70", "-2^70", "10^400", "4299 digits"])
@pytest.mark.parametrize(
    "field", ["bbox", "point_labels", "point_coords", "prompts", "simplify", "multimask_output"]
)
@pytest.mark.parametrize("value", ["%s", "[%s]", "[[%s, 1]]", "[%s, 1, 2, 3]", '[{"bbox": %s}]'])
def test_prompts_with_a_big_integer(field: str, value: str, number: str) -> None:
    body = f'{{"b64img": "QUJD", "{field}": {value % number}}}'.encode()
    with pytest.raises(InvalidField) as refused:
        PromptRequest.parse(body).each_prompt()
    assert (refused.value.field or "").startswith(field)
