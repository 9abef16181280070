"""Cells that follow each other at once, with a state that takes long to save."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest

from mlcloud.client.session import Session
from tests.faults.test_host_killed import host_of
from tests.live import until

pytestmark = pytest.mark.cluster

CELLS = 4


def begin(session: Session) -> None:
    """A large state, saved; then cells that change it."""
    session.run("import os; pid = os.getpid()", quiet=True)
    session.run("x = [[i] for i in range(150_000)]", quiet=True, durable=True)
    for _ in range(CELLS):
        session.run("x.append(0)", quiet=True)


def test_they_are_saved_together_when_nothing_runs(session: Callable[..., Session]) -> None:
    one = session()
    begin(one)
    until(lambda: not one.saved().state.unsafe, "all is safe")
    steps = [each.step for each in one.history()]
    assert steps[-1] == CELLS + 2
    assert len(steps) < CELLS + 2
    assert one.saved().state.safe_to == str(CELLS + 2)
    one.run("x.append(0)", quiet=True, durable=True)
    assert one.history()[-1].step == CELLS + 3
    one.restore(2)
    one.run("n = len(x)", quiet=True)
    assert one["n"] == 150_000


def test_what_was_not_saved_runs_again(session: Callable[..., Session]) -> None:
    one = session()
    begin(one)
    host_of(psutil.Process(one["pid"])).kill()
    one.run("n = len(x)", quiet=True)
    assert one["n"] == 150_000 + CELLS


def test_each_waits_until_it_is_safe_if_it_shall(session: Callable[..., Session]) -> None:
    one = session()
    one.run("x = [[i] for i in range(150_000)]", quiet=True)
    detached = [one.run("x.append(0)", quiet=True, detach=True) for _ in range(3)]
    one.run("x.append(0)", quiet=True, durable=True)
    for each in detached:
        each.result(timeout=60)
    until(lambda: not one.saved().state.unsafe, "all is safe")


def test_a_value_is_had_while_the_state_waits_to_be_saved(session: Callable[..., Session]) -> None:
    one = session()
    one.run("x = [[i] for i in range(150_000)]; y = {'a': [1]}", quiet=True)
    assert one["y"] == {"a": [1]}
    one.run("y['a'].append(2)", quiet=True, durable=True)
    assert one["y"] == {"a": [1, 2]}
    one.park()
    one.run("n = (len(x), y)", quiet=True)
    assert one["n"] == (150_000, {"a": [1, 2]})
