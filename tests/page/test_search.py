"""The search for every object: progress, stop, downloads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from pycocotools import mask as coco_mask

from tests.support.browser import Studio, fields_of
from tests.support.geometry import rasterise
from tests.support.waiting import wait_for

pytestmark = pytest.mark.needs("chromium")


def search(studio: Studio, density: str) -> None:
    studio.page.select_option("#density", density)
    studio.page.click("#automask")


def test_all_objects_are_listed_and_downloaded_in_three_forms(
    studio: Studio, tmp_path: Path
) -> None:
    studio.sample("coins")
    search(studio, "8")
    expect(studio.page.locator("#search-note")).to_contain_text("Found", timeout=60_000)
    features = studio.geojson(tmp_path)
    assert len(features) == studio.count() > 10
    assert fields_of(studio.asked[-1])["points_per_side"] == 8
    masks = [rasterise(feature["geometry"], 303, 384) for feature in features]
    assert [feature["properties"]["area"] for feature in features] == [m.sum() for m in masks]

    coco = json.loads(studio.download("coco", tmp_path).read_text())
    assert coco["images"] == [{"id": 1, "file_name": "coins.png", "width": 384, "height": 303}]
    for annotation, mask in zip(coco["annotations"], masks, strict=True):
        run_lengths = coco_mask.frPyObjects(annotation["segmentation"], 303, 384)
        assert np.array_equal(coco_mask.decode(run_lengths).astype(bool), mask)
        assert annotation["bbox"] == coco_mask.toBbox(run_lengths).tolist()

    expected = np.zeros((303, 384), np.uint16)
    for number, mask in sorted(enumerate(masks, 1), key=lambda pair: -int(pair[1].sum())):
        expected[mask] = number  # the smaller object covers
    assert (np.sum(masks, 0) > 1).any()
    with Image.open(studio.download("labels", tmp_path)) as picture:
        assert picture.mode.startswith("I")
        assert np.array_equal(np.asarray(picture), expected)

    studio.page.keyboard.press("Control+z")
    assert studio.count() == 0


def test_stop_ends_the_search_here_and_on_the_server(studio: Studio, server: Any) -> None:
    studio.sample("coins")
    studio.box(20, 30, 70, 78)
    search(studio, "32")
    bar = studio.page.locator("#progress")
    expect(bar).to_have_attribute("value", "0", timeout=30_000)
    studio.page.click("#stop")
    expect(studio.page.locator("#search-note")).to_contain_text("Stopped")
    expect(bar).to_be_hidden()
    assert studio.count() == 0

    def idle() -> bool:
        answer = server.http.get(f"{server.options.url}/sam/progress/").json()
        return bool(answer["percent"] == -1)

    wait_for(idle)
    search(studio, "8")
    expect(studio.page.locator("#search-note")).to_contain_text("Found", timeout=60_000)


def test_a_box_is_drawn_while_the_search_goes_on(studio: Studio) -> None:
    studio.sample("coins")
    search(studio, "32")
    studio.box(20, 30, 70, 78)
    expect(studio.page.locator("#stop")).to_be_visible()
    studio.page.click("#stop")
