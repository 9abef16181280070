"""What a cell shows reaches the notebook: all of it, in order, once, as if it had run there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from mlcloud.client.session import Session
from tests.live import Embedded, Notebook, Running, open_notebook

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def notebook(cluster: Embedded) -> Iterator[Notebook]:
    with open_notebook(cluster) as notebook:
        yield notebook
        notebook.ok("import mlcloud\nfor s in mlcloud.sessions(): mlcloud.attach(s.name).close()")


def test_five_thousand_prints_arrive_in_order(notebook: Notebook) -> None:
    cell = notebook.ok("%%remote\nfor i in range(5_000):\n    print('line', i)")
    assert cell.stream() == "".join(f"line {i}\n" for i in range(5_000))


def test_output_without_newlines_and_in_several_parts(notebook: Notebook) -> None:
    cell = notebook.ok("%%remote\nfor i in range(300):\n    print(i, end=' ', flush=i % 7 == 0)")
    assert cell.stream().split() == [str(i) for i in range(300)]


def test_stdout_and_stderr_stay_apart(notebook: Notebook) -> None:
    cell = notebook.ok("%%remote\nimport sys\nprint('out')\nprint('err', file=sys.stderr)")
    assert (cell.stream("stdout"), cell.stream("stderr")) == ("out\n", "err\n")


def test_output_of_threads_and_subprocesses(notebook: Notebook) -> None:
    cell = notebook.ok(
        "%%remote\n"
        "import threading\n"
        "thread = threading.Thread(target=print, args=('from a thread',))\n"
        "thread.start(); thread.join()\n"
        "!echo from a shell"
    )
    assert "from a thread\n" in cell.stream()
    assert "from a shell" in cell.stream()


def test_the_value_of_a_cell_is_its_result(notebook: Notebook) -> None:
    cell = notebook.ok("%%remote\nanswer = 41\nanswer + 1")
    assert cell.result == "42"
    assert repr(notebook.ok("_").result) == repr("42")


def test_rich_values_keep_their_forms(notebook: Notebook) -> None:
    cell = notebook.ok(
        "%%remote\nfrom IPython.display import HTML, display\ndisplay(HTML('<b>bold</b>'))"
    )
    assert [data["text/html"] for data in cell.shown] == ["<b>bold</b>"]


def test_a_figure_is_shown(notebook: Notebook) -> None:
    cell = notebook.ok(
        "%%remote\n%matplotlib inline\nimport matplotlib.pyplot as plt\n"
        "plt.plot([1, 2]); plt.show()"
    )
    assert any("image/png" in data for data in cell.shown)


def test_a_display_is_updated_in_place(notebook: Notebook) -> None:
    cell = notebook.ok(
        "%%remote\nfrom IPython.display import display\n"
        "handle = display('first', display_id=True)\nhandle.update('second')\n"
        "for i in range(3): handle.update(i)"
    )
    assert [data["text/plain"] for data in cell.shown] == ["2"]


def test_a_display_is_updated_from_a_later_cell(notebook: Notebook) -> None:
    notebook.ok("%%remote\nfrom IPython.display import display\nh = display('a', display_id='d1')")
    later = notebook.ok(
        "%%remote\nfrom IPython.display import update_display\nupdate_display('b', display_id='d1')"
    )
    assert later.shown == []
    outputs = [each for cell in notebook.cells for each in cell.get("outputs", [])]
    texts = [each["data"]["text/plain"] for each in outputs if "data" in each]
    assert "'b'" in texts
    assert "'a'" not in texts


def test_clear_output(notebook: Notebook) -> None:
    cell = notebook.ok(
        "%%remote --quiet\nfrom IPython.display import clear_output\n"
        "print('before')\nclear_output()\nprint('after')"
    )
    assert cell.stream() == "after\n"


def test_clear_output_waits_for_the_next(notebook: Notebook) -> None:
    cell = notebook.ok(
        "%%remote --quiet\nfrom IPython.display import clear_output\n"
        "for i in range(20):\n    clear_output(wait=True)\n    print('step', i)"
    )
    assert cell.stream() == "step 19\n"


def test_an_error_shows_the_cells_own_lines(notebook: Notebook) -> None:
    cell = notebook.run(
        "%%remote\ndef inner():\n    return {}['missing']\n\nprint('so far')\ninner()"
    )
    assert cell.stream() == "so far\n"
    assert cell.error["ename"] == "KeyError"
    text = "\n".join(cell.error["traceback"])
    assert "missing" in text
    assert "inner" in text
    assert "mlcloud" not in text
    assert "ray" not in text.lower().replace("array", "")
    errors = [each for each in cell.outputs if each["output_type"] == "error"]
    assert len(errors) == 1


def test_top_level_await_and_magics(notebook: Notebook) -> None:
    cell = notebook.ok(
        "%%remote\nimport asyncio\nawait asyncio.sleep(0)\n%time total = sum(range(10))\ntotal"
    )
    assert cell.result == "45"
    assert "Wall time" in cell.stream()


@pytest.mark.parametrize("before", ["", "display('shown'); "])
def test_a_flushed_line_is_sent_before_the_next_statement(
    session: Callable[..., Session], before: str
) -> None:
    """Also when that statement never lets another thread run, or is the kernel's last."""
    ready = session()
    ready.run("import ctypes")
    code = f"{before}print('last words', flush=True); ctypes.PyDLL(None).sleep(4)"
    cell = Running(ready, code)
    cell.printed("last words", timeout=3)
    assert not cell.done.done()


def test_a_line_appears_while_the_cell_runs(session: Callable[..., Session]) -> None:
    """Not when it ends: the cell waits for a file that only the line's reader makes."""
    import sys
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        seen = Path(folder) / "seen"

        class Reader:
            def write(self, text: str) -> None:
                if "now" in text:
                    seen.touch()

            def flush(self) -> None: ...

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", Reader())
            session().run(
                "import os, time\nprint('now')\nuntil = time.monotonic() + 20\n"
                f"while not os.path.exists({str(seen)!r}):\n"
                "    assert time.monotonic() < until, 'the line was held back'\n"
                "    time.sleep(0.01)"
            )
