"""Chunks are removed while others write: every step that is committed stays whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlcloud import errors
from mlcloud.store import Store, collector
from mlcloud.store.backends import Backend

# --- what it does ---------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_what_is_unnamed_is_marked_first_and_removed_then(store: Store) -> None:
    kept, lost = store.put_buffers([b"kept", b"lost!"])
    store.commit("checkpoint", "a", 1, {"c": str(kept)})
    found = store.prune(grace_s=0.3)
    assert (found.chunks, found.marked) == (0, 0)  # nobody has touched it for so long, not yet
    wait(store, 0.4)
    found = store.prune(grace_s=0.3)
    assert (found.chunks, found.marked, found.marked_bytes) == (0, 1, 5)
    assert found.due is not None
    assert store.prune(grace_s=0.3).chunks == 0
    wait(store, 0.4)
    found = store.prune(grace_s=0.3)
    assert (found.chunks, found.bytes) == (1, 5)
    assert store.exists(kept.hash)
    assert not store.exists(lost.hash)
    assert store.prune(grace_s=0.3) == collector.Pruned()


def wait(store: Store, seconds: float) -> None:
    until = store.now() + seconds
    while store.now() < until:
        pass


def test_what_is_named_or_written_again_meanwhile_stays(store: Store) -> None:
    named, again, lost = store.put_buffers([b"named", b"again", b"lost"])
    wait(store, 0.1)
    assert store.prune(grace_s=0.1).marked == 3
    store.commit("checkpoint", "a", 1, {"c": str(named)})
    assert store.put_chunk(b"again").new  # it is there, and condemned: not taken as there
    wait(store, 0.2)
    assert store.prune(grace_s=0.1).chunks == 1
    assert store.exists(named.hash)
    assert store.exists(again.hash)
    assert not store.exists(lost.hash)


def test_who_lost_chunks_while_saving_is_told(store: Store, tmp_path: Path) -> None:
    (ref,) = store.put_buffers([b"mine"])
    store.commit("checkpoint", "other", 1, {})
    Store(str(tmp_path)).prune(grace_s=0)
    with pytest.raises(errors.Collected, match="save again"):
        store.commit("checkpoint", "a", 1, {"c": str(ref)})
    assert store.steps("checkpoint", "a") == []
    store.put_buffers([b"mine"])
    store.commit("checkpoint", "a", 1, {"c": str(ref)})
    assert store.verify("checkpoint", "a", 1) == []


def test_one_that_was_left_unfinished_is_taken_up(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_buffers([b"a", b"b"])
    died = Store(str(tmp_path))
    monkeypatch.setattr(died, "remove_chunks", lambda chunks: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        died.prune(grace_s=0)
    with pytest.raises(errors.Conflict, match="swept by another process"):
        store.prune(grace_s=0)
    monkeypatch.setattr(collector, "ABANDONED_S", 0.0)
    assert store.prune(grace_s=0).chunks == 2


def test_a_store_does_not_grow_by_being_pruned(store: Store) -> None:
    for number in range(9):
        store.put_chunk(str(number).encode())
        store.prune(grace_s=0)
    assert len(store.steps(collector.KIND, collector.NAME)) < 6
    assert store.usage().manifests == 0


# --- at random ------------------------------------------------------------------------------------


class Over(BaseException):
    """An actor is killed: nothing of it happens any more."""


class Turns:
    """Lets one actor at a time do one thing to the store, in the order of a list of numbers."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._turn: int | None = None
        self._mine = threading.local()
        self.over: set[int] = set()
        self.killed: set[int] = set()

    def enter(self, number: int) -> None:
        self._mine.number = number

    def wait(self) -> None:
        """In an actor, before it does something."""
        number = getattr(self._mine, "number", None)
        if number is None:
            return  # the test itself
        with self._free:
            if self._turn == number:
                self._turn = None
                self._free.notify_all()
            assert self._free.wait_for(lambda: self._turn == number or number in self.killed, 20)
            if number in self.killed:
                raise Over

    def leave(self) -> None:
        with self._free:
            self.over.add(self._mine.number)
            self._turn = None
            self._free.notify_all()

    def give(self, number: int) -> None:
        """Let this one go on to its next operation, or its end."""
        with self._free:
            self._turn = number
            self._free.notify_all()
            assert self._free.wait_for(lambda: self._turn is None, 20)


class Slow(Backend):
    """Files in memory; each operation waits for its turn, and takes one tick of the clock."""

    parallel = 1
    clock_s = 0.0

    def __init__(self, turns: Turns) -> None:
        self.turns, self.clock = turns, 0
        self.files: dict[str, tuple[bytes, int]] = {}

    def _now(self) -> int:
        self.turns.wait()
        self.clock += 1
        return self.clock

    def read(self, path: str, into: memoryview | None = None) -> bytes:
        self._now()
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path][0]

    def read_range(self, path: str, start: int, end: int) -> bytes:
        return self.read(path)[start:end]

    def size(self, path: str) -> int | None:
        self._now()
        return len(self.files[path][0]) if path in self.files else None

    def put(self, path: str, data: memoryview, **how: bool) -> None:
        now = self._now()
        self.files[path] = bytes(data), now

    def create(self, path: str, data: bytes) -> None:
        now = self._now()
        if path in self.files:
            raise FileExistsError(path)
        self.files[path] = data, now

    def list(self, folder: str, *, deep: bool) -> Iterator[tuple[str, int]]:
        for path, size, _ in self.times(folder):
            yield path, size

    def times(self, folder: str) -> Iterator[tuple[str, int, float]]:
        self._now()
        found = [
            (p, len(d), float(at))
            for p, (d, at) in self.files.items()
            if p.startswith(folder + "/")
        ]
        yield from sorted(found)

    def delete(self, path: str) -> None:
        self._now()
        self.files.pop(path, None)


class World:
    def __init__(self) -> None:
        self.turns = Turns()
        self.backend = Slow(self.turns)
        self.committed: dict[int, set[bytes]] = {}
        self.failures: list[BaseException] = []

    def store(self) -> Store:
        store = Store("memory://turns")
        store._backend = self.backend
        return store

    def writer(self, series: str, contents: list[bytes], step: int, begins: bool) -> None:
        """Saves a step of these, again where a prune came in between; then removes that before."""
        store = self.store()
        for attempt in range(4):
            since = store.begin() if begins or attempt else None
            refs = [store.put_chunk(content) for content in contents]
            try:
                body = {"c": [str(ref) for ref in refs]}
                store.commit("checkpoint", series, step, body, since=since)
            except errors.Collected:
                continue
            except errors.StepExists:
                return
            self.committed[step] = set(contents)
            if step > 1:
                store.discard("checkpoint", series, step - 1)
            return

    def collect(self) -> None:
        try:
            self.store().prune(grace_s=0)
        except errors.Conflict:
            return

    def actor(self, number: int, what: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            self.turns.enter(number)
            try:
                self.turns.wait()
                what()
            except Over:
                pass
            except BaseException as error:
                self.failures.append(error)
            finally:
                self.turns.leave()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def check(self, died: bool) -> None:
        """Each step that is there can be read, and each that its writer was told of and nobody
        removed is there."""
        store = self.store()
        for step in store.steps("checkpoint", "a"):
            if step in self.committed or not died:  # else nobody was told of it
                assert store.verify("checkpoint", "a", step) == [], step
        if self.committed:
            newest = max(self.committed)
            assert newest in store.steps("checkpoint", "a")
            body = store.read("checkpoint", "a", newest)
            assert len(body["c"]) == len(self.committed[newest])


CONTENTS = [b"one", b"two", b"three"]
some = st.lists(st.sampled_from(CONTENTS), min_size=1, max_size=3, unique=True)
# Who goes on next, and by how many operations: a collector does thirty, a writer ten.
orders = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([1, 1, 2, 3, 5, 8, 13, 50])), max_size=30
)


def interleave(
    writers: list[tuple[list[bytes], int]],
    collectors: int,
    order: list[tuple[int, int]],
    deaths: set[int],
) -> None:
    world = World()
    world.store().put_buffers(CONTENTS[:2])  # of somebody who died before committing
    whats: list[Callable[[], Any]] = [
        lambda contents=contents, step=step: world.writer("a", contents, step, step == 2)  # type: ignore[misc]
        for contents, step in writers
    ]
    whats += [world.collect] * collectors
    threads = [world.actor(number, what) for number, what in enumerate(whats)]
    turns = world.turns
    for at, (which, count) in enumerate(order):
        number = which % len(whats)
        for _ in range(count):
            if number not in turns.over:
                turns.give(number)
        if at in deaths and number not in turns.over:
            turns.killed.add(number)
            turns.give(number)
    for number in range(len(whats)):  # then to the end, one after the other
        while number not in turns.over:
            turns.give(number)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not world.failures, world.failures
    world.check(bool(turns.killed))
    if deaths:  # a collector that died is taken up by the next one
        abandoned, collector.ABANDONED_S = collector.ABANDONED_S, -1.0
        try:
            for _ in range(2):
                world.collect()
        finally:
            collector.ABANDONED_S = abandoned
        world.check(True)
        assert {
            path.rpartition("/")[2] for path in world.backend.files if path.startswith("chunks/")
        } <= {
            ref.rpartition(":")[0].rpartition(":")[2]
            for step in world.store().steps("checkpoint", "a")
            for ref in world.store().read("checkpoint", "a", step)["c"]
        }


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some, some, orders, st.sets(st.integers(0, 29), max_size=2), st.booleans())
# Taken back by a sweep, while another writer put the chunk again.
@example([b"one", b"two"], [b"one"], [(2, 5), (2, 13), (1, 5), (2, 13)], set(), True)
@example([b"one"], [b"one"], [(2, 5), (2, 13), (1, 8), (2, 13)], set(), False)
def test_any_interleaving(
    first: list[bytes],
    second: list[bytes],
    order: list[tuple[int, int]],
    deaths: set[int],
    same: bool,
) -> None:
    interleave([(first, 1), (second, 1 if same else 2)], 1, order, deaths)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(some, st.integers(1, 3)), min_size=1, max_size=3),
    st.integers(1, 2),
    orders,
    st.sets(st.integers(0, 29), max_size=3),
)
def test_any_interleaving_at_length(
    writers: list[tuple[list[bytes], int]],
    collectors: int,
    order: list[tuple[int, int]],
    deaths: set[int],
) -> None:
    interleave(writers, collectors, order, deaths)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "POLL_S", 0.0)
    monkeypatch.setattr(collector, "WAIT_S", 0.05)
