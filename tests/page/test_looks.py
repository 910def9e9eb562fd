"""Narrow and wide, dark and light, for fingers, and for people who cannot see it."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, expect

from tests.support.browser import Studio
from tests.support.page_sources import node_modules

pytestmark = pytest.mark.needs("chromium", "npm")

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return (node_modules(tmp_path_factory) / "axe-core" / "axe.min.js").read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200, 2000])
def test_every_state_is_accessible_and_nothing_is_cut_off(
    browser: Browser, server: Any, axe: str, width: int, scheme: Literal["light", "dark"]
) -> None:
    # The page's policy would refuse the checker's script.
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
    )
    studio = Studio(context.new_page(), server.options.url + "/")
    page = studio.page
    page.evaluate(axe)

    def check(state: str) -> None:
        found = page.evaluate("(rules) => axe.run({runOnly: rules})", RULES)
        faults = [
            (fault["id"], [node["target"] for node in fault["nodes"]])
            for fault in found["violations"]
        ]
        assert faults == [], state
        too_wide = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
        assert too_wide <= 0, state

    check("start")
    page.click("#help")
    check("help")
    page.keyboard.press("Escape")
    studio.sample("coins")
    studio.click(45, 55)
    check("three masks")
    studio.keep()
    page.locator("#items .choose").click()
    check("a selected object")
    page.set_input_files("#file", {"name": "x.txt", "mimeType": "text/plain", "buffer": b"x"})
    expect(page.get_by_role("alert")).to_be_visible()
    check("a message")
    context.close()


def test_fingers_draw_boxes_and_two_of_them_zoom(browser: Browser, server: Any) -> None:
    context = browser.new_context(viewport={"width": 400, "height": 800}, has_touch=True)
    studio = Studio(context.new_page(), server.options.url + "/")
    studio.sample("coins")
    touch = context.new_cdp_session(studio.page)

    def send(kind: str, *points: tuple[float, float]) -> None:
        at = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    with studio.page.expect_response("**/sam/"):
        send("touchStart", studio.screen(20, 30))
        send("touchMove", studio.screen(50, 60))
        send("touchMove", studio.screen(70, 78))
        send("touchEnd")
    studio.wait_for_mask()
    sent = len(studio.asked)
    before = studio.viewer.get_attribute("data-resolution")
    x, y = studio.screen(190, 150)
    send("touchStart", (x - 20, y))
    send("touchStart", (x - 20, y), (x + 20, y))
    for far in (40, 70, 100):
        send("touchMove", (x - far, y), (x + far, y))
    send("touchEnd")
    expect(studio.viewer).not_to_have_attribute("data-resolution", before or "")
    assert len(studio.asked) == sent
    context.close()
