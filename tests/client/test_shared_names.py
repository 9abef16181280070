"""Names that travel both ways, end to end: a notebook's cells and the session's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live import Embedded, Notebook, open_notebook

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def notebook(cluster: Embedded) -> Iterator[Notebook]:
    with open_notebook(cluster) as notebook:
        notebook.ok("import numpy as np, mlcloud")
        yield notebook
        notebook.ok("for s in mlcloud.sessions(): mlcloud.attach(s.name).close()")


def test_a_function_sees_the_sessions_globals(notebook: Notebook) -> None:
    notebook.ok(
        "scale = 2\ncounter = 0\ndef scaled(x):\n    global counter\n    counter += 1\n"
        "    return scale * x"
    )
    assert notebook.ok("%%remote\nscaled(3)").result == "6"
    assert notebook.ok("%%remote\nscale = 10\nscaled(3)").result == "30"
    assert notebook.ok("scale, counter, scaled(1)").result == "(10, 2, 10)"


def test_a_class_and_its_objects(notebook: Notebook) -> None:
    notebook.ok(
        "class Point:\n    def __init__(self, x): self.x = x\n"
        "    def moved(self): return Point(self.x + 1)\np = Point(1)"
    )
    notebook.ok("%%remote\nq = p.moved()\np.x = 5\nsame = type(q) is Point")
    assert notebook.ok("q.x, p.x, same, isinstance(q, Point)").result == "(2, 5, True, True)"


def test_a_change_in_place_comes_back(notebook: Notebook) -> None:
    notebook.ok("hist = []\nfitted = {'w': np.zeros(3)}")
    notebook.ok("%%remote\nhist.append('remote')\nfitted['w'] += 1")
    notebook.ok("hist.append('local')")
    notebook.ok("%%remote\nhist.append('again')")
    assert notebook.ok("hist").result == "['remote', 'local', 'again']"
    assert notebook.ok("fitted['w'].sum().item()").result == "3.0"


def test_aliases_stay_aliases(notebook: Notebook) -> None:
    notebook.ok("left = [1]\nright = {'of': left}")
    notebook.ok("%%remote\nright['of'].append(2)\nassert left is right['of']\nleft")
    assert notebook.ok("left, left is right['of']").result == "([1, 2], True)"


def test_a_change_on_both_sides_is_a_conflict(notebook: Notebook) -> None:
    notebook.ok("both = [1]")
    notebook.ok("%%remote --session both\nboth")
    notebook.ok("s = mlcloud.attach('both')\ns['both'] = ['theirs']\nboth.append('mine')")
    cell = notebook.run("%%remote --session both\nran = True\nboth")
    assert cell.error["ename"] == "NameConflict"
    assert "both" in cell.error["evalue"]
    assert "--in" in cell.error["evalue"]
    assert "--keep-remote" in cell.error["evalue"]
    assert notebook.run("%%remote --session both\nran").error["ename"] == "NameError"
    assert notebook.ok("%%remote --session both --keep-remote\nboth").result == "['theirs']"
    notebook.ok("s['both'] = ['theirs 2']\nboth = ['mine 2']")
    assert notebook.ok("%%remote --session both --in both\nboth").result == "['mine 2']"


def test_what_cannot_be_pickled_is_named_with_the_reason(notebook: Notebook) -> None:
    notebook.ok("import threading\ndeep = {'config': [threading.Lock()]}")
    cell = notebook.run("%%remote\nprint('ran')\ndeep")
    assert cell.error["ename"] == "NotPicklable"
    assert "deep" in cell.error["evalue"]
    assert "lock" in cell.error["evalue"].lower()
    assert cell.stream() == ""
    assert notebook.ok("%%remote\n1").result == "1"


def test_a_large_result_stays_and_works_in_the_next_cell(notebook: Notebook) -> None:
    notebook.ok("%%remote\nlarge = np.arange(1_000_000)")
    shown = notebook.ok("large").result
    assert shown is not None
    assert "remote large" in shown
    assert "1000000" in shown
    wrong = notebook.run("large.sum()")
    assert "%%remote" in wrong.error["evalue"]
    assert ".get()" in wrong.error["evalue"]
    assert notebook.ok("%%remote\nint(large[-1])").result == "999999"
    assert notebook.ok("int(large.get()[-1])").result == "999999"
    notebook.ok("stale = other = large")
    assert notebook.ok("%%remote\nother is large").result == "True"
    notebook.ok("%%remote\nlarge = np.arange(3)")
    assert notebook.ok("large").result == "array([0, 1, 2])"
    assert notebook.ok("int(other.get()[-1])").result == "999999"
    assert notebook.run("stale.get()").error["ename"] == "StaleRemoteValue"


def test_an_open_file_stays(notebook: Notebook) -> None:
    notebook.ok("%%remote\nfile = open('notes.txt', 'w+')\nfile.write('kept');")
    assert "remote file" in (notebook.ok("file").result or "")
    assert notebook.ok("%%remote\nfile.seek(0); file.read()").result == "'kept'"
    assert notebook.run("file.get()").error["ename"] == "NotPicklable"
    notebook.ok("%%remote\nfile.close()\ndel file")


def test_what_leads_to_the_kernel_keeps_no_other_name_there(notebook: Notebook) -> None:
    """A tqdm bar and IPython itself cannot travel, and refer to all there is."""
    notebook.ok("plain = [1]")
    notebook.ok(
        "%%remote\nimport sys\nfrom tqdm import tqdm\n"
        "bar = tqdm(total=1, file=sys.stdout)\nshell = get_ipython()\nnames = globals()\n"
        "def end(shell=shell): return shell\nwriter = sys.stdout.write\nplain.append(2)"
    )
    assert notebook.ok("plain").result == "[1, 2]"
    assert "remote shell" in (notebook.ok("shell").result or "")
    notebook.ok("%%remote\nbar.close()\ndel bar, shell, names, end, writer\nplain.append(3)")
    assert notebook.ok("plain").result == "[1, 2, 3]"


def test_a_large_array_goes_there_once(notebook: Notebook) -> None:
    notebook.ok("data = np.random.default_rng(0).random(2_000_000)")
    assert notebook.ok("%%remote\ndata.shape").result == "(2000000,)"
    rows = notebook.ok("%%remote --dry\ndata").shown[0]["text/plain"]
    line = next(each for each in rows.splitlines() if each.startswith("data"))
    assert "ship" not in line, rows
    assert notebook.ok("%%remote\ndata[0] = -1\ndata.sum() < 2e6").result in ("True", "np.True_")


def test_a_session_reads_and_sets_names(notebook: Notebook) -> None:
    notebook.ok("%%remote --session both\nhere = {'a': 1}")
    notebook.ok("s = mlcloud.attach('both')")
    assert notebook.ok("s['here']").result == "{'a': 1}"
    notebook.ok("s['there'] = [1, 2]")
    assert notebook.ok("%%remote --session both\nthere").result == "[1, 2]"
    missing = notebook.run("s['nothing']")
    assert missing.error["ename"] == "NotFound"
    assert "nothing" in missing.error["evalue"]


def test_names_that_are_deleted(notebook: Notebook) -> None:
    notebook.ok("gone = 1")
    notebook.ok("%%remote\ngone\ndel gone")
    cell = notebook.run("%%remote\ngone")
    assert cell.error is None or cell.error["ename"] == "NameError"


def test_modules_are_imported_there(notebook: Notebook) -> None:
    notebook.ok("import json as js")
    assert notebook.ok("%%remote\njs.dumps([1])").result == "'[1]'"
    notebook.ok("%%remote\nimport math")
    assert notebook.ok("math.pi > 3").result == "True"
