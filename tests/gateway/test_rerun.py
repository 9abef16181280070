"""A cell that was cut short runs again, or not: what its user said, and what it did outside."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlcloud import errors
from mlcloud.client.api import Client
from mlcloud.client.session import Session
from tests.faults.test_host_killed import host_of
from tests.live import events, printed, until

pytestmark = pytest.mark.cluster

# Sleeps in its first run only: what counts the runs lies in a temporary folder, as scratch may.
CELL = """
import os, time
runs = len(os.listdir({folder!r}))
open(os.path.join({folder!r}, str(runs)), "w").close()
{does}
print("ready", runs, os.getpid(), flush=True)
if not runs: time.sleep(120)
done = runs
"""


def kill_host(session: Session) -> None:
    """The cell's node goes without a notice, as soon as it runs for the first time."""
    found = until(lambda: re.search(r"ready 0 (\d+)\n", printed(session)), "the cell runs", 60)
    host_of(psutil.Process(int(found.group(1)))).kill()


class Counted:
    """A detached cell whose node is taken away while it runs."""

    def __init__(self, session: Session, folder: Path) -> None:
        folder.mkdir()
        self.session, self.folder = session, folder
        self.execution: Any = None

    @property
    def runs(self) -> int:
        return len(list(self.folder.iterdir()))

    def cut_short(self, does: str = "pass", **options: Any) -> None:
        code = CELL.format(folder=str(self.folder), does=does)
        self.execution = self.session.run(code, detach=True, quiet=True, **options)
        kill_host(self.session)

    def question(self) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found[:] = [e["content"] for e in events(self.session) if e["kind"] == "input_request"]
            return bool(found)

        until(look, "it is asked", 60)
        return found[-1]

    def answer(self, value: str) -> None:
        request = self.question()["request"]
        self.session.feed.answer(self.execution.id, request, value)

    def result(self) -> None:
        self.execution.result(timeout=90)


@pytest.fixture
def counted(session: Callable[..., Session], tmp_path: Path) -> Counted:
    return Counted(session(), tmp_path / "runs")


@pytest.fixture
def outside() -> Any:
    """A folder of the user's that is no scratch."""
    folder = Path.home() / "mlcloud-test-outside"
    folder.mkdir(exist_ok=True)
    yield folder
    for each in folder.iterdir():
        each.unlink()
    folder.rmdir()


def test_it_asks_and_runs_again_on_a_yes(counted: Counted) -> None:
    counted.cut_short(on_preempt="ask")
    assert "node was taken away" in counted.question()["prompt"]
    assert counted.session.state == "waiting"
    assert counted.runs == 1
    counted.answer("y")
    counted.result()
    assert counted.runs == 2


def test_it_asks_and_does_not_run_on_a_no(counted: Counted) -> None:
    counted.cut_short(on_preempt="ask")
    counted.answer("")
    with pytest.raises(errors.SessionFailed, match="not run again, as you said"):
        counted.result()
    assert counted.runs == 1
    counted.session.run("after = 1", quiet=True)


@pytest.mark.slow
def test_an_interrupt_is_an_answer(counted: Counted) -> None:
    counted.cut_short(on_preempt="ask")
    counted.question()
    counted.execution.interrupt()
    with pytest.raises(KeyboardInterrupt):
        counted.result()
    assert counted.runs == 1


def test_what_wrote_outside_is_asked_about(counted: Counted, outside: Path) -> None:
    counted.cut_short(f"open('{outside}/out.csv', 'a').write('row')")
    assert f"It wrote to {outside}/out.csv." in counted.question()["prompt"]
    counted.answer("yes")
    counted.result()
    assert counted.runs == 2


def test_nobody_there_to_ask(counted: Counted, outside: Path, client: Client) -> None:
    """The notebook is closed: what wrote outside is not repeated."""
    code = CELL.format(folder=str(counted.folder), does=f"open('{outside}/x', 'w').close()")
    name, session = counted.session.name, counted.session
    execution = session.run(code, detach=True, quiet=True)
    assert execution is not None
    until(lambda: "ready 0" in printed(session), "the cell runs", 60)
    session.feed.close()
    kill_host(client.attach(name))
    again = client.attach(name)
    until(lambda: again.info.running is None, "the cell has ended", 60)
    done = [e["content"] for e in events(again) if e["kind"] == "done"][-1]
    assert done["ename"] == "SessionFailed"
    assert "nobody is attached" in done["evalue"]
    assert f"wrote to {outside}/x" in done["evalue"]
    assert counted.runs == 1


@pytest.mark.slow
def test_rerun_asks_nobody(counted: Counted, outside: Path) -> None:
    counted.cut_short(f"open('{outside}/out.csv', 'a').write('row')", on_preempt="rerun")
    counted.result()
    assert counted.runs == 2


def test_a_posted_request_is_an_effect_and_a_read_is_none(counted: Counted) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        counted.cut_short(
            f"import urllib.request as u; u.urlopen({url!r}); u.urlopen({url!r}, data=b'x')"
        )
        assert "It sent a POST request to 127.0.0.1." in counted.question()["prompt"]
        counted.answer("n")
        with pytest.raises(errors.SessionFailed):
            counted.result()
        server.shutdown()


def test_scratch_and_reads_are_no_effects(counted: Counted) -> None:
    counted.cut_short(
        "import json, pathlib, tempfile\n"
        "pathlib.Path('here.txt').write_text('x')\n"
        "tempfile.NamedTemporaryFile().write(b'x')\n"
        "open('/dev/null', 'w').write('x')\n"
        "open('/proc/self/status').read()"
    )
    counted.result()
    assert counted.runs == 2
