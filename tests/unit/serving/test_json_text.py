"""Which text a JSON body is, and numbers of any size."""

from __future__ import annotations

import json

import pytest

from samserve.errors import InvalidField, InvalidRequest, TooLarge, UnsupportedMediaType
from samserve.serving.forms import to_json
from samserve.serving.json_text import (
    MAX_BYTES_OUTSIDE,
    MAX_LISTS,
    MAX_QUOTES,
    MAX_VALUES,
    check_size,
    dumps,
    to_utf8,
)
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


TOO_MANY = {
    "nested lists": (b"[" * (MAX_LISTS + 1), MAX_LISTS),
    "nested objects": (b'{"":' * (MAX_LISTS + 1), MAX_LISTS),
    "lists in a row": (b"[" + b"[]," * MAX_LISTS + b"1]", MAX_LISTS),
    "lists and objects": (b"[" + b"[],{}," * (MAX_LISTS // 2) + b"1]", MAX_LISTS),
    "numbers": (b"[" + b"1," * (MAX_VALUES + 1) + b"1]", MAX_VALUES),
    "strings": (b"[" + b'"a",' * (MAX_QUOTES // 2 + 1) + b"1]", MAX_QUOTES),
    "fields": (b"{" + b'"a":1,' * (MAX_QUOTES // 2 + 1) + b'"a":1}', MAX_QUOTES),
    "escaped quotes": (b'["' + b'\\"' * MAX_QUOTES + b'"]', MAX_QUOTES),
    "no JSON": (b'"' * (MAX_QUOTES + 1), MAX_QUOTES),
    "a long number": (b"1" * (MAX_BYTES_OUTSIDE + 1), MAX_BYTES_OUTSIDE),
    "spaces": (b" " * (MAX_BYTES_OUTSIDE + 1), MAX_BYTES_OUTSIDE),
}


@pytest.mark.parametrize(("text", "limit"), TOO_MANY.values(), ids=TOO_MANY.keys())
def test_a_text_of_too_many_parts_is_refused_with_the_limit(text: bytes, limit: int) -> None:
    for refuse in (check_size, RoutedRequest.parse, PromptRequest.parse):
        with pytest.raises(TooLarge, match=str(limit)):
            refuse(text)
    with pytest.raises(TooLarge, match=f"part request has .*{limit}"):
        to_json({"request": text, "image": b"a"})
    with pytest.raises(TooLarge, match=f"part bbox has .*{limit}"):
        to_json({"bbox": text, "image": b"a"})


BASE64 = b"A,[{" * 2**19  # more of each than any limit, within a string


@pytest.mark.parametrize(
    "text",
    [
        BASE64,
        BASE64.replace(b",", b"\\/"),
        BASE64.replace(b",", b"\\\\"),
        b'\\"' + BASE64 + b'\\\\\\"' + BASE64 + b"\\\\",
        b"\\u002B" * 2**18,
    ],
    ids=["plain", "slashes", "backslashes", "quotes", "code points"],
)
def test_what_a_string_contains_is_not_counted(text: bytes) -> None:
    mask = json.dumps([[-12.345678901234567] * 256] * 256).encode()
    sent = b'{"b64img": "%s", "type": "vit_t", "mask_input": %s}' % (text, mask)
    check_size(sent)
    assert RoutedRequest.parse(sent).type == "vit_t"


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16-le", "utf-16-be", "utf-32-le"])
def test_a_long_text_is_recoded_in_slices(encoding: str) -> None:
    text = '{"a": "' + "ä\xe9" * 700_000 + '"}'
    charset = encoding if encoding in ("cp1252", "latin-1") else None
    assert to_utf8(text.encode(encoding), charset) == text.encode()
    with pytest.raises(InvalidRequest, match="UTF"):
        to_utf8(text.encode("utf-16-le")[:-1] + b"\xd8")


@pytest.mark.parametrize("field", ["type", "checkpoint_url"])
def test_a_name_of_a_megabyte_is_refused_and_not_repeated(field: str) -> None:
    with pytest.raises(InvalidField, match="at most") as refused:
        RoutedRequest.parse(json.dumps({field: "a" * 2**20}).encode())
    assert len(refused.value.message) < 200
    assert refused.value.field == field
