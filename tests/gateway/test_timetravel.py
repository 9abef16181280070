"""A session's past: its states listed, and gone back to, also across a move and a new notebook."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from mlcloud import errors
from mlcloud.client.api import Client
from mlcloud.client.remote_value import RemoteValue
from mlcloud.client.session import Session
from tests.live import Embedded, until

pytestmark = pytest.mark.cluster


@pytest.fixture
def travelled(session: Callable[..., Session]) -> tuple[Session, dict[str, Any]]:
    """Three cells: x is [1], then [1, 2], then there is y, too."""
    names: dict[str, Any] = {}
    s = session(namespace=names)
    s.run("import numpy as np\nx = [1]\nalias = x\nbig = np.zeros(200_000)", quiet=True)
    s.run("x.append(2); big += 1", quiet=True)
    s.run("y = sum(x); del alias", durable=True, quiet=True)
    return s, names


def test_there_and_back(travelled: tuple[Session, dict[str, Any]], client: Client) -> None:
    s, names = travelled
    first, second, third = s.history()
    assert [first.step, second.step, third.step] == [1, 2, 3]
    assert "np.zeros" in first.code
    assert {"x", "big", "alias"} <= set(first.names)
    assert second.new_bytes >= 1_600_000  # `big` was written anew
    assert third.new_bytes < 10_000
    assert "y = sum(x)" in repr(s.history())

    s.restore(1)
    assert names["x"] == [1]
    assert names["alias"] is names["x"]
    s.run("x.append(7); z = float(big.sum()), 'y' in globals()", durable=True, quiet=True)
    assert names["z"] == (0.0, False)
    assert names["alias"] == [1, 7]

    s.restore(3)  # what came after the step that was restored is there still
    assert names["x"] == [1, 2]
    assert names["y"] == 3
    assert isinstance(names["big"], RemoteValue)
    assert float(names["big"].get().sum()) == 200_000
    with pytest.raises(errors.NotFound, match="history"):
        s.restore(99)
    restored = [each.restored_from for each in s.history() if each.restored_from is not None]
    assert restored == [1, 3]

    # It is the newest state: a node that is taken away brings it back.
    before = s.info.node
    client.cluster.preempt(s, "8s")
    until(lambda: s.info.node not in (before, None) and s.state == "idle", "it has moved", 60)
    s.run("w = list(x), y", quiet=True)
    assert names["w"] == ([1, 2], 3)


def test_what_the_notebook_made_since_is_sent_again(
    travelled: tuple[Session, dict[str, Any]],
) -> None:
    s, names = travelled
    names["mine"] = {"a": 1}
    s.run("mine['b'] = 2", durable=True, quiet=True)
    s.restore(2)
    s.run("got = dict(mine)", quiet=True)
    assert names["got"] == {"a": 1, "b": 2}


def test_parked(travelled: tuple[Session, dict[str, Any]]) -> None:
    s, names = travelled
    s.park(force=True)
    s.restore(1)
    assert s.info.node is None  # nothing was started for it
    s.run("got = list(x)", quiet=True)
    assert names["got"] == [1]


def test_a_fork_goes_its_own_way(travelled: tuple[Session, dict[str, Any]], client: Client) -> None:
    s, names = travelled
    s.run("big[0] = 5; big2 = big", durable=True, quiet=True)
    running = s.run("import time; time.sleep(60)", detach=True, quiet=True)  # it may be busy
    assert running is not None
    with pytest.raises(errors.Conflict, match="busy"):
        s.restore(1)
    with pytest.raises(errors.Conflict, match="already"):
        s.fork(s.name)
    other = s.fork(f"{s.name}-other")
    earlier = s.fork(f"{s.name}-earlier", step=1)
    try:
        assert other.info.node is None
        s.interrupt()
        until(lambda: s.state == "idle", "it was interrupted", 30)
        earlier.run("old = list(x)", quiet=True, keep_remote=True)
        assert names["old"] == [1]
        assert earlier.history()[0].restored_from == 1
        # The notebook's handle of s's array stands for the fork's own.
        assert isinstance(names["big"], RemoteValue)
        other.run("big[0] += 1; first = float(big[0]), big2 is big", quiet=True)
        assert names["first"] == (6.0, True)
        assert float(s["big"][0]) == 5
    finally:
        other.close()
        earlier.close()


def test_from_a_shell(session: Callable[..., Session], cluster: Embedded) -> None:
    def mlc(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from mlcloud.cli import main; main()", *words],
            capture_output=True,
            text=True,
            env=cluster.environment,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    s = session()
    s.run("x = [1]", durable=True, quiet=True)
    s.run("x.append(2)", durable=True, quiet=True)
    assert "x.append(2)" in mlc("history", s.name)
    assert "saved" in mlc("state", s.name)
    assert "as it was after step 1" in mlc("restore", s.name, "1")
    s.run("now = list(x)", quiet=True)
    assert s["now"] == [1]
    other = f"{s.name}-fork"
    assert other in mlc("fork", s.name, other, "--step", "2")
    assert other in mlc("sessions")
    assert "closed" in mlc("close", other)
