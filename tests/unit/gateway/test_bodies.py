"""Bodies are read as JSON or as a form, or refused with the reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from samserve.errors import InvalidImage, InvalidRequest, SamserveError, UnsupportedMediaType
from samserve_gateway.bodies import Body, body_of
from samserve_gateway.multipart import MAX_PARTS, parts_of

FORM = "multipart/form-data; boundary=b"


def part(name: str, content: bytes, *headers: str, filename: str | None = None) -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"'
    if filename is not None:
        disposition += f'; filename="{filename}"'
    return "\r\n".join([disposition, *headers, "", ""]).encode() + content


def form(*parts: bytes) -> bytes:
    return b"".join(b"--b\r\n%s\r\n" % part for part in parts) + b"--b--\r\n"


IMAGE = part("image", b"\x89PNG\r\n--\r\n-b", "Content-Type: image/png", filename="a.png")
TYPE = part("type", b"vit_t")
BOX = part("bbox", b"[1, 2, 3, 4]")
WHOLE = form(TYPE, IMAGE, BOX)
PARTS = {"type": b"vit_t", "image": b"\x89PNG\r\n--\r\n-b", "bbox": b"[1, 2, 3, 4]"}


def test_a_form() -> None:
    assert parts_of(WHOLE, FORM) == PARTS


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"This is a form.\r\n" + WHOLE, FORM),
        (b"\r\n\r\n" + WHOLE, FORM),
        (b"--a\r\n-b--b\r\n" + WHOLE, FORM),  # nearly a boundary
        (WHOLE + b"and an epilogue\r\n--b\r\n", FORM),
        (WHOLE.removesuffix(b"\r\n"), FORM),
        (WHOLE, 'Multipart/Form-Data; charset=utf-8; boundary="b"'),
        (WHOLE.replace(b"--b", b"--'()+_,-./:=?"), 'multipart/form-data; boundary="\'()+_,-./:=?"'),
    ],
)
def test_forms_as_others_write_them(content: bytes, content_type: str) -> None:
    assert parts_of(content, content_type).keys() == PARTS.keys()


def test_a_form_cut_anywhere_is_incomplete() -> None:
    end = WHOLE.rindex(b"--") + 2
    for length in range(end):
        with pytest.raises(InvalidRequest, match="incomplete"):
            parts_of(WHOLE[:length], FORM)
    assert parts_of(WHOLE[:end], FORM) == PARTS


@pytest.mark.parametrize(
    ("content", "content_type", "message"),
    [
        (WHOLE, "multipart/form-data", "boundary"),
        (WHOLE, "multipart/form-data; boundary=", "boundary"),
        (WHOLE, "multipart/form-data; boundary=other", "incomplete"),
        (WHOLE, "multipart/form-data; boundary=" + "b" * 999, "cannot be read"),
        (b"", FORM, "incomplete"),
        (b"--b--\r\n", FORM, "no parts"),
        (b"hello\r\n--b--\r\n", FORM, "no parts"),
        (form(IMAGE, TYPE, IMAGE), FORM, "two parts"),
        (form(*(part(str(n), b"") for n in range(MAX_PARTS + 1))), FORM, str(MAX_PARTS)),
        (form(b"\r\nvit_t"), FORM, "Content-Disposition"),
        (form(b"Content-Disposition: form-data\r\n\r\nvit_t"), FORM, "Content-Disposition"),
        (form(b"Content-Disposition: form-data; name*=UTF-8''type\r\n\r\nvit_t"), FORM, "name="),
        (form(b"Content-Type: text/plain\r\n\r\nvit_t"), FORM, "Content-Disposition"),
        (form(b"what is this\r\n\r\nvit_t"), FORM, "cannot be read"),
        (form(TYPE.replace(b"\r\n", b"\r\n" + b"X: y\r\n" * 20, 1)), FORM, "cannot be read"),
        (form(part("type", b"", "X: " + "y" * 9999)), FORM, "cannot be read"),
    ],
)  # fmt: skip
def test_forms_that_are_refused(content: bytes, content_type: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        parts_of(content, content_type)


@pytest.mark.parametrize("encoding", ["base64", "quoted-printable", "BASE64", "x-uuencode"])
@pytest.mark.parametrize("name", ["image", "bbox"])
def test_a_part_that_is_encoded_is_never_misread(name: str, encoding: str) -> None:
    sent = form(part(name, b"QUJD", f"Content-Transfer-Encoding: {encoding}"))
    with pytest.raises(UnsupportedMediaType, match=encoding.lower()) as refused:
        parts_of(sent, FORM)
    assert refused.value.field == name


@pytest.mark.parametrize("encoding", ["binary", "8bit", "7BIT"])
def test_a_part_that_says_it_is_not_encoded(encoding: str) -> None:
    sent = form(part("type", b"vit_t", f"content-transfer-encoding: {encoding}"))
    assert parts_of(sent, FORM) == {"type": b"vit_t"}


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("utf-8", "Ä".encode()),
        ("ISO-8859-1", "Ä".encode("latin-1")),
        ("utf-16", "Ä [1]".encode("utf-16")),
        ("us-ascii", "\ufeffÄ".encode()),  # Windows' own mark of UTF-8
    ],
)
def test_a_text_in_its_charset(charset: str, text: bytes) -> None:
    sent = form(part("checkpoint_url", text, f"Content-Type: text/plain; charset={charset}"))
    assert parts_of(sent, FORM)["checkpoint_url"].decode().startswith("Ä")


@pytest.mark.parametrize("charset", ["utf-7", "no-such", "idna", "rot13", "zlib", "hex", "a\tb"])
@pytest.mark.parametrize("name", ["request", "type", "bbox"])
def test_a_text_in_another_charset_is_refused_by_name(name: str, charset: str) -> None:
    sent = form(part(name, b"[1, 2, 3, 4]", f'Content-Type: text/plain; charset="{charset}"'))
    with pytest.raises(UnsupportedMediaType, match=name) as refused:
        parts_of(sent, FORM)
    assert refused.value.field == name


def test_a_file_has_no_charset() -> None:
    sent = form(part("image", b"\xff", "Content-Type: image/png; charset=utf-7", filename="a"))
    assert parts_of(sent, FORM) == {"image": b"\xff"}


@pytest.mark.parametrize("name", ["image", "mask"])
def test_a_file_of_no_bytes_is_empty(name: str) -> None:
    sent = form(TYPE, BOX, part(name, b"", filename="a.png"))
    with pytest.raises(InvalidImage, match="empty") as refused:
        body_of(sent, FORM)
    assert (refused.value.status, refused.value.field) == (422, name)


def test_a_request_part_of_no_bytes() -> None:
    with pytest.raises(InvalidRequest, match="request"):
        body_of(form(IMAGE, part("request", b"")), FORM)


def fields(body: Body) -> Any:
    return json.loads(body.json)


@pytest.mark.parametrize("number", ["1180591620717411303424", "-9" + "9" * 4000])
def test_an_integer_of_any_size_stands_as_it_was_sent(number: str) -> None:
    request = f'{{"type": "vit_t", "unknown": {{"x": [{number}]}}}}'
    of_form = body_of(form(IMAGE, part("request", request.encode())), FORM)
    assert fields(of_form)["unknown"] == {"x": [int(number)]}
    picture = "A" * 1000
    body = body_of(request[:-1].encode() + f', "b64img": "{picture}"}}'.encode(), "")
    assert body.can_be_abridged
    abridged = json.loads(body.abridged())
    assert abridged == {**json.loads(request), "b64img": body.reference}


@pytest.mark.parametrize(
    ("content", "content_type", "error"),
    [
        (b"type=vit_t&bbox=1", "application/x-www-form-urlencoded", InvalidRequest),
        (WHOLE, "multipart/mixed; boundary=b", UnsupportedMediaType),
        (WHOLE, "multipart/related; boundary=b", UnsupportedMediaType),
        (b"{}", "application/json; charset=utf-7", UnsupportedMediaType),
        ('{"type": "Ä"}'.encode("utf-16")[:-1], "application/json", InvalidRequest),
    ],
)
def test_other_bodies_say_what_is_read(
    content: bytes, content_type: str, error: type[SamserveError]
) -> None:
    with pytest.raises(error) as refused:
        body_of(content, content_type)
    assert refused.value.status in (400, 415)
    assert "JSON:" not in refused.value.message


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "application/json; charset=utf-16",
        "text/plain;charset=ISO-8859-1",
        "application/x-www-form-urlencoded",  # curl -d
        ";;;=",
        "\xff",
    ],
)
def test_json_is_read_whatever_it_is_called(content_type: str) -> None:
    assert fields(body_of(b' {"type": "vit_t"}', content_type)) == {"type": "vit_t"}
