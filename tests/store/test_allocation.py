"""Blocks reserved before a file is written: its size stays what was written."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from mlcloud import errors
from mlcloud.store import Store, allocation

LARGE = allocation.LARGE_BYTES

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only there")


@on_linux
def test_blocks_are_reserved_and_the_size_stays(tmp_path: Path) -> None:
    with open(tmp_path / "f", "xb", buffering=0) as file:
        allocation.reserve(file.fileno(), LARGE)
        found = os.fstat(file.fileno())
    assert found.st_size == 0
    assert found.st_blocks * 512 in (0, *range(LARGE, 2 * LARGE))  # 0: this disk cannot


@on_linux
def test_a_small_file_is_left_alone(tmp_path: Path) -> None:
    with open(tmp_path / "f", "xb", buffering=0) as file:
        allocation.reserve(file.fileno(), LARGE - 1)
        assert os.fstat(file.fileno()).st_blocks == 0


def _answers(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(allocation, "_fallocate", lambda: lambda *_: -1)
    monkeypatch.setattr(allocation.ctypes, "get_errno", lambda: number)


def test_a_full_disk_says_so_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    _answers(monkeypatch, errno.ENOSPC)
    with pytest.raises(errors.StoreError, match=r"[Nn]o space|full"):
        store.put_chunk(b"x" * LARGE)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_disk_that_cannot_reserve_is_written_to_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = Store(str(tmp_path))
    _answers(monkeypatch, number)
    ref = store.put_chunk(b"x" * LARGE)
    assert store.get_chunk(ref.hash) == b"x" * LARGE
