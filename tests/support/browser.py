"""The gateway's page in a headless Chromium, used as a person uses it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    Route,
    expect,
    sync_playwright,
)

MASK = "Quality"
"""How the hint begins when a mask is visible."""


PATIENCE_MS = 60_000
"""The machine may be busy with other tests."""

expect.set_options(timeout=PATIENCE_MS)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run Debian's Chromium within the block."""
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not work for root.
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        yield browser
        browser.close()


class Studio:
    """The page, open in a browser.

    Attributes:
        page: Playwright's page.
        asked: the requests to `/sam/` and `/sam/automask/`, in order.
        faults: what the page wrote into the browser's console as an error, and uncaught errors.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.asked: list[Request] = []
        self.faults: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", self._note_request)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", self._note_message)
        page.goto(url)

    def _note_request(self, request: Request) -> None:
        if request.method == "POST":
            self.asked.append(request)

    def _note_message(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.faults.append(message.text)

    def sample(self, name: str) -> None:
        """Open one of the page's samples."""
        self.page.click(f"[data-sample^={name}]")
        self.settle()

    def open(self, path: Path) -> None:
        """Pick a file."""
        self.page.set_input_files("#file", path)

    def settle(self) -> None:
        """Wait until a picture is visible and the view has come to rest."""
        expect(self.viewer).to_be_visible()
        expect(self.viewer).to_have_attribute("data-resolution", re.compile("[0-9]"))

    @property
    def viewer(self) -> Locator:
        return self.page.locator("#viewer")

    @property
    def hint(self) -> Locator:
        return self.page.locator("#hint")

    def screen(self, x: float, y: float) -> tuple[float, float]:
        """Return where on the screen a point of the picture is."""
        box = self.viewer.bounding_box()
        assert box is not None
        center = self.viewer.get_attribute("data-center")
        resolution = self.viewer.get_attribute("data-resolution")
        assert center is not None
        assert resolution is not None
        middle_x, middle_y = map(float, center.split())
        return (
            box["x"] + box["width"] / 2 + (x - middle_x) / float(resolution),
            box["y"] + box["height"] / 2 + (y - middle_y) / float(resolution),
        )

    def box(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """Draw a box with the mouse, and wait for its mask."""
        mouse = self.page.mouse
        mouse.move(*self.screen(x1, y1))
        mouse.down()
        mouse.move(*self.screen(x2, y2), steps=3)
        with self.page.expect_response("**/sam/"):
            mouse.up()
        self.wait_for_mask()

    def click(self, x: float, y: float, button: Any = "left") -> None:
        """Click a point, and wait for the mask."""
        with self.page.expect_response("**/sam/"):
            self.page.mouse.click(*self.screen(x, y), button=button)
        self.wait_for_mask()

    def hold(self, times: int | None = None) -> list[Route]:
        """Hold the next requests to `/sam/` back, all or so many, and return the list of them."""
        held: list[Route] = []

        def keep(route: Route) -> None:
            held.append(route)

        self.page.route("**/sam/", keep, times=times)
        return held

    def wait_for_mask(self) -> None:
        expect(self.hint).to_contain_text(MASK)

    def keep(self) -> None:
        self.page.click("#keep")

    def count(self) -> int:
        """Return how many objects the list has."""
        return self.page.locator("#items li").count()

    def download(self, button: str, folder: Path) -> Path:
        """Click a button that downloads, and return the file under the name that it has."""
        with self.page.expect_download() as started:
            self.page.click(f"#{button}")
        path = folder / started.value.suggested_filename
        started.value.save_as(path)
        return path

    def geojson(self, folder: Path) -> list[dict[str, Any]]:
        """Download the objects, and return their Features."""
        collection = json.loads(self.download("geojson", folder).read_text())
        assert collection["type"] == "FeatureCollection"
        features: list[dict[str, Any]] = collection["features"]
        return features


def fields_of(request: Request) -> dict[str, Any]:
    """Return the fields of a request: of its JSON, or of the part `request` of its form."""
    content = request.post_data_buffer
    assert content is not None
    if not content.startswith(b"{"):
        content = content.split(b'name="request"\r\n\r\n', 1)[1].split(b"\r\n--", 1)[0]
    fields: dict[str, Any] = json.loads(content)
    return fields
