"""Training checkpoints in the cluster's store, as the gateway tells them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlcloud.checkpoint import Checkpoints
from mlcloud.client.functions import remote
from mlcloud.client.session import Session
from tests.live import Embedded

pytestmark = pytest.mark.cluster

LOOP = """
import mlcloud, numpy
state = {"weights": numpy.zeros(1000)}
for step in mlcloud.resumable(range(3), state=state, every=1):
    state["weights"][step] = 1.0
"""


def ask(cluster: Embedded, path: str, **query: Any) -> Any:
    answer = httpx.get(
        f"{cluster.connection['url']}/v1/{path}",
        params=query,
        headers={"Authorization": f"Bearer {cluster.connection['token']}"},
        trust_env=False,
        timeout=30,
    )
    return answer.json()


def test_series_of_sessions_jobs_and_by_name(
    cluster: Embedded, session: Callable[..., Session]
) -> None:
    made = session("trains")
    made.run(LOOP)
    job = remote(quiet=True)(_trains).submit()
    assert job.result(120) == 2
    cluster.connect()
    store = ask(cluster, "cluster")["store"]
    mine = Checkpoints(store, "mine/run-1")
    for step in (1, 2, 10):
        mine.save({"epoch": step, "big": bytes(5000)}, step, metric=1 / step)
    found = ask(cluster, "checkpoints")
    assert found[0]["name"] == "mine/run-1"  # the newest first
    assert (found[0]["steps"], found[0]["newest"], found[0]["session"]) == (3, 10, None)
    of_session = next(each for each in found if each["session"] == made.name)
    assert of_session["newest"] == 3
    of_job = next(each for each in found if each["job"] == job.name)
    assert of_job["name"].startswith(job.id)

    steps = ask(cluster, "checkpoints/steps", series="mine/run-1", last=2)
    assert [each["step"] for each in steps] == [10, 2]
    assert steps[0]["metric"] == 0.1
    assert steps[0]["bytes"] >= 5000
    assert steps[0]["new_bytes"] < steps[0]["bytes"]  # `big` is the same
    assert steps[0]["created_at"] > steps[1]["created_at"]
    assert not steps[0]["fault"]


def test_a_damaged_step_is_shown_with_its_reason(cluster: Embedded) -> None:
    cluster.connect()
    store = ask(cluster, "cluster")["store"]
    mine = Checkpoints(store, "damaged")
    mine.save({"x": 1}, 1)
    mine.save({"x": 2}, 2, metric=float("nan"))
    folder = Path(store.removeprefix("file://")) / "manifests" / "checkpoint" / "damaged"
    manifest = folder / f"{1:012}.json"
    manifest.chmod(0o600)
    manifest.write_text(manifest.read_text()[:-5])
    newest, oldest = ask(cluster, "checkpoints/steps", series="damaged")
    assert (newest["step"], newest["metric"], newest["fault"]) == (2, None, "")
    assert (oldest["step"], oldest["fault"]) == (1, "damaged")
    assert "is damaged" in oldest["problem"]
    assert ask(cluster, "checkpoints/steps", series="nowhere") == []
    refused = ask(cluster, "checkpoints/steps", series="../record")
    assert refused["code"] == "UsageError"


def _trains() -> int:
    import mlcloud

    state = {"at": 0}
    for step in mlcloud.resumable(range(3), state=state, every=1):
        state["at"] = step
    return state["at"]
