"""Boxes, clicks, masks, classes, steps back and forth."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.support.browser import Studio, fields_of
from tests.support.paths import ROOT

pytestmark = pytest.mark.needs("chromium")

COIN = (20, 30, 70, 78)
OTHER_COIN = (75, 30, 125, 78)


def from_the_api(server: Any, fields: dict[str, Any]) -> list[dict[str, Any]]:
    coins = base64.b64encode((ROOT / "docs" / "coins.png").read_bytes()).decode()
    answer = server.post("/sam/", {**fields, "b64img": coins})
    assert answer.status_code == 200
    features: list[dict[str, Any]] = answer.json()
    return features


def test_a_box_gives_the_outline_that_the_api_gives(
    studio: Studio, server: Any, tmp_path: Path
) -> None:
    studio.sample("coins")
    studio.box(*COIN)
    studio.keep()
    [feature] = studio.geojson(tmp_path)
    fields = fields_of(studio.asked[-1])
    assert fields["bbox"] == pytest.approx(COIN, abs=1)
    [expected] = from_the_api(server, {"type": "vit_t", "bbox": fields["bbox"]})
    assert feature["geometry"] == expected["geometry"]
    assert feature["properties"]["quality"] == expected["properties"]["quality"]
    assert "b64img" in fields
    assert fields["b64img"].startswith("sha256:")


def test_clicks_refine_and_a_right_click_is_background(
    studio: Studio, server: Any, tmp_path: Path
) -> None:
    studio.sample("coins")
    studio.box(*COIN)
    studio.click(40, 50)
    studio.click(60, 70, button="right")
    fields = fields_of(studio.asked[-1])
    assert fields["point_labels"] == [1, 0]
    assert fields["point_coords"] == [pytest.approx(at, abs=1) for at in ([40, 50], [60, 70])]
    assert fields["bbox"] == pytest.approx(COIN, abs=1)
    studio.keep()
    [feature] = studio.geojson(tmp_path)
    [expected] = from_the_api(server, {name: fields[name] for name in fields if name != "b64img"})
    assert feature["geometry"] == expected["geometry"]


def test_alt_and_the_button_for_fingers_mean_background_too(studio: Studio) -> None:
    studio.sample("coins")
    studio.click(40, 50)
    studio.page.keyboard.down("Alt")
    studio.click(60, 70)
    studio.page.keyboard.up("Alt")
    studio.page.click("#background")
    studio.click(25, 75)
    assert fields_of(studio.asked[-1])["point_labels"] == [1, 0, 0]


def test_a_background_click_alone_asks_for_the_object_first(studio: Studio) -> None:
    studio.sample("coins")
    studio.page.mouse.click(*studio.screen(40, 50), button="right")
    expect(studio.hint).to_contain_text("Mark the object first")


def test_one_click_shows_three_masks_and_the_chosen_one_is_kept(
    studio: Studio, server: Any, tmp_path: Path
) -> None:
    studio.sample("coins")
    studio.click(45, 55)
    masks = studio.page.locator("#masks [role=radio]")
    expect(masks).to_have_count(3)
    fields = fields_of(studio.asked[-1])
    expected = from_the_api(server, {name: fields[name] for name in fields if name != "b64img"})
    qualities = [feature["properties"]["quality"] for feature in expected]
    best = qualities.index(max(qualities))
    expect(masks.nth(best)).to_have_attribute("aria-checked", "true")
    other = (best + 1) % 3
    masks.nth(other).click()
    studio.keep()
    [feature] = studio.geojson(tmp_path)
    assert feature["geometry"] == expected[other]["geometry"]


def test_a_box_has_three_masks_on_request(studio: Studio) -> None:
    studio.sample("coins")
    studio.box(*COIN)
    expect(studio.page.locator("#masks")).to_be_hidden()
    studio.page.click("#three")
    expect(studio.page.locator("#masks [role=radio]")).to_have_count(3)


def test_a_second_box_keeps_the_first_object(studio: Studio, tmp_path: Path) -> None:
    studio.sample("coins")
    studio.box(*COIN)
    studio.box(*OTHER_COIN)
    assert studio.count() == 1
    studio.page.keyboard.press("Enter")
    assert studio.count() == 2
    assert len({str(feature["geometry"]) for feature in studio.geojson(tmp_path)}) == 2


def test_undo_and_redo_go_through_every_step(studio: Studio) -> None:
    studio.sample("coins")
    studio.box(*COIN)
    studio.keep()
    studio.box(*OTHER_COIN)
    studio.keep()
    studio.page.get_by_label("Delete object 1").click()
    assert studio.count() == 1
    press = studio.page.keyboard.press
    press("Control+z")
    assert studio.count() == 2
    press("Control+z")  # the second object is the current one again
    assert studio.count() == 1
    studio.wait_for_mask()
    press("Control+z")
    press("Control+z")
    press("Control+z")
    assert studio.count() == 0
    expect(studio.page.locator("#undo")).to_be_disabled()
    for _ in range(5):
        press("Control+Shift+z")
    assert studio.count() == 1
    expect(studio.page.locator("#redo")).to_be_disabled()


def test_undo_takes_back_a_request_under_way(studio: Studio) -> None:
    studio.sample("coins")
    studio.box(*COIN)
    before = studio.hint.text_content()
    held = studio.hold()
    studio.page.mouse.click(*studio.screen(45, 70))
    expect(studio.hint).to_have_text("Looking …")
    studio.page.click("#undo")
    expect(studio.hint).to_have_text(before or "")
    assert len(held) == 1
    studio.page.unroute("**/sam/")
    studio.page.click("#redo")  # asks again
    studio.wait_for_mask()
    assert studio.hint.text_content() != before


def test_a_newer_click_cancels_the_request_before(studio: Studio) -> None:
    studio.sample("coins")
    studio.box(*COIN)
    failed: list[str] = []
    studio.page.on("requestfailed", lambda request: failed.append(request.failure or ""))
    studio.hold(times=1)
    studio.page.mouse.click(*studio.screen(40, 50))
    expect(studio.hint).to_have_text("Looking …")
    studio.click(50, 60)
    assert failed == ["net::ERR_ABORTED"]
    assert len(fields_of(studio.asked[-1])["point_labels"]) == 2


def test_classes_have_names_and_colours(studio: Studio, tmp_path: Path) -> None:
    studio.sample("coins")
    studio.page.fill("#class-name", "denarius")
    studio.page.press("#class-name", "Enter")
    studio.box(*COIN)
    studio.keep()
    studio.page.get_by_role("radio", name="object").click()
    studio.box(*OTHER_COIN)
    studio.keep()
    first, second = (feature["properties"] for feature in studio.geojson(tmp_path))
    assert first["classification"]["name"] == "denarius"
    assert second["classification"]["name"] == "object"
    assert first["classification"]["color"] != second["classification"]["color"]
    studio.page.locator("#items .choose").nth(1).click()
    studio.page.get_by_role("radio", name="denarius").click()
    names = [one["properties"]["classification"]["name"] for one in studio.geojson(tmp_path)]
    assert names == ["denarius", "denarius"]


def test_list_and_picture_highlight_select_and_delete_the_same_object(studio: Studio) -> None:
    studio.sample("coins")
    studio.box(*COIN)
    studio.keep()
    studio.page.mouse.move(*studio.screen(45, 55))
    expect(studio.page.locator("#items li")).to_have_class(re.compile("hovered"))
    studio.page.click("#move")
    studio.page.mouse.click(*studio.screen(45, 55))
    expect(studio.page.locator("#items .choose")).to_have_attribute("aria-pressed", "true")
    studio.page.keyboard.press("Delete")
    assert studio.count() == 0


def test_everything_works_from_the_keyboard(studio: Studio) -> None:
    studio.page.locator("[data-sample^=coins]").focus()
    studio.page.keyboard.press("Enter")
    studio.settle()
    expect(studio.viewer).to_be_focused()
    press = studio.page.keyboard.press
    press("b")
    for _ in range(3):
        press("Shift+ArrowRight")
        press("Shift+ArrowDown")
    press("b")
    studio.wait_for_mask()
    press("ArrowLeft")
    press("x")
    studio.wait_for_mask()
    assert fields_of(studio.asked[-1])["point_labels"] == [0]
    press("m")
    expect(studio.page.locator("#masks [role=radio]")).to_have_count(3)
    press("2")
    expect(studio.page.locator("#masks [role=radio]").nth(1)).to_have_attribute(
        "aria-checked", "true"
    )
    press("Enter")
    assert studio.count() == 1
    press("Space")
    studio.wait_for_mask()
    press("Escape")
    expect(studio.hint).to_contain_text("Drag a box")


def test_the_panel_keeps_the_focus_and_follows_the_arrow_keys(studio: Studio) -> None:
    studio.sample("coins")
    studio.click(45, 55)
    masks = studio.page.locator("#masks [role=radio]")
    studio.page.locator("#masks [aria-checked=true]").focus()
    for _ in range(3):
        chosen = studio.page.locator("#masks [aria-checked=true]").text_content()
        studio.page.keyboard.press("ArrowRight")
        now = studio.page.locator("#masks [aria-checked=true]")
        expect(now).to_be_focused()
        expect(now).not_to_have_text(chosen or "")
    expect(masks).to_have_count(3)
    studio.keep()
    studio.box(*OTHER_COIN)
    studio.keep()
    studio.page.get_by_label("Delete object 1").press("Enter")
    expect(studio.page.get_by_label("Delete object 2")).to_be_focused()
    studio.page.keyboard.press("Enter")
    expect(studio.viewer).to_be_focused()


def test_letters_do_nothing_while_a_name_is_typed(studio: Studio) -> None:
    studio.sample("coins")
    sent = len(studio.asked)
    studio.page.locator("#class-name").press_sequentially("abx 0")
    assert studio.page.input_value("#class-name") == "abx 0"
    assert len(studio.asked) <= sent + 1  # the picture's own, which may still have been on its way
