"""A series of checkpoints as a notebook shows it: in a real browser, both themes, and as text."""

from __future__ import annotations

import html
import itertools
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mlcloud import Checkpoints, errors
from mlcloud.store import Manifest, Store
from mlcloud.widgets.series import Line, Series

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

NOW = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
THEMES = Path(sys.prefix) / "share/jupyter/lab/themes/@jupyterlab"


def line(step: int, *, mb: int = 10, new: int = 5, metric: float | None = None) -> Line:
    return Line(step, mb * 10**6, new * 10**6, NOW - timedelta(minutes=100 - step), metric)


def series(*lines: Line, count: int = 0, name: str = "run", place: str = "s3://x") -> Series:
    curve = [(each.step, each.metric) for each in lines if each.metric is not None]
    return Series(name, place, count or len(lines), lines, curve, NOW)


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api")
    from tests.browser.lab import CHROMIUM_FLAGS, chromium

    path = chromium()
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


def shown(browser: Browser, what: Series, theme: str, width: int = 900) -> Locator:
    """The output area of a page with JupyterLab's own colours; `none` for a page without."""
    css = "" if theme == "none" else (THEMES / f"theme-{theme}-extension/index.css").read_text()
    page = browser.new_page(viewport={"width": width, "height": 700})
    page.set_content(
        f"<style>{css} body {{background: var(--jp-layout-color0, white); margin: 0}}</style>"
        f'<body><div id="output">{what._repr_html_()}</div>'
    )
    return page.locator("#output")


CONTRAST = """root => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(part => {
      const c = part / 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const solid = (colour, below) => {  // what a half transparent one looks like
    const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
    const [x, y, z] = below.match(/[\\d.]+/g).map(Number);
    return `rgb(${r * a + x * (1 - a)}, ${g * a + y * (1 - a)}, ${b * a + z * (1 - a)})`;
  };
  const ground = getComputedStyle(document.body).backgroundColor;
  const found = [];
  for (const each of root.querySelectorAll("*")) {
    const own = [...each.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || each.tagName === "title") continue;
    const pair = [light(solid(getComputedStyle(each).color, ground)), light(ground)];
    found.push([(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), each.textContent]);
  }
  return found;
}"""


@pytest.mark.parametrize("theme", ["light", "dark", "none"])
def test_what_a_reader_sees(browser: Browser, theme: str) -> None:
    lines = [
        line(40, mb=10, new=10, metric=2.5),
        line(60, mb=20, new=5, metric=1.5),
        Line(80, fault="damaged", problem="its checksum does not match"),
        Line(90, 20 * 10**6, 0, NOW - timedelta(seconds=3), 0.5, complete=True),
    ]
    output = shown(browser, series(*lines, count=1234), theme)
    rows = [row.locator("th, td").all_inner_texts() for row in output.locator("tr").all()]
    assert rows[0] == ["step", "bytes", "", "new", "age", "metric", "state"]
    assert rows[1] == ["90", "20 MB", "", "0 B", "3.0 s", "0.5", "✓ loop ended"]
    assert (rows[2][0], rows[2][-1]) == ("80", "✕ damaged")
    assert rows[4] == ["40", "10 MB", "", "10 MB", "1 h 00 min", "2.5", ""]
    text = output.inner_text()
    assert "1,234 steps · newest 90, 3.0 s ago · 1 cannot be loaded" in text
    assert "step 80: its checksum does not match" in text
    assert "… and 1,230 earlier steps" in text
    assert "metric 2.5 → 0.5" in text
    assert "lowest 0.5 at 90, highest 2.5 at 40" in text
    # bars: the length is the size, the filled part what was new of it
    bars = output.locator("table [role=img]")
    whole = [bars.nth(i).bounding_box() for i in range(3)]
    new = [bars.nth(i).locator("div").bounding_box() for i in range(3)]
    assert [box and round(box["width"]) for box in whole] == [120, 120, 60]
    assert [box and round(box["width"]) for box in new] == [0, 30, 60]
    assert bars.nth(1).get_attribute("title") == "5 MB new of 20 MB"
    # the curve falls from the left to the right, at places that are the steps'
    path = output.locator("svg path").get_attribute("d") or ""
    points = [tuple(map(float, part.split())) for part in re.split("[ML]", path) if part]
    assert [round(x) for x, _ in points] == [4, 97, 236]
    assert [round(y) for _, y in points] == [4, 22, 40]
    colour = "getComputedStyle(node).stroke"
    drawn = output.locator("svg path").evaluate(f"node => {colour}")
    assert drawn not in ("none", "rgb(0, 0, 0)")
    if theme != "none":
        weak = [each for each in output.evaluate(CONTRAST) if each[0] < 3]
        assert not weak


def test_a_narrow_page_scrolls_inside_the_output(browser: Browser) -> None:
    lines = [line(step, metric=float(step)) for step in range(1, 5)]
    lines.append(Line(5, fault="damaged", problem="manifest s3://" + "x" * 300))
    output = shown(browser, series(*lines, place="s3://" + "y" * 300), "light", width=300)
    assert output.page.evaluate("document.documentElement.scrollWidth") <= 300
    for text in ("y" * 300, "x" * 300):  # what is long is broken, and read without scrolling
        box = output.get_by_text(text).last.bounding_box()
        assert box is not None
        assert box["width"] <= 300


def test_texts_from_elsewhere_are_no_html(browser: Browser) -> None:
    evil = "<img src=x onerror=\"document.title='ran'\">"
    bad = Line(1, fault="damaged", problem=f'"{evil}')
    output = shown(browser, series(bad, line(2, metric=1), name=evil, place=evil), "light")
    output.page.wait_for_timeout(50)
    assert output.page.title() != "ran"
    assert output.locator("img").count() == 0
    assert output.inner_text().count(evil) == 3


# --- values of every kind -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        [None, None],
        [1.0],
        [math.nan, math.nan],
        [1.0, math.nan, 2.0, math.inf, -math.inf, 3.0],
        [5.0, 5.0, 5.0],
        [-1.7e308, 1.7e308, 0.0],
        [1e-320, 0.0],
    ],
    ids=str,
)
def test_metrics_of_every_kind(metrics: list[float | None]) -> None:
    made = series(*(line(step, metric=metric) for step, metric in enumerate(metrics)))
    rich = made._repr_html_()
    assert repr(made)
    path = re.search(r'<path d="([^"]*)"', rich)
    finite = [each for each in metrics if each is not None and math.isfinite(each)]
    assert (path is not None) == (len(finite) > 1)
    if path is not None:
        places = [float(each) for each in re.findall(r"-?[\d.]+|nan|inf", path[1])]
        assert len(places) == 2 * len(finite)
        assert all(4 <= x <= 236 for x in places[::2])
        assert (min(places[1::2]), max(places[1::2])) == (
            (22, 22) if len({*finite}) == 1 else (4, 40)
        )
    if metrics == [1.0, math.nan, 2.0, math.inf, -math.inf, 3.0]:
        assert path is not None
        assert path[1].count("M") == 3  # gaps, and no line across them


def test_states_without_a_byte() -> None:
    text = html.unescape(series(Line(0, created=NOW))._repr_html_())
    assert "0 B new of 0 B" in text


# --- real series ----------------------------------------------------------------------------------


def manifest(folder: Path, step: int) -> Path:
    return folder / "store" / "manifests" / "checkpoint" / "run" / f"{step:012d}.json"


def change(path: Path, before: bytes, after: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(before, after))


@pytest.fixture
def ckpts(tmp_path: Path) -> Checkpoints:
    made = Checkpoints(str(tmp_path / "store"), "run")
    for step in range(1, 6):
        made.save({"w": np.full(2**18, step, "f4"), "base": np.ones(2**18)}, step, metric=1 / step)
    return made


def test_what_was_saved_is_listed(ckpts: Checkpoints) -> None:
    found = ckpts.overview(3)
    assert [each.step for each in found.lines] == [3, 4, 5]
    assert [round(value, 3) for _, value in found.curve] == [1, 0.5, 0.333, 0.25, 0.2]
    infos = ckpts.info()[2:]
    assert [each.bytes for each in found.lines] == [each.bytes for each in infos]
    assert all(0 < each.new_bytes < each.bytes for each in found.lines)
    bundle = ckpts._repr_mimebundle_()
    assert bundle["text/plain"].splitlines()[1].split() == [
        *("step", "bytes", "new", "age", "metric", "state"),
    ]
    assert "5 steps · newest 5" in bundle["text/html"]
    with pytest.raises(errors.UsageError, match="last=0"):
        ckpts.overview(0)
    assert "0 steps" in Checkpoints(ckpts.store, "other")._repr_mimebundle_()["text/html"]


def test_damaged_and_newer_steps_are_lines(ckpts: Checkpoints, tmp_path: Path) -> None:
    change(manifest(tmp_path, 2), b'"metric":0.5', b'"metric":0.1')
    manifest(tmp_path, 3).write_bytes(b"")
    newer = {**ckpts.store.manifest("checkpoint", "run", 5).body, "format": 99}
    ckpts.store.commit("checkpoint", "run", 6, newer)
    ckpts.store.commit("checkpoint", "run", 7, {"something": "else"})
    found = ckpts.overview()
    assert [each.fault for each in found.lines] == [
        *("", "damaged", "damaged", "", "", "unreadable", "damaged"),
    ]
    assert "checksum" in found.lines[1].problem
    assert "upgrade mlcloud" in found.lines[5].problem
    text, rich = repr(found), found._repr_html_()
    for what in (text, rich):
        assert what.count("damaged") >= 3
        assert "upgrade mlcloud" in what
    assert [step for step, _ in found.curve] == [1, 4, 5]


def test_a_store_that_is_out_of_reach_does_not_fail_the_cell(
    ckpts: Checkpoints, tmp_path: Path
) -> None:
    os.rename(tmp_path / "store" / "manifests", tmp_path / "store" / "moved")
    (tmp_path / "store" / "manifests").write_bytes(b"no folder")
    bundle = ckpts._repr_mimebundle_()
    assert "StoreError: could not read" in bundle["text/plain"]


def test_ten_thousand_steps_take_the_time_of_a_hundred(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    folder = tmp_path / "manifests" / "checkpoint" / "long"
    folder.mkdir(parents=True)
    note = {"format": 1, "bytes": 10, "new_bytes": 1, "seconds": 1.0, "extra": None}
    for step in range(10_000):
        body: dict[str, Any] = {**note, "metric": step / 2, "complete": False}
        made = Manifest("checkpoint", "long", step, NOW, body).to_bytes()
        (folder / f"{step:012d}.json").write_bytes(made)
    ckpts = Checkpoints(store, "long")
    read = []
    real = Store.manifest
    monkeypatch.setattr(
        Store, "manifest", lambda self, *place: read.append(place) or real(self, *place)
    )
    began = time.monotonic()
    bundle = ckpts._repr_mimebundle_()
    assert time.monotonic() - began < 5
    assert len(read) == 100
    assert "10,000 steps" in bundle["text/html"]
    assert bundle["text/html"].count("<tr>") == 21
    assert "9,980 earlier steps" in bundle["text/plain"]
    curve = ckpts.overview().curve
    assert (curve[0], curve[-1]) == ((0, 0.0), (9999, 4999.5))
    assert max(b[0] - a[0] for a, b in itertools.pairwise(curve)) < 130  # evenly
