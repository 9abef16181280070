"""A whole notebook in a session: nbclient and plain kernel clients on a real embedded cluster."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

import mlcloud
from mlcloud.client.notebook.options import Options
from mlcloud.client.notebook.specs import install
from mlcloud.client.session import Session
from tests.live import Embedded, Notebook, PatientClient, printed, until

pytestmark = pytest.mark.cluster

Opener = Callable[..., Any]
VIEW = "application/vnd.jupyter.widget-view+json"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Console:
    """One kernel and its client, as a console has them."""

    def __init__(self, km: KernelManager) -> None:
        self.km = km
        self.kc: BlockingKernelClient = km.blocking_client()
        self.kc.start_channels()
        self.kc.wait_for_ready(timeout=60)
        self.outputs: list[dict[str, Any]] = []

    def run(self, code: str, answers: list[str] | None = None, **options: Any) -> dict[str, Any]:
        """The reply; `outputs` has what was published meanwhile."""
        self.outputs = []
        waiting = list(answers or ())
        reply: dict[str, Any] = self.kc.execute_interactive(
            code,
            timeout=240,
            allow_stdin=answers is not None,
            stdin_hook=lambda _: self.kc.input(waiting.pop(0)),
            output_hook=self.outputs.append,
            **options,
        )
        return reply

    def printed(self) -> str:
        return "".join(
            each["content"]["text"] for each in self.outputs if each["msg_type"] == "stream"
        )

    def value(self, code: str) -> str:
        """The text of the cell's value."""
        assert self.run(code)["content"]["status"] == "ok"
        shown = [each for each in self.outputs if each["msg_type"] == "execute_result"]
        text: str = shown[0]["content"]["data"]["text/plain"]
        return text

    def published(self, condition: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """The first message on iopub for which this is so."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            message: dict[str, Any] = self.kc.get_iopub_msg(timeout=60)
            if condition(message):
                return message
        pytest.fail(f"nobody published {what}")

    def said(self, text: str) -> dict[str, Any]:
        """The message that printed this."""
        return self.published(lambda each: text in each["content"].get("text", ""), text)


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Kernelspecs of the test's own."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    return tmp_path


@pytest.fixture
def open_book(kernels: Path, cluster: Embedded) -> Opener:
    """A notebook at a path, in the kernel of these options."""

    @contextmanager
    def opened(path: str, **options: Any) -> Iterator[Notebook]:
        spec = install(Options(**options), user=True)
        client = PatientClient(
            nbformat.v4.new_notebook(), kernel_name=spec.name, timeout=240, allow_errors=True
        )
        environment = {**cluster.environment, "JPY_SESSION_NAME": str(kernels / path)}
        with client.setup_kernel(env=environment, cwd=str(kernels)):
            yield Notebook(client)

    return opened


@pytest.fixture
def open_console(kernels: Path, cluster: Embedded) -> Opener:
    @contextmanager
    def opened(**options: Any) -> Iterator[Console]:
        km = KernelManager(kernel_name=install(Options(**options), user=True).name)
        km.start_kernel(env=cluster.environment, cwd=str(kernels))
        console = Console(km)
        try:
            yield console
        finally:
            console.kc.stop_channels()
            km.shutdown_kernel()

    return opened


def session_named(beginning: str) -> Session:
    """The only session whose name begins so."""
    (found,) = [each.name for each in mlcloud.sessions() if each.name.startswith(beginning)]
    return mlcloud.attach(found)


def test_a_notebook_and_its_session(open_book: Opener, cluster: Embedded) -> None:
    """Output of each kind, a node taken away in the middle, parked and reopened."""
    cluster.connect()
    with open_book("first.ipynb") as book:
        assert book.ok("import os, sys\nx = 20\nprint('here')").stream() == "here\n"
        session = session_named("first-")
        cell = book.ok("x += 1\nx * 2")
        assert (cell.result, cell.outputs[0]["execution_count"]) == ("42", 2)
        assert len(cell.outputs) == 1  # its bill is in the reply
        assert book.ok("Out[2], _, In[2]").result == "(42, 42, 'x += 1\\nx * 2')"

        failed = book.run("def deep():\n    return 1 / 0\n\ndeep()").error
        text = COLOURS.sub("", "\n".join(failed["traceback"]))
        assert failed["ename"] == "ZeroDivisionError"
        assert "Cell In[4], line 2, in deep()" in text
        assert "mlcloud" not in text

        shown = book.ok(
            "handle = display('before', display_id=True)\nhandle.update('after')\n"
            "print('to stderr', file=sys.stderr)"
        )
        assert [each["text/plain"] for each in shown.shown] == ["'after'"]
        assert shown.stream("stderr") == "to stderr\n"
        assert book.ok("   ").outputs == []
    until(lambda: session.state == "parked", "the notebook's session is parked with its kernel")
    with open_book("first.ipynb") as book:
        assert book.ok("x, deep.__name__").result == "(21, 'deep')"
    session.close()


@pytest.mark.slow
def test_taken_away_in_the_middle(open_book: Opener, cluster: Embedded) -> None:
    """The node goes while a cell runs: it runs again elsewhere, and the notebook has its result."""
    cluster.connect()
    with open_book("drill.ipynb") as book, ThreadPoolExecutor(1) as pool:
        book.ok("total = 5")
        session = session_named("drill-")

        def drill() -> None:
            until(lambda: "step 3" in printed(session), "the cell is on its way", 60)
            mlcloud.connect().cluster.preempt(session.name, "1s")

        drilled = pool.submit(drill)
        cell = book.ok(
            "import time\nfor i in range(80):\n    print('step', i)\n    time.sleep(0.1)\n"
            "total += i\ntotal"
        )
        drilled.result()
        assert cell.result == "84"
        assert "the cell runs again" in cell.lines
    session.close()


def test_a_console(open_console: Opener, cluster: Embedded) -> None:
    """What a front end asks beside running cells."""
    cluster.connect()
    with open_console() as console:
        info = console.kc.kernel_info(reply=True, timeout=30)["content"]
        assert info["language_info"]["name"] == "python"
        console.kc.is_complete("for i in x:")
        asked = console.kc.get_shell_msg(timeout=30)["content"]
        assert asked == {"status": "incomplete", "indent": "    "}
        reply = console.run("answer = input('how many? ')", ["7"])
        assert reply["metadata"]["mlcloud"]["usd"]
        assert reply["metadata"]["mlcloud"]["execution_id"] == reply["parent_header"]["msg_id"]
        session = session_named("kernel-")
        assert console.value("answer") == "'7'"
        reply = console.run("import getpass; getpass.getpass('secret? ')", ["s"])
        assert reply["content"]["status"] == "ok"
        assert "does not support input" in console.run("input()")["content"]["evalue"]

        # Tab and Shift-Tab, of live objects there.
        console.run("class Thing:\n    colour = 1\nthing = Thing()")
        found = console.kc.complete("print(thing.col", reply=True, timeout=30)["content"]
        assert [each.rpartition(".")[2] for each in found["matches"]] == ["colour"]
        seen = console.kc.inspect("thing.colour", 8, reply=True, timeout=30)["content"]
        assert seen["found"]
        history = console.kc.history(reply=True, timeout=30)["content"]["history"]
        assert "answer" in [code for _, _, code in history]

        # Expressions, and a cell that nobody sees.
        reply = console.run("a = 3", user_expressions={"double": "a * 2"})
        assert reply["content"]["user_expressions"]["double"]["data"]["text/plain"] == "6"
        before = reply["content"]["execution_count"]
        reply = console.run("print('unseen')\nb = 4", silent=True)
        assert console.printed() == ""
        reply = console.run("b")
        assert reply["content"]["execution_count"] == before + 1

        # An interrupt ends the running cell, and those that wait are not run.
        sent = [console.kc.execute(code) for code in ("import time; time.sleep(60)", "late = 1")]
        until(lambda: session.info.running == sent[0], "the cell runs")
        console.km.interrupt_kernel()
        replies = [console.kc.get_shell_msg(timeout=60) for _ in sent]
        assert [each["content"]["status"] for each in replies] == ["error", "aborted"]
        assert replies[0]["content"]["ename"] == "KeyboardInterrupt"
        assert console.value("'late' in globals()") == "False"
        count = console.run("1")["content"]["execution_count"]
        assert count == replies[0]["content"]["execution_count"] + 2

        # Commands of ours are this process's, in their turn, and mean the notebook's session.
        state = console.run("%mlcloud state")["content"]
        assert state["status"] == "ok"
        shown = [each for each in console.outputs if each["msg_type"] == "display_data"]
        assert "answer" in shown[0]["content"]["data"]["text/html"]
        assert console.run("%load_ext mlcloud")["content"]["status"] == "ok"
        refused = console.run("%mlcloud parc")["content"]
        assert refused["ename"] == "UsageError"
        assert "park" in refused["evalue"]
        assert console.run("%mlcloud attach")["content"]["ename"] == "UsageError"

        # A restart begins anew, on the same node, and can be taken back.
        node = session.info.node
        console.km.restart_kernel(now=False)
        console.kc.wait_for_ready(timeout=60)
        assert console.value("'answer' in globals(), len(Out)") == "(False, 0)"
        assert console.run("1")["content"]["execution_count"] == 2
        assert session.info.node == node
        step = next(each.step for each in reversed(session.history()) if "answer" in each.names)
        session.restore(step)
        assert console.value("answer") == "'7'"
        console.km.restart_kernel(now=True)
        console.kc.wait_for_ready(timeout=60)
        assert console.value("'answer' in globals()") == "False"
        name = session.name
    assert name not in [each.name for each in mlcloud.sessions()]  # nobody would find it again


def test_cells_go_on_without_it(open_console: Opener, cluster: Embedded, tmp_path: Path) -> None:
    """The local process is killed: what runs and what waits goes on, and the next one finds it."""
    cluster.connect()
    gate = tmp_path / "gate"
    look = f"while not pathlib.Path({str(gate)!r}).exists():\n    time.sleep(0.05)"
    wait = f"import time, pathlib\n{look}"
    with open_console(session="alone", on_shutdown="close") as console:
        console.run("done = [0]")
        session = mlcloud.attach("alone")
        first = console.kc.execute(f"{wait}\ndone.append(1)")
        console.kc.execute("done.append(2)")
        until(lambda: session.info.running == first and session.info.queued == 1, "both are there")
        os.kill(console.km.provisioner.pid, signal.SIGKILL)  # type: ignore[union-attr]
        until(lambda: not console.km.is_alive(), "the local process is gone")
        gate.touch()
        until(lambda: session.info.finished_cells == 3, "both cells have run")
    with open_console(session="alone", on_shutdown="close") as console:
        assert console.value("done") == "[0, 1, 2]"


def test_widgets(open_console: Opener, cluster: Embedded) -> None:
    """A page's messages reach a widget while a cell runs, and its state is told to a new page."""
    pytest.importorskip("ipywidgets")
    cluster.connect()
    with open_console() as console:
        kc = console.kc

        def send(kind: str, comm_id: str, **content: Any) -> str:
            message = kc.session.msg(kind, {"comm_id": comm_id, **content})
            message["metadata"] = {"version": "1.0.0"}  # of the widgets' control comm
            kc.shell_channel.send(message)
            sent: str = message["header"]["msg_id"]
            return sent

        assert kc.comm_info(reply=True, timeout=30)["content"]["comms"] == {}
        console.run("import ipywidgets, time\nw = ipywidgets.IntSlider(3)\ndisplay(w)")
        opened = [each for each in console.outputs if each["msg_type"] == "comm_open"]
        shown = [each["content"] for each in console.outputs if each["msg_type"] == "display_data"]
        (view,) = [each["data"][VIEW] for each in shown if VIEW in each["data"]]
        widget = view["model_id"]
        assert widget in [each["content"]["comm_id"] for each in opened]
        assert widget in kc.comm_info(reply=True, timeout=30)["content"]["comms"]

        running = kc.execute(
            "w.observe(lambda change: print('moved to', change.new), 'value')\n"
            "print('ready')\nwhile w.value != 7:\n    time.sleep(0.02)"
        )
        console.said("ready")
        data = {"method": "update", "state": {"value": 7}, "buffer_paths": []}
        moved = send("comm_msg", widget, data=data)
        said = console.said("moved to 7")
        assert said["parent_header"]["msg_id"] == moved
        assert kc.get_shell_msg(timeout=60)["parent_header"]["msg_id"] == running

        control = "c0ffee"
        send("comm_open", control, target_name="jupyter.widget.control", data={})
        send("comm_msg", control, data={"method": "request_states"})
        states = console.published(
            lambda each: each["msg_type"] == "comm_msg" and each["content"]["comm_id"] == control,
            "the states of all widgets",
        )
        assert states["content"]["data"]["states"][widget]["state"]["value"] == 7
