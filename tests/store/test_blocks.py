"""Parts of chunks: only their blocks are read, and each of these is checked."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from mlcloud import errors
from mlcloud.store import CHUNK_BYTES, Part, Store
from mlcloud.store.blocks import BLOCK_BYTES, digests


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path) if request.param == "file" else f"memory://blocks{tmp_path}")


def put(store: Store, data: bytes) -> tuple[Part, bytearray]:
    """A part that is all of it."""
    into = bytearray(len(data))
    return Part(store.put_chunk(data), digests(memoryview(data)), 0, memoryview(into)), into


def of(part: Part, start: int, size: int) -> Part:
    return Part(part.ref, part.blocks, start, memoryview(bytearray(size)))


@pytest.mark.parametrize(
    "size", [1, BLOCK_BYTES, BLOCK_BYTES + 1, 5 * BLOCK_BYTES - 7, CHUNK_BYTES]
)
def test_any_part_is_what_was_written(store: Store, size: int) -> None:
    data = os.urandom(size)
    whole, into = put(store, data)
    assert list(store.read_parts([whole])) == [size]
    assert into == data
    chance = random.Random(size)
    parts = []
    for _ in range(20):
        start = chance.randrange(size)
        parts.append(of(whole, start, chance.randint(1, size - start)))
    took = list(store.read_parts(parts))
    for part, read in zip(parts, took, strict=True):
        assert part.into == data[part.start : part.start + part.into.nbytes]
        assert read < part.into.nbytes + 2 * BLOCK_BYTES


def test_damage_is_noticed_where_it_was_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    whole, _ = put(store, os.urandom(4 * BLOCK_BYTES))
    file = tmp_path / "chunks" / whole.ref.hash[:2] / whole.ref.hash
    raw = bytearray(file.read_bytes())
    raw[2 * BLOCK_BYTES + 5] ^= 1
    file.write_bytes(raw)
    assert list(store.read_parts([of(whole, 10, BLOCK_BYTES)])) == [2 * BLOCK_BYTES]
    with pytest.raises(errors.Damaged, match="does not match its digests"):
        list(store.read_parts([of(whole, 2 * BLOCK_BYTES - 1, 5)] * 2))
    assert store.is_suspect(whole.ref.hash)
    file.write_bytes(raw[: 3 * BLOCK_BYTES + 1])
    for part in (whole, of(whole, 3 * BLOCK_BYTES, 4)):
        with pytest.raises(errors.Damaged):
            list(store.read_parts([part]))
    file.unlink()
    with pytest.raises(errors.Damaged, match="missing"):
        list(store.read_parts([of(whole, 0, 4)]))
