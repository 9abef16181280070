"""`%%remote` and `%mlcloud` in a real notebook: options, errors, footer, and what a typo gets."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.live import Embedded, Notebook, open_notebook

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def notebook(cluster: Embedded) -> Iterator[Notebook]:
    with open_notebook(cluster) as notebook:
        yield notebook
        notebook.ok("import mlcloud\nfor s in mlcloud.sessions(): mlcloud.attach(s.name).close()")


# --- loading it -----------------------------------------------------------------------------------

LOAD = """
import sys, time
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
before = set(sys.modules)
began = time.perf_counter()
shell.run_line_magic("load_ext", "mlcloud")
took = time.perf_counter() - began
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(took, *sorted(new))
"""


def test_loading_the_extension_is_light(cluster: Embedded) -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", LOAD],
            capture_output=True,
            text=True,
            check=True,
            env=cluster.environment,
        ).stdout.split()
        for _ in range(5)
    ]
    imported = set(runs[0][1:])
    heavy = {
        "ray",
        "torch",
        "numpy",
        "pandas",
        "pydantic",
        "httpx",
        "fastapi",
        "sqlalchemy",
        "fsspec",
        "websockets",
        "cloudpickle",
    }
    assert not imported & heavy
    assert statistics.median(float(run[0]) for run in runs) <= 0.150


def test_loading_twice_and_importing_starts_nothing(own_cluster) -> None:  # type: ignore[no-untyped-def]
    embedded = own_cluster()
    with open_notebook(embedded) as notebook:
        notebook.ok("%load_ext mlcloud")
        notebook.ok("%reload_ext mlcloud\nimport mlcloud")
        notebook.ok("%%remote --help")
    assert not (embedded.home / "gateway.json").exists()


# --- what a typo gets -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "error", "says"),
    [
        ("--gpus A10G:1", "UsageError", "did you mean --gpu?"),
        ("--sesion x", "UsageError", "did you mean --session?"),
        ("--nonsense", "UsageError", "--nonsense"),
        ("--workers 0", "UsageError", "workers: Input should be greater than or equal to 1"),
        ("--workers 500", "NoSuchResources", "500 workers never fit into this cluster"),
        ("--timeout soon", "UsageError", "soon"),
        ("--cpus many", "UsageError", "many"),
        ("--memory lots", "UsageError", "lots"),
        ("--spot --on-demand", "UsageError", "not allowed with"),
        ("--on-preempt shrug", "UsageError", "rerun"),
        ("--gpu A100:1", "NoSuchResources", "A10G:1"),
        ("--gpu A10:1", "NoSuchResources", "Did you mean A10G?"),
        ("--gpu A10G:8", "NoSuchResources", "A10G:1"),
        ("--cpus 64", "NoSuchResources", "4 CPUs"),
        ("--memory 2TB", "NoSuchResources", "GiB"),
        ("--session 'a b'", "UsageError", "letters"),
        ("--session 'open", "UsageError", "open"),
        ("what is this", "UsageError", "what"),
    ],
)
def test_a_wrong_option_is_explained(notebook: Notebook, line: str, error: str, says: str) -> None:
    name = "" if "--session" in line else "--session typo "
    cell = notebook.run(f"%%remote {name}{line}\nimport os; os.mkdir('/must-not-run')")
    assert cell.error is not None
    assert cell.error["ename"] == error, cell.error
    assert says.lower() in cell.error["evalue"].lower()
    assert len(cell.error["traceback"]) == 1, "our own errors need no stack"


def test_an_unknown_command_is_explained(notebook: Notebook) -> None:
    cell = notebook.run("%mlcloud statsu")
    assert cell.error["ename"] == "UsageError"
    assert "did you mean status?" in cell.error["evalue"]
    assert "status" in notebook.run("%mlcloud").error["evalue"]
    assert notebook.run("%mlcloud park nobody").error["ename"] == "NotFound"
    assert notebook.run("%mlcloud park 'open").error["ename"] == "UsageError"


def test_a_syntax_error_is_the_cells(notebook: Notebook) -> None:
    notebook.ok("%%remote\nkept = 1")
    cell = notebook.run("%%remote\nfirst = 1\nif True\n    pass")
    assert cell.error["ename"] == "SyntaxError"
    assert "if True" in "\n".join(cell.error["traceback"])
    assert "mlcloud" not in "\n".join(cell.error["traceback"])
    assert notebook.ok("%%remote\nkept").result == "1"
    assert notebook.run("%%remote\nfirst").error["ename"] == "NameError"


def test_an_empty_cell_and_one_of_comments(notebook: Notebook) -> None:
    assert notebook.ok("%%remote\n").error is None
    assert notebook.ok("%%remote\n# nothing").result is None


# --- errors ---------------------------------------------------------------------------------------


def test_the_exception_is_the_remote_one(notebook: Notebook) -> None:
    notebook.run("%%remote\nraise KeyError('missing')")
    cell = notebook.ok(
        "try:\n    get_ipython().run_cell_magic('remote', '', \"{}['missing']\")\n"
        "except KeyError as error:\n    print(type(error).__name__, error.args)"
    )
    assert cell.stream() == "KeyError ('missing',)\n"


def test_an_exception_class_of_the_notebook(notebook: Notebook) -> None:
    notebook.ok("class Odd(Exception):\n    pass")
    cell = notebook.ok(
        "try:\n    get_ipython().run_cell_magic('remote', '', 'raise Odd(1, 2)')\n"
        "except Odd as error:\n    print(error.args)"
    )
    assert cell.stream() == "(1, 2)\n"


def test_an_exception_class_that_is_not_here(notebook: Notebook) -> None:
    cell = notebook.run(
        "%%remote --out nothing_at_all\nclass There(Exception): pass\nraise There('far')"
    )
    assert cell.error["ename"] == "There"
    assert cell.error["evalue"] == "far"


def test_run_all_stops_at_an_error(cluster: Embedded) -> None:
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    sources = ["%load_ext mlcloud", "%%remote --session typo2\n1 / 0", "print('not reached')"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in sources])
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        NotebookClient(book, timeout=120).execute(env=cluster.environment)
    assert book.cells[2].outputs == []
    cluster.connect().attach("typo2").close()


def test_names_bound_before_an_error_come_back(notebook: Notebook) -> None:
    cell = notebook.run("%%remote\nso_far = [1, 2]\nraise ValueError('then')")
    assert cell.error["ename"] == "ValueError"
    assert notebook.ok("so_far").result == "[1, 2]"


# --- options --------------------------------------------------------------------------------------


def test_the_footer_and_its_figures(notebook: Notebook) -> None:
    cell = notebook.ok("%%remote\n1")
    figures = cell.footer
    assert figures is not None
    assert {
        "seconds",
        "usd",
        "saved_usd",
        "instance_type",
        "market",
        "zone",
        "moves",
        "simulated",
        "execution_id",
        "session",
    } <= set(figures)
    assert figures["simulated"] is True
    assert figures["moves"] == 0
    text = next(
        each["data"]["text/plain"]
        for each in cell.outputs
        if "usd" in each.get("metadata", {}).get("mlcloud", {})
    )
    assert "simulated" in text
    assert figures["instance_type"] in text


def test_quiet_hides_the_footer(notebook: Notebook) -> None:
    assert notebook.ok("%%remote --quiet\n1").footer is None


def test_the_footer_is_there_after_an_error(notebook: Notebook) -> None:
    assert notebook.run("%%remote\n1 / 0").footer is not None


def test_a_timeout_interrupts(notebook: Notebook) -> None:
    cell = notebook.run("%%remote --timeout 1s\nimport time\nhalf = 1\ntime.sleep(30)")
    assert cell.error["ename"] == "ExecutionTimeout"
    assert "--timeout" in cell.error["evalue"]
    assert notebook.ok("half").result == "1"
    assert notebook.ok("%%remote --timeout 1m\n2").result == "2"


def test_durable_waits_until_it_is_safe(notebook: Notebook) -> None:
    notebook.ok("%%remote --durable\nlasting = 1")
    state = notebook.ok("%mlcloud state").result
    assert "all of it is in the store" in state
    assert "lasting  saved" in state


def test_dry_runs_nothing_and_names_all(notebook: Notebook) -> None:
    notebook.ok("sent = list(range(10))\ndef used(): return sent")
    cell = notebook.ok("%%remote --dry\nout = used() + sent\nraise SystemError")
    text = cell.shown[0]["text/plain"]
    assert "sent" in text
    assert "used" in text
    assert "text/html" in cell.shown[0]
    assert notebook.run("out").error["ename"] == "NameError"


def test_in_and_out_name_what_travels(notebook: Notebook) -> None:
    notebook.ok("a, b = 1, 2")
    notebook.ok("%%remote --in a --out c\nc, d = a + 1, 5")
    assert notebook.ok("c").result == "2"
    assert notebook.run("d").error["ename"] == "NameError"
    missing = notebook.run("%%remote --in not_there\n1")
    assert "not_there" in missing.error["evalue"]
    missing = notebook.run("%%remote --out not_made\n1")
    assert missing.error is None or "not_made" in missing.error["evalue"]


def test_the_commands(notebook: Notebook) -> None:
    notebook.ok("%%remote\nkept_through_parking = 1")
    assert "embedded" in notebook.ok("%mlcloud status").result
    assert "simulated" in notebook.ok("%mlcloud cost").result
    assert "notebook-" in notebook.ok("%mlcloud sessions").stream()
    assert "parked" in notebook.ok("%mlcloud park").stream()
    assert "no node" in notebook.ok("%mlcloud state").result
    notebook.ok("%mlcloud resume")
    assert "idle" in notebook.ok("%mlcloud state").result
    assert notebook.ok("%%remote\nkept_through_parking").result == "1"


def test_resume_on_another_shape(notebook: Notebook) -> None:
    notebook.ok("%%remote\nkept = 1")
    error = notebook.run("%mlcloud resume --gpu T5").error
    assert error["ename"] == "NoSuchResources"
    assert "Did you mean T4?" in error["evalue"]
    typo = notebook.run("%mlcloud resume --gpus T4")
    assert "did you mean --gpu?" in typo.error["evalue"]
    notebook.ok("%mlcloud resume --memory 2GB --spot")
    assert notebook.ok("%%remote --memory 2GB\nkept").result == "1"
    wrong = notebook.run("%%remote --memory 1GB\nkept")
    assert "resume(memory=…)" in wrong.error["evalue"]
    notebook.ok("%mlcloud resume --memory none")
