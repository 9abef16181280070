"""Behind JupyterHub: its login, its proxy, its base URL, and a server that knows no token."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.browser.hub import Hub
from tests.browser.lab import Book, chromium, needs_extension
from tests.live import Embedded

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
LOADED = "() => window.jupyterapp?.shell.currentWidget?.context?.isReady"


@pytest.fixture(scope="module")
def hub(cluster: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    chromium()
    needs_extension()
    made = Hub(tmp_path_factory.mktemp("hub"), cluster.environment)
    try:
        yield made
    finally:
        made.close()


def test_panel_status_bar_and_rebuilt_outputs(
    hub: Hub, page: Page, artefacts: Path, cluster: Embedded, tmp_path: Path
) -> None:
    cluster.connect()
    gate = tmp_path / "gate"
    asked: list[str] = []
    page.on("request", lambda each: asked.append(each.url))
    page.on("websocket", lambda each: asked.append(each.url))
    hub.log_in(page)
    book = Book(
        hub,
        page,
        "hub.ipynb",
        [
            "%load_ext mlcloud",
            "%%remote --session hubbed\nimport time, pathlib\nprint('before')\n"
            f"while not pathlib.Path({str(gate)!r}).exists():\n    time.sleep(0.05)\n"
            "print('after the gate')\n'the end'",
        ],
    )
    book.ok(0)
    book.save()
    book.start(1)
    book.shows(1, "before", timeout=240)

    status = page.locator(".mlcloud-status-button")
    expect(status).to_have_text(re.compile(r"^\$[\d.]+/h · [<$][\d$.]+ today$"), timeout=20_000)
    status.click()
    panel = page.locator(".mlcloud-panel")
    row = panel.locator(".mlcloud-session", has_text="hubbed")
    expect(row).to_contain_text("busy", timeout=20_000)
    page.screenshot(path=artefacts / "panel-jupyterhub.png")

    page.goto(f"{hub.url}/{hub.tree}/{book.name}?reset")
    page.wait_for_function(LOADED, timeout=120_000)
    book.shows(1, "before")
    assert book.prompt(1) == "*"
    gate.touch()
    book.shows(1, "the end")
    assert "after the gate" in book.text(1)
    book.ended(1)
    expect(book.cell(1).locator(".mlcloud-Badge")).to_contain_text("$")

    status.click()
    expect(row).to_contain_text("idle", timeout=20_000)
    row.hover()
    row.get_by_role("button", name="Park hubbed").click()  # a POST, so with XSRF
    expect(row).to_contain_text("parked", timeout=60_000)
    ours = [each for each in asked if re.search("/mlcloud/(clusters|events|outputs)", each)]
    assert len(ours) >= 3
    outside = [each for each in ours if "/science/user/ada/mlcloud/" not in each]
    assert outside == []
    token = cluster.connection["token"]
    assert not [each for each in asked if token in each]


def test_nobody_else_sees_it(hub: Hub) -> None:
    """Without the Hub's cookie, its user's server sends one away."""
    for path in ("clusters", "clusters/embedded/v1/cluster"):
        refused = httpx.get(f"{hub.url}/mlcloud/{path}", trust_env=False)
        assert refused.status_code == 403
