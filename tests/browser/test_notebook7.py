"""Notebook 7: the same widgets, live and operable there too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

pytest.importorskip("notebook")

import notebook

from tests.browser.lab import EXTENSION, Book, Notebook7, chromium
from tests.browser.screen import unnamed
from tests.live import Embedded

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def seven(cluster: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook7]:
    chromium()
    environment = cluster.environment
    # Installed beside the environment that runs the tests: its page's parts are found so.
    beside = Path(notebook.__file__).parents[1] / "share" / "jupyter"
    if beside.is_dir():
        environment["JUPYTER_PATH"] = str(beside)
    lab = Notebook7(tmp_path_factory.mktemp("seven"), environment)
    try:
        yield lab
    finally:
        lab.close()


def test_dashboard_prices_and_progress(seven: Notebook7, page: Page, artefacts: Path) -> None:
    book = Book(
        seven,
        page,
        "seven.ipynb",
        [
            "import mlcloud, time\n%load_ext mlcloud",
            "%%remote --session seven --quiet\nx = 1",
            "mlcloud.show()",
            "%%remote --session seven --quiet\n"
            "for i in mlcloud.progress(range(3)):\n    time.sleep(0.2)",
            "mlcloud.show('prices', gpu='H100')",
        ],
    )
    book.ok(0)
    book.ok(1, timeout=240)
    book.ok(2)
    board = book.outputs(2).locator(".mlcloud.dashboard")
    session = board.locator("tr", has=page.locator("th[scope=row]:text-is('seven')"))
    expect(session).to_contain_text("of 1", timeout=10_000)
    book.ok(3)
    expect(session).to_contain_text("of 2", timeout=2_000)
    assert "step 3 of 3" in book.text(3)
    book.ok(4)
    prices = book.outputs(4).locator(".mlcloud.prices")
    expect(prices.get_by_label("GPU", exact=True)).to_have_value("H100", timeout=10_000)
    prices.screenshot(path=artefacts / "prices-notebook7.png")
    book.cell(2).scroll_into_view_if_needed()
    assert unnamed(board) == []
    board.screenshot(path=artefacts / "dashboard-notebook7.png")
    park = session.get_by_role("button", name="Park session seven")
    park.focus()
    page.keyboard.press("Enter")
    expect(session).to_contain_text("parked", timeout=30_000)

    if (EXTENSION / "package.json").exists():
        page.evaluate("window.jupyterapp.commands.execute('mlcloud:open')")
        panel = page.locator(".mlcloud-panel")
        row = panel.locator(".mlcloud-session", has_text="seven")
        expect(row).to_contain_text("parked", timeout=20_000)
        panel.screenshot(path=artefacts / "panel-notebook7.png")
        row.hover()
        row.get_by_role("button", name="Resume seven").click()
        expect(row).to_contain_text("idle", timeout=120_000)
    book.run("mlcloud.attach('seven').close()")
