"""Sessions whose states lie on GCS or Azure, over real HTTP by emulators."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import psutil
import pytest

from tests.faults.test_host_killed import host_of
from tests.live import Embedded
from tests.store import clouds

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(params=["gcs", "azure"])
def bucket(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    with (clouds.gcs if request.param == "gcs" else clouds.azure)(tmp_path / "data") as url:
        if request.param == "gcs":  # the gateway and the kernels read it from their environment
            monkeypatch.setenv("FSSPEC_GS", json.dumps(fsspec.config.conf["gs"]))
        assert request.param == "gcs" or "AZURE_STORAGE_CONNECTION_STRING" in os.environ
        yield url


def test_a_session_is_parked_moved_and_taken_back(
    bucket: str, own_cluster: Callable[..., Embedded], tmp_path: Path
) -> None:
    embedded = own_cluster(store=f"{bucket}/exp", store_key=str(tmp_path / "key"))
    s = embedded.connect().session("exp", namespace={})
    s.run("import os, numpy as np\nlog = [0]\nalias = log\nbig = np.arange(3_000_000)", quiet=True)
    s.run("log.append(1); big[1] = -1; pid = os.getpid()", durable=True, quiet=True)
    s.park()
    s.run("alias.append(2); pid = os.getpid()", durable=True, quiet=True)
    host_of(psutil.Process(s["pid"])).kill()
    s.run("log.append(3)", durable=True, quiet=True)
    assert s["alias"] == [0, 1, 2, 3]
    s.restore(2)
    s.run("found = (log, log is alias, int((big < 0).sum()))", quiet=True)
    assert s["found"] == ([0, 1], True, 1)
