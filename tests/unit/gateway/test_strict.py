"""A client that asks for the strict mode hears of a misspelled field before anything is done."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import torchserve
from tests.support.http import ask
from tests.support.torchserve import Gateway, answer, events

STRICT = {"Prefer": "handling=strict"}
PATHS = {"/sam/": "vit_t", "/sam/automask/": "vit_t-automask"}
BODY = {"type": "vit_t", "b64img": "AAAA"}
FORM = (
    b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nAAAA\r\n'
    b'--x\r\nContent-Disposition: form-data; name="typ"\r\n\r\nvit_t\r\n--x--\r\n'
)
paths = pytest.mark.parametrize("path", [*PATHS, "/sam/automask/?stream=1"])


def refused(answered: Any) -> dict[str, Any]:
    assert answered.status == 422
    error: dict[str, Any] = answered.error()
    assert error["code"] == "invalid_field"
    return error


@paths
@pytest.mark.parametrize("by", ["header", "body"])
def test_a_misspelled_field(gateway: Gateway, path: str, by: str) -> None:
    """Even `type`, without which the gateway would ask for another model."""
    body: dict[str, Any] = {"typ": "vit_t", "b64img": "AAAA"}
    body, headers = ({**body, "strict": True}, {}) if by == "body" else (body, STRICT)
    error = refused(gateway.post(path, body, headers))
    assert error["field"] == "typ"
    assert error["message"] == "typ: there is no such field here. Did you mean type?"
    assert gateway.torchserve.received == []


@paths
def test_a_misspelled_part_of_a_form(gateway: Gateway, path: str) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert refused(gateway.post(path, FORM, {**form, **STRICT}))["field"] == "typ"
    # Lenient: it is ignored, so that the type is the default one, which is not loaded.
    assert gateway.post(path, FORM, form).status == 404


@pytest.mark.parametrize("path", PATHS)
def test_what_is_known_passes_and_is_confirmed(gateway: Gateway, path: str) -> None:
    gateway.torchserve.script(PATHS[path], answer([]), answer([]), answer([]))
    answered = gateway.post(path, {**BODY, "simplify": 1}, STRICT)
    assert (answered.status, answered.headers["Preference-Applied"]) == (200, "handling=strict")
    for body, headers in (
        ({"strict": True}, {}),
        ({"nonsense": 1}, {"Prefer": "handling=lenient"}),
    ):
        lenient = gateway.post(path, {**BODY, **body}, headers)
        assert (lenient.status, lenient.headers["Preference-Applied"]) == (200, None)


def test_a_stream_confirms_it_too(gateway: Gateway) -> None:
    lane = "vit_t-automask"
    gateway.torchserve.script(lane, events({"event": "done", "pages": 1}))
    answered = gateway.post("/sam/automask/?stream=1", BODY, STRICT)
    assert (answered.status, answered.headers["Preference-Applied"]) == (200, "handling=strict")


def test_pages_of_other_origins_may_send_it() -> None:
    with torchserve.gateway(cors_origins="https://a.example") as gateway:
        asked = {
            "Origin": "https://a.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "prefer",
        }
        assert ask(gateway.port, "OPTIONS", "/sam/", None, asked).status == 200
