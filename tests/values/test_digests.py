"""Names of bytes, made in one pass; and memory that arrives without a copy or a second hash."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from mlcloud.kernel.namespace import RemoteSide
from mlcloud.values import digests
from mlcloud.values.digests import CHUNK_BYTES, Known, chunk_digests, whole
from mlcloud.values.memory import fresh
from mlcloud.values.messages import Blob, Group, Shipment
from mlcloud.values.reducers import Classes
from mlcloud.values.scan import Scan, unpack

SIZE = 2 * CHUNK_BYTES + 800


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what was hashed."""
    sizes: list[int] = []
    digest = digests._digest

    def count(piece: memoryview) -> str:
        sizes.append(piece.nbytes)
        return digest(piece)

    monkeypatch.setattr(digests, "_digest", count)
    return sizes


def array(size: int = SIZE) -> Any:
    return np.random.default_rng(1).integers(0, 255, size, dtype=np.uint8)


def packed(**names: Any) -> Group:
    scan = Scan(names, Classes())
    scan.add(names)
    (group,) = scan.pack([list(names)])
    return group


def test_pieces_have_their_plain_hash_and_the_whole_one_of_its_own() -> None:
    data = array()
    (chunks,) = chunk_digests([data.data])
    cut = [data[at : at + CHUNK_BYTES].tobytes() for at in range(0, SIZE, CHUNK_BYTES)]
    assert list(chunks) == [blake3(part).hexdigest() for part in cut]
    names = bytes.fromhex("".join(chunks))
    assert whole(chunks) not in {blake3(names).hexdigest(), blake3(data.data).hexdigest()}
    assert whole(chunks[:1]) == chunks[0]
    assert chunk_digests([b""]) == [(blake3(b"").hexdigest(),)]
    assert chunk_digests([b"a", data.data, b"b"])[1] == chunks


def test_one_look_hashes_the_same_memory_once(hashed: list[int]) -> None:
    x = array()
    scan = Scan({"x": x, "y": x, "view": x[:]}, Classes())
    scan.add(["x", "y", "view"])
    assert len({scan.pickled[name].digests[1] for name in ("x", "y", "view")}) == 1
    scan.pack([["x", "y", "view"]])
    assert sum(hashed) < SIZE + 10_000


def test_another_look_sees_a_change(hashed: list[int]) -> None:
    x = array()
    before = packed(x=x).buffers[0].digest
    x[-1] ^= 1
    assert packed(x=x).buffers[0].digest != before


def test_what_arrives_is_neither_copied_nor_hashed_again(hashed: list[int]) -> None:
    x = array()
    group = packed(x=x)
    arrived = Group.from_wire(group.to_wire(inline=65536))
    memory = fresh(SIZE)
    memory[:] = x.data
    arrived.buffers[0].chunks = group.buffers[0].chunks
    hashed.clear()
    known = Known()
    namespace: dict[str, Any] = {}
    value = unpack(arrived, namespace, Classes(), blobs=lambda _: memory, known=known)["x"]
    assert np.shares_memory(value, np.frombuffer(memory, np.uint8))
    assert value.flags.writeable
    namespace["x"] = value
    scan = Scan(namespace, Classes(), known)
    scan.add(["x"])
    assert scan.pickled["x"].digests[1] == group.buffers[0].digest
    assert sum(hashed) < 10_000


def test_what_is_not_the_values_own_memory_is_copied() -> None:
    x = array(100_000)
    group = packed(x=x)
    apart = Group.from_wire(group.to_wire(inline=1000))
    for one, resolve in ((group, None), (apart, lambda _: x.tobytes())):
        value = unpack(one, {}, Classes(), blobs=resolve)["x"]
        assert not np.shares_memory(value, x)
        value[0] ^= 1  # it is writable, whatever it came from


def test_two_names_with_equal_content_get_memory_of_their_own() -> None:
    here = {"__name__": "__main__", "__builtins__": builtins}
    side = RemoteSide(here)
    groups = [packed(x=array(200_000)), packed(y=array(200_000))]
    wire = Shipment(groups=groups).to_wire(inline=65536)
    data = {blob.digest: bytes(blob.data or b"") for group in groups for blob in group.blobs()}

    def resolve(blob: Blob) -> memoryview:
        memory = fresh(blob.size)
        memory[:] = data[blob.digest]
        return memory

    side.load(Shipment.from_wire(wire), resolve)
    there: dict[str, Any] = side.namespace
    there["x"][0] ^= 1
    assert there["x"][0] != there["y"][0]


def test_fresh_memory_is_private_to_the_process() -> None:
    import os

    memory = fresh(8 * 2**20)
    memory[0] = 1
    child = os.fork()
    if child == 0:
        memory[0] = 2
        os._exit(0)
    os.waitpid(child, 0)
    assert memory[0] == 1
