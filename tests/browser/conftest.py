"""One JupyterLab and one Chromium for all browser tests of a worker, and a warm notebook in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live import Embedded

pytest.importorskip("playwright.sync_api")

from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.lab import CHROMIUM_FLAGS, Book, Lab, chromium


@pytest.fixture(scope="session")
def lab(cluster: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A JupyterLab whose kernels find this cluster."""
    chromium()  # before the wait for a server that nothing would look at
    lab = Lab(tmp_path_factory.mktemp("lab"), cluster.environment)
    try:
        yield lab
    finally:
        lab.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Not for the session: while Playwright runs, asyncio takes this thread for a loop's."""
    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser: Browser) -> Page:
    return browser.new_page(viewport={"width": 1100, "height": 900})


@pytest.fixture
def open_book(
    lab: Lab, page: Page, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Book]]:
    """Opens notebooks of the test's own, with kernels of their own, ended with the test."""

    def make(*cells: str, name: str = "") -> Book:
        title = "".join(c if c.isalnum() else "-" for c in name or request.node.name)
        return Book(lab, page, f"{title}.ipynb", list(cells))

    yield make
    lab.end_kernels()


@pytest.fixture(scope="module")
def book(lab: Lab, page: Page) -> Iterator[Book]:
    """One notebook with a session that is up; tests append their cells."""
    book = Book(lab, page, "shared.ipynb", ["%load_ext mlcloud", "%%remote\nimport ipywidgets"])
    book.ok(0)
    book.ok(1, timeout=280)
    yield book
    book.run("import mlcloud\nfor s in mlcloud.sessions(): mlcloud.attach(s.name).close()")
    lab.end_kernels()


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots are kept: `MLCLOUD_SCREENSHOTS`, else pytest's own temporary folder."""
    named = os.environ.get("MLCLOUD_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
