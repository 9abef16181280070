"""The dashboard in a real page: live figures, buttons by mouse and by keyboard, both themes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from tests.browser.lab import Book
from tests.browser.screen import unnamed

pytestmark = pytest.mark.cluster

NAME = "seen"


@pytest.fixture(scope="module")
def shown(book: Book) -> Iterator[tuple[Book, int, Locator]]:
    """A dashboard below a cell, with a session that has run a cell."""
    book.ok(f"%%remote --session {NAME} --quiet\nimport time\nx = 1", timeout=120)
    book.ok("import mlcloud\n%mlcloud budget 50/day")
    cell = book.ok("board = mlcloud.show()\nboard")
    yield book, cell, book.outputs(cell).locator(".mlcloud.dashboard")
    book.run("mlcloud.connect().remove_budget()")


def row(board: Locator, name: str = NAME) -> Locator:
    return board.locator("tr", has=board.page.locator(f"th[scope=row]:text-is('{name}')"))


def test_figures_follow_a_cell_within_two_seconds(shown: tuple[Book, int, Locator]) -> None:
    book, _, board = shown
    expect(row(board)).to_contain_text("idle", timeout=20_000)
    before = board.locator("dd").nth(2).inner_text()
    cells = int(re.findall(r"of (\d+)", row(board).inner_text())[0])
    book.ok(f"%%remote --session {NAME} --quiet\nx += 1")
    expect(row(board)).to_contain_text(f"of {cells + 1}", timeout=2_000)
    assert "simulated prices" in board.inner_text()
    assert "of $50/day" in board.inner_text()
    expect(board.locator("dd").nth(2)).not_to_have_text(before, timeout=20_000)


def test_figures_follow_while_a_cell_holds_the_kernel(shown: tuple[Book, int, Locator]) -> None:
    book, _, board = shown
    cell = book.start(f"%%remote --session {NAME} --quiet\ntime.sleep(6)")
    expect(row(board)).to_contain_text("busy", timeout=2_500)
    expect(board.locator(".asof")).to_contain_text("live")
    expect(row(board).get_by_role("button", name=f"Interrupt session {NAME}")).to_be_visible()
    book.ended(cell)
    expect(row(board)).to_contain_text("idle", timeout=2_500)


def test_names_roles_and_contrast(shown: tuple[Book, int, Locator], artefacts: Path) -> None:
    """By hand what axe would check: all that is operable or drawn has a name, text is readable."""
    book, cell, board = shown
    expect(board.get_by_role("img", name=re.compile("^Dollars per hour"))).to_be_visible(
        timeout=20_000
    )
    for theme in ("JupyterLab Light", "JupyterLab Dark"):
        book.theme(theme)
        book.cell(cell).scroll_into_view_if_needed()
        assert unnamed(board) == []
        expect(board.locator("[aria-live=polite]")).to_contain_text("now")
        board.screenshot(path=artefacts / f"dashboard-{theme.split()[1].lower()}.png")
    book.theme("JupyterLab Light")


def test_keyboard_alone_parks_resumes_and_closes(shown: tuple[Book, int, Locator]) -> None:
    book, cell, board = shown
    press = book.page.keyboard.press
    book.cell(cell).scroll_into_view_if_needed()
    book.ok("%%remote --session spare --quiet\ny = 2", timeout=120)
    expect(row(board, "spare")).to_be_visible(timeout=5_000)
    board.locator("[data-range=hour]").focus()
    press("Tab")
    press("Space")  # the day
    expect(board.locator("[data-range=day]")).to_have_attribute("aria-pressed", "true")
    expect(board.get_by_role("img", name=re.compile("last day"))).to_be_visible(timeout=5_000)

    park = row(board, "spare").get_by_role("button", name="Park session spare")
    _tab_to(book, park)
    press("Enter")
    expect(row(board, "spare")).to_contain_text("parked", timeout=30_000)
    expect(board.get_by_role("status")).to_contain_text("spare is parked")
    resume = row(board, "spare").get_by_role("button", name="Resume session spare")
    _tab_to(book, resume)
    press("Space")
    expect(row(board, "spare")).to_contain_text("idle", timeout=120_000)

    ask = row(board, "spare").get_by_role("button", name="Close session spare, asks first")
    _tab_to(book, ask)
    press("Enter")
    keep = row(board, "spare").get_by_role("button", name="Keep session spare")
    expect(keep).to_be_focused()
    press("Escape")
    expect(ask).to_be_focused()
    press("Enter")
    expect(keep).to_be_focused()
    press("Shift+Tab")
    press("Enter")
    expect(row(board, "spare")).to_have_count(0, timeout=30_000)


def _tab_to(book: Book, wanted: Locator) -> None:
    for _ in range(40):
        book.page.keyboard.press("Tab")
        if wanted.evaluate("each => each === document.activeElement"):
            return
    pytest.fail(f"Tab never came to {wanted}")


def test_park_button_parks(shown: tuple[Book, int, Locator]) -> None:
    book, _, board = shown
    row(board).get_by_role("button", name=f"Park session {NAME}").click()
    expect(row(board)).to_contain_text("parked", timeout=30_000)
    told = book.ok(f"print('now', mlcloud.attach({NAME!r}).state)")
    assert "parked" in book.text(told).lower()
    expect(row(board).get_by_role("button", name=f"Park session {NAME}")).to_have_count(0)


def test_a_reload_shows_it_again(shown: tuple[Book, int, Locator]) -> None:
    book, cell, _ = shown
    book.save()
    book.reload()
    board = book.outputs(cell).locator(".mlcloud.dashboard")
    expect(board).to_contain_text("live", timeout=20_000)
    expect(row(board)).to_be_visible()


def test_an_exported_notebook_has_the_figures(shown: tuple[Book, int, Locator]) -> None:
    from nbconvert import HTMLExporter

    book, _, _ = shown
    exported, _ = HTMLExporter().from_notebook_node(book.save())
    assert re.search(r"figures of \d{4}-\d\d-\d\d", exported)
    assert NAME in exported
    assert "simulated prices: nobody is charged" in exported
