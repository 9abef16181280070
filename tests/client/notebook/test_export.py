"""Notebooks with remote cells as pages: figures, footers and widgets' static forms are in them."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("nbconvert")
pytest.importorskip("matplotlib")
pytest.importorskip("anywidget")

from nbconvert import HTMLExporter

from mlcloud.client.notebook.options import Options
from mlcloud.client.notebook.specs import install
from tests.live import Embedded, PatientClient

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

FIGURE = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.title('a line')\nplt.show()"
LOOP = (
    "import mlcloud, time\nfor i in mlcloud.progress(range(3), name='epoch'):\n    time.sleep(.01)"
)
SLIDER = "import ipywidgets\nipywidgets.IntSlider(7, description='depth')"


def executed(cells: list[str], kernel: str, cluster: Embedded) -> nbformat.NotebookNode:
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in cells])
    client = PatientClient(book, kernel_name=kernel, timeout=240)
    client.execute(env=cluster.environment, cwd=str(cluster.home))
    return book


def page(book: nbformat.NotebookNode) -> str:
    html: str = HTMLExporter().from_notebook_node(book)[0]
    return html


def words(html: str) -> str:
    """What a reader sees of it."""
    return unescape(re.sub(r"<[^>]*>", "", html))


def test_remote_cells(cluster: Embedded) -> None:
    cluster.connect()
    remote = "%%remote --session export\n"
    cells = [
        "%load_ext mlcloud\nimport mlcloud",
        *(remote + each for each in (FIGURE, LOOP, SLIDER)),
    ]
    book = executed([*cells, "mlcloud.show()", "%mlcloud close export"], "python3", cluster)

    live = page(book)
    assert live.count('src="data:image/png;base64,') == 1
    footers = [words(each) for each in re.findall(r'<div class="mlcloud-footer".*?</div>', live)]
    assert len(footers) == 3
    assert all(" on local.cpu2 spot local-" in each and "$0.0" in each for each in footers)
    assert "epoch 3 of 3" in words(live)
    # The state of widgets came with their comms, the remote one's too: the page shows them by it.
    states = book.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    assert "depth" in {each["state"].get("description") for each in states.values()}
    assert "application/vnd.jupyter.widget-state+json" in live

    # Without that, as JupyterLab saves a notebook, a widget's static form is in its place.
    del book.metadata["widgets"]
    static = page(book)
    assert re.search(r"<td[^>]*>export</td>|>export<", static)
    assert "IntSlider(value=7" in static
    assert static.count("mlcloud-footer") == live.count("mlcloud-footer")


def test_a_whole_notebook(
    cluster: Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    cluster.connect()
    name = install(Options(footers=True), name="billed", user=True).name
    book = executed([FIGURE, LOOP, SLIDER], name, cluster)
    html = page(book)
    assert html.count('src="data:image/png;base64,') == 1
    assert html.count('<div class="mlcloud-footer"') == 3
    assert "epoch 3 of 3" in words(html)
    assert "depth" in html
