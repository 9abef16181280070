"""A store without room: cells run, what is not safe is said, what was committed stays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import disk
from tests.live import Embedded, open_notebook, stories, until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs takes root"),
]


@pytest.fixture
def small_store(tmp_path: Path) -> Iterator[Path]:
    with disk.small(tmp_path / "store") as folder:
        yield folder


def test_cells_run_on_and_nothing_committed_is_lost(
    own_cluster: Callable[..., Embedded], small_store: Path
) -> None:
    embedded = own_cluster(store=f"file://{small_store}")
    with open_notebook(embedded) as notebook:
        notebook.ok("import mlcloud")
        notebook.ok("%%remote --session s --durable\nkept = list(range(100))")
        ballast = disk.fill(small_store)
        cell = notebook.ok("%%remote --session s\nextra = 'x' * 3_000_000\nlen(extra)")
        assert cell.result == "3000000"
        session = embedded.connect().attach("s")
        until(lambda: "unsafe" in stories(session), "it says that the state is not safe")
        told = stories(session)["unsafe"]
        assert "not safe" in told
        assert "full" in told
        assert session.info.safe_cells < session.info.finished_cells

        # --durable says so in the cell itself
        cell = notebook.run("%%remote --session s --durable\nmore = 'y' * 3_000_000")
        assert cell.error["ename"] in ("StoreError", "StoreFull")
        assert "full" in cell.error["evalue"]

        # what must be in the store before a cell starts stops the cell, with a clear word
        notebook.ok("import os\nlocal = os.urandom(4_000_000)")
        cell = notebook.run("%%remote --session s\nlen(local)")
        assert cell.error is None or cell.error["ename"] in ("StoreError", "StoreFull")

        # a kernel that dies now goes back to the last safe cell, and runs the unsafe ones again
        assert notebook.run("%%remote --session s\nimport os; os._exit(1)").error is not None
        cell = notebook.ok("%%remote --session s\nlen(kept), 'extra' in globals()")
        assert cell.result == "(100, True)"

        # room again: safe again
        ballast.unlink()
        notebook.ok("%%remote --session s --durable\nkept.append('more')")
        assert session.info.safe_cells >= 2
        notebook.run("%%remote --session s\nos._exit(1)")
        assert notebook.ok("%%remote --session s\nkept[-1]").result == "'more'"


@pytest.mark.slow
def test_a_loop_goes_on_without_its_checkpoints(
    own_cluster: Callable[..., Embedded], small_store: Path
) -> None:
    embedded = own_cluster(store=f"file://{small_store}")
    with open_notebook(embedded) as notebook:
        notebook.ok("import numpy as np\nw = np.zeros(1000)")
        notebook.ok("%%remote --session s --durable\nw = w")
        ballast = disk.fill(small_store)
        cell = notebook.run(
            "%%remote --session s\nimport mlcloud, os, warnings\n"
            "for step in mlcloud.resumable(range(6), state={'w': w}, every=2):\n"
            "    w += np.random.rand(1000)\n"
            f"    if step == 4: os.unlink({str(ballast)!r})\n"
            "done = step"
        )
        assert cell.error is None
        assert "checkpoint failed" in cell.lines
        assert "full" in cell.lines
        assert notebook.ok("done").result == "5"
