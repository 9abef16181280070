"""Two gateways that both believe to hold one session: the one that stood still is fenced off.

    first    runs a cell ── SIGSTOP ───────────────────────────────── SIGCONT ── told, gives it back
    second                  waits until the lease is over ── takes it up, runs on ──────────────────

Two homes, one store, and its key where both find it: the user's own configuration.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from mlcloud import errors
from mlcloud.client.session import Session
from mlcloud.store import Store
from tests.live import Embedded, alive, events, until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

HELD = r"the cluster .* has this session now.*attach"


class Pair:
    """Both clusters; the environment is that of the one that was asked for last."""

    def __init__(
        self, own_cluster: Callable[..., Embedded], root: Path, patch: pytest.MonkeyPatch
    ) -> None:
        self._patch = patch
        self.store_url = f"file://{root / 'shared'}"
        patch.setenv("XDG_CONFIG_HOME", str(root / "config"))
        self.first = own_cluster("first", store=self.store_url, node_idle="5s")
        self.session = self.first.connect().session("exp", namespace={})
        self.pid = self.first.connection["pid"]
        self._make = own_cluster
        self.second: Embedded | None = None

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def taken_up(self) -> Session:
        """The session as the second cluster has it, once that may take it."""
        self.second = self._make("second", store=self.store_url)
        client = self.second.connect()

        def attached() -> Session | None:
            try:
                return client.attach("exp")
            except errors.Conflict:  # as long as the first one is taken to be alive
                return None

        return until(attached, "the lease is over", 60, every=0.5)

    def use(self, cluster: Embedded) -> Embedded:
        """`settings` of the tests are those of the environment."""
        self._patch.setenv("MLCLOUD_HOME", str(cluster.home))
        return cluster


@pytest.fixture
def pair(
    own_cluster: Callable[..., Embedded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pair]:
    pair = Pair(own_cluster, tmp_path, monkeypatch)
    yield pair
    pair.go_on()
    for cluster in (pair.first, pair.second):
        if cluster is not None:
            pair.use(cluster).end()


def kernels_of(cluster: Embedded) -> list[psutil.Process]:
    """What runs on its worker nodes: hosts, supervisors, kernels."""
    found = []
    for record in cluster.workers():
        with contextlib.suppress(psutil.NoSuchProcess):
            found += psutil.Process(record["pid"]).children(recursive=True)
    return [each for each in found if "kernel" in command_of(each)]


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended since
        return ""


CELL = """
import os, time
count += 1; seen.append('cell')
with open({ran!r}, 'a') as file: file.write('ran\\n')
while not os.path.exists({go!r}): time.sleep(0.1)
"""


def test_while_a_cell_runs(pair: Pair, tmp_path: Path) -> None:
    ran, go = tmp_path / "ran", tmp_path / "go"
    s, store = pair.session, Store(pair.store_url)
    s.run("count, seen = 0, []", durable=True, quiet=True)
    with ThreadPoolExecutor() as pool:
        code = CELL.format(ran=str(ran), go=str(go))
        cell = pool.submit(s.run, code, on_preempt="rerun", quiet=True)
        until(ran.exists, "the cell runs")
        recorded = store.latest("records", s.id)
        until(lambda: store.latest("records", s.id) != recorded, "the record says so")
        old = kernels_of(pair.first)
        assert old
        pair.stop()
        there = pair.taken_up()
        until(lambda: ran.read_text() == "ran\nran\n", "it runs again on the second", 60)
        go.touch()  # it ends on both
        until(lambda: there.info.running is None, "it has ended")
        there.run("count += 10", durable=True, quiet=True)
        kept = store.latest("sessions", s.id)

        pair.go_on()
        error = cell.exception(60)
        assert isinstance(error, errors.SessionClosed)
        with pytest.raises(errors.SessionClosed, match=HELD):
            raise error
    with pytest.raises(errors.SessionClosed, match=HELD):
        s.run("count += 100", quiet=True)
    with pytest.raises(errors.Conflict, match="which is alive"):
        _ = s.info
    until(lambda: not any(map(alive, old)), "its host is gone")

    assert store.latest("sessions", s.id) == kept, "nothing came after what the second has"
    assert ran.read_text() == "ran\nran\n"
    assert there["count"] == 11
    assert there["seen"] == ["cell"]
    told = [e for e in events(there) if e["kind"] == "done"]
    assert len({e["execution_id"] for e in told}) == len(told), "no cell ended twice"
    safe = [e["execution_id"] for e in events(there) if e["kind"] == "safe"]
    assert len(set(safe)) == len(safe)

    # When the second has ended, the first may take it up again.
    assert pair.second is not None
    there.feed.close()
    pair.use(pair.second).end()
    back = pair.use(pair.first).connect().attach("exp")
    back.run("count += 100", durable=True, quiet=True)
    assert back["count"] == 111
    assert back["seen"] == ["cell"]


def test_a_cell_that_was_sent_while_it_stood_still(pair: Pair, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    s = pair.session
    s.run("kept = [1]", durable=True, quiet=True)
    pair.stop()
    with ThreadPoolExecutor() as pool:
        cell = pool.submit(s.run, f"kept.append(2); open({str(ran)!r}, 'w').close()", quiet=True)
        there = pair.taken_up()
        there.run("kept.append(3)", durable=True, quiet=True)
        pair.go_on()
        error = cell.exception(60)
    assert isinstance(error, errors.SessionClosed)
    assert not ran.exists(), "it was not begun"
    until(lambda: not kernels_of(pair.first), "its host is gone")
    assert there["kept"] == [1, 3]
