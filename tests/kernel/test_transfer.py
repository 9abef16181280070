"""Values between kernel and store: parallel, verified, and not silent when it takes long."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlcloud import errors
from mlcloud.kernel import transfer
from mlcloud.kernel.transfer import Inbox, send
from mlcloud.store import Store
from mlcloud.store.backends import LocalBackend
from mlcloud.values.digests import CHUNK_BYTES
from mlcloud.values.messages import Group
from mlcloud.values.reducers import Classes
from mlcloud.values.scan import Scan


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def group_of(**names: Any) -> Group:
    scan = Scan(names, Classes())
    scan.add(names)
    (group,) = scan.pack([list(names)])
    return group


def back(answer: dict[str, Any]) -> Group:
    return Group.from_wire(answer["wire"])


def array(size: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)


def test_what_is_sent_is_what_is_read(store: Store) -> None:
    x = array(2 * CHUNK_BYTES + 5)
    answer = send(group_of(x=x, y=x[:70_000].copy()), store)
    group = back(answer)
    inbox = Inbox(store, answer["objects"])
    inbox.fetch(group.blobs())
    large = next(blob for blob in group.buffers if blob.size == x.nbytes)
    assert bytes(inbox.take(large)) == x.tobytes()
    assert large.data is None  # the memory is the value's alone


def test_the_same_content_twice_is_stored_once_and_read_into_two_places(store: Store) -> None:
    answer = send(group_of(x=array(100_000), y=array(100_000)), store)
    assert len(answer["objects"]) == 1
    group = back(answer)
    inbox = Inbox(store, answer["objects"])
    inbox.fetch(group.blobs())
    one, other = (inbox.take(blob) for blob in group.buffers)
    one[0] ^= 1
    assert one[0] != other[0]


def test_chunks_that_do_not_make_the_object_are_refused(store: Store) -> None:
    answer = send(group_of(x=array(CHUNK_BYTES + 5)), store)
    group = back(answer)
    objects = {digest: names[::-1] for digest, names in answer["objects"].items()}
    with pytest.raises(errors.Damaged, match="does not consist"):
        Inbox(store, objects).fetch(group.blobs())


def test_a_long_transfer_says_how_far_it_is(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, bool]] = []
    monkeypatch.setattr(transfer, "AFTER_S", 0.05)
    monkeypatch.setattr(transfer, "EVERY_S", 0.0)
    read, put = LocalBackend.read, LocalBackend.put

    def slowly(call: Any) -> Any:
        def slow(*args: Any, **options: Any) -> Any:
            time.sleep(0.1)
            return call(*args, **options)

        return slow

    monkeypatch.setattr(LocalBackend, "read", slowly(read))
    monkeypatch.setattr(LocalBackend, "put", slowly(put))
    group = group_of(x=array(2 * CHUNK_BYTES))
    answer = send(group, store, lambda text, over: told.append((text, over)))
    assert told[0] == ("the session stores values: 16.8 MB of 33.6 MB", False)
    assert told[-1] == ("the session has stored values (33.6 MB)", True)
    told.clear()
    Inbox(store, answer["objects"], lambda *line: told.append(line)).fetch(back(answer).blobs())
    assert told[0] == ("the session reads values: 16.8 MB of 33.6 MB", False)
    assert [over for _, over in told] == [False, False, True]


def test_a_quick_transfer_says_nothing(store: Store) -> None:
    told: list[Any] = []
    send(group_of(x=array(100_000)), store, lambda *line: told.append(line))
    assert told == []
