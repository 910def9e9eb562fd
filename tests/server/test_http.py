"""Clients of all kinds send a request in their way of HTTP and get the real mask."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import time
from http.client import HTTPResponse
from typing import Any

import numpy as np
import pytest
import zstandard

from tests.support.clients import JAVA_CLIENT, curl, java
from tests.support.http import Answered, ask
from tests.support.sample_pictures import base64_png, picture

COINS = base64_png(picture("coins"))  # large enough for the gateway to send only its digest again
REQUEST = {"type": "vit_t", "bbox": [20, 30, 70, 78], "b64img": COINS}
BODY = json.dumps(REQUEST).encode()


@pytest.fixture
def expected(server: Any) -> Any:
    """The features of the request `REQUEST`."""
    features = server.post("/sam/", REQUEST).json()
    assert len(features) == 1
    return features


def gateway(server: Any, path: str, body: bytes, **headers: str) -> Answered:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(server.options.port, "POST", path, body, named)


def test_a_java_program_gets_its_mask(server: Any, expected: Any) -> None:
    """Java's `HttpClient` offers HTTP/2 on its first request."""
    for line in java(JAVA_CLIENT, f"{server.options.url}/sam/", BODY, "2").splitlines():
        status, features = line.split(" ", 1)
        assert (status, json.loads(features)) == ("200", expected)


def test_curl_gets_its_mask(server: Any, expected: Any) -> None:
    assert json.loads(curl(f"{server.options.url}/sam", BODY, "--http2")) == expected


def test_who_offers_and_hangs_up_ends_the_automask(server: Any) -> None:
    long = json.dumps({"type": "vit_t", "b64img": COINS, "points_per_side": 128}).encode()
    head = (
        b"POST /sam/automask HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nContent-Length: %d\r\n\r\n" % len(long)
    )
    with socket.create_connection(("127.0.0.1", server.options.port), timeout=60) as connection:
        connection.sendall(head + long)
        wait_for_percent(server, running=True)
    wait_for_percent(server, running=False)  # without the hang-up it would run for minutes
    # The lane's only worker is free again.
    quick = {"type": "vit_t", "b64img": COINS, "points_per_side": 1}
    assert server.post("/sam/automask", quick).status_code == 200


def wait_for_percent(server: Any, *, running: bool) -> None:
    """Return once a job runs, or once none runs."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        percent = server.http.get(f"{server.options.url}/sam/progress").json()["percent"]
        if (percent >= 0) == running:
            return
        time.sleep(0.05)
    pytest.fail(f"after 30 s an automask is{' not' if running else ''} under way")


def test_a_body_in_every_encoding(server: Any, expected: Any) -> None:
    for encoding in ("utf-8-sig", "utf-16", "utf-16-be", "utf-32"):
        answer = gateway(server, "/sam/", json.dumps(REQUEST).encode(encoding))
        assert (answer.status, answer.json()) == (200, expected)
        worker = server.predict("vit_t", content=json.dumps(REQUEST).encode(encoding))
        assert (worker.status_code, worker.json()) == (200, expected)
    for encoding, compress in (("gzip", gzip.compress), ("zstd", zstandard.compress)):
        answer = gateway(server, "/sam/", compress(BODY), Content_Encoding=encoding)
        assert (answer.status, answer.json()) == (200, expected)


def test_the_worker_itself_refuses_what_is_compressed(server: Any) -> None:
    headers = {**server.authorization("inference"), "Content-Encoding": "gzip"}
    target = "/predictions/vit_t"
    answer = ask(server.options.inference_port, "POST", target, gzip.compress(BODY), headers)
    assert answer.status == 415
    assert "gateway" in answer.error()["message"]


NUMBERS = ["1180591620717411303424", "-1180591620717411303424", "1" + "0" * 400, "9" * 4000]


@pytest.mark.parametrize("number", NUMBERS, ids=["2^70", "-2^70", "10^400", "4000 digits"])
def test_an_integer_of_any_size(door: Any, expected: Any, number: str) -> None:
    """Each is sent twice: the second time the picture is a known picture."""
    for value in (number, f'{{"deep": [{number}]}}'):
        unknown = BODY[:-1] + f', "unknown": {value}}}'.encode()
        for _ in range(2):
            answer = door("prompt", content=unknown)
            assert (answer.status_code, answer.json()) == (200, expected)
    for field in ("multimask_output", "simplify", "checkpoint_url", "point_labels"):
        for _ in range(2):
            answer = door("prompt", content=BODY[:-1] + f', "{field}": {number}}}'.encode())
            assert answer.status_code == 422, answer.text
            assert answer.json()["error"]["field"].startswith(field)


@pytest.mark.parametrize(
    ("field", "number"),
    [
        ("points_per_side", "9" * 2500),  # its square has more digits than Python writes
        ("min_mask_region_area", "9223372036854775808"),
        ("points_per_batch", "1e300"),
        ("overlap", "-1180591620717411303424"),
        ("stability_score_offset", "1e400"),
    ],
)
def test_automask_with_a_number_beyond_bounds(door: Any, field: str, number: str) -> None:
    body = f'{{"type": "vit_t", "b64img": "{COINS}", "{field}": {number}}}'.encode()
    answer = door("automask", content=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)


def test_a_form_with_an_integer_of_any_size(server: Any, expected: Any) -> None:
    image = ("coins.png", base64.b64decode(COINS), "image/png")
    for number in NUMBERS:
        request = json.dumps({"type": "vit_t", "bbox": REQUEST["bbox"]})[:-1] + f', "x": {number}}}'
        for _ in range(2):
            answer = server.http.post(
                f"{server.options.url}/sam/",
                files={"image": image, "request": (None, request)},
            )
            assert (answer.status_code, answer.json()) == (200, expected)


def test_an_image_of_no_bytes_is_never_asked_for_again(server: Any) -> None:
    """Neither the gateway nor TorchServe answers 409, or a client would send it again for ever."""
    files = {"image": ("x.png", b""), "type": (None, "vit_t"), "bbox": (None, "[1,1,9,9]")}
    for url, headers in (
        (f"{server.options.url}/sam/", {}),
        (f"{server.options.inference_url}/predictions/vit_t", server.authorization("inference")),
    ):
        for _ in range(2):
            answer = server.http.post(url, files=files, headers=headers)
            assert answer.status_code == 422, (url, answer.text)


@pytest.mark.parametrize(
    "headers",
    [
        [("Accept", "a" * 9000)],
        [("Accept", "a" * 3000), ("Accept", "b" * 3000)],
        [("Accept", "\xe9" * 4000)],  # two bytes each in UTF-8
    ],
)
def test_an_accept_header_that_torchserve_would_not_take(
    server: Any, headers: list[tuple[str, str]]
) -> None:
    sent = "".join(f"{name}: {value}\r\n" for name, value in headers).encode("latin-1")
    status, error = posted(server, sent)
    assert (status, error["error"]["code"]) == (431, "header_too_large")
    assert "Accept" in error["error"]["message"]


@pytest.mark.parametrize(
    "header",
    [
        b"Accept: " + b"a" * 4000,
        b"Accept: \xff\xfe",
        b"Accept:",
        b"X-Request-Id: " + b"a" * 9000,
        b"User-Agent: " + b"u" * 9000,
        b"Cookie: " + b"c" * 30_000,
        b"Content-Type: " + b"t" * 9000,
        b"Accept-Encoding: \xff" + b"e" * 9000,
        b"Samserve-Job: no such",
        b"describe: True",
        b"Range: bytes=0-1",
    ],
    ids=lambda header: header[:24].decode("latin-1"),
)
def test_other_headers_are_no_matter(server: Any, expected: Any, header: bytes) -> None:
    assert posted(server, header + b"\r\n") == (200, expected)


def posted(server: Any, headers: bytes) -> tuple[int, Any]:
    head = b"POST /sam/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n" % len(BODY)
    with socket.create_connection(("127.0.0.1", server.options.port), timeout=60) as connection:
        connection.sendall(head + headers + b"\r\n" + BODY)
        response = HTTPResponse(connection)
        response.begin()
        return response.status, json.loads(response.read())


def test_a_cut_form_is_never_answered(server: Any) -> None:
    parts = {"type": b"vit_t", "multimask_output": b"true", "bbox": b"[20, 30, 70, 78]"}
    written = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)
        for name, value in {**parts, "b64img": COINS.encode(), "simplify": b"1"}.items()
    )
    whole = written + b"--b--\r\n"
    form = {"Content_Type": "multipart/form-data; boundary=b"}
    assert gateway(server, "/sam/", whole, **form).status == 200
    cuts = np.linspace(1, len(whole) - 5, 40).astype(int).tolist()
    for cut in [*cuts, len(written), len(written) - 2]:
        answer = gateway(server, "/sam/", whole[:cut], **form)
        assert (answer.status, answer.error()["code"]) == (400, "invalid_request")
        assert "incomplete" in answer.error()["message"]
