"""A spot node that is taken away takes nothing with it: notice, move, names, the cell again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import psutil
import pytest

from mlcloud import errors
from mlcloud.client.api import Client
from mlcloud.client.remote_value import RemoteValue
from mlcloud.client.session import Session
from tests.live import Embedded, Running, alive, open_notebook, stories, until

pytestmark = pytest.mark.cluster

TRAIN = """
import time, mlcloud
for step in mlcloud.resumable(range({steps}), state={{"w": w, "seen": seen}}, every=5):
    w += 1
    seen.append(step)
    print(step, flush=True)
    time.sleep({pause})
"""


def test_between_cells(session: Callable[..., Session], client: Client) -> None:
    """Large values that stayed in the session move too, and a RemoteValue still stands for them."""
    namespace: dict[str, object] = {}
    s = session(namespace=namespace)
    s.run(
        "import numpy as np\nbig = np.arange(500_000)\nsmall = {'a': [1]}\n"
        "def scale(x): return x * factor\nfactor = 3",
        durable=True,
        quiet=True,
    )
    assert isinstance(namespace["big"], RemoteValue)
    first = s.info.node
    notice = client.cluster.preempt(s, "8s")
    assert notice.node == first
    assert notice.deadline > datetime.now(timezone.utc)
    until(lambda: s.info.node not in (first, None) and s.state == "idle", "it has moved", 60)
    s.run("total = int(big.sum()) + scale(len(small['a']))", quiet=True)
    assert namespace["total"] == sum(range(500_000)) + 3
    assert int(namespace["big"].get()[-1]) == 499_999
    told = stories(s)
    assert {"notice", "moved", "restored"} <= set(told)


def test_between_cells_when_the_node_ends_before_there_is_another(
    session: Callable[..., Session], client: Client
) -> None:
    """The notice is shorter than a machine takes to start; nobody runs a cell meanwhile."""
    s = session()
    s.run("kept = [1]", durable=True, quiet=True)
    first = s.info.node
    client.cluster.preempt(s, "1s")
    until(lambda: s.info.node not in (first, None) and s.state == "idle", "it has moved", 60)
    assert s.info.usd_per_hour > 0
    s.park()
    assert s.info.node is None
    held = {name for node in client.cluster.status().info.nodes for name in node.sessions}
    assert s.name not in held
    assert s["kept"] == [1]


def test_in_a_cell_it_runs_again_from_its_start(
    session: Callable[..., Session], client: Client, tmp_path: object
) -> None:
    namespace: dict[str, object] = {}
    s = session(namespace=namespace)
    s.run("hist = ['before']", durable=True, quiet=True)
    cell = Running(
        s,
        "import time\nhist.append('cell')\nprint('ready', flush=True)\n"
        f"first = not __import__('os').path.exists('{tmp_path}/ran')\n"
        f"open('{tmp_path}/ran', 'w').close()\n"
        "if first: time.sleep(60)",
    )
    cell.printed("ready")
    client.cluster.preempt(s.name, "2s")
    assert cell.error(90) is None
    assert namespace["hist"] == ["before", "cell"]
    assert s["hist"] == ["before", "cell"]
    assert {"notice", "lost", "moved", "rerun"} <= set(stories(s))


@pytest.mark.slow  # the tutorial's tests have it once
def test_a_resumable_loop_continues_at_its_checkpoint_twice(
    cluster: Embedded, client: Client
) -> None:
    """Two moves in one cell; the notebook shows them, the footer counts them."""
    import threading

    with open_notebook(cluster) as notebook:
        notebook.ok("import mlcloud\nimport numpy as np\nw, seen = np.zeros(3), []")
        notebook.ok("%%remote --session train --durable\nw, seen = w, seen")
        watch = client.attach("train")

        def drill() -> None:
            for _ in range(2):
                before = watch.info.node
                until(lambda: watch.state == "busy", "the cell runs", 60)
                client.cluster.preempt("train", "2s")
                until(lambda b=before: watch.info.node not in (b, None), "it has moved", 60)

        thread = threading.Thread(target=drill)
        thread.start()
        cell = notebook.ok(f"%%remote --session train{TRAIN.format(steps=120, pause=0.15)}")
        thread.join()
        assert "resumed at step" in cell.lines
        assert "saved on notice" in cell.lines
        assert cell.footer is not None
        assert cell.footer["moves"] == 2
        steps = [int(line) for line in cell.stream().split()]
        assert sorted(set(steps)) == list(range(120))
        assert len(steps) < 240, "it began from the beginning each time"
        assert notebook.ok("seen == list(range(120)), int(w[0])").result == "(True, 120)"
        notebook.ok("mlcloud.attach('train').close()")


def test_on_preempt_fail(session: Callable[..., Session], client: Client) -> None:
    s = session()
    s.run("kept = 1", durable=True, quiet=True)
    cell = Running(
        s, "kept = 2\nprint('ready', flush=True)\nimport time; time.sleep(60)", on_preempt="fail"
    )
    cell.printed("ready")
    client.cluster.preempt(s.name, "1s")
    error = cell.error(60)
    assert isinstance(error, errors.SessionFailed)
    assert "--on-preempt fail" in str(error)
    assert s["kept"] == 1


def test_a_node_that_just_dies(
    session: Callable[..., Session], cluster: Embedded, tmp_path: object
) -> None:
    """No notice: every process of the node is killed at once, mid-cell."""
    s = session()
    s.run("kept = [1]", durable=True, quiet=True)
    node = s.info.node
    cell = Running(
        s,
        "kept.append(2)\nprint('ready', flush=True)\nimport os, time\n"
        f"first = not os.path.exists('{tmp_path}/ran')\nopen('{tmp_path}/ran', 'w').close()\n"
        "if first: time.sleep(60)",
    )
    cell.printed("ready")
    agent = next(each["pid"] for each in cluster.workers() if each["id"] == node)
    doomed = [psutil.Process(agent), *psutil.Process(agent).children(recursive=True)]
    for process in doomed:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    assert cell.error(90) is None
    assert s["kept"] == [1, 2]
    assert s.info.node != node
    until(lambda: not any(map(alive, doomed)), "the node is gone", 5)


@pytest.mark.slow
def test_the_agent_alone_dies(
    session: Callable[..., Session], cluster: Embedded, tmp_path: object
) -> None:
    """A machine without its agent is no machine: what is left of it ends, the cell runs again."""
    s = session()
    s.run("import os\npid = os.getpid()", durable=True, quiet=True)
    node, kernel = s.info.node, psutil.Process(s["pid"])
    cell = Running(
        s,
        "print('ready', flush=True)\nimport os, time\n"
        f"first = not os.path.exists('{tmp_path}/ran')\nopen('{tmp_path}/ran', 'w').close()\n"
        "if first: time.sleep(60)",
    )
    cell.printed("ready")
    psutil.Process(next(r["pid"] for r in cluster.workers() if r["id"] == node)).kill()
    assert cell.error(90) is None
    assert s.info.node != node
    until(lambda: not alive(kernel), "the old kernel is gone", 5)


def test_what_cannot_be_taken_away(session: Callable[..., Session], client: Client) -> None:
    with pytest.raises(errors.NotFound):
        client.cluster.preempt("i-nothing", "1s")
    s = session()
    with pytest.raises(errors.Conflict, match="no node"):
        client.cluster.preempt(s.name, "1s")


def test_parking_and_coming_back(session: Callable[..., Session]) -> None:
    s = session()
    s.run("kept = {'a': [1, 2]}", quiet=True)
    s.park()
    assert s.state == "parked"
    assert s.info.node is None
    assert s.info.usd_per_hour == 0
    s.run("kept['b'] = 3", quiet=True)
    assert s["kept"] == {"a": [1, 2], "b": 3}


def test_parking_makes_again_what_cannot_be_saved(session: Callable[..., Session]) -> None:
    s = session()
    s.run("kept = 1\nhandle = open('/etc/hostname')\ngen = (i for i in range(9))", quiet=True)
    s.run("print(next(gen), next(gen))", durable=True, quiet=True)
    shown = s.saved()
    assert shown["kept"].how == "saved"
    assert shown["gen"].how == "recomputed"
    assert len(shown["gen"].cells) == 2
    assert "generator" in shown["gen"].why
    s.park()
    assert s.state == "parked"
    s.run("after = next(gen), len(handle.read()) > 0, kept", quiet=True)
    assert s["after"] == (2, True, 1)
    assert "rebuilt" in stories(s)


def test_parking_does_not_lose_what_cannot_be_made_again(session: Callable[..., Session]) -> None:
    """Its cell wrote outside: to run it again would do that twice."""
    file = Path.home() / "mlcloud-test-parking"
    s = session()
    s.run(f"kept = 1\nhandle = open('{file}', 'w')", durable=True, quiet=True)
    try:
        assert s.saved()["handle"].how == "lost"
        with pytest.raises(errors.Conflict, match=r"handle.*wrote to"):
            s.park()
        assert s.state == "idle"
        s.run("del handle", durable=True, quiet=True)
        s.park()
        assert s.state == "parked"
    finally:
        file.unlink()
