"""A remote cell fails as the same cell fails in the notebook: text, type, what IPython does of it.

The twins: each cell runs in a plain local kernel with `# %%remote` as its first line, and in the
other notebook with `%%remote`. What a user sees must be the same, numbers and colours included.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests.live import Cell, Embedded, Notebook, open_notebook, start_python
from tests.page import Page, open_page

pytestmark = pytest.mark.cluster
needs_groups = pytest.mark.skipif(sys.version_info < (3, 11), reason="ExceptionGroup is of 3.11")

REMOTE = "%%remote --quiet\n"

DEFINITIONS = """
class Odd(Exception):
    def __init__(self, left, right):
        super().__init__(f"{left}-{right}")
        self.left = left

def deep(n):
    rest = n
    return 1 / rest

class Thing:
    'A thing.'

    def use(self, n):
        return deep(n)

def around(n):
    def inner():
        return deep(n)
    return inner

made = around(0)
quick = lambda n: deep(n)
"""

FAILURES = {
    "in the cell": "a = 1\n1 / 0",
    "after blank lines": "\n\n1 / 0",
    "in a function of another cell": "deep(0)",
    "in a method": "Thing().use(0)",
    "in a closure": "made()",
    "in a lambda": "quick(0)",
    "in a generator": "def numbers():\n    yield 1\n    deep(0)\n\nfor n in numbers():\n    pass",
    "in a comprehension": "[deep(n) for n in (1, 0)]",
    "a class of the notebook": "raise Odd(1, 2)",
    "a class of the cell": "class Here(LookupError): pass\nraise Here('there')",
    "a cause": "try:\n    deep(0)\nexcept Exception as error:\n    raise KeyError('k') from error",
    "a context": "try:\n    deep(0)\nexcept Exception:\n    raise Odd(3, 4)",
    "no context": "try:\n    deep(0)\nexcept Exception:\n    raise ValueError('v') from None",
    "an assertion": "assert deep is None, 'it is not'",
    "an await": "import asyncio\nasync def task():\n    await asyncio.sleep(0)\n    deep(0)\n"
    "await task()",
    "a syntax error": "x = 1\nif True\n    pass",
    "a syntax error of the compiler": "x = 1\nreturn x",
    "a bad indentation": "if True:\n  x = 1\n    y = 2",
    "the end": "import sys\nsys.exit(3)",
    "a generator's end": "raise GeneratorExit",
    "a cancelled task": "import asyncio\nraise asyncio.CancelledError('c')",
    "a line magic": "%timeit 1 / 0",
    "an unknown magic": "%there_is_no_such_magic",
    "a repr that fails": "class Mute:\n    def __repr__(self): raise ValueError('no repr')\nMute()",
}
if sys.version_info >= (3, 11):
    FAILURES["a note"] = "error = Odd(1, 2)\nerror.add_note('remember the milk')\nraise error"


def plain(cell: Cell) -> str:
    """The traceback without its colours."""
    assert cell.error is not None, cell.outputs
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(cell.error["traceback"]))


def caught(code: str, show: str) -> str:
    """A local cell that runs `code` remotely, catches what it raises and prints `show` of it."""
    return (
        f"try:\n    get_ipython().run_cell_magic('remote', '--quiet', {code!r})\n"
        f"except BaseException as e:\n    print({show})"
    )


@pytest.fixture(scope="module")
def notebook(cluster: Embedded) -> Iterator[Notebook]:
    with open_notebook(cluster) as notebook:
        notebook.ok(DEFINITIONS)
        notebook.ok(f"{REMOTE}1")
        yield notebook
        notebook.ok("import mlcloud\nfor s in mlcloud.sessions(): mlcloud.attach(s.name).close()")


# --- the twins ------------------------------------------------------------------------------------


class Twins:
    """The same cells in a local kernel and in a session."""

    def __init__(self, local: Notebook, remote: Notebook) -> None:
        self.local = local
        self.remote = remote

    def both(self, code: str) -> None:
        """A local cell in both notebooks."""
        self.local.ok(code)
        self.remote.ok(code)

    def run(self, code: str) -> tuple[list[Any], list[Any]]:
        here = self.local.run(f"# {REMOTE}{code}")
        there = self.remote.run(f"{REMOTE}{code}")
        return seen(here), seen(there)


def seen(cell: Cell) -> list[Any]:
    """The outputs, without mlcloud's lines; a kernel's process id is in the names of its cells."""
    found: list[Any] = []
    for each in cell.outputs:
        if "mlcloud" in each.get("metadata", {}):
            continue
        if each["output_type"] == "error":
            found.append(("error", each["ename"], each["evalue"], list(each["traceback"])))
        elif each["output_type"] == "stream":
            text = re.sub(r"/tmp/ipykernel_\d+/\d+\.py", "CELL", each["text"])
            if found and found[-1][0] == each["name"]:
                text = found.pop()[1] + text
            found.append((each["name"], text))
        else:
            found.append((each["output_type"], dict(each["data"])))
    return [without_file_names(each) for each in found]


def without_file_names(output: Any) -> Any:
    """The message of a SyntaxError names the file of the cell, by its content."""
    if output[0] == "error":
        return (*output[:2], re.sub(r"\(\d+\.py, ", "(CELL, ", output[2]), output[3])
    return output


@pytest.fixture(scope="module")
def twins(cluster: Embedded) -> Iterator[Twins]:
    with open_notebook(cluster) as local, open_notebook(cluster) as remote:
        twins = Twins(local, remote)
        twins.both(DEFINITIONS)
        here, there = twins.run("1")  # brings up the session, and keeps both counts equal
        assert here == there
        yield twins
        remote.ok("import mlcloud\nfor s in mlcloud.sessions(): mlcloud.attach(s.name).close()")


@pytest.mark.parametrize("code", FAILURES.values(), ids=FAILURES.keys())
def test_it_looks_as_it_does_locally(twins: Twins, code: str) -> None:
    here, there = twins.run(code)
    assert there == here


@pytest.mark.parametrize("code", ["%%bash\nexit 3", "%%capture\ndeep(0)"])
def test_a_cell_magic_fails_as_it_does_locally(twins: Twins, code: str) -> None:
    """Its line must be the first, so the twin's lines have other numbers."""
    here, there = seen(twins.local.run(code)), seen(twins.remote.run(REMOTE + code))
    assert [each[:3] for each in there] == [each[:3] for each in here]
    assert "Cell" in "".join(there[-1][3])


@pytest.mark.parametrize("mode", ["Plain", "Verbose", "Minimal", "Docs", "Context"])
def test_xmode_is_the_notebooks(twins: Twins, mode: str) -> None:
    twins.both(f"%xmode {mode}")
    here, there = twins.run("local_name = [1, 2]\ndeep(0)")
    assert there == here


def test_colours_are_the_notebooks(twins: Twins) -> None:
    twins.both("%colors nocolor")
    here, there = twins.run("deep(0)")
    twins.both("%colors linux")
    assert there == here
    assert "\x1b" not in "".join(there[0][3])
    here, there = twins.run("deep(0)")
    assert there == here
    assert "\x1b" in "".join(there[0][3])


@pytest.mark.parametrize(
    "code",
    [
        "import warnings\nwarnings.warn('old ways')",
        "import threading\nt = threading.Thread(target=deep, args=(0,), name='t')\nt.start()\n"
        "t.join()",
        "class Last:\n    def __del__(self): deep(0)\n\nlast = Last()\ndel last",
        "%run failing.py\nprint('it goes on')",
        "from IPython.display import display\nclass Mute:\n"
        "    def __repr__(self): raise ValueError('no repr')\n\ndisplay(Mute())\nprint('goes on')",
    ],
    ids=["a warning", "in a thread", "in __del__", "a script", "while displaying"],
)
def test_what_does_not_end_the_cell(twins: Twins, cluster: Embedded, code: str) -> None:
    script = cluster.home / "failing.py"
    script.write_text("def f():\n    1 / 0\n\nf()\n")
    here, there = twins.run(code.replace("failing.py", str(script)))
    assert _without_addresses(there) == _without_addresses(here)
    assert here, "the local kernel showed something"


def _without_addresses(outputs: list[Any]) -> str:
    text = re.sub(r"0x[0-9a-f]+", "ADDRESS", repr(outputs))
    return re.sub(r"Thread-\d+|tornado|asyncio", "", text)


# --- frames ---------------------------------------------------------------------------------------


def test_a_librarys_frames_say_where_they_ran(notebook: Notebook) -> None:
    cell = notebook.run(f"{REMOTE}import json\njson.loads('{{')")
    text = plain(cell)
    lines = text.splitlines()
    assert lines[2].startswith("remote: session notebook-")
    assert " on local.cpu" in lines[2]
    assert "json/decoder.py" in text
    assert "self.scan_once(s, idx)" in text, "with their source"


def test_only_cells_need_no_place(notebook: Notebook) -> None:
    assert "remote: session" not in plain(notebook.run(f"{REMOTE}deep(0)"))


@pytest.mark.parametrize(
    "code", ["deep(0)", "exec('if')", "%timeit deep(0)", "get_ipython().ev('deep(0)')"]
)
def test_no_frame_is_the_machinerys(notebook: Notebook, code: str) -> None:
    for mode in ("Plain", "Context"):
        notebook.ok(f"%xmode {mode}")
        text = plain(notebook.run(f"{REMOTE}{code}"))
        for word in ("mlcloud/", "IPython/", "ipykernel/", "ray/"):
            assert word not in text, mode


def test_a_function_made_there_shows_its_lines_here(notebook: Notebook) -> None:
    made = notebook.ok(f"{REMOTE}def made_there(n):\n    return n / 0")
    assert made.error is None
    text = plain(notebook.run("made_there(1)"))
    assert "----> 3     return n / 0" in text
    assert text.count("Cell In[") == 2


def test_code_that_is_no_cell_is_named_after_its_session(notebook: Notebook) -> None:
    notebook.ok("import mlcloud\nspare = mlcloud.session('spare')")
    text = plain(notebook.run("spare.run('x = 1\\ndeep(0)', quiet=True)"))
    assert "<session spare " in text
    assert "----> 2 deep(0)" in text
    notebook.ok("spare.close()")


def test_a_recursion_is_short_and_quick(notebook: Notebook) -> None:
    cell = notebook.run(
        f"{REMOTE}def turn(n):\n    return back(n)\n\ndef back(n):\n    return turn(n)\n\nturn(0)"
    )
    assert cell.error["ename"] == "RecursionError"
    assert re.search(r"\[\.\.\. [\d,]+ frames not shown\]", plain(cell))
    assert len(cell.error["traceback"]) < 60


def test_a_long_message_is_bounded(notebook: Notebook) -> None:
    cell = notebook.run(f"{REMOTE}raise ValueError('x' * 5_000_000)")
    assert len(plain(cell)) < 250_000
    assert "characters not shown" in plain(cell)


def test_lines_and_numbers_survive_the_kernel(notebook: Notebook) -> None:
    before = plain(notebook.run(f"{REMOTE}Thing().use(0)"))
    notebook.ok("%%remote --quiet --durable\nkept = Thing")
    died = notebook.run(f"{REMOTE}import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert died.error["ename"] == "KernelDied"
    after = plain(notebook.run(f"{REMOTE}kept().use(0)"))
    assert before.split("in Thing.use")[1] == after.split("in Thing.use")[1]


# --- the exception itself -------------------------------------------------------------------------


def test_type_attributes_cause_and_notes(notebook: Notebook) -> None:
    code = "try:\n    deep(0)\nexcept ZeroDivisionError as error:\n    raise Odd(5, 6) from error"
    cell = notebook.ok(caught(code, "type(e) is Odd, e.left, e.args, repr(e.__cause__)"))
    assert cell.stream() == "True 5 ('5-6',) ZeroDivisionError('division by zero')\n"


@needs_groups
def test_except_star(notebook: Notebook) -> None:
    code = "raise ExceptionGroup('g', [ValueError(1), ExceptionGroup('h', [KeyError(2)])])"
    cell = notebook.ok(
        f"try:\n    get_ipython().run_cell_magic('remote', '--quiet', {code!r})\n"
        "except* KeyError as e:\n    print(repr(e))\nexcept* ValueError as e:\n    print(repr(e))"
    )
    assert cell.stream() == (
        "ExceptionGroup('g', [ExceptionGroup('h', [KeyError(2)])])\n"
        "ExceptionGroup('g', [ValueError(1)])\n"
    )


@needs_groups
def test_a_group_is_shown_with_what_is_in_it(notebook: Notebook) -> None:
    code = "raise ExceptionGroup('g', [ValueError(1), ExceptionGroup('h', [KeyError(2)])])"
    cell = notebook.run(f"{REMOTE}{code}")
    text = plain(cell)
    assert cell.error["ename"] == "ExceptionGroup"
    assert re.search(r'File "Cell In\[\d+\]", line 2', text)
    for part in ("ValueError: 1", "ExceptionGroup: h (1 sub-exception)", "KeyError: 2"):
        assert part in text
    assert "mlcloud" not in text
    assert cell.stream("stderr") == ""


def test_a_syntax_error_is_one_here_too(notebook: Notebook) -> None:
    cell = notebook.ok(caught("x = 1\nif True", "type(e) is SyntaxError, e.lineno"))
    assert cell.stream() == "True 2\n"


def test_a_class_that_is_not_here_is_found_by_its_bases(notebook: Notebook) -> None:
    code = (
        "import sys, types\nonly = types.ModuleType('only_there')\n"
        "exec('class Far(LookupError): pass', only.__dict__)\n"
        "sys.modules['only_there'] = only\nraise only.Far('far')"
    )
    cell = notebook.ok(caught(code, "type(e).__name__, isinstance(e, LookupError), e"))
    assert cell.stream() == "Far True far\n"


def test_an_attribute_that_cannot_travel_costs_only_itself(notebook: Notebook) -> None:
    code = "import threading\ne = Odd(1, 2)\ne.lock = threading.Lock()\nraise e"
    cell = notebook.ok(caught(code, "type(e) is Odd, e.left, hasattr(e, 'lock')"))
    assert cell.stream() == "True 1 False\n"


def test_an_error_without_words_does_not_hang_the_session(notebook: Notebook) -> None:
    cell = notebook.run(
        f"{REMOTE}class Mute(Exception):\n    def __str__(self): raise RuntimeError('no words')\n"
        "raise Mute()"
    )
    assert cell.error["ename"] == "Mute"
    assert notebook.ok(f"{REMOTE}1 + 1").result == "2"


def test_a_class_of_the_user_with_a_name_of_ours(notebook: Notebook) -> None:
    code = "class Conflict(Exception): pass\nraise Conflict('mine')"
    cell = notebook.ok(caught(code, "type(e).__module__, e"))
    assert cell.stream() == "__main__ mine\n"


def test_a_timeout_says_where_the_cell_was(notebook: Notebook) -> None:
    cell = notebook.run("%%remote --quiet --timeout 1s\nimport time\ntime.sleep(30)")
    text = plain(cell)
    assert "----> 3 time.sleep(30)" in text
    assert text.endswith("ExecutionTimeout: interrupted after 1 s (--timeout)")


def test_exit_leaves_the_session_as_it_is(notebook: Notebook) -> None:
    notebook.ok(f"{REMOTE}still = 'here'")
    assert "%mlcloud park" in notebook.ok(f"{REMOTE}exit()").stream("stderr")
    assert notebook.ok(f"{REMOTE}still").result == "'here'"


# --- afterwards -----------------------------------------------------------------------------------


def test_tb_and_last_value(notebook: Notebook) -> None:
    first = plain(notebook.run(f"{REMOTE}deep(0)"))
    assert plain(notebook.run("%tb")) == first
    assert notebook.ok("import sys\ntype(sys.last_value)").result == "ZeroDivisionError"
    notebook.run(f"{REMOTE}import sys\nsys.exit(3)")
    assert "----> 3 sys.exit(3)" in plain(notebook.run("%tb"))


def test_the_standard_library_shows_remote_frames(notebook: Notebook) -> None:
    cell = notebook.ok(
        "import traceback\ntry:\n    get_ipython().run_cell_magic('remote', '--quiet', 'deep(0)')\n"
        "except ZeroDivisionError:\n    print(traceback.format_exc())"
    )
    assert "in deep\n    return 1 / rest\n" in cell.stream()


def test_a_script_shows_them_too(cluster: Embedded) -> None:
    script = start_python(
        cluster,
        "import mlcloud\ns = mlcloud.session('script', namespace={})\n"
        "try:\n    s.run('def f(n):\\n    return 1 / n\\n\\nf(0)', quiet=True)\n"
        "finally:\n    s.close()",
    )
    _, shown = script.communicate(timeout=200)
    assert "in f\n    return 1 / n\n" in shown
    assert shown.rstrip().endswith("ZeroDivisionError: division by zero")


def _book(*cells: Any) -> Any:
    return nbformat.v4.new_notebook(cells=list(cells))


def _code(source: str, **metadata: Any) -> Any:
    return nbformat.v4.new_code_cell(source, metadata=metadata)


def test_run_all_stops_unless_the_cell_is_tagged(cluster: Embedded) -> None:
    failing = "%%remote --quiet --session tagged\n1 / 0"
    book = _book(
        _code("%load_ext mlcloud"),
        _code(failing, tags=["raises-exception"]),
        _code("print('reached')"),
        _code(failing),
        _code("print('not reached')"),
    )
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        NotebookClient(book, timeout=200).execute(env=cluster.environment)
    assert book.cells[2].outputs[0]["text"] == "reached\n"
    assert book.cells[4].outputs == []
    cluster.connect().attach("tagged").close()


# --- the debugger ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(cluster: Embedded) -> Iterator[Page]:
    with open_page(cluster) as page:
        page.ok(DEFINITIONS)
        yield page
        page.ok("import mlcloud\nfor s in mlcloud.sessions(): mlcloud.attach(s.name).close()")


def test_debug_needs_an_error_and_who_answers(page: Page) -> None:
    page.ok(f"{REMOTE}1")
    none = page.run("%mlcloud debug", answers=["q"])
    assert none.error["ename"] == "UsageError"
    assert "no cell has failed" in none.error["evalue"]
    assert len(none.error["traceback"]) == 1
    page.run(f"{REMOTE}deep(0)")
    silent = page.run("%mlcloud debug")
    assert "answers none" in silent.error["evalue"]


def test_debug_looks_at_the_last_error_there(page: Page) -> None:
    page.run(f"{REMOTE}local_name = 6 * 7\ndeep(0)")
    page.ok(f"{REMOTE}'cells in between do not matter'")
    cell = page.ok(
        "%mlcloud debug", answers=["p rest", "up", "p local_name", "!local_name = 5", "q"]
    )
    text = cell.stream()
    assert "return" in text
    assert "0\n" in text
    assert "42\n" in text
    assert page.asked[-1]["prompt"] == "ipdb> "
    assert page.ok(f"{REMOTE}local_name").outputs, "the session goes on"


def test_debug_after_the_kernel_ended(page: Page) -> None:
    page.run(f"{REMOTE}deep(0)")
    page.run(f"{REMOTE}import os\nos._exit(1)")
    page.ok(f"{REMOTE}1")
    assert "no cell has failed" in page.run("%mlcloud debug", answers=["q"]).error["evalue"]


def test_pdb_on_debugs_where_the_error_is(page: Page) -> None:
    page.ok("%pdb on")
    before = len(page.asked)
    cell = page.run(f"{REMOTE}inside = 'the session'\ndeep(0)", answers=["up", "p inside", "q"])
    page.ok("%pdb off")
    assert "'the session'" in cell.stream()
    assert cell.error["ename"] == "ZeroDivisionError"
    assert len(page.asked) - before == 3, "and not once more here"
