"""The panel and the status bar in JupyterLab, with a real cluster: what is seen, and what a mouse
or a keyboard alone does to it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from mlcloud import Budget
from mlcloud.client.session import Session
from tests.browser.lab import Book, Lab, needs_extension
from tests.browser.screen import unnamed
from tests.live import Embedded

pytestmark = pytest.mark.cluster
NAME = "panelled"


@pytest.fixture(scope="module")
def session(lab: Lab, cluster: Embedded) -> Iterator[Session]:
    needs_extension()
    made = cluster.connect().session(NAME, namespace={})
    made.run("weights = list(range(10_000))")
    yield made
    cluster.connect().remove_budget()
    made.close()


@pytest.fixture(scope="module")
def panel(session: Session, lab: Lab, page: Page) -> Locator:
    """Opened by a click into the status bar, beside a notebook."""
    Book(lab, page, "panelled.ipynb", ["1"])
    return open_panel(page)


def open_panel(page: Page) -> Locator:
    status(page).click()
    panel = page.locator(".mlcloud-panel")
    expect(row(panel)).to_be_visible(timeout=20_000)
    return panel


def status(page: Page) -> Locator:
    return page.locator(".mlcloud-status-button")


def row(panel: Locator, name: str = NAME) -> Locator:
    return panel.locator(".mlcloud-session", has=panel.page.get_by_text(name, exact=True))


def press(row: Locator, name: str) -> None:
    row.hover()
    row.get_by_role("button", name=name).click()


def opened(row: Locator, yes: bool = True) -> None:
    """Its details are shown, or not, whatever was before."""
    if row.get_attribute("aria-expanded") != str(yes).lower():
        row.locator(".mlcloud-name, .mlcloud-title").click()
    expect(row).to_have_attribute("aria-expanded", str(yes).lower())


def toast(page: Page, text: str) -> Locator:
    return page.locator(".Toastify__toast", has_text=text)


def test_what_runs_and_what_it_costs(panel: Locator, session: Session, artefacts: Path) -> None:
    page = panel.page
    expect(status(page)).to_have_text(re.compile(r"^\$[\d.]+/h · [<$][\d$.]+ today$"))
    expect(row(panel)).to_contain_text("idle", timeout=10_000)
    node = panel.locator(".mlcloud-node").first
    expect(node).to_contain_text("local-")
    expect(node).to_contain_text("$")
    running = threading.Thread(target=session.run, args=("import time; time.sleep(4)",))
    running.start()
    expect(row(panel)).to_contain_text("busy", timeout=3_000)
    press(row(panel), f"Interrupt {NAME}")
    running.join(15)
    assert not running.is_alive()
    expect(row(panel)).to_contain_text("idle", timeout=5_000)


def test_variables_snapshots_and_a_log_that_grows(panel: Locator, session: Session) -> None:
    opened(row(panel))
    details = panel.locator(".mlcloud-detail")
    expect(details.filter(has_text="weights").first).to_contain_text("saved", timeout=20_000)
    expect(details.filter(has_text="snapshot").first).to_be_visible(timeout=10_000)
    session.run("print('first line')")
    panel.get_by_role("button", name=f"Show the log of {NAME}").click()
    log = panel.get_by_role("log")
    expect(log).to_contain_text("first line", timeout=10_000)
    session.run("for i in range(3000): print('line', i)")
    expect(log).to_contain_text("line 2999", timeout=10_000)
    assert log.locator(".mlcloud-log-lines > div").count() < 100
    panel.get_by_role("button", name="Close the log").click()
    opened(row(panel), False)
    expect(details).to_have_count(0)


def test_pictures_names_and_contrast(panel: Locator, artefacts: Path) -> None:
    page = panel.page
    opened(row(panel))
    details = panel.locator(".mlcloud-detail", has_text="weights")
    expect(details.first).to_be_visible(timeout=20_000)
    for theme in ("Light", "Dark"):
        page.evaluate(
            "name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})",
            f"JupyterLab {theme}",
        )
        expect(page.locator("body")).to_have_attribute(
            "data-jp-theme-name", f"JupyterLab {theme}", timeout=20_000
        )
        row(panel).hover()
        assert unnamed(panel) == []
        page.screenshot(path=artefacts / f"panel-{theme.lower()}.png")
        page.locator("#jp-main-statusbar").screenshot(
            path=artefacts / f"status-{theme.lower()}.png"
        )
    page.evaluate(
        "window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})"
    )
    opened(row(panel), False)


def test_training_checkpoints(panel: Locator, session: Session) -> None:
    """Read when they are looked at, and again while a loop goes on saving."""
    group = panel.locator(".mlcloud-group", has_text="Checkpoints")
    opened(group)
    session.run(
        "import mlcloud\nstate = {'at': 0, 'frozen': bytes(50_000)}\n"
        "for at in mlcloud.resumable(range(3), state=state, every=1):\n    state['at'] = at"
    )
    series = panel.locator(".mlcloud-series", has_text=NAME)
    expect(series).to_contain_text("step 3", timeout=20_000)
    expect(series).to_contain_text("of a session")
    opened(series)
    end = panel.locator(".mlcloud-detail", has_text="step 3")
    expect(end).to_contain_text(re.compile(r"the end50 KB, \d+ B new|the end50 KB, [\d.]+ KB new"))
    opened(series, False)
    opened(group, False)
    expect(series).to_have_count(0)


def test_a_file_beside_the_notebook(panel: Locator, lab: Lab) -> None:
    """It is shown as it is written, with its price or its problems; nothing is begun unasked."""
    page = panel.page
    save = """text => window.jupyterapp.serviceManager.contents.save('cluster.yaml',
      {type: 'file', format: 'text', content: text})"""
    page.evaluate(save, "name: gpus\ncloud: aws\nreigons: [eu-central-1]\n")
    file = panel.locator(".mlcloud-file", has_text="cluster.yaml")
    expect(file).to_contain_text(re.compile("problems?$"), timeout=10_000)
    assert file.get_by_role("button").count() == 0
    opened(file)
    said = panel.locator(".mlcloud-note.bad", has_text="reigons")
    expect(said).to_contain_text("line 3, reigons: no such field; did you mean 'regions'?")
    page.evaluate(
        save,
        "name: gpus\ncloud: aws\nregions: [eu-central-1]\nstore: s3://bucket/x\nbudget: 50/day\n"
        "nodes:\n  - gpu: A10G:1\n    max: 4\n",
    )
    expect(file).to_contain_text("gpus on aws", timeout=10_000)
    expect(file).to_contain_text(re.compile(r"from \$[\d.]+/h"))
    expect(file).to_contain_text("at most 4 nodes · budget $50/day")
    expect(panel.locator(".mlcloud-detail", has_text="a10g-1")).to_contain_text(
        "spot in eu-central"
    )
    press(file, "Bring gpus up as cluster.yaml says, asks first")
    asked = page.locator(".jp-Dialog")
    expect(asked).to_contain_text("Bring gpus up on aws?")
    expect(asked).to_contain_text(re.compile(r"a10g-1: 0 to 4 nodes, \$[\d.]+/h each \(g5"))
    expect(asked).to_contain_text(re.compile(r"Bills while the cluster is up: the head \$[\d.]+/h"))
    page.keyboard.press("Escape")
    expect(asked).to_have_count(0)
    expect(panel.locator(".mlcloud-cluster")).to_have_count(1)
    page.evaluate("window.jupyterapp.serviceManager.contents.delete('cluster.yaml')")
    expect(file).to_have_count(0, timeout=10_000)


def test_a_file_changes_the_cluster_that_runs(panel: Locator, cluster: Embedded) -> None:
    page = panel.page
    path = "window.jupyterapp.serviceManager.contents"
    content = f"{cluster.connect().cluster.to_yaml()}\nbudget: 40/day\n"
    page.evaluate(
        f"text => {path}.save('cluster.yaml', {{type: 'file', format: 'text', content: text}})",
        content,
    )
    file = panel.locator(".mlcloud-file", has_text="cluster.yaml")
    expect(file).to_contain_text("runs, 1 change", timeout=10_000)
    press(file, "Let embedded be as cluster.yaml says, asks first")
    expect(page.locator(".jp-Dialog")).to_contain_text("budget: – → 40/day (applied in place)")
    page.locator(".jp-Dialog .jp-mod-accept").click()
    expect(status(page)).to_have_text(re.compile(r"today of \$40$"), timeout=20_000)
    expect(row(panel)).to_contain_text("idle", timeout=20_000)
    assert "A10G:1" in cluster.connect().cluster.status().info.offers, "as it was, but for that"
    cluster.connect().remove_budget()
    page.evaluate(f"{path}.delete('cluster.yaml')")
    expect(file).to_have_count(0, timeout=10_000)


def test_keyboard_alone_parks_and_resumes(panel: Locator) -> None:
    page = panel.page
    opened(row(panel), False)
    page.evaluate("window.jupyterapp.commands.execute('mlcloud:open')")
    expect(panel.locator("[role=treeitem]:focus")).to_have_count(1)
    page.keyboard.press("Home")
    for _ in range(20):
        if row(panel).evaluate("each => each === document.activeElement"):
            break
        page.keyboard.press("ArrowDown")
    expect(row(panel)).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(row(panel)).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowLeft")
    expect(row(panel)).to_have_attribute("aria-expanded", "false")
    page.keyboard.press("Tab")
    expect(row(panel).get_by_role("button", name=f"Park {NAME}")).to_be_focused()
    page.keyboard.press("Enter")
    expect(row(panel)).to_contain_text("parked", timeout=30_000)
    expect(toast(page, f"{NAME} is parked")).to_be_visible(timeout=5_000)
    expect(row(panel).get_by_role("button", name=f"Resume {NAME}")).to_be_focused()
    page.keyboard.press("Space")
    expect(row(panel)).to_contain_text("idle", timeout=120_000)


def test_a_budget_is_set_and_stops_what_runs(
    panel: Locator, session: Session, cluster: Embedded
) -> None:
    page = panel.page
    panel.get_by_role("button", name="Set the budget of embedded").click()
    page.locator(".jp-Dialog input").fill("20/day")
    page.locator(".jp-Dialog .jp-mod-accept").click()
    expect(status(page)).to_have_text(re.compile(r"today of \$20$"), timeout=10_000)
    meter = panel.get_by_role("meter", name="Spent of the budget of embedded")
    expect(meter).to_have_attribute("aria-valuenow", "0")
    client = cluster.connect()
    spent = client.budgets()[0].spent_usd
    client.set_budget(Budget(f"{spent / 2:.7f}/day"))
    expect(status(page)).to_have_class(re.compile("bad"), timeout=10_000)
    expect(toast(page, f"{NAME} is stopped")).to_be_visible(timeout=30_000)
    expect(row(panel)).to_contain_text("parked", timeout=10_000)
    client.remove_budget()
    expect(status(page)).not_to_have_class(re.compile("bad|warn"), timeout=10_000)
    session.resume()
    expect(row(panel)).to_contain_text("idle", timeout=60_000)


def test_attach_shows_the_session_in_the_notebook(panel: Locator, session: Session) -> None:
    session.run("print('seen from the notebook')")
    press(row(panel), f"Attach {NAME}")
    notebook = panel.page.locator(".jp-Notebook")
    expect(notebook).to_contain_text("seen from the notebook", timeout=60_000)


def test_two_windows_press_at_once(panel: Locator, lab: Lab, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    try:
        page.goto(f"{lab.url}/lab/workspaces/second?token={lab.token}&reset")
        expect(status(page)).to_be_visible(timeout=60_000)
        second = open_panel(page)
        expect(row(second)).to_contain_text("idle", timeout=120_000)
        for each in (panel, second):
            row(each).hover()
        for each in (panel, second):
            row(each).get_by_role("button", name=f"Park {NAME}").click(no_wait_after=True)
        for each in (panel, second):
            expect(row(each)).to_contain_text("parked", timeout=30_000)
    finally:
        page.close()
    press(row(panel), f"Resume {NAME}")
    expect(row(panel)).to_contain_text("idle", timeout=120_000)


def test_an_error_of_ten_megabytes(panel: Locator, session: Session) -> None:
    page = panel.page
    with pytest.raises(Exception, match="xxx"):
        session.run("print('before'); raise ValueError('x' * 10_000_000)")
    opened(row(panel))
    panel.get_by_role("button", name=f"Show the log of {NAME}").click()
    expect(panel.get_by_role("log")).to_contain_text("before", timeout=20_000)
    opened(row(panel), False)
    panel.get_by_role("button", name="Close the log").click()
    assert len(page.locator(".mlcloud-panel").inner_text()) < 5000


def test_a_drill_moves_the_session(panel: Locator, session: Session) -> None:
    page = panel.page
    node = panel.locator(".mlcloud-node", has_text=NAME)
    press(node, "a drill, asks first")
    page.locator(".jp-Dialog .jp-mod-accept").click()
    expect(panel.locator(".mlcloud-node .mlcloud-badge").first).to_contain_text(
        re.compile(r"goes in [12]:\d\d"), timeout=10_000
    )
    expect(toast(page, f"{NAME} moves")).to_be_visible(timeout=20_000)
    expect(toast(page, f"{NAME} is on local")).to_be_visible(timeout=120_000)


def test_the_gateway_is_killed_and_brought_up_from_here(panel: Locator, cluster: Embedded) -> None:
    page = panel.page
    cluster.kill_gateway()
    up = panel.get_by_role("button", name="Bring embedded up")
    expect(up).to_be_visible(timeout=10_000)
    expect(row(panel)).to_have_count(0)
    expect(status(page)).to_have_text("$0/h")
    up.click()
    expect(row(panel)).to_be_visible(timeout=60_000)
    expect(row(panel)).to_contain_text(re.compile("idle|parked"), timeout=60_000)
