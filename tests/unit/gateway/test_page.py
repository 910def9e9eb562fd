"""How the gateway sends the page's files."""

from __future__ import annotations

import gzip
import re

import pytest

from samserve_gateway.routes.page import FOLDER, KEY_PAGE
from tests.support.torchserve import Gateway

FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())
NAMES = [name for name in FILES if name not in (KEY_PAGE, "index.html")]
TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "jpg": "image/jpeg",
    "png": "image/png",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}


@pytest.mark.parametrize("name", NAMES)
def test_every_file_has_its_type_and_is_asked_for_once(gateway: Gateway, name: str) -> None:
    got = gateway.get(f"/page/{name}")
    assert (got.status, got.content) == (200, (FOLDER / name).read_bytes())
    assert got.headers["Content-Type"] == TYPES[name.rpartition(".")[2]]
    again = gateway.get(f"/page/{name}", {"If-None-Match": got.headers["ETag"]})
    assert (again.status, again.content) == (304, b"")


def test_the_page_lets_nothing_in_from_elsewhere(gateway: Gateway) -> None:
    got = gateway.get("/")
    assert got.status == 200
    policy = got.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "*" not in policy
    assert got.headers["X-Frame-Options"] == "DENY"
    text = got.content.decode()
    assert not re.search(r"<style|style=|<script>|\son\w+=", text)
    for address in re.findall(r'(?:src|href)="(.*?)"', text):
        assert not re.match(r"/|\w+:", address), "an address is not relative"
        assert gateway.get(f"/{address}").status == 200


def test_the_page_is_small(gateway: Gateway) -> None:
    paths = ["/", *(f"/page/{name}" for name in NAMES if "samples/" not in name)]
    sizes = [len(gateway.get(path, {"Accept-Encoding": "gzip"}).content) for path in paths]
    assert sum(sizes) < 300_000
    assert sum((FOLDER / name).stat().st_size for name in NAMES if "samples/" in name) < 200_000


def test_a_client_without_gzip_gets_plain_text(gateway: Gateway) -> None:
    plain = gateway.get("/page/app.js", {"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    small = gateway.get("/page/app.js", {"Accept-Encoding": "gzip"})
    assert small.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(small.content) == plain.content


@pytest.mark.parametrize(
    "path",
    ["/page/", "/page/key.html", "/page/nothing.js", "/page/../app.py", "/page/%2e%2e/app.py"],
)
def test_there_are_no_other_files(gateway: Gateway, path: str) -> None:
    assert gateway.get(path).status == 404
