"""A browser with the page of the shared server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.support.browser import Studio
    from tests.support.servers import Server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for one module. While it is open, its event loop runs in this thread, so that other
    modules could run none."""
    from tests.support.browser import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture
def studio(browser: Browser, server: Server) -> Iterator[Studio]:
    """The page, without a picture. The test fails if the page's own code or policy failed."""
    from tests.support.browser import Studio

    context = browser.new_context(viewport={"width": 1200, "height": 800}, accept_downloads=True)
    studio = Studio(context.new_page(), server.options.url + "/")
    yield studio
    context.close()
    assert studio.faults == []
