"""The JupyterLab extension on notebooks' cells: toggle, badge, outputs after a reload, whole
notebooks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

import mlcloud
from mlcloud.client.notebook.specs import install
from tests.browser.lab import Book, Lab, Notebook7, chromium, needs_extension
from tests.live import Embedded, printed, until

pytestmark = pytest.mark.cluster

LOADED = "() => window.jupyterapp?.shell.currentWidget?.context?.isReady"
ACTIVE = """number => { const n = window.jupyterapp.shell.currentWidget.content;
  n.deselectAll(); n.activeCellIndex = number; }"""
SOURCE = """number => window.jupyterapp.shell.currentWidget.content.widgets[number]
  .model.sharedModel.getSource()"""
METADATA = """number => window.jupyterapp.shell.currentWidget.content.widgets[number]
  .model.getMetadata('mlcloud') ?? null"""


@pytest.fixture(scope="module")
def extended(cluster: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    chromium()
    needs_extension()
    folder = tmp_path_factory.mktemp("cells")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_DATA_DIR", str(folder / "data"))
        install(user=True)
    lab = Lab(folder, cluster.environment)
    try:
        yield lab
    finally:
        lab.close()


def facts(book: Book, number: int) -> dict[str, Any]:
    return book.page.evaluate(METADATA, number) or {}


def badge(book: Book, number: int) -> Any:
    return book.cell(number).locator(".mlcloud-Badge")


def activate(book: Book, number: int) -> None:
    book.page.evaluate(ACTIVE, number)


@pytest.mark.slow
def test_toggle_and_badge(extended: Lab, page: Page, artefacts: Path) -> None:
    book = Book(extended, page, "toggle.ipynb", ["x = 20", "print('there', x)\nx + 1", "1 / 0"])
    button = page.locator(".mlcloud-RemoteButton button, button.mlcloud-RemoteButton").first
    activate(book, 1)
    button.click()
    assert page.evaluate(SOURCE, 1) == "%%remote\nprint('there', x)\nx + 1"
    # The options that were taken away come again, and on other cells too.
    page.evaluate(
        "() => window.jupyterapp.shell.currentWidget.content.widgets[1].model.sharedModel"
        ".setSource('%%remote --session toggled --cpus 1\\nprint(\\'there\\', x)\\nx + 1')"
    )
    button.click()
    assert page.evaluate(SOURCE, 1) == "print('there', x)\nx + 1"
    button.click()
    assert page.evaluate(SOURCE, 1).startswith("%%remote --session toggled --cpus 1\n")
    activate(book, 2)
    book.command("mlcloud:toggle-remote")
    assert page.evaluate(SOURCE, 2) == "%%remote --session toggled --cpus 1\n1 / 0"
    page.screenshot(path=artefacts / "cells-toggle.png")

    # `%load_ext` is not needed.
    book.ok(0)
    book.ok(1, timeout=240)
    assert "there 20" in book.text(1)
    expect(badge(book, 1)).to_contain_text("local.cpu2 ·")
    expect(badge(book, 1)).to_contain_text("$")
    book.run(2)
    book.shows(2, "ZeroDivisionError")
    expect(badge(book, 2)).to_have_attribute("data-state", "error")
    assert facts(book, 1)["session"] == "toggled"
    expect(badge(book, 0)).to_have_count(0)
    page.screenshot(path=artefacts / "cells-badges.png")

    saved = book.save()
    assert saved.cells[1].metadata["mlcloud"]["usd"] == facts(book, 1)["usd"]
    assert saved.cells[1].metadata["mlcloud"]["state"] == "ok"
    assert "mlcloud" not in saved.cells[0].metadata
    book.reload()
    expect(badge(book, 1)).to_contain_text("local.cpu2 ·")
    book.command("mlcloud:notebook-cost")
    expect(page.get_by_text("2 remote cells:")).to_be_visible()
    page.screenshot(path=artefacts / "cells-cost.png")
    book.command("mlcloud:strip-facts")
    expect(badge(book, 1)).to_have_count(0)


def test_reload_while_it_runs(
    extended: Lab, page: Page, artefacts: Path, cluster: Embedded, tmp_path: Path
) -> None:
    """What the page missed is there again, and what comes goes on, to the end."""
    cluster.connect()
    gate = tmp_path / "gate"
    book = Book(
        extended,
        page,
        "reload.ipynb",
        [
            "%load_ext mlcloud",
            "%%remote --session reloaded\nimport time, pathlib\nfor i in range(5):\n"
            "    print('step', i)\n    time.sleep(0.1)\ndisplay('shown')\n"
            f"while not pathlib.Path({str(gate)!r}).exists():\n    time.sleep(0.05)\n"
            "print('after the gate')\n'the end'",
        ],
    )
    book.ok(0)
    book.save()
    book.start(1)
    book.shows(1, "shown", timeout=240)
    expect(badge(book, 1)).to_have_text("running in reloaded")
    page.goto(f"{extended.url}/{extended.tree}/{book.name}?token={extended.token}&reset")
    page.wait_for_function(LOADED, timeout=120_000)
    text = book.shows(1, "shown")
    assert [f"step {i}" in text for i in range(5)] == [True] * 5
    assert book.prompt(1) == "*"
    expect(badge(book, 1)).to_have_text("running in reloaded")
    page.screenshot(path=artefacts / "cells-reloaded.png")
    gate.touch()
    book.shows(1, "the end")
    assert "after the gate" in book.text(1)
    book.ended(1)
    assert book.text(1).count("step 3") == 1
    expect(badge(book, 1)).to_contain_text("$")
    page.screenshot(path=artefacts / "cells-rebuilt.png")

    # It ended while nobody looked; and what was cleared comes back on command.
    gate.unlink()
    book.save()
    session = mlcloud.attach("reloaded")
    after = session.info.last_event
    book.start(1)
    until(lambda: "step 4" in printed(session, after), "it runs again")
    page.goto("about:blank")
    gate.touch()
    until(lambda: session.state == "idle", "it has ended")
    book.open()
    book.shows(1, "after the gate")
    book.ended(1)
    book.command("notebook:clear-cell-output")
    book.command("notebook:clear-all-cell-outputs")
    assert "after the gate" not in book.text(1)
    book.command("mlcloud:rebuild-outputs")
    book.shows(1, "the end")
    session.close()


@pytest.mark.slow
def test_a_whole_notebook(extended: Lab, page: Page, artefacts: Path, cluster: Embedded) -> None:
    """The kernel in JupyterLab: badges, a widget, shut down and reopened."""
    pytest.importorskip("ipywidgets")
    cluster.connect()
    book = Book(
        extended,
        page,
        "whole.ipynb",
        [
            "import ipywidgets\nx = 41",
            "slider = ipywidgets.IntSlider(3)\nout = ipywidgets.Output()\n"
            "slider.observe(lambda change: print('moved to', change.new), 'value')\nslider",
            "x + 1",
        ],
        kernel="mlcloud",
    )
    book.ok(0, timeout=240)
    book.ok(1)
    book.ok(2)
    assert "42" in book.text(2)
    expect(badge(book, 2)).to_contain_text("local.cpu2 ·")
    button = page.locator(".mlcloud-RemoteButton button, button.mlcloud-RemoteButton").first
    expect(button).to_be_disabled()
    slider = book.cell(1).locator(".widget-slider, .jupyter-widget-hslider").first
    book.drag(slider, 0.9)
    book.until(lambda: int(slider.inner_text() or 0) > 50, "the slider has moved")
    page.screenshot(path=artefacts / "cells-whole.png")
    book.run("slider.value > 50")
    assert "True" in book.text(3)
    book.save()
    extended.end_kernels()  # the session is parked
    (session,) = [each for each in mlcloud.sessions() if each.name.startswith("whole-")]
    assert session.state.value == "parked"
    book.reload()
    book.run(2, timeout=120)
    assert "42" in book.text(2)
    mlcloud.attach(session.name).close()


@pytest.mark.slow
def test_launcher(extended: Lab, page: Page, artefacts: Path) -> None:
    Book(extended, page, "any.ipynb", ["1"])
    page.evaluate("() => window.jupyterapp.commands.execute('launcher:create')")
    card = page.locator(".jp-LauncherCard[data-category='Notebook']", has_text="Remote cells")
    expect(card).to_be_visible()
    page.screenshot(path=artefacts / "cells-launcher.png")
    card.click()
    page.wait_for_function(
        "() => window.jupyterapp.shell.currentWidget?.content?.widgets?.length === 2"
    )
    assert page.evaluate(SOURCE, 0) == "%load_ext mlcloud"
    assert page.evaluate(SOURCE, 1) == "%%remote\n"
    extended.end_kernels()


@pytest.mark.slow
def test_notebook7(
    cluster: Embedded,
    page: Page,
    artefacts: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The toggle, the badge and the outputs after a reload, there too."""
    pytest.importorskip("notebook")
    needs_extension()
    lab = Notebook7(tmp_path_factory.mktemp("cells7"), cluster.environment)
    gate = tmp_path / "gate"
    wait = f"while not pathlib.Path({str(gate)!r}).exists():\n    time.sleep(0.05)"
    code = f"import time, pathlib\nprint('before')\n{wait}\nprint('after')"
    try:
        book = Book(lab, page, "seven.ipynb", ["%%remote --session seven-cells\n1", code])
        book.ok(0, timeout=240)
        activate(book, 1)
        page.locator(".mlcloud-RemoteButton button, button.mlcloud-RemoteButton").first.click()
        assert page.evaluate(SOURCE, 1) == f"%%remote --session seven-cells\n{code}"
        book.save()
        book.start(1)
        book.shows(1, "before", timeout=60)
        page.goto(f"{lab.url}/{lab.tree}/{book.name}?token={lab.token}&reset")
        page.wait_for_function(LOADED, timeout=120_000)
        book.shows(1, "before")
        gate.touch()
        book.shows(1, "after")
        book.ended(1)
        expect(badge(book, 1)).to_contain_text("local.cpu2 ·")
        page.screenshot(path=artefacts / "cells-notebook7.png")
        mlcloud.attach("seven-cells").close()
    finally:
        lab.close()
