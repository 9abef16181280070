"""A loop's progress in a real page: in a remote cell with its cost, after a reload, in a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.lab import Book
from tests.browser.screen import unnamed

pytestmark = pytest.mark.cluster

LOOP = """%%remote --quiet
import mlcloud, time
for epoch in mlcloud.progress(range(12), metric="loss", name="epoch"):
    time.sleep(0.4)
    loss = 1 / (epoch + 1)
"""


def test_two_prices_in_a_line_are_no_formula(book: Book) -> None:
    """JupyterLab takes what stands between two dollar signs for mathematics."""
    line = "$0.0011 · saved $0.0024 vs on-demand"
    cell = book.ok(
        "from IPython.display import HTML\nfrom mlcloud.widgets.tables import escaped\n"
        f"HTML('<div>' + escaped({line!r}) + '</div><p>' + {line!r} + '</p>')"
    )
    book.until(lambda: book.outputs(cell).locator("p mjx-container").count() == 1, "it is typeset")
    assert book.outputs(cell).locator("div > span").first.locator("xpath=..").inner_text() == line


def test_a_remote_loop(book: Book, artefacts: Path) -> None:
    cell = book.start(LOOP)
    text = book.shows(cell, re.compile(r"epoch [2-9] of 12"), timeout=60)
    assert re.search(r"\$0\.0\d* of about|<\$0\.0001 of about", text), text
    assert "(simulated)" in text
    output = book.outputs(cell).first
    expect(output.get_by_role("progressbar")).to_be_visible()
    expect(output.get_by_role("img", name=re.compile("loss from 1 "))).to_be_visible()
    output.screenshot(path=artefacts / "progress-light.png")
    book.ended(cell)
    assert "epoch 12 of 12" in book.shows(cell, "loss 0.08333")
    assert book.outputs(cell).count() == 1
    book.theme("JupyterLab Dark")
    output.screenshot(path=artefacts / "progress-dark.png")
    book.theme("JupyterLab Light")
    book.save()
    book.reload()
    assert "epoch 12 of 12" in book.shows(cell, "loss 0.08333")
    assert unnamed(book.outputs(cell).first) == []
