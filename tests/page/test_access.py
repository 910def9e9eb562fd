"""The page below a key, and what a person without one sees."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from samserve_gateway.keys import Key, add, digest_of, new_key
from tests.support import torchserve
from tests.support.browser import Studio

pytestmark = pytest.mark.needs("chromium")


@pytest.mark.parametrize("end", ["/", ""])
def test_without_a_key_the_page_asks_for_one_and_works_below_it(
    browser: Browser, tmp_path: Path, end: str
) -> None:
    key = new_key()
    keys_file = tmp_path / "keys"
    add(keys_file, Key("alice", digest_of(key.encode())))
    with torchserve.gateway(host="0.0.0.0", api_keys_file=keys_file) as gateway:
        base = f"http://127.0.0.1:{gateway.port}"
        context = browser.new_context()
        page = context.new_page()
        answer = page.goto(base + "/")
        assert answer is not None
        assert answer.status == 401
        page.get_by_label("Key").fill("a-wrong-one")
        page.keyboard.press("Enter")
        page.wait_for_url("**/key/a-wrong-one/")
        page.get_by_label("Key").fill(key)
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/key/{key}/")
        expect(page.locator("#model")).to_have_value("vit_t")

        studio = Studio(context.new_page(), f"{base}/key/{key}{end}")
        expect(studio.page.locator("#model")).to_have_value("vit_t")
        studio.sample("coins")
        assert studio.faults == []
        context.close()


def test_a_key_that_is_withdrawn_is_told_in_words(browser: Browser, tmp_path: Path) -> None:
    key = new_key()
    keys_file = tmp_path / "keys"
    add(keys_file, Key("alice", digest_of(key.encode())))
    with torchserve.gateway(host="0.0.0.0", api_keys_file=keys_file) as gateway:
        context = browser.new_context()
        studio = Studio(context.new_page(), f"http://127.0.0.1:{gateway.port}/key/{key}/")
        expect(studio.page.locator("#model")).to_have_value("vit_t")
        studio.page.route("**/sam/", lambda route: route.fulfill(status=401, body="{}"))
        studio.sample("coins")
        expect(studio.page.get_by_role("alert")).to_contain_text("your key is wrong")
        context.close()
