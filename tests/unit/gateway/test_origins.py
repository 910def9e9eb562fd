"""A gateway without API keys refuses what the pages of other web sites send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from samserve.errors import Forbidden
from samserve_gateway.access_modes import Mode
from samserve_gateway.origins import Origins
from samserve_gateway.settings import Settings
from samserve_launcher import keys
from tests.support.http import lone_gateway

HERE = "127.0.0.1:8000"


def is_taken(mode: Mode, method: str, headers: dict[str, str], **settings: Any) -> bool:
    try:
        Origins(Settings(**settings), mode).check(method, Headers(headers))
    except Forbidden:
        return False
    return True


@pytest.mark.parametrize("mode", ["loopback", "open"])
@pytest.mark.parametrize(
    ("headers", "taken"),
    [
        ({}, True),  # QuPath, curl, Python
        ({"Origin": "http://127.0.0.1:8000"}, True),
        ({"Origin": "HTTP://127.0.0.1:8000"}, True),
        ({"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),  # typed into the browser
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"}, False),
        ({"Origin": "http://127.0.0.1:9000"}, False),  # another program's page on this machine
        ({"Origin": "http://127.0.0.1:8000.evil.example"}, False),
        ({"Origin": "null"}, False),  # a page in a sandbox, or a file
        ({"Origin": "127.0.0.1:8000"}, False),
        ({"Origin": "http://[::1"}, False),
        ({"Origin": "https://evil.example http://127.0.0.1:8000"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_whose_page_sends_it(mode: Mode, method: str, headers: dict[str, str], taken: bool) -> None:
    assert is_taken(mode, method, {"Host": HERE, **headers}) is taken


@pytest.mark.parametrize(
    ("host", "taken"),
    [
        ("127.0.0.1:8000", True),
        ("127.0.0.1", True),
        ("localhost:9000", True),
        ("LOCALHOST", True),
        ("sam.localhost:8000", True),
        ("[::1]:8000", True),
        ("127.8.9.1:8000", True),
        ("[::ffff:127.0.0.1]:8000", True),
        ("localhost.:8000", True),
        ("sam.example", True),
        ("evil.example", False),
        ("evil.example:8000", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("127.0.0.1@evil.example", False),
        ("10.1.2.3:8000", False),
        ("[::1", False),
        ("[::ffff:10.1.2.3]", False),
        ("localhost..", False),
        ("localtest.me", False),  # its address is 127.0.0.1
    ],
)
def test_which_host_it_names_on_loopback(host: str, taken: bool) -> None:
    for method in ("GET", "POST"):
        allowed = {"allowed_hosts": "sam.example other.example"}
        assert is_taken("loopback", method, {"Host": host}, **allowed) is taken
        assert is_taken("open", method, {"Host": host})


def test_pages_that_are_allowed_by_name() -> None:
    page = {"Host": HERE, "Origin": "https://viewer.example"}
    assert not is_taken("loopback", "POST", page)
    assert is_taken("loopback", "POST", page, cors_origins="https://viewer.example")
    assert is_taken("loopback", "POST", page, allowed_hosts="viewer.example")


def test_behind_a_proxy_that_speaks_https() -> None:
    """The page's origin has the scheme and the name that the browser shows."""
    page = {"Host": "sam.example", "Origin": "https://sam.example"}
    assert is_taken("open", "POST", page)
    assert not is_taken("open", "POST", {**page, "Origin": "https://sam.example:444"})


@pytest.mark.parametrize(
    ("host", "origin", "taken"),
    [
        ("127.0.0.1:80", "http://127.0.0.1", True),
        ("127.0.0.1", "http://127.0.0.1:80", True),
        ("sam.example:443", "https://sam.example", True),
        ("sam.example", "https://sam.example:443", True),
        ("sam.example:443", "http://sam.example", False),
        ("127.0.0.1:8080", "http://127.0.0.1:80", False),
        ("127.0.0.1", "http://127.0.0.1:443", False),
    ],
)
def test_the_default_port_may_be_named(host: str, origin: str, taken: bool) -> None:
    assert is_taken("open", "POST", {"Host": host, "Origin": origin}) is taken


def test_the_default_port_may_be_named_in_the_setting() -> None:
    page = {"Host": HERE, "Origin": "https://viewer.example"}
    assert is_taken("loopback", "POST", page, cors_origins="https://viewer.example:443")


def test_keys_make_it_unnecessary() -> None:
    headers = {"Host": "anything", "Origin": "https://evil.example"}
    assert is_taken("keys", "POST", headers)


@pytest.mark.parametrize("path", ["/sam/", "/sam/automask/", "/sam/weights/"])
def test_the_refusal_says_what_to_do(path: str) -> None:
    with TestClient(lone_gateway(), base_url="http://127.0.0.1:8000") as http:
        sent = {"content": b"{}", "headers": {"Content-Type": "text/plain"}}
        sent["headers"] |= {"Origin": "https://evil.example"}  # type: ignore[operator]
        got = http.post(path, **sent)  # type: ignore[arg-type]
        assert (got.status_code, got.json()["error"]["code"]) == (403, "forbidden")
        assert "SAMSERVE_CORS_ORIGINS" in got.json()["error"]["message"]
        assert "SAMSERVE_ALLOWED_HOSTS" in got.json()["error"]["message"]
        rebound = http.get("/sam/version/", headers={"Host": "evil.example"})
        assert (rebound.status_code, rebound.json()["error"]["code"]) == (403, "forbidden")
        assert "SAMSERVE_ALLOWED_HOSTS" in rebound.json()["error"]["message"]
        assert http.get("/healthz", headers={"Host": "10.1.2.3:8000"}).status_code == 200


def test_with_keys_the_key_decides(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    keys.main(["new", "alice", "--file", str(file)])
    with TestClient(lone_gateway(api_keys_file=file), base_url="http://sam.example") as http:
        got = http.post("/sam/", content=b"{}", headers={"Origin": "https://evil.example"})
        assert got.status_code == 401
