"""Every spelling of a path leads to its route, and no other path does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from samserve_gateway.paths import Paths
from tests.support.http import ask, lone_gateway, serving

ROUTES = ["/sam/", "/sam/automask/", "/readyz", "/"]


async def reached(raw_path: bytes) -> Any:
    """Return the path that the wrapped application gets."""
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["path"])

    async def nothing(*_: Any) -> Any:
        raise NotImplementedError

    await Paths(app, ROUTES)({"type": "http", "raw_path": raw_path}, nothing, nothing)
    return seen[0]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("sent", "path"),
    [
        (b"/sam/", "/sam/"),
        (b"/sam", "/sam/"),
        (b"//sam", "/sam/"),
        (b"//sam//", "/sam/"),
        (b"/sam//automask", "/sam/automask/"),
        (b"///sam///automask///", "/sam/automask/"),
        (b"/readyz/", "/readyz"),
        (b"/%73am/", "/sam/"),
        (b"http://here:8000/sam", "/sam/"),
        (b"HTTPS://here//sam/automask", "/sam/automask/"),
        (b"http://here", "/"),
        (b"//", "/"),
        # Not resolved, so unknown.
        (b"/sam%2F", "/sam%2F"),
        (b"/sam%2fautomask/", "/sam%2Fautomask/"),
        (b"/sam/../sam/", "/sam/../sam/"),
        (b"/sam/%2e%2e/sam/", "/sam/../sam/"),
        (b"/./sam/", "/./sam/"),
        (b"/SAM/", "/SAM/"),
        (b"/sam/;a=1", "/sam/;a=1"),
        (b"/sam\\automask", "/sam\\automask"),
        (b"/sam/%00", "/sam/\0"),
        (b"/sam/%ff", "/sam/\ufffd"),
        (b"/sam/%zz%", "/sam/%zz%"),
        (b"*", "*"),
    ],
)
async def test_paths(sent: bytes, path: str) -> None:
    assert await reached(sent) == path


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(lone_gateway()) as port:
        yield port


BODY = json.dumps({"type": "vit_t", "b64img": "QUJD", "bbox": [1, 2, 3, 4]}).encode()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/sam", 503),
        ("POST", "//sam//", 503),
        ("POST", "/sam/automask", 503),
        ("POST", "//sam//automask?stream=1", 503),
        ("POST", "/sam/weights", 403),
        ("GET", "/sam/weights", 503),
        ("GET", "/sam/weights/cancel", 403),
        ("GET", "/sam/version", 200),
        ("GET", "//sam//version//", 200),
        ("GET", "/sam/progress", 200),
        ("GET", "/healthz/", 200),
        ("GET", "//readyz/", 503),
        ("GET", "/metrics/", 200),
        ("GET", "/docs/", 200),
        ("GET", "/openapi.json/", 200),
        ("GET", "/nowhere", 404),
        ("GET", "/", 200),
        ("POST", "/sam%2Fautomask/", 404),
        ("POST", "/sam/..%2fsam/", 404),
        ("POST", "/samx/", 404),
    ],
)
def test_no_spelling_is_redirected(port: int, method: str, path: str, status: int) -> None:
    answer = ask(port, method, path, BODY if method == "POST" else None)
    assert answer.status == status
    if status >= 400 and "readyz" not in path:
        assert answer.error()


def test_metrics_have_one_name_for_a_route(port: int) -> None:
    for path in ("/sam/version", "//sam/version/", "/sam/version/"):
        assert ask(port, "GET", path).status == 200
    routes = set(re.findall('route="(.*?)"', ask(port, "GET", "/metrics").content.decode()))
    assert "/sam/version/" in routes
    assert not {"/sam/version", "//sam/version/"} & routes


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/sam/", "POST"),
        ("PUT", "/sam", "POST"),
        ("OPTIONS", "//sam/automask", "POST"),
        ("DELETE", "/sam/weights", "GET, HEAD, POST"),
        ("PATCH", "/sam/weights/", "GET, HEAD, POST"),
        ("POST", "/sam/version", "GET, HEAD"),
        ("BREW", "/readyz/", "GET, HEAD"),
        ("HEAD", "/sam/", "POST"),
        ("HEAD", "/sam/weights/cancel/", "GET"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(
    port: int, method: str, path: str, allowed: str
) -> None:
    answer = ask(port, method, path)
    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    assert method == "HEAD" or answer.error()["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "path",
    [
        "/healthz",
        "/readyz/",
        "/metrics",
        "/sam/version",
        "/sam/progress/",
        "/sam/weights/?type=vit_t",
        "/docs",
        "/openapi.json",
        "/nowhere",
    ],
)
def test_head_is_answered_as_get_without_a_body(port: int, path: str) -> None:
    got, head = ask(port, "GET", path), ask(port, "HEAD", path)
    assert (head.status, head.content) == (got.status, b"")
    assert head.headers["Content-Type"] == got.headers["Content-Type"]
    assert int(head.headers["Content-Length"]) > 0


@pytest.mark.parametrize(
    "path",
    [
        "/sam",
        "/sam/",
        "//sam",
        "/docs/",
        "/static-offline-docs",
        "/static-offline-docs/.",
        "//evil.example",
        "http://evil.example/sam",
        "http://evil.example",
        "/sam/..",
        "/./docs",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
def test_the_host_that_a_client_names_is_never_used(port: int, method: str, path: str) -> None:
    named, other = (ask(port, method, path, headers={"Host": name}) for name in ("a.example", "b"))
    assert named.status == other.status
    assert named.status // 100 != 3
    assert "Location" not in named.headers
    assert b"a.example" not in named.content


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("stream=maybe", "stream"),
        ("stream=", "stream"),
        ("stream=2", "stream"),
        ("stream=1&stream=no%20idea", "stream"),
        ("stream=%ff", "stream"),
        ("stream=%00", "stream"),
        ("stream=1%", "stream"),
        ("stream[]=1&stream=" + "9" * 5000, "stream"),
    ],
)
def test_a_query_parameter_that_is_wrong(port: int, query: str, field: str) -> None:
    answer = ask(port, "POST", f"/sam/automask/?{query}", BODY)
    assert (answer.status, answer.error()["code"], answer.error()["field"]) == (
        422,
        "invalid_field",
        field,
    )


@pytest.mark.parametrize("value", ["", "%00", "%ff", "..%2f", "a" * 5000, "1&type=2", "%"])
def test_any_type_may_be_asked_for(port: int, value: str) -> None:
    """The gateway asks TorchServe, which is down here, and so answers 503."""
    assert ask(port, "GET", f"/sam/weights/?type={value}").status == 503
