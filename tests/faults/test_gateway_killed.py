"""A gateway that is killed takes nothing with it: the next one finds cluster, cells and journal."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from mlcloud.client.embedded import down
from mlcloud.client.session import Session
from mlcloud.store import Store
from tests.live import (
    Embedded,
    Running,
    events,
    open_notebook,
    printed,
    start_python,
    stories,
    until,
)

pytestmark = pytest.mark.cluster

COUNT = (
    "import time\nfor i in range({n}):\n    print('tick', i, flush=True); time.sleep(0.02)\n"
    "open({path!r}, 'a').write('ran\\n');"
)


def ticks(n: int) -> str:
    return "".join(f"tick {i}\n" for i in range(n))


def test_the_cell_goes_on_and_its_output_is_whole(
    session: Callable[..., Session],
    cluster: Embedded,
    tmp_path: object,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = f"{tmp_path}/ran"
    s = session()
    s.run("kept = 7", durable=True, quiet=True)
    capsys.readouterr()
    cell = Running(s, COUNT.format(n=200, path=path), quiet=True)
    cell.printed("tick 20\n")
    nodes = {each["id"] for each in cluster.workers()}
    first = cluster.kill_gateway()
    assert cell.error() is None
    assert capsys.readouterr().out == ticks(200)
    assert cluster.connection["pid"] != first
    again = cluster.connect().attach(s.name)
    assert _read(path) == "ran\n"
    assert printed(again) == ticks(200)
    assert [each["seq"] for each in events(again)] == list(range(1, len(events(again)) + 1))
    assert nodes <= {each["id"] for each in cluster.workers()}
    assert again["kept"] == 7


@pytest.mark.slow
def test_twice_in_one_cell(
    session: Callable[..., Session],
    cluster: Embedded,
    tmp_path: object,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = f"{tmp_path}/ran"
    s = session()
    s.run("1", quiet=True)
    capsys.readouterr()
    cell = Running(s, COUNT.format(n=400, path=path), quiet=True)
    for tick in (20, 150):
        cell.printed(f"tick {tick}\n")
        cluster.kill_gateway()
        cluster.connect()
    assert cell.error() is None
    assert capsys.readouterr().out == ticks(400)
    assert _read(path) == "ran\n"


def test_a_cell_that_ends_meanwhile_is_known_to_have_ended(
    session: Callable[..., Session], cluster: Embedded, tmp_path: object
) -> None:
    s = session()
    s.run("1", quiet=True)
    with cluster.http() as http:
        http.post(
            f"/v1/sessions/{s.name}/executions",
            json={
                "id": "ends-meanwhile",
                "code": f"import time; print('ready'); time.sleep(1); x = 5\n"
                f"open('{tmp_path}/ran', 'a').write('ran\\n')",
            },
        ).raise_for_status()
    until(lambda: "ready" in printed(s), "the cell runs")
    cluster.kill_gateway()
    until(lambda: _read(f"{tmp_path}/ran"), "the cell has ended")
    again = cluster.connect().attach(s.name)
    with cluster.http() as http:
        path = f"/v1/sessions/{s.name}/executions/ends-meanwhile"
        until(lambda: http.get(path).json()["state"] == "safe", "the cell is safe")
        assert http.get(path).json()["runs"] == 1
    assert again["x"] == 5
    assert _read(f"{tmp_path}/ran") == "ran\n"


def test_what_was_queued_runs_once(session: Callable[..., Session], cluster: Embedded) -> None:
    s = session()
    s.run("order = []", durable=True, quiet=True)
    with cluster.http() as http:
        path = f"/v1/sessions/{s.name}/executions"
        code = "order.append({}); print('ready', flush=True); import time; time.sleep({})"
        for i, seconds in enumerate((3, 0, 0)):
            body = {"id": f"{s.name[-40:]}-{i}".replace(".", "-"), "code": code.format(i, seconds)}
            http.post(path, json=body).raise_for_status()
    until(lambda: "ready" in printed(s), "the first runs")
    cluster.kill_gateway()
    again = cluster.connect().attach(s.name)
    assert again["order"] == [0, 1, 2]


def test_between_cells_the_notebook_does_not_notice(cluster: Embedded) -> None:
    with open_notebook(cluster) as notebook:
        notebook.ok("%%remote\nx = [1]")
        cluster.kill_gateway()
        assert notebook.ok("%%remote\nx.append(2)\nx").result == "[1, 2]"
        assert notebook.ok("x").result == "[1, 2]"
        cluster.kill_gateway()
        assert "embedded" in notebook.ok("%mlcloud status").result
        notebook.ok("import mlcloud\nfor s in mlcloud.sessions(): mlcloud.attach(s.name).close()")


def test_a_killed_notebook_leaves_its_cell_running(
    cluster: Embedded, session: Callable[..., Session]
) -> None:
    name = session("left").name
    other = start_python(
        cluster,
        f"import mlcloud\ns = mlcloud.attach({name!r})\n"
        "s.run('import time\\nfor i in range(100):\\n    print(i, flush=True)\\n"
        "    time.sleep(0.02)\\nleft = i')",
    )
    s = cluster.connect().attach(name)
    until(lambda: "\n10\n" in printed(s), "the cell runs", 60)
    other.kill()
    other.wait()
    assert s["left"] == 99
    assert printed(s).split() == [str(i) for i in range(100)]


def test_a_state_that_was_told_of_and_not_committed(
    session: Callable[..., Session], cluster: Embedded
) -> None:
    """Killed between a state's message, which no host tells twice, and its commit."""
    s = session()
    s.run("kept = [1]", durable=True, quiet=True)
    s.run("kept.append(2)", durable=True, quiet=True)
    last = max(Store(cluster.settings.store_url).steps("sessions", s.id))
    cluster.kill_gateway()
    Store(cluster.settings.store_url).discard("sessions", s.id, last)
    with sqlite3.connect(cluster.home / "gateway.db") as database:
        (cell,) = database.execute(
            "select id from executions where session_id = ? order by ordinal desc", (s.id,)
        ).fetchone()
        database.execute("update executions set state = 'finished' where id = ?", (cell,))
    again = cluster.connect().attach(s.name)
    assert again.info.safe_cells < again.info.finished_cells
    until(lambda: again.info.safe_cells == again.info.finished_cells, "it is safe", 40)
    again.park()
    assert again["kept"] == [1, 2]
    assert not [each for each in stories(again) if "runs again" in each]


@pytest.mark.slow
def test_down_after_a_killed_gateway_ends_everything(own_cluster: Callable[..., Embedded]) -> None:
    embedded = own_cluster()
    s = embedded.connect().session("s", namespace={})
    s.run("1", quiet=True)
    assert len(embedded.processes()) >= 6
    embedded.kill_gateway()
    assert down(embedded.settings)
    assert not embedded.left()


@pytest.mark.slow
def test_nodes_end_themselves_when_no_gateway_comes(own_cluster: Callable[..., Embedded]) -> None:
    embedded = own_cluster(dead_man="10s")
    s = embedded.connect().session("s", namespace={})
    s.run("1", quiet=True)
    seen = embedded.processes()
    embedded.kill_gateway()
    until(lambda: not any(each.alive for each in seen), "head and node have ended", timeout=60)
    # and what they held is found again
    again = embedded.connect().attach("s")
    again.run("2", quiet=True)


def _read(path: str) -> str:
    file = Path(path)
    return file.read_text() if file.exists() else ""


def test_after_the_notice_the_move_goes_on(
    session: Callable[..., Session], cluster: Embedded
) -> None:
    """The next gateway finds the host that runs the cell, not the successor that was being made."""
    s = session()
    s.run("import mlcloud, time; st = {'n': 0}", durable=True, quiet=True)
    cell = Running(
        s,
        "for i in mlcloud.resumable(range(60), state={'st': st}, every=5):\n"
        "    st['n'] += 1; print(i, end=' ', flush=True); time.sleep(0.15)",
        quiet=True,
    )
    cell.printed("5 ")
    cluster.connect().cluster.preempt(s, "5s")
    until(lambda: "notice" in stories(s), "the notice is told")
    cluster.kill_gateway()
    assert cell.error(90) is None
    assert s["st"] == {"n": 60}
    assert {"notice", "moved", "rerun"} <= set(stories(s))
    assert printed(s).split()[-1] == "59"
