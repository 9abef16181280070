"""A state that is still being saved when the next cell changes it."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlcloud import errors
from mlcloud.kernel.namespace import RemoteSide
from mlcloud.kernel.saving import Saving
from mlcloud.kernel.snapshot import Snapshots
from mlcloud.kernel.tracking import ALL
from mlcloud.kernel.transfer import EVERY_S
from mlcloud.store import ChunkRef, Store
from tests.live import until

MB = 2**20


class SlowStore(Store):
    """Chunks wait until they are let through."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.gate = threading.Semaphore(0)
        self.broken = self.waiting = False

    def put_chunk(self, data: Any, **more: Any) -> ChunkRef:
        if len(data) > MB:
            self.waiting = True
            self.gate.acquire()
            if self.broken:
                raise errors.StoreError("it is gone")
        return super().put_chunk(data, **more)

    def open(self) -> None:
        for _ in range(100):
            self.gate.release()


class Session:
    def __init__(self, store: Store) -> None:
        self.names: dict[str, Any] = {}
        self.side = RemoteSide(self.names)
        self.snapshots = Snapshots(store, self.side)
        self.told: list[dict[str, Any]] = []
        self.words: list[str] = []

    def begin(self, saving: Saving, mentioned: Collection[str] = ALL) -> None:
        """As a kernel does after a cell."""
        saving.wait()
        self.side.look(mentioned)
        taking = self.snapshots.begin(lambda text, over: self.words.append(text))
        saving.start(taking, self.told.append)

    def back(self) -> dict[str, Any]:
        names: dict[str, Any] = {}
        Snapshots(self.snapshots._store, RemoteSide(names)).restore(self.told[-1]["body"]).end()
        return names


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SlowStore]:
    store = SlowStore(f"file://{tmp_path}")
    yield store
    store.open()


@pytest.fixture
def session(store: SlowStore) -> Session:
    session = Session(store)
    for name in "abcd":
        session.names[name] = np.random.default_rng(ord(name)).random(5 * MB // 8)
    return session


def detached(saving: Saving) -> threading.Thread:
    thread = threading.Thread(target=saving.detach)
    thread.start()
    return thread


def zeroed_and_saved_as(
    before: dict[str, Any], session: Session, saving: Saving, store: SlowStore
) -> None:
    """The cell begins, and changes everything."""
    for array in session.names.values():
        array[:] = 0
    store.open()
    saving.wait()
    back = session.back()
    assert all(np.array_equal(back[name], array) for name, array in before.items())


def test_what_the_next_cell_changes_is_saved_as_it_was(session: Session, store: SlowStore) -> None:
    for number in range(20):
        session.names[f"n{number}"] = np.full(2 * MB // 8, number)
    before = {name: array.copy() for name, array in session.names.items()}
    saving = Saving(100 * MB)
    session.begin(saving)
    until(lambda: store.waiting, "pieces are on their way: these are waited for in any case")
    cell = detached(saving)
    cell.join(0.2)
    assert cell.is_alive()
    for _ in range(10):
        store.gate.release()
    cell.join(10)
    assert not cell.is_alive()
    assert not session.told
    zeroed_and_saved_as(before, session, saving, store)
    session.begin(saving)  # and what was changed goes with the next one
    saving.wait()
    assert not any(map(np.any, session.back().values()))


@pytest.mark.parametrize("memory", [0, 6 * MB, 12 * MB])
def test_beyond_the_limit_it_is_waited_for(session: Session, store: SlowStore, memory: int) -> None:
    before = {name: array.copy() for name, array in session.names.items()}
    saving = Saving(memory)
    session.begin(saving)
    cell = detached(saving)
    for done in range(4):
        time.sleep(0.1)
        copied = 4 - done <= memory // (5 * MB)
        assert cell.is_alive() or copied
        store.gate.release()
    cell.join(10)
    assert not cell.is_alive()
    zeroed_and_saved_as(before, session, saving, store)


def test_it_says_how_far_it_is_only_to_who_waits(session: Session, store: SlowStore) -> None:
    saving = Saving(100 * MB)
    session.begin(saving)
    time.sleep(0.7)
    store.gate.release()
    time.sleep(0.2)
    assert not session.words

    def slowly() -> None:
        for _ in range(3):
            time.sleep(2 * EVERY_S)
            store.gate.release()

    threading.Thread(target=slowly).start()
    saving.wait()
    assert session.words[0].startswith("the session's state is being saved")
    assert session.words[-1].startswith("the state is saved")


def test_a_value_that_the_next_cell_drops_is_freed(session: Session, store: SlowStore) -> None:
    saving = Saving(100 * MB)
    held = weakref.ref(session.names["d"])
    gc.collect()
    gc.disable()
    try:
        session.begin(saving)
        store.open()
        saving.detach()
        del session.names["d"]
        assert held() is None
    finally:
        gc.enable()
    saving.wait()


def test_what_could_not_be_saved_goes_with_the_next_one(session: Session, store: SlowStore) -> None:
    saving = Saving(100 * MB)
    store.broken = True
    session.begin(saving)
    store.open()
    saving.wait()
    assert session.told[-1] == {"status": "error", "ename": "StoreError", "evalue": "it is gone"}
    store.broken = False
    session.begin(saving, ())  # a cell that mentions nothing
    saving.wait()
    back = session.back()
    assert all(np.array_equal(back[name], array) for name, array in session.names.items())


def test_what_was_removed_meanwhile_is_written_again(session: Session, store: SlowStore) -> None:
    """Nobody has committed it, and what nobody names goes: before the save, and in the middle."""
    saving = Saving(100 * MB)
    store.open()
    session.begin(saving)
    saving.wait()
    Store(store.url).prune(grace_s=0)
    session.begin(saving, ())
    saving.wait()
    assert session.told[-1]["ename"] == "Collected"

    store.gate = threading.Semaphore(1)
    session.begin(saving, ())
    until(lambda: not store.gate._value, "one is there, the next on its way")
    until(lambda: Store(store.url).prune(grace_s=0).chunks, "it goes again")
    store.open()
    saving.wait()
    assert session.told[-1]["ename"] == "Collected"

    session.begin(saving, ())
    saving.wait()
    assert session.told[-1]["status"] == "ok"
    back = session.back()
    assert back.keys() == session.names.keys()
    assert all(np.array_equal(back[name], array) for name, array in session.names.items())
