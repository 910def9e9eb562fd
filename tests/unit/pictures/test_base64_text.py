"""Base64 texts are decoded strictly, with a data: prefix and whitespace allowed."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samserve.errors import InvalidField
from samserve.pictures.base64_text import decode_base64


class TestBase64:
    BYTES = bytes(range(256))
    TEXT = base64.b64encode(BYTES).decode()

    @pytest.mark.parametrize(
        "text",
        [
            pytest.param(TEXT, id="plain"),
            pytest.param("data:image/png;base64," + TEXT, id="data-url"),
            pytest.param("DATA:;BASE64," + TEXT, id="data-url-capitals"),
            pytest.param(
                "data:image/svg+xml;charset=utf-8;base64," + TEXT, id="data-url-parameters"
            ),
            pytest.param(base64.encodebytes(BYTES).decode(), id="mime-lines"),
            pytest.param(TEXT[:77] + "\r\n\t " + TEXT[77:], id="inner-whitespace"),
            pytest.param(f"\n {TEXT}\n", id="outer-whitespace"),
            pytest.param(f" data:image/png;base64,\n{TEXT}", id="data-url-and-whitespace"),
        ],
    )
    def test_tolerated(self, text: str) -> None:
        assert decode_base64(text) == self.BYTES

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            pytest.param("", "empty", id="empty"),
            pytest.param(" \n", "empty", id="only-whitespace"),
            pytest.param("data:image/png;base64,", "empty", id="data-url-of-nothing"),
            pytest.param("data:image/png," + TEXT, ";base64", id="data-url-not-base64"),
            pytest.param("data:" + TEXT, ";base64", id="data-url-without-comma"),
            pytest.param("AAA", "not base64", id="padding-missing"),
            pytest.param("AA==A", "not base64", id="padding-inside"),
            pytest.param("AAAA=", "not base64", id="padding-surplus"),
            pytest.param("A===", "not base64", id="padding-only"),
            pytest.param("=", "not base64", id="nothing-but-padding"),
            pytest.param("AA-_", "not base64", id="url-alphabet"),
            pytest.param("AA!A", "not base64", id="punctuation"),
            pytest.param("AAA\0", "not base64", id="nul"),
            pytest.param("AAAÄ", "not base64", id="not-ascii"),
            pytest.param("AAAA\u00a0", "not base64", id="whitespace-not-ascii"),
            pytest.param("\u00a0AAAA", "not base64", id="leading-whitespace-not-ascii"),
            pytest.param("AAAA\ud800", "not base64", id="lone-surrogate"),
            pytest.param("https://example.org/a.png", "not base64", id="an-address"),
        ],
    )
    def test_refused(self, text: str, message: str) -> None:
        with pytest.raises(InvalidField, match=message) as caught:
            decode_base64(text, "b64mask")
        assert caught.value.field == "b64mask"

    @settings(max_examples=100, derandomize=True, deadline=None, database=None)
    @given(st.binary(min_size=1, max_size=300))
    def test_what_python_encodes_comes_back(self, data: bytes) -> None:
        assert decode_base64(base64.b64encode(data).decode()) == data
        assert decode_base64(base64.encodebytes(data).decode()) == data

    @settings(max_examples=200, derandomize=True, deadline=None, database=None)
    @given(st.text(alphabet="dat:;,bse64Az09+/=-_ \n\0Ä", max_size=40))
    def test_any_text_gives_bytes_or_our_error(self, text: str) -> None:
        try:
            decoded = decode_base64(text)
        except InvalidField:
            return
        assert decoded
