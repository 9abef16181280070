"""What a store promises, on each cloud's object store, over real HTTP by emulators."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mlcloud import errors
from mlcloud.store import CHUNK_BYTES, ChunkRef, Store
from tests.store import clouds

PLACES: dict[str, Callable[[Path], AbstractContextManager[str]]] = {
    "gcs": clouds.gcs,
    "azure": clouds.azure,
}


@pytest.fixture(scope="module", params=["gcs", pytest.param("azure", marks=pytest.mark.slow)])
def bucket(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[str]:
    with PLACES[request.param](tmp_path_factory.mktemp("cloud") / "data") as url:
        yield url


@pytest.fixture
def store(bucket: str, request: pytest.FixtureRequest) -> Store:
    return Store(f"{bucket}/{request.node.originalname}")


def test_what_was_put_comes_back(store: Store) -> None:
    data = os.urandom(CHUNK_BYTES + 5)
    refs = store.put_buffers([data, b"small"])
    assert store.get_buffer(refs[:2]) == data
    assert store.get_chunk(refs[2].hash) == b"small"
    assert not any(ref.new for ref in store.put_buffers([data]))
    assert store.missing([*refs, ChunkRef("0" * 64, 1)]) == [ChunkRef("0" * 64, 1)]
    assert store.usage().chunks == 3


def test_steps_and_names(store: Store) -> None:
    assert store.steps("checkpoint", "a") == []
    assert store.names("checkpoint") == []
    (ref,) = store.put_buffers([b"x"])
    for step in (3, 1, 2):
        store.commit("checkpoint", "a", step, {"c": str(ref), "n": step})
    store.commit("checkpoint", "a/b", 1, {})
    assert store.steps("checkpoint", "a") == [1, 2, 3]
    assert store.names("checkpoint") == ["a", "a/b"]
    assert store.read("checkpoint", "a", 2)["n"] == 2
    with pytest.raises(errors.NoCheckpoint):
        store.read("checkpoint", "a", 9)
    store.discard("checkpoint", "a", 2)
    store.discard("checkpoint", "a", 2)
    assert store.steps("checkpoint", "a") == [1, 3]


def test_a_commit_has_one_winner(store: Store) -> None:
    for step in range(1, 4):
        gate = threading.Barrier(8)
        won: list[int] = []

        def commit(number: int, step: int = step, gate: Any = gate, won: Any = won) -> None:
            gate.wait()
            try:
                store.commit("checkpoint", "race", step, {"who": number})
            except errors.StepExists:
                return
            won.append(number)

        threads = [threading.Thread(target=commit, args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert store.read("checkpoint", "race", step)["who"] == won[0]


def test_damage_is_noticed(store: Store, bucket: str) -> None:
    (ref,) = store.put_buffers([b"right"])
    store.commit("checkpoint", "a", 1, {"c": str(ref)})
    store._backend.put(f"chunks/{ref.hash[:2]}/{ref.hash}", memoryview(b"wrong"))
    with pytest.raises(errors.Damaged, match="does not match"):
        store.get_chunk(ref.hash)
    assert len(store.verify("checkpoint", "a", 1)) == 1
    assert store.put_chunk(b"right").new  # it was found damaged
    assert store.verify("checkpoint", "a", 1) == []


def test_what_nobody_names_is_removed(store: Store) -> None:
    kept, _ = store.put_buffers([b"kept", b"left over"])
    store.commit("checkpoint", "a", 1, {"c": str(kept)})
    time.sleep(store.clock_s + 1)
    assert store.prune(grace_s=0).bytes == len(b"left over")
    assert store.verify("checkpoint", "a", 1) == []


def test_options_are_the_clients_own(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment said elsewhere in these tests, said to the store."""
    options: dict[str, Any]
    if bucket.startswith("gs:"):
        options = dict(fsspec.config.conf["gs"])
        for protocol in ("gs", "gcs"):
            monkeypatch.setitem(fsspec.config.conf, protocol, {})
    else:
        options = {"connection_string": os.environ["AZURE_STORAGE_CONNECTION_STRING"]}
        monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    store = Store(f"{bucket}/options", options=options, key=b"k" * 32)
    (ref,) = store.put_buffers([b"content"])
    store.commit("checkpoint", "a", 1, {"c": str(ref)})
    assert store.verify("checkpoint", "a", 1) == []
    assert store.get_chunk(ref.hash) == b"content"


def test_signs_of_life(store: Store) -> None:
    assert store.read_mark("life") is None
    store.write_mark("life", b"1")
    store.write_mark("life", b"2")
    assert store.read_mark("life") == b"2"
