"""A picture that is sent ahead has one digest, whatever it came as, and is known from then on."""

from __future__ import annotations

import base64
import json
from hashlib import sha256
from typing import Any

import pytest

from samserve.errors import Heavy
from samserve_gateway.openapi_images import UPLOAD
from tests.support import torchserve
from tests.support.http import Answered, ask
from tests.support.torchserve import UNKNOWN_IMAGE, Gateway, answer

FILE = bytes(range(256)) * 128
TEXT = base64.b64encode(FILE).decode()
DIGEST = f"sha256:{sha256(TEXT.encode()).hexdigest()}"
EMBEDDED = {"digest": DIGEST, "width": 4, "height": 3, "pages": 2}
PATH = "/sam/images/?type=vit_t"
JSON = {"Content-Type": "application/json"}
BROKEN_LINES = "\r\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76))


def form(**parts: bytes) -> tuple[bytes, dict[str, str]]:
    written = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), content)
        for name, content in parts.items()
    )
    return written + b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


def put(
    gateway: Gateway, content: bytes, headers: dict[str, str] | None = None, path: str = PATH
) -> Answered:
    return ask(gateway.port, "PUT", path, content, headers or {})


def sent_as_json(**fields: Any) -> tuple[bytes, dict[str, str]]:
    return json.dumps(fields).encode(), JSON


WAYS: dict[str, tuple[bytes, dict[str, str]]] = {
    "as it is": (FILE, {}),
    "as an image": (FILE, {"Content-Type": "image/png"}),
    "as curl sends it": (FILE, {"Content-Type": "application/x-www-form-urlencoded"}),
    "base64": sent_as_json(b64img=TEXT),
    "a data: URL": sent_as_json(b64img="data:image/png;base64," + TEXT),
    "base64 that is called a form": (
        sent_as_json(b64img=TEXT)[0],
        {"Content-Type": "application/x-www-form-urlencoded"},
    ),
    "lines": sent_as_json(b64img=BROKEN_LINES),
    "a form": form(image=FILE),
    "base64 in a form": form(b64img=TEXT.encode()),
}


@pytest.mark.parametrize(("content", "headers"), WAYS.values(), ids=WAYS.keys())
def test_one_digest_for_every_way(
    gateway: Gateway, content: bytes, headers: dict[str, str]
) -> None:
    gateway.torchserve.script("vit_t", answer(EMBEDDED, 201, X_Image_Pages="2"))
    answered = put(gateway, content, headers)
    assert (answered.status, answered.json()) == (201, EMBEDDED)
    assert answered.headers["X-Image-Pages"] == "2"
    [received] = gateway.torchserve.received
    assert received.lane == "vit_t"
    assert received.headers["x-mode"] == "embed"
    assert received.headers["x-image-digest"] == DIGEST.removeprefix("sha256:")
    assert received.json() == {"b64img": TEXT, "type": "vit_t"}


def test_what_was_sent_ahead_is_known(gateway: Gateway) -> None:
    """The next requests send the digest only, whoever sends the picture in full."""
    gateway.torchserve.script("vit_t", answer(EMBEDDED, 201), answer([]), answer(EMBEDDED))
    put(gateway, FILE)
    gateway.post("/sam/", {"type": "vit_t", "bbox": [1, 1, 2, 2], "b64img": TEXT})
    assert put(gateway, FILE).status == 200
    assert [received.json()["b64img"] for received in gateway.torchserve.received[1:]] == [
        DIGEST,
        DIGEST,
    ]


def test_what_the_workers_forgot_is_sent_in_full(gateway: Gateway) -> None:
    gateway.torchserve.script(
        "vit_t", answer(EMBEDDED, 201), answer(UNKNOWN_IMAGE, 409), answer(EMBEDDED, 201)
    )
    assert [put(gateway, FILE).status for _ in range(2)] == [201, 201]
    assert gateway.torchserve.received[-1].json()["b64img"] == TEXT


def test_a_digest_alone_asks_whether_the_picture_is_known(gateway: Gateway) -> None:
    gateway.torchserve.script("vit_t", answer(EMBEDDED), answer(UNKNOWN_IMAGE, 409))
    content, headers = sent_as_json(b64img=DIGEST)
    assert put(gateway, content, headers).json() == EMBEDDED
    assert put(gateway, content, headers).status == 409
    assert [received.json()["b64img"] for received in gateway.torchserve.received] == [DIGEST] * 2


@pytest.mark.parametrize("heavy", [False, True])
def test_a_picture_that_takes_much_work_goes_to_the_automask_lane(
    gateway: Gateway, heavy: bool
) -> None:
    if heavy:
        gateway.torchserve.script("vit_t", answer(Heavy("much").body(), 421))
        content = FILE
    else:
        content = bytes(2**24)  # larger than what the prompt lane takes at all
    gateway.torchserve.script("vit_t-automask", answer(EMBEDDED, 201))
    assert put(gateway, content).status == 201
    assert gateway.torchserve.received[-1].lane == "vit_t-automask"
    assert gateway.torchserve.received[-1].headers["x-mode"] == "embed"


def test_fields_in_the_address_or_in_the_body(gateway: Gateway) -> None:
    gateway.torchserve.script("vit_t", *[answer(EMBEDDED)] * 3)
    put(gateway, FILE, path="/sam/images?type=vit_t&page=3&checkpoint_url=default")
    content, headers = sent_as_json(type="vit_t", page=3, checkpoint_url="default", b64img=TEXT)
    put(gateway, content, headers, "/sam/images/")
    content, headers = form(request=b'{"type": "vit_t", "page": 3}', image=FILE)
    put(gateway, content, headers, "/sam/images/?checkpoint_url=default")
    expected = {"b64img": TEXT, "type": "vit_t", "page": 3, "checkpoint_url": "default"}
    received = [request.json() for request in gateway.torchserve.received]
    assert received[0] == expected
    assert [{**request, "b64img": TEXT} for request in received] == [expected] * 3


REFUSED: dict[str, tuple[bytes, dict[str, str], str, int, str | None]] = {
    "nothing": (b"", {}, PATH, 422, "image"),
    "an empty text": (*sent_as_json(b64img=""), PATH, 422, "b64img"),
    "no base64": (*sent_as_json(b64img="ä"), PATH, 422, "b64img"),
    "no picture": (*sent_as_json(page=1), PATH, 422, "b64img"),
    "an empty file": (*form(image=b""), PATH, 422, "image"),
    "a form without a file": (*form(page=b"1"), PATH, 422, "image"),
    "no JSON": (b"{", JSON, PATH, 400, None),
    "no object": (b"[]", JSON, PATH, 400, None),
    "twice": (*sent_as_json(b64img=TEXT, type="vit_t"), PATH, 422, "type"),
    "no number": (FILE, {}, PATH + "&page=one", 422, "page"),
    "no page": (FILE, {}, PATH + "&page=-1", 422, "page"),
    "a wrong page": (*sent_as_json(b64img=TEXT, page="1"), PATH, 422, "page"),
    "a long type": (FILE, {}, "/sam/images/?type=" + "x" * 101, 422, "type"),
    "another type": (FILE, {}, "/sam/images/?type=vit_l", 404, "type"),
    "no type": (FILE, {}, "/sam/images/", 404, "type"),
    "other weights": (FILE, {}, PATH + "&checkpoint_url=mine", 404, "checkpoint_url"),
    "an encoding": (FILE, {"Content-Encoding": "br"}, PATH, 415, None),
    "another form": (FILE, {"Content-Type": "multipart/form-data"}, PATH, 400, None),
}


@pytest.mark.parametrize(
    ("content", "headers", "path", "status", "field"), REFUSED.values(), ids=REFUSED.keys()
)
def test_what_is_refused(
    gateway: Gateway,
    content: bytes,
    headers: dict[str, str],
    path: str,
    status: int,
    field: str | None,
) -> None:
    answered = put(gateway, content, headers, path)
    assert (answered.status, answered.error()["field"]) == (status, field)
    if status != 404:  # TorchServe says which lanes there are
        assert gateway.torchserve.received == []


def test_the_strict_mode(gateway: Gateway) -> None:
    strict = {"Prefer": "handling=strict"}
    content, headers = sent_as_json(b64img=TEXT, bbox=[1, 2, 3, 4])
    assert put(gateway, content, {**headers, **strict}).error()["field"] == "bbox"
    gateway.torchserve.script("vit_t", *[answer(EMBEDDED)] * 2)
    assert put(gateway, FILE, strict).headers["Preference-Applied"] == "handling=strict"
    assert put(gateway, content, headers).status == 200


def test_a_file_larger_than_its_base64_may_be() -> None:
    with torchserve.gateway(max_body_bytes=2**16) as gateway:
        most = (2**16 - 2**13) * 3 // 4
        gateway.torchserve.script("vit_t", *[answer(EMBEDDED)] * 2)
        assert put(gateway, bytes(most)).status == 200
        assert len(gateway.torchserve.received[-1].content) <= 2**16
        for content, headers in ((bytes(most + 1), {}), form(image=bytes(most + 1))):
            refused = put(gateway, content, headers)
            assert (refused.status, refused.error()["code"]) == (413, "too_large")
            assert f"{most + 1} bytes; this server's limit is {most}" in refused.error()["message"]
        assert put(gateway, bytes(2**16 + 1)).status == 413


def test_other_methods(gateway: Gateway) -> None:
    for method in ("GET", "POST", "DELETE"):
        refused = ask(gateway.port, method, PATH, b"" if method == "POST" else None)
        assert (refused.status, refused.headers["Allow"]) == (405, "PUT")


def test_it_counts_as_a_prompt_does() -> None:
    """Its client has so many requests at once."""
    with torchserve.gateway(requests_a_minute=1) as gateway:
        gateway.torchserve.script("vit_t", answer(EMBEDDED))
        assert put(gateway, FILE).status == 200
        assert put(gateway, FILE).status == 429


def test_pages_of_other_sites_may_not_send_pictures(gateway: Gateway) -> None:
    refused = put(gateway, FILE, {"Origin": "https://a.example"})
    assert (refused.status, refused.error()["code"]) == (403, "forbidden")


def test_the_example_of_the_documentation(gateway: Gateway) -> None:
    document = gateway.get("/openapi.json").json()
    operation = document["paths"]["/sam/images/"]["put"]
    assert operation["summary"] == UPLOAD["summary"]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    gateway.torchserve.script("vit_t", answer(EMBEDDED))
    assert put(gateway, json.dumps(example).encode(), JSON, "/sam/images/").status == 200
