"""Results that cannot be pickled: they stay in their worker, and calls that need them go there."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import psutil
import pytest

import mlcloud
from mlcloud import errors
from mlcloud.client.remote_value import RemoteValue
from tests.jobs.calls import WAIT_S, remote
from tests.live import Embedded, until

pytestmark = pytest.mark.usefixtures("connected")


class Engine:
    """Has what no pickle can hold."""

    def __init__(self, size: int) -> None:
        self.lock = threading.Lock()
        self.size = size
        self.calls = 0

    def times(self, x: int) -> tuple[int, int, int]:
        with self.lock:
            self.calls += 1
            return os.getpid(), self.calls, self.size * x

    def __repr__(self) -> str:
        return f"an engine of size {self.size}"


def engine(size: int) -> Engine:
    return Engine(size)


def use(engine: Engine, x: int) -> tuple[int, int, int]:
    return engine.times(x)


def test_it_is_a_remote_value_and_calls_with_it_run_where_it_is() -> None:
    job = remote(engine).submit(3)
    value = job.result(WAIT_S)
    assert isinstance(value, RemoteValue)
    assert "Engine" in value.type
    assert "an engine of size 3" in repr(value)
    assert job.id in repr(value)
    with pytest.raises(errors.NotPicklable, match="lock"):
        value.get()
    with pytest.raises(AttributeError, match=r"f\.submit"):
        _ = value.size
    assert job.info.kept == 1
    assert "1 results kept in workers" in repr(mlcloud.jobs())
    with pytest.raises(errors.NotPicklable, match="not in this session"):
        remote(use)(value, 2)

    # By its handle, by the job, as one of a map's arguments: it is the object itself each time.
    first = remote(use).submit(value, 2).result(WAIT_S)
    second = remote(use).submit(job, 3).result(WAIT_S)
    assert (first[0], first[1:], second[1:]) == (second[0], (1, 6), (2, 9))
    mapped = remote(use).map(repeat(value), [1, 2, 3]).result(WAIT_S)
    assert [each[0] for each in mapped] == [first[0]] * 3
    assert [each[2] for each in mapped] == [3, 6, 9]
    assert sorted(each[1] for each in mapped) == [3, 4, 5]

    def closes_over(x: int) -> Any:
        return value.times(x)

    assert remote(closes_over).submit(1).result(WAIT_S)[:2] == (first[0], 6)


def engines(count: int, fails: bool = False) -> Iterator[Any]:
    for size in range(count):
        yield Engine(size)
        yield size
    if fails:
        raise ValueError("out of engines")


def test_so_is_what_a_generator_yields() -> None:
    job = remote(engines).submit(2)
    first, zero, second, one = job
    assert (zero, one) == (0, 1)
    assert isinstance(first, RemoteValue)
    assert "an engine of size 1" in repr(second)
    with pytest.raises(errors.NotPicklable, match="lock"):
        first.get()
    assert job.info.kept == 2
    both = [remote(use).submit(each, 10).result(WAIT_S) for each in (first, second, second)]
    assert [each[1:] for each in both] == [(1, 0), (1, 10), (2, 10)]
    assert len({each[0] for each in both}) == 1
    closes_over = (lambda kept: lambda x: kept.times(x))(second)
    assert remote(closes_over).submit(1).result(WAIT_S)[1:] == (3, 1)
    whole = job.result(WAIT_S)
    assert (whole[1], whole[3]) == (0, 1)
    assert remote(use).map([whole[0], whole[2]], [1, 1]).result(WAIT_S)[1][1:] == (4, 1)
    (items,) = remote(engines).map([1]).result(WAIT_S)
    assert remote(use).submit(items[0], 1).result(WAIT_S)[1:] == (1, 0)
    id_ = job.id
    del job, first, second, whole, closes_over
    gc.collect()
    client = mlcloud.connect()
    until(lambda: client.attach(id_).info.kept == 0, "it is let go of")


def test_what_a_generator_yielded_before_it_failed_is_not_lost() -> None:
    job = remote(engines).submit(1, fails=True)
    values = iter(job)
    kept = next(values)
    assert next(values) == 0
    with pytest.raises(ValueError, match="out of engines"):
        next(values)
    pid, *used = remote(use).submit(kept, 7).result(WAIT_S)
    assert used == [1, 0]
    os.kill(pid, signal.SIGKILL)
    until(lambda: job.info.kept == 0, "its worker is gone", WAIT_S)
    lost = r"value 0 that item 0 of job \S+ yielded .*attach\('j-\w+'\)"
    with pytest.raises(errors.ResultLost, match=lost):
        remote(use).submit(kept, 1).result(WAIT_S)


def test_others_run_elsewhere_meanwhile() -> None:
    jobs = remote(engine, max_workers=2).map([1, 2])
    values = jobs.result(WAIT_S)
    assert all(isinstance(each, RemoteValue) for each in values)
    assert jobs.info.kept == 2
    both = remote(use, max_workers=2).map(values, [10, 10]).result(WAIT_S)
    assert [each[2] for each in both] == [10, 20]
    if both[0][0] != both[1][0]:
        with pytest.raises(errors.ResultLost, match="two workers"):
            remote(lambda a, b: 0).submit(*values).result(WAIT_S)


def test_when_nothing_refers_to_it_the_worker_is_free() -> None:
    job = remote(engine).submit(3)
    value = job.result(WAIT_S)
    assert job.info.kept == 1
    id_ = job.id
    del job, value
    gc.collect()
    client = mlcloud.connect()
    until(lambda: client.attach(id_).info.kept == 0, "it is let go of")
    with pytest.raises(errors.ResultLost, match="no notebook referred to it any more"):
        remote(use).submit(client.attach(id_), 1).result(WAIT_S)


def test_unused_for_its_time_it_goes() -> None:
    value = remote(engine, keep="1s").submit(3).result(WAIT_S)
    client = mlcloud.connect()
    until(lambda: client.attach(value._job).info.kept == 0, "its time is over")
    with pytest.raises(errors.ResultLost, match=r"nobody used it for 1 s.*rerun"):
        remote(use).submit(value, 1).result(WAIT_S)


def test_a_worker_that_dies_says_what_is_lost(jobs_cluster: Embedded) -> None:
    job = remote(engine).submit(3)
    value = job.result(WAIT_S)
    pid, *_ = remote(use).submit(value, 1).result(WAIT_S)

    def slow(engine: Engine, x: int) -> int:
        import time

        time.sleep(60)
        return x

    waits = remote(slow).map(repeat(value), [1, 2])
    until(lambda: waits.info.running > 0, "one of them runs")
    assert psutil.pid_exists(pid)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(errors.PartialFailure) as raised:
        waits.result(WAIT_S)
    assert [type(each) for each in raised.value.failures.values()] == [errors.ResultLost] * 2
    for each in raised.value.failures.values():
        assert "its worker died" in str(each)
        assert f"mlcloud.attach('{job.id}').rerun()" in str(each)
    again = job.rerun().result(WAIT_S)
    assert remote(use).submit(again, 2).result(WAIT_S)[2] == 6


@pytest.mark.slow
def test_a_gateway_that_comes_back_finds_it(jobs_cluster: Embedded) -> None:
    job = remote(engine).submit(4)
    value = job.result(WAIT_S)
    first = remote(use).submit(value, 1).result(WAIT_S)
    jobs_cluster.kill_gateway()
    second = remote(use).submit(value, 2).result(WAIT_S)
    assert (second[0], second[1:]) == (first[0], (2, 8))


@pytest.mark.slow
def test_a_node_that_is_taken_back_says_what_is_lost() -> None:
    job = remote(engine).submit(4)
    value = job.result(WAIT_S)
    client = mlcloud.connect()
    client.cluster.preempt(job.info.places[-1], notice=1)
    until(lambda: job.info.kept == 0, "it is lost with its node", WAIT_S)
    with pytest.raises(errors.ResultLost, match=r"its node was (taken back|lost)"):
        remote(use).submit(value, 1).result(WAIT_S)
    assert job.rerun().result(WAIT_S).type == value.type
