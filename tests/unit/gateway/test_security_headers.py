"""What each answer tells a browser."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from samserve_gateway.security_headers import policy
from tests.support.torchserve import Gateway


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/nowhere", "/metrics", "/docs", "/sam/"])
def test_no_browser_guesses_a_type(gateway: Gateway, path: str) -> None:
    got = gateway.get(path)
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    assert "Strict-Transport-Security" not in got.headers
    assert ("Content-Security-Policy" in got.headers) == (path == "/docs")


@pytest.mark.parametrize("path", ["/docs", "/docs/", "/docs/oauth2-redirect"])
def test_a_page_runs_its_own_scripts_only(gateway: Gateway, path: str) -> None:
    got = gateway.get(path)
    assert got.headers["X-Frame-Options"] == "DENY"
    assert got.headers["Referrer-Policy"] == "no-referrer"
    directives = dict(
        part.strip().split(" ", 1) for part in got.headers["Content-Security-Policy"].split(";")
    )
    assert directives["default-src"] == "'none'"
    scripts = re.findall(r"<script>(.*?)</script>", got.content.decode(), re.DOTALL)
    assert scripts
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in directives["script-src"]
    assert "unsafe" not in directives["script-src"]
    for address in re.findall(r'(?:src|href)="(.*?)"', got.content.decode()):
        assert address.startswith("/")  # of this server, as 'self' says
        assert gateway.get(address).status == 200
    assert gateway.get("/openapi.json").status == 200


def test_a_page_without_scripts() -> None:
    assert "script-src 'self';" in policy(b"<p>text</p>")
