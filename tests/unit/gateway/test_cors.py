"""Which web pages may use the API in a browser."""

from __future__ import annotations

import pytest

from samserve_gateway.settings import Settings
from tests.support import torchserve
from tests.support.http import ask

PAGE = "https://viewer.example"


def preflight(port: int, origin: str, header: str = "X-API-Key") -> dict[str, str]:
    """Return the headers by which the server answers a browser's question."""
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": header,
    }
    got = ask(port, "OPTIONS", "/sam/", None, asked)
    return {name.lower(): value for name, value in got.headers.items()}


def test_without_a_setting_none_may() -> None:
    with torchserve.gateway() as gateway:
        assert not [name for name in preflight(gateway.port, PAGE) if "access-control" in name]
        got = gateway.get("/healthz", {"Origin": PAGE})
        assert "Access-Control-Allow-Origin" not in got.headers


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key", "Content-Type", "X-Request-Id"])
def test_the_named_pages_may(header: str) -> None:
    with torchserve.gateway(cors_origins=f"http://localhost:3000 {PAGE}") as gateway:
        allowed = preflight(gateway.port, PAGE, header)
        assert allowed["access-control-allow-origin"] == PAGE
        assert header in allowed["access-control-allow-headers"]
        got = gateway.get("/sam/version/", {"Origin": PAGE})
        assert got.headers["Access-Control-Allow-Origin"] == PAGE
        assert "X-Image-Pages" in got.headers["Access-Control-Expose-Headers"]
        refused = gateway.post("/sam/", b"{", {"Origin": PAGE})  # a page can read errors, too
        assert (refused.status, refused.headers["Access-Control-Allow-Origin"]) == (400, PAGE)


@pytest.mark.parametrize("origin", ["https://evil.example", PAGE + ".evil.example", "null"])
def test_no_other_page_may(origin: str) -> None:
    with torchserve.gateway(cors_origins=PAGE) as gateway:
        assert "access-control-allow-origin" not in preflight(gateway.port, origin)
        got = gateway.get("/healthz", {"Origin": origin})
        assert "Access-Control-Allow-Origin" not in got.headers


@pytest.mark.parametrize("wrong", ["*", "viewer.example", "https://viewer.example/page"])
def test_what_is_no_origin_is_a_wrong_setting(wrong: str) -> None:
    with pytest.raises(ValueError, match="cors_origins"):
        Settings(cors_origins=wrong)
