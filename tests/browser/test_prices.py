"""The price explorer in a real page: filters, order, plot, keyboard, both themes, export."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from tests.browser.lab import Book
from tests.browser.screen import unnamed

pytestmark = pytest.mark.cluster  # by the conftest's server


@pytest.fixture(scope="module")
def shown(lab: object, page: object) -> Iterator[tuple[Book, int, Locator]]:
    book = Book(lab, page, "prices.ipynb", ["import mlcloud\nmlcloud.show('prices', gpu='a100')"])  # type: ignore[arg-type]
    book.ok(0)
    yield book, 0, book.outputs(0).locator(".mlcloud.prices")
    lab.end_kernels()  # type: ignore[attr-defined]


def _column(board: Locator, number: int) -> list[str]:
    return board.locator(f"tbody tr > :nth-child({number})").all_inner_texts()


def test_filters_leave_what_fits(shown: tuple[Book, int, Locator]) -> None:
    _, _, board = shown
    expect(board.get_by_label("GPU", exact=True)).to_have_value("A100")
    assert all("A100" in each for each in _column(board, 3))
    board.get_by_label("Market", exact=True).select_option("spot")
    assert set(_column(board, 6)) == {"spot"}
    board.get_by_label("Cloud", exact=True).select_option("gcp")
    assert set(_column(board, 7)) == {"gcp"}
    regions = board.get_by_label("Region", exact=True).locator("option").all_inner_texts()
    assert "us-east-1" not in regions  # Amazon's
    board.get_by_label("Cloud", exact=True).select_option("")
    board.get_by_label("Market", exact=True).select_option("")


def test_order_by_keyboard(shown: tuple[Book, int, Locator]) -> None:
    book, _, board = shown
    prices = [float(each.strip("~$").replace(",", "")) for each in _column(board, 1)]
    assert prices == sorted(prices)
    head = board.locator("th", has_text="$/h")
    expect(head).to_have_attribute("aria-sort", "ascending")
    head.locator("button").focus()
    book.page.keyboard.press("Enter")
    expect(head).to_have_attribute("aria-sort", "descending")
    prices = [float(each.strip("~$").replace(",", "")) for each in _column(board, 1)]
    assert prices == sorted(prices, reverse=True)
    book.page.keyboard.press("Space")
    expect(head).to_have_attribute("aria-sort", "ascending")


def test_plot_names_and_themes(shown: tuple[Book, int, Locator], artefacts: Path) -> None:
    book, cell, board = shown
    board.get_by_label("GPU", exact=True).select_option("")
    expect(board.get_by_role("img", name=re.compile("Dollars per hour"))).to_be_visible()
    book.page.set_viewport_size({"width": 1100, "height": 1700})
    height = "() => document.querySelector('.jp-NotebookPanel').clientHeight > 1400"
    book.page.wait_for_function(height)
    for theme in ("JupyterLab Light", "JupyterLab Dark"):
        book.theme(theme)
        book.cell(cell).scroll_into_view_if_needed()
        assert unnamed(board) == []
        board.screenshot(path=artefacts / f"prices-{theme.split()[1].lower()}.png")
    book.theme("JupyterLab Light")
    book.page.set_viewport_size({"width": 1100, "height": 900})
    board.get_by_label("per GPU").check()
    expect(board.get_by_role("img", name=re.compile("Dollars per GPU-hour"))).to_be_visible()


def test_an_exported_notebook_has_the_cheapest(shown: tuple[Book, int, Locator]) -> None:
    from nbconvert import HTMLExporter

    book, _, _ = shown
    exported, _ = HTMLExporter().from_notebook_node(book.save())
    assert "prices of" in exported
    assert "A100" in exported
