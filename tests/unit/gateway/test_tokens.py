"""TorchServe's tokens: read, and renewed when they are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import torchserve
from tests.support.torchserve import Gateway

BODY = {"type": "vit_t", "bbox": [1, 2, 3, 4], "b64img": "QUJD"}
TOKENS = {"inference": "i-0", "management": "m-0", "API": "a-0"}


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Gateway]:
    """A gateway in front of a TorchServe that wants its tokens."""
    key_file = tmp_path / "key_file.json"
    with torchserve.gateway(torchserve_tokens="on", key_file=key_file) as gateway:
        gateway.torchserve.tokens = dict(TOKENS)
        gateway.torchserve.key_file = key_file
        gateway.torchserve.write_key_file()
        yield gateway


def check(gateway: Gateway) -> None:
    """Both APIs answer."""
    assert gateway.post("/sam/", BODY).status == 200
    assert gateway.get("/sam/weights/").status == 200


def test_the_tokens_of_the_file_are_sent(guarded: Gateway) -> None:
    check(guarded)
    assert guarded.torchserve.received[0].headers["authorization"] == "Bearer i-0"
    assert guarded.torchserve.tokens == TOKENS


def test_tokens_that_somebody_else_renewed_are_read_again(guarded: Gateway) -> None:
    check(guarded)
    assert guarded.torchserve.tokens is not None
    guarded.torchserve.tokens |= {"inference": "i-1", "management": "m-1"}
    guarded.torchserve.write_key_file()
    check(guarded)
    assert guarded.torchserve.tokens["inference"] == "i-1"  # not renewed once more
    assert guarded.torchserve.tokens["management"] == "m-1"


@pytest.mark.parametrize("role", ["inference", "management"])
def test_a_token_that_expired_is_renewed(guarded: Gateway, role: str) -> None:
    """The file still has the refused token, as after an hour."""
    check(guarded)
    assert guarded.torchserve.tokens is not None
    guarded.torchserve.tokens[role] = "unknown to the gateway"
    check(guarded)
    assert guarded.torchserve.tokens == {**TOKENS, role: "renewed-0"}


def test_a_file_with_other_refused_tokens(guarded: Gateway) -> None:
    check(guarded)
    assert guarded.torchserve.tokens is not None
    guarded.torchserve.tokens |= {"inference": "i-2"}
    guarded.torchserve.write_key_file(inference="i-1")
    assert guarded.post("/sam/", BODY).status == 200


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"API": 1}', "not JSON"])
def test_a_file_without_tokens(
    guarded: Gateway, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    key_file = guarded.torchserve.key_file
    assert key_file is not None
    key_file.unlink()
    if content is not None:
        key_file.write_text(content)
    got = guarded.post("/sam/", BODY)
    assert (got.status, got.error()["code"]) == (503, "unavailable")
    assert "no token for TorchServe" in got.error()["message"]
    assert str(key_file) not in got.error()["message"]
    assert f"no tokens in {key_file}" in caplog.text
    guarded.torchserve.write_key_file()
    check(guarded)


def test_an_api_key_that_is_refused(guarded: Gateway) -> None:
    guarded.torchserve.write_key_file(inference="old", API="old")
    got = guarded.post("/sam/", BODY)
    assert got.status == 503
    assert "no new inference token: Token is incorrect." in got.error()["message"]
