"""A node that dies at the worst of moments: while the state is saved, restored, or moved."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from mlcloud.client.session import Session
from mlcloud.store import Store
from tests.live import Embedded, Running, until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

#: 240 MB that no two seeds have in common, and an alias into it.
FILL = (
    "import numpy as np\nbig = np.random.default_rng({}).normal(size=30_000_000)\npart = big[10:]"
)


def kill(record: dict[str, Any]) -> None:
    """The node, without a word."""
    with contextlib.suppress(psutil.Error):
        agent = psutil.Process(record["pid"])
        for each in [agent, *agent.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                each.kill()


def check(session: Session, cluster: Embedded, first: float) -> None:
    session.run(
        "part[0] = 5.0\nfirst, aliased, size = float(big[0]), float(big[10]), big.size", quiet=True
    )
    assert session["first"] == first
    assert session["aliased"] == 5.0
    assert session["size"] == 30_000_000
    store = Store(f"file://{cluster.home}/store")
    step = store.latest("sessions", session.info.id)
    assert step is not None
    assert store.verify("sessions", session.info.id, step) == []


@pytest.fixture
def cluster(own_cluster: Callable[..., Embedded]) -> Embedded:
    return own_cluster(max_nodes="4", node_idle="30s")


def filled(cluster: Embedded) -> tuple[Session, float]:
    session = cluster.connect().session("points", namespace={})
    session.run("count = 0", durable=True, quiet=True)
    session.run(FILL.format(1) + "\nfirst = float(big[0])", durable=True, quiet=True)
    return session, session["first"]


@pytest.mark.parametrize("after_s", [0.0, 0.15, 0.4])
def test_in_a_snapshot(cluster: Embedded, after_s: float) -> None:
    session, _ = filled(cluster)
    session.run(FILL.format(2) + "\nfirst = float(big[0])\ncount += 1", quiet=True)
    first = session["first"]
    time.sleep(after_s)
    (node,) = cluster.workers()
    kill(node)
    check(session, cluster, first)
    assert session["count"] == 1  # run again from the state before it, where it was not safe


def test_in_a_snapshot_while_the_next_cell_runs(cluster: Embedded) -> None:
    session, _ = filled(cluster)
    session.run(FILL.format(3) + "\nfirst = float(big[0])\ncount += 1", quiet=True)
    first = session["first"]
    cell = Running(session, "import time\ncount += 1\nprint('ready', flush=True)\ntime.sleep(3)")
    cell.printed("ready")
    (node,) = cluster.workers()
    kill(node)
    assert cell.error(120) is None
    check(session, cluster, first)
    assert session["count"] == 2


@pytest.mark.parametrize("after_s", [0.05, 0.3, 1.0])
def test_in_a_restore(cluster: Embedded, after_s: float) -> None:
    session, first = filled(cluster)
    session.park()
    until(lambda: not cluster.workers(), "the node was given back", 60)
    cell = threading.Thread(target=lambda: session.run("count += 1", quiet=True))
    cell.start()
    kernel = until(lambda: kernels(cluster), "a kernel is there", 60)
    time.sleep(after_s)
    for node in cluster.workers():
        kill(node)
    cell.join(150)
    assert not cell.is_alive()
    assert kernel
    check(session, cluster, first)
    assert session["count"] == 1


@pytest.mark.parametrize("after_s", [0.1, 0.6])
def test_in_a_move(cluster: Embedded, after_s: float) -> None:
    """The new node dies while the session moves to it; the old one goes at its deadline."""
    session, first = filled(cluster)
    old = session.info.node
    cluster.connect().cluster.preempt(session.name, "6s")
    new = until(lambda: [n for n in cluster.workers() if n["id"] != old], "there is another", 60)
    time.sleep(after_s)
    for node in new:
        kill(node)
    until(lambda: session.info.node != old, "the old one is gone", 60)
    session.run("count += 1", quiet=True)
    check(session, cluster, first)
    assert session["count"] == 1
    assert session.info.node not in (old, *(node["id"] for node in new))


def kernels(cluster: Embedded) -> list[int]:
    return [p.pid for p in cluster.processes() if "mlcloud.kernel.launch" in p.command and p.alive]
