"""What a person may do at the wrong moment, or with the wrong file."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.support.browser import Studio
from tests.support.paths import ROOT

pytestmark = pytest.mark.needs("chromium")

COINS = ROOT / "docs" / "coins.png"
COIN = (20, 30, 70, 78)
OTHER_COIN = (75, 30, 125, 78)

DROP = """([files, kind]) => {
  const carried = new DataTransfer();
  for (const [name, content] of files) {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    carried.items.add(new File([bytes], name));
  }
  const options = { bubbles: true, cancelable: true };
  document.body.dispatchEvent(kind === "drop"
    ? new DragEvent("drop", { ...options, dataTransfer: carried })
    : new ClipboardEvent("paste", { ...options, clipboardData: carried }));
}"""


def bring(studio: Studio, kind: str, *paths: Path) -> None:
    """Drop or paste files."""
    files = [(path.name, base64.b64encode(path.read_bytes()).decode()) for path in paths]
    studio.page.evaluate(DROP, [files, kind])


@pytest.mark.parametrize("late", ["a picture", "no picture"])
def test_a_picture_that_is_read_slowly_does_not_replace_a_newer_one(
    studio: Studio, tmp_path: Path, late: str
) -> None:
    slow = tmp_path / "slow.png"
    if late == "a picture":
        Image.new("L", (50, 40)).save(slow)
    else:
        slow.write_bytes(b"no picture")
    # The first picture is decoded only when it is let go.
    studio.page.evaluate("""() => {
      const decode = globalThis.createImageBitmap;
      globalThis.letGo = null;
      globalThis.createImageBitmap = async (...given) => {
        if (globalThis.letGo === null) {
          document.body.dataset.held = "yes";
          await new Promise((resolve) => (globalThis.letGo = resolve));
        }
        return decode(...given);
      };
    }""")
    bring(studio, "drop", slow)
    expect(studio.page.locator("body")).to_have_attribute("data-held", "yes")
    bring(studio, "paste", COINS)
    name = studio.page.locator("#picture-name")
    expect(name).to_have_text("coins.png · 384 × 303")
    studio.page.evaluate("globalThis.letGo()")
    studio.settle()
    studio.box(*COIN)
    expect(name).to_have_text("coins.png · 384 × 303")
    expect(studio.page.locator("#problem")).to_be_hidden()


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_of_several_files_the_first_opens_and_a_line_says_so(
    studio: Studio, tmp_path: Path, kind: str
) -> None:
    other = tmp_path / "other.png"
    Image.new("L", (50, 40)).save(other)
    bring(studio, kind, COINS, other)
    expect(studio.page.locator("#picture-name")).to_contain_text("coins.png")
    expect(studio.page.locator("#problem")).to_contain_text("one picture at a time")
    expect(studio.page.locator("#problem")).to_contain_text("samserve automask")


def test_a_request_that_failed_can_be_sent_again(studio: Studio) -> None:
    studio.sample("coins")
    studio.page.route("**/sam/", lambda route: route.abort(), times=1)
    studio.page.mouse.click(*studio.screen(45, 55))
    expect(studio.page.locator("#problem")).to_contain_text("The server does not answer")
    expect(studio.hint).to_contain_text("The server gave no answer for this")
    studio.page.click("#retry")
    studio.wait_for_mask()
    expect(studio.page.locator("#problem")).to_be_hidden()
    studio.open(ROOT / "README.md")
    expect(studio.page.locator("#problem")).to_be_visible()
    expect(studio.page.locator("#retry")).to_be_hidden()
    studio.faults.clear()  # the browser itself notes the request that was broken off


def test_a_class_that_an_object_has_already_is_no_step(studio: Studio) -> None:
    studio.sample("coins")
    studio.page.locator("#classes [role=radio]").first.click()
    expect(studio.page.locator("#undo")).to_be_disabled()


def test_an_object_has_the_same_number_in_the_list_and_in_all_files(
    studio: Studio, tmp_path: Path
) -> None:
    studio.sample("coins")
    for box in (COIN, OTHER_COIN):
        studio.box(*box)
        studio.keep()
    studio.page.get_by_label("Delete object 1").click()
    expect(studio.page.locator("#items")).to_contain_text("object 2")
    [feature] = studio.geojson(tmp_path)
    assert feature["properties"]["number"] == 2
    [annotation] = json.loads(studio.download("coco", tmp_path).read_text())["annotations"]
    assert annotation["id"] == 2
    labels = np.asarray(Image.open(studio.download("labels", tmp_path)))
    assert set(np.unique(labels)) == {0, 2}
    studio.page.keyboard.press("Control+z")
    studio.open(COINS)
    expect(studio.page.locator("#items li")).to_have_count(0)
    studio.settle()
    studio.box(*COIN)
    studio.keep()
    expect(studio.page.locator("#items")).to_contain_text("object 1")


def test_a_file_beyond_the_limit_is_said_in_words(studio: Studio) -> None:
    error: Any = {"code": "too_large", "field": None}
    error["message"] = "The body is larger than this server's limit of 67108864 bytes (64 MiB)."
    studio.page.route("**/sam/", lambda route: route.fulfill(status=413, json={"error": error}))
    studio.open(COINS)
    expect(studio.page.locator("#problem")).to_contain_text(
        "The picture's file is larger than 64 MiB, this server's limit."
    )
    studio.faults.clear()  # the browser notes the status


def test_the_help_begins_at_its_beginning_on_a_small_screen(studio: Studio) -> None:
    studio.page.set_viewport_size({"width": 400, "height": 500})
    studio.page.click("#help")
    assert studio.page.evaluate("document.querySelector('#help-text').scrollTop") == 0


def test_closing_the_page_asks_about_objects_that_were_not_downloaded(
    studio: Studio, tmp_path: Path
) -> None:
    asked = """() => !globalThis.dispatchEvent(new Event("beforeunload", { cancelable: true }))"""
    studio.sample("coins")
    assert not studio.page.evaluate(asked)
    studio.box(*COIN)
    studio.keep()
    assert studio.page.evaluate(asked)
    studio.geojson(tmp_path)
    assert not studio.page.evaluate(asked)
