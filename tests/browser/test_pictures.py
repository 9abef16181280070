"""The README's pictures, made of a real cluster: `make pictures` puts them into `docs/`.

A training on a spot GPU whose loop saves, a job beside it, a budget; the panel with the status bar,
the dashboard widget; each in JupyterLab's light and its dark theme. As PNG of 8 bits.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from mlcloud import Budget
from tests.browser.lab import Book, Lab, chromium, needs_extension
from tests.browser.screen import unnamed
from tests.live import Embedded

Image = pytest.importorskip("PIL.Image")

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
MOST_BYTES = 150_000
COLOURS = 128
TRAINING = """\
%%remote --session train --gpu A10G:1 --spot
import time, mlcloud, numpy as np

state = {"frozen": np.ones(12_000_000), "head": np.zeros(60_000), "loss": []}
for step in mlcloud.resumable(range(40), state=state, every=10):
    state["head"] += 0.1
    state["loss"].append(1 / (1 + step))
    time.sleep(0.05)
print(f"loss after {step + 1} steps: {state['loss'][-1]:.4f}")"""
PLOT = """\
%%remote --session train
import matplotlib.pyplot as plt
plt.figure(figsize=(5.2, 2.1))
plt.plot(state["loss"], lw=2)
plt.ylabel("loss")
plt.show()"""
JOB = """\
import mlcloud

@mlcloud.remote(cpus=1)
def evaluate(seed):
    import time
    time.sleep(2)
    return seed

jobs = evaluate.map(range(60))"""
CLUSTER = """\
name: gpus
cloud: aws
regions: [eu-central-1]
store: s3://our-bucket/mlcloud
budget: 50/day
nodes:
  - gpu: A10G:1
    max: 4
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("MLCLOUD_PICTURES")
    folder = Path(named) if named else tmp_path_factory.mktemp("pictures")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    made = browser.new_page(viewport={"width": 1280, "height": 800}, device_scale_factor=1.5)
    yield made
    made.close()


@pytest.fixture
def own_lab(own_cluster: Callable[..., Embedded], tmp_path: Path) -> Iterator[tuple[Lab, Embedded]]:
    chromium()
    needs_extension()
    cluster = own_cluster()
    lab = Lab(tmp_path, cluster.environment)
    try:
        yield lab, cluster
    finally:
        lab.close()


def keep(shot: bytes, path: Path) -> None:
    """As a PNG with a palette: a third of the bytes, and no difference is seen."""
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    assert path.stat().st_size <= MOST_BYTES, f"{path.name}: {path.stat().st_size:,} bytes"
    assert len(set(picture.resize((64, 64)).getdata())) > 8, f"{path.name} is empty"


def themed(page: Page, theme: str) -> None:
    page.evaluate(
        "name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})",
        f"JupyterLab {theme}",
    )
    expect(page.locator("body")).to_have_attribute(
        "data-jp-theme-name", f"JupyterLab {theme}", timeout=20_000
    )
    page.wait_for_timeout(500)  # colours fade


def widen(page: Page, panel: Locator, width: int) -> None:
    """Drag the panel's edge, as a hand does."""
    box = panel.bounding_box()
    assert box is not None
    edge, y = box["x"] - 2, box["y"] + 200
    page.mouse.move(edge, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - width, y, steps=5)
    page.mouse.up()


def test_pictures(own_lab: tuple[Lab, Embedded], page: Page, pictures: Path) -> None:
    lab, cluster = own_lab
    (lab.folder / "cluster.yaml").write_text(CLUSTER)
    book = Book(lab, page, "training.ipynb", [TRAINING, PLOT, JOB, "mlcloud.show()"])
    client = cluster.connect()
    client.set_budget(Budget("20/day"))
    book.command("application:toggle-left-area")
    page.locator(".mlcloud-status-button").click(timeout=60_000)
    panel = page.locator(".mlcloud-panel")
    expect(panel).to_be_visible()
    widen(page, panel, 400)
    book.ok(0, timeout=280)
    book.ok(1, timeout=60)
    book.ok(2, timeout=60)
    job = panel.locator(".mlcloud-job")
    expect(job).to_contain_text(re.compile(r"\D(9|1\d) of 60"), timeout=120_000)
    panel.locator(".mlcloud-group", has_text="Checkpoints").locator(".mlcloud-title").click()
    series = panel.locator(".mlcloud-series", has_text="train")
    series.locator(".mlcloud-name").click(timeout=20_000)
    expect(panel.locator(".mlcloud-detail", has_text="step 40")).to_be_visible(timeout=20_000)
    book.cell(0)
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(500, 300)
    for theme in ("Light", "Dark"):
        themed(page, theme)
        assert unnamed(panel) == []
        keep(page.screenshot(), pictures / f"panel-{theme.lower()}.png")
        bar = page.locator("#jp-main-statusbar").bounding_box()
        ours = page.locator(".mlcloud-status").bounding_box()
        assert bar is not None
        assert ours is not None
        part = {**bar, "x": ours["x"] - 12, "width": bar["width"] - ours["x"] + 12}
        keep(page.screenshot(clip=part), pictures / f"status-{theme.lower()}.png")
    book.command("application:toggle-right-area")
    page.set_viewport_size({"width": 1100, "height": 1100})
    book.ok(3)
    board = book.outputs(3).locator(".mlcloud.dashboard")
    expect(board).to_contain_text("train", timeout=20_000)
    for theme in ("Light", "Dark"):
        themed(page, theme)
        keep(board.screenshot(), pictures / f"dashboard-{theme.lower()}.png")
