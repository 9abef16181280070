"""An interrupt stops the cell at once, whatever it waits for, and leaves its session as it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from mlcloud.client.session import Session
from tests.live import Embedded, Running, open_notebook, until
from tests.page import open_page
from tests.tunnel import Tunnel

pytestmark = pytest.mark.cluster

SOON_S = 3.0


@pytest.fixture(scope="module")
def shared(cluster: Embedded) -> Iterator[Session]:
    """One session for all: an interrupt must leave it usable, so each test checks the last."""
    session = cluster.connect().session("interrupt", namespace={})
    session.run("kept = 1", quiet=True)
    yield session
    session.close()


def interrupted(session: Session, code: str) -> tuple[BaseException | None, float]:
    """Run `code`, interrupt it when it has printed `ready`: its error, and how long that took."""
    cell = Running(session, code, quiet=True)
    cell.printed("ready")
    began = time.monotonic()
    session.interrupt()
    error = cell.error()
    return error, time.monotonic() - began


@pytest.mark.parametrize(
    "code",
    [
        "import time\nprint('ready')\ntime.sleep(60)",
        "print('ready')\nwhile True: pass",
        "import subprocess\nprint('ready')\nsubprocess.run(['sleep', '60'])",
        "import asyncio\nprint('ready')\nawait asyncio.sleep(60)",
        "import threading\nprint('ready')\nthreading.Event().wait()",
    ],
    ids=["sleep", "loop", "subprocess", "await", "lock"],
)
def test_stops_within_seconds(shared: Session, code: str) -> None:
    error, took = interrupted(shared, code)
    assert type(error).__name__ in ("KeyboardInterrupt", "CancelledError")
    assert took < SOON_S
    assert shared["kept"] == 1
    assert shared.state == "idle"


def test_stops_a_shell_command(shared: Session) -> None:
    """As in a local notebook: the command ends, the cell goes on to its next line."""
    shared.run("import os; pid = os.getpid()", quiet=True)
    kernel = shared["pid"]
    cell = Running(shared, "!sleep 61\nprint('next')", quiet=True)
    until(lambda: commands(kernel) & {"sleep"}, "the command runs")
    began = time.monotonic()
    shared.interrupt()
    assert cell.error() is None
    assert time.monotonic() - began < SOON_S
    until(lambda: not children(kernel), "the shell and its sleep have ended", timeout=5)


def test_stops_a_data_loader_and_its_workers(shared: Session) -> None:
    pytest.importorskip("torch")
    error, took = interrupted(
        shared,
        "import time, os, torch.utils.data as data\n"
        "class Slow(data.Dataset):\n"
        "    def __len__(self): return 1000\n"
        "    def __getitem__(self, i):\n"
        "        time.sleep(0.5)\n"
        "        return i\n"
        "pid = os.getpid()\n"
        "for batch in data.DataLoader(Slow(), num_workers=2):\n"
        "    print('ready', flush=True)",
    )
    assert isinstance(error, KeyboardInterrupt)
    assert took < SOON_S
    until(lambda: not children(shared["pid"]), "the loader's workers have ended", timeout=10)


def children(pid: int) -> list[psutil.Process]:
    return [
        each
        for each in psutil.Process(pid).children(recursive=True)
        if each.is_running() and each.status() != psutil.STATUS_ZOMBIE
    ]


def commands(pid: int) -> set[str]:
    return {each.name() for each in children(pid)}


def test_what_the_cell_bound_before_is_kept(shared: Session) -> None:
    error, _ = interrupted(shared, "half = 1\nprint('ready')\nimport time; time.sleep(60)")
    assert isinstance(error, KeyboardInterrupt)
    assert shared["half"] == 1


def test_a_cell_that_waits_in_the_queue_is_cancelled(shared: Session, cluster: Embedded) -> None:
    first = Running(shared, "print('ready')\nimport time; time.sleep(60)", quiet=True)
    first.printed("ready")
    with cluster.http() as http:
        path = f"/v1/sessions/{shared.name}/executions"
        http.post(path, json={"id": "queued-cell-1", "code": "ran = True"}).raise_for_status()
        http.post(f"{path}/queued-cell-1/interrupt").raise_for_status()
        assert http.get(f"{path}/queued-cell-1").json()["state"] == "failed"
    shared.interrupt()
    assert isinstance(first.error(), KeyboardInterrupt)
    shared.run("assert 'ran' not in globals()", quiet=True)


def test_the_notebooks_stop_button(cluster: Embedded) -> None:
    with open_notebook(cluster) as notebook:
        notebook.ok("%%remote --session interrupt\nprint('warm')")
        took: list[float] = []

        def press() -> None:
            session = cluster.connect().attach("interrupt")
            until(lambda: session.state == "busy", "the cell runs")
            took.append(time.monotonic())
            notebook.interrupt()

        thread = threading.Thread(target=press)
        thread.start()
        cell = notebook.run("%%remote --session interrupt\nimport time\ntime.sleep(60)")
        ended = time.monotonic()
        thread.join()
        assert cell.error["ename"] == "KeyboardInterrupt"
        assert ended - took[0] < SOON_S
        assert notebook.ok("%%remote --session interrupt\n1 + 1").result == "2"


def test_interrupts_while_no_cell_runs_do_nothing(session: Callable[..., Session]) -> None:
    s = session()
    s.run("x = 1", quiet=True)
    s.interrupt()
    s.run("y = x + 1", quiet=True)
    assert s["y"] == 2


def test_a_cell_that_ignores_interrupts_is_ended_by_the_ladder(
    shared: Session, cluster: Embedded
) -> None:
    """The third step of the ladder: the kernel is ended, and the state before the cell is back."""
    with open_page(cluster) as page:
        page.ok("%%remote --session interrupt --durable\nbefore = 'safe'")
        cell = page.start(
            "%%remote --session interrupt\nimport time\nuntil = time.monotonic() + 40\n"
            "while time.monotonic() < until:\n"
            "    try: print('deaf', flush=True); time.sleep(1)\n"
            "    except KeyboardInterrupt: pass"
        )
        cell.printed("deaf")
        page.interrupt()
        time.sleep(5.5)  # the ladder's own first step lasts 5 s
        page.interrupt()
        time.sleep(0.5)
        assert not cell.ended
        page.interrupt()
        ended = cell.end(60)
        assert ended.error["ename"] == "KernelDied"
        said = str(cell.of("update_display_data"))
        assert "the state before this cell comes back" in said
        assert page.ok("%%remote --session interrupt\nbefore").result == "'safe'"


def test_a_call_that_never_looks_at_signals_is_ended_too(cluster: Embedded) -> None:
    """It holds the GIL, so nothing inside the kernel could help: the supervisor ends it."""
    with open_page(cluster) as page:
        page.ok("%%remote --session interrupt --durable\nimport itertools\nbefore = 'safe'")
        cell = page.start(
            "%%remote --session interrupt\n"
            "print('ready', flush=True)\nsum(itertools.repeat(0, 10**11))"
        )
        cell.printed("ready")
        page.interrupt()
        time.sleep(5.5)
        page.interrupt()
        cell.until(lambda run: "Interrupt once more" in run.outputs.lines, "it says what is lost")
        assert "the state before it comes back" in cell.outputs.lines
        assert not cell.ended
        page.interrupt()
        assert cell.end(60).error["ename"] == "KernelDied"
        assert page.ok("%%remote --session interrupt\nbefore").result == "'safe'"


def test_an_interrupt_says_what_still_bills(cluster: Embedded) -> None:
    with open_page(cluster) as page:
        cell = page.start(
            "%%remote --session interrupt\nimport time\nprint('ready')\ntime.sleep(60)"
        )
        cell.printed("ready")
        page.interrupt()
        ended = cell.end(20)
        assert ended.error["ename"] == "KeyboardInterrupt"
        assert "session interrupt keeps local.cpu" in ended.lines
        assert "%mlcloud park" in ended.lines
        assert "/h" in ended.lines


def test_while_it_waits_for_a_node(cluster: Embedded) -> None:
    with open_page(cluster) as page:
        cell = page.start("%%remote --session no-node-yet --cpus 4\nprint('ran')")
        cell.until(lambda run: "asking for a node" in str(run.messages), "it waits for a node")
        began = time.monotonic()
        page.interrupt()
        ended = cell.end(30)
        assert time.monotonic() - began < 2 * SOON_S
        assert ended.error["ename"] == "KeyboardInterrupt"
        # In place of the line that said what it waits for.
        assert "bills nothing" in str(cell.of("update_display_data"))
        assert "ran" not in ended.stream()
        page.ok("import mlcloud\nmlcloud.attach('no-node-yet').close()")


def test_while_data_is_sent(cluster: Embedded) -> None:
    """Nothing ran, nothing is half there, and the next try need not send it all again."""
    port = int(cluster.connection["url"].rpartition(":")[2])
    size = 48 * 2**20
    with Tunnel(port) as tunnel, open_page(cluster) as page:
        token = cluster.connection["token"]
        page.ok(f"import mlcloud\nmlcloud.connect({tunnel.url!r}, token={token!r})")
        page.ok("%%remote --session interrupt\ncount = 0")
        page.ok(f"import os\nbig = os.urandom({size})")
        tunnel.rate = 20e6
        before = tunnel.sent
        cell = page.start("%%remote --session interrupt\ncount += 1\nlen(big)")
        page.until(lambda: tunnel.sent - before > 20 * 2**20, "half of it is sent")
        began = time.monotonic()
        page.interrupt()
        ended = cell.end(30)
        assert time.monotonic() - began < SOON_S
        assert ended.error["ename"] == "KeyboardInterrupt"
        assert page.ok("%%remote --session interrupt\ncount").result == "0"
        tunnel.rate = None
        again = tunnel.sent
        assert page.ok("%%remote --session interrupt\ncount += 1\nlen(big)").result == str(size)
        assert tunnel.sent - again < size - 10 * 2**20
        assert page.ok("%%remote --session interrupt\ncount").result == "1"
