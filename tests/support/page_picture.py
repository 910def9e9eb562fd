"""Take the README's picture of the page: `make page-picture`.

It starts a server, opens a sample in the page, finds all objects, and clicks on one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import expect

from samserve_launcher.options import Options, free_ports
from tests.support.browser import Studio, chromium
from tests.support.paths import ROOT
from tests.support.servers import running_server

PICTURE = ROOT / "docs" / "page.jpg"


def main() -> None:
    """Write docs/page.jpg."""
    with tempfile.TemporaryDirectory(prefix="samserve-page-picture-") as folder:
        options = Options(model_store=ROOT / "model_store", run_root=Path(folder))
        with running_server(free_ports(options)) as server, chromium() as browser:
            view = browser.new_page(viewport={"width": 1200, "height": 760}, color_scheme="light")
            studio = Studio(view, server.options.url + "/")
            studio.sample("leaves")
            view.fill("#class-name", "leaf")
            view.press("#class-name", "Enter")
            view.select_option("#density", "16")
            view.click("#automask")
            expect(view.locator("#search-note")).to_contain_text("Found")
            studio.click(100, 90)
            view.mouse.move(5, 5)
            view.wait_for_timeout(500)  # until the animations have ended
            view.screenshot(path=PICTURE, type="jpeg", quality=85)


if __name__ == "__main__":
    main()
