"""How a picture comes in, and what is said of one that cannot."""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
import sys
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

TRANSFER = """
([name, content]) => {
    const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, {type: "image/png"}));
    return transfer;
}
"""


@pytest.mark.parametrize("way", ["pick", "drop", "paste"])
def test_a_picture_is_picked_dropped_or_pasted(studio: Studio, way: str) -> None:
    if way == "pick":
        studio.open(COINS)
    else:
        content = base64.b64encode(COINS.read_bytes()).decode()
        transfer = studio.page.evaluate_handle(TRANSFER, ["coins.png", content])
        event = {
            "drop": "(data) => new DragEvent('drop', {dataTransfer: data, bubbles: true})",
            "paste": "(data) => new ClipboardEvent('paste', {clipboardData: data, bubbles: true})",
        }[way]
        studio.page.evaluate(f"(data) => document.body.dispatchEvent(({event})(data))", transfer)
    studio.settle()
    expect(studio.page.locator("#picture-name")).to_have_text("coins.png · 384 × 303")
    studio.box(20, 30, 70, 78)


@pytest.mark.parametrize("sample", ["coins", "cells", "leaves"])
def test_every_sample_opens(studio: Studio, sample: str) -> None:
    studio.sample(sample)
    expect(studio.page.locator("#picture-name")).to_contain_text(sample)


@pytest.mark.parametrize(
    ("name", "content", "words", "advice"),
    [
        ("notes.txt", b"no picture at all", "not a picture", "Choose a PNG"),
        ("empty.png", b"", "is empty", "Choose another"),
        ("cut.png", COINS.read_bytes()[:40], "not a picture", "Choose a PNG"),
        ("cells.tif", b"II*\0\x08\0\0\0", "TIFF", "Save it as PNG"),
    ],
)
def test_a_file_that_is_no_picture_is_refused_in_words(
    studio: Studio, tmp_path: Path, name: str, content: bytes, words: str, advice: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    studio.open(path)
    problem = studio.page.get_by_role("alert")
    expect(problem).to_contain_text(words)
    expect(problem).to_contain_text(name)
    expect(problem).to_contain_text(advice)
    studio.page.click("#problem-close")
    expect(problem).to_be_hidden()
    studio.sample("coins")


def test_a_new_picture_replaces_the_one_before_and_its_objects(studio: Studio) -> None:
    studio.sample("coins")
    studio.box(20, 30, 70, 78)
    studio.keep()
    studio.open(ROOT / "page" / "static" / "samples" / "leaves.jpg")
    expect(studio.page.locator("#picture-name")).to_contain_text("leaves")
    assert studio.count() == 0
    expect(studio.page.locator("#undo")).to_be_disabled()


@pytest.mark.parametrize("name", ["turned.jpg", "turned.png", "turned.webp"])
def test_pixels_are_shown_as_they_are_stored(studio: Studio, tmp_path: Path, name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, which the server does not do
    Image.fromarray(np.zeros((40, 80, 3), np.uint8)).save(tmp_path / name, exif=exif)
    studio.open(tmp_path / name)
    expect(studio.page.locator("#picture-name")).to_have_text(f"{name} · 80 × 40")


def test_a_picture_of_ten_thousand_pixels_opens_and_zooms(studio: Studio, tmp_path: Path) -> None:
    pixels = np.zeros((2000, 10_000), np.uint8)
    pixels[900:1100, 4900:5100] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    studio.open(tmp_path / "wide.png")
    studio.settle()
    before = float(studio.viewer.get_attribute("data-resolution") or 0)
    assert 10_000 / before <= 1200
    studio.page.mouse.move(*studio.screen(5000, 1000))
    for _ in range(8):
        studio.page.mouse.wheel(0, -300)
    studio.page.wait_for_timeout(600)
    assert float(studio.viewer.get_attribute("data-resolution") or 0) < before / 4


@pytest.mark.needs("curl")
def test_the_copied_curl_and_python_give_the_same_answer(
    studio: Studio, tmp_path: Path, monkeypatch: Any
) -> None:
    name = 'it\'s a "coin" $HOME.png'
    (tmp_path / name).write_bytes(COINS.read_bytes())
    studio.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    studio.open(tmp_path / name)
    studio.settle()
    studio.box(20, 30, 70, 78)
    studio.keep()
    [feature] = studio.geojson(tmp_path)
    texts = {}
    for button in ("curl", "python"):
        studio.page.click(f"#{button}")
        expect(studio.page.locator(f"#{button}")).to_have_text("Copied")
        texts[button] = studio.page.evaluate("() => navigator.clipboard.readText()")
    assert shlex.split(texts["curl"])[0] == "curl"
    commands = (["bash", "-c", texts["curl"]], [sys.executable, "-c", texts["python"]])
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    by_curl, by_python = (
        subprocess.run(
            command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        ).stdout
        for command in commands
    )
    assert json.loads(by_curl)[0]["geometry"] == feature["geometry"]
    assert str(feature["geometry"]) in by_python


def test_a_server_that_went_away_is_told_in_words(studio: Studio) -> None:
    studio.sample("coins")
    studio.box(20, 30, 70, 78)
    studio.page.route("**/sam/", lambda route: route.abort("connectionrefused"))
    studio.page.mouse.click(*studio.screen(40, 50))
    expect(studio.page.get_by_role("alert")).to_contain_text("The server does not answer.")
    studio.page.unroute("**/sam/")
    studio.click(45, 55)
    assert studio.faults.pop().startswith("Failed to load resource")


def test_a_refusal_of_the_server_is_shown_with_what_to_do(studio: Studio, server: Any) -> None:
    # The page fills and disables the choice when it has heard which models there are.
    expect(studio.page.locator("#model")).to_have_value("vit_t")
    studio.page.locator("#model").evaluate(
        "(select) => { select.disabled = false; select.add(new Option('vit_b', 'vit_b')); }"
    )
    studio.page.select_option("#model", "vit_b")
    studio.sample("coins")
    problem = studio.page.get_by_role("alert")
    expect(problem).to_contain_text("vit_b")
    expect(problem).to_contain_text("Choose another model.")
    assert all(fault.startswith("Failed to load resource") for fault in studio.faults)
    studio.faults.clear()
