"""Keys are made once, kept private, and tell our signatures from others."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from mlcloud import errors
from mlcloud.store import Signer, load_or_create_key


def test_a_signature_holds_for_its_data_and_key_only() -> None:
    signer = Signer(b"k" * 32)
    signature = signer.sign(b"data")
    assert signer.verify(b"data", signature)
    assert not signer.verify(b"datb", signature)
    assert not signer.verify(b"data", "")
    assert not signer.verify(b"data", "hmac-sha256:é\ud800")
    assert not Signer(b"l" * 32).verify(b"data", signature)
    assert "kkk" not in repr(signer)


def test_the_key_is_private_and_stays_the_same(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "signing.key"
    key = load_or_create_key(path)
    assert len(key) == 32
    assert load_or_create_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["signing.key"]


def test_threads_that_race_get_the_same_key(tmp_path: Path) -> None:
    keys: list[bytes] = []
    start = threading.Barrier(8)

    def load() -> None:
        start.wait()
        keys.append(load_or_create_key(tmp_path / "key"))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1


def test_a_key_that_is_short_or_open_to_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    load_or_create_key(path)
    path.chmod(0o644)
    with pytest.raises(errors.StoreError, match="chmod 600"):
        load_or_create_key(path)
    path.chmod(0o600)
    path.write_bytes(b"")
    with pytest.raises(errors.StoreError, match="damaged"):
        load_or_create_key(path)
    with pytest.raises(errors.UsageError):
        Signer(b"short")
