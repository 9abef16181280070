"""A head that does not come up: each cause in words of its own, and its pod is given back."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlcloud.client import launching, notes, podded, reaching
from mlcloud.cluster.headspec import Runtime
from mlcloud.cluster.specification import Specification, specify
from mlcloud.config import Settings
from mlcloud.errors import (
    CloudRefused,
    Conflict,
    MLCloudError,
    NoCapacity,
    QuotaExceeded,
    UsageError,
)

pytest.importorskip("kubernetes")

from tests.cluster.clouds.kubelet import NAMESPACE, ApiServer, Body, running

SCHEDULED = {"type": "PodScheduled", "status": "True"}
NO_ROOM = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available: 3 Insufficient memory.",
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.setenv("MLCLOUD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(podded, "LOOK_S", 0.01)
    monkeypatch.setattr(podded, "runtime_of", lambda _: (Runtime("python"), b"wheel"))
    with ApiServer() as made:
        yield made


def wanted(server: ApiServer, **more: Any) -> Specification:
    return specify(
        name="pods",
        cloud="kubernetes",
        store="s3://bucket/runs",
        network={"namespace": NAMESPACE},
        endpoints={"api": server.url},
        **{"nodes": [{"cpus": 1, "max": 3}], **more},
    )


def up(server: ApiServer, **more: Any) -> list[str]:
    said: list[str] = []
    podded.up(wanted(server, **more), Settings(), said.append)
    return said


def waiting(reason: str, message: str = "", **more: Any) -> Callable[[Body], None]:
    """Pods that are in this state from the beginning."""
    state = {"state": {"waiting": {"reason": reason, "message": message}}, "image": "hub/x:1"}

    def start(pod: Body) -> None:
        pod["status"] = {
            "phase": "Pending",
            "conditions": [SCHEDULED],
            "containerStatuses": [{**state, **more}],
        }

    return start


def crashed(code: int, reason: str = "Error", restarts: int = 3) -> Callable[[Body], None]:
    last = {"lastState": {"terminated": {"exitCode": code, "reason": reason}}}
    return waiting("CrashLoopBackOff", "back-off", restartCount=restarts, **last)


@pytest.mark.parametrize(
    ("start", "kind", "words"),
    [
        (
            waiting("ErrImagePull", "manifest for hub/x:1 not found"),
            CloudRefused,
            "image hub/x:1 cannot be pulled: manifest for hub/x:1 not found; is `image` right?",
        ),
        (
            waiting("ImagePullBackOff", "pull access denied for hub/x"),
            CloudRefused,
            "cannot be pulled: pull access denied for hub/x; name a pull secret, `network: {pull_",
        ),
        (waiting("InvalidImageName"), CloudRefused, "cannot be pulled: InvalidImageName"),
        (
            waiting("CreateContainerError", "no such device"),
            CloudRefused,
            "its container cannot be made: no such device",
        ),
        (crashed(1), CloudRefused, "it ended with status 1: ray is not installed"),
        (crashed(137, "OOMKilled"), CloudRefused, "it was killed for memory: give the head more"),
    ],
)
def test_what_will_not_pass(
    server: ApiServer, start: Callable[[Body], None], kind: type[MLCloudError], words: str
) -> None:
    server.starts = start
    server.logs["pods-headgroup-head-1"] = "looking\nray is not installed\n"
    with pytest.raises(kind, match=f"the head of 'pods' does not come up: .*{re.escape(words)}"):
        up(server)
    assert server.all("pods") == server.all("rayclusters") == {}


def test_a_quota_is_told_from_rules_that_forbid_the_pod(server: ApiServer) -> None:
    server.works = False
    denied = 'pods "pods-head" is forbidden: '
    server.event("pods", "FailedToCreateHeadPod", f"{denied}exceeded quota: small, requested: 8Gi")
    with pytest.raises(QuotaExceeded, match=r"quota has no room .*exceeded quota: small"):
        up(server)
    server.event("pods", "FailedToCreateHeadPod", f"{denied}violates PodSecurity restricted")
    with pytest.raises(
        CloudRefused, match=r"rules do not allow the pod: .*violates PodSec"
    ) as told:
        up(server)
    assert not isinstance(told.value, NoCapacity)


def test_an_operator_that_does_nothing(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.works = False
    monkeypatch.setattr(podded, "POD_S", 0.1)
    with pytest.raises(CloudRefused, match=r"operator made no pod in 0.1 s: does it run,"):
        up(server)


def test_no_node_has_room(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def pending(pod: Body) -> None:
        pod["status"] = {"phase": "Pending", "conditions": [NO_ROOM]}

    server.starts = pending
    monkeypatch.setattr(podded, "HEAD_S", 0.1)
    with pytest.raises(NoCapacity, match="no node has room for it: 0/3 nodes are available: 3 Ins"):
        up(server)
    name = "pods-headgroup-head-2"
    server.event(name, "NotTriggerScaleUp", "max node group size reached", "Normal")
    with pytest.raises(NoCapacity, match=r"and none can be added: 0/3 .*; max node group size re"):
        up(server)


def test_the_way_up_is_told_step_by_step(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node is brought, the image comes at the second try, and the gateway listens."""
    name = "pods-headgroup-head-1"
    steps: list[Callable[[], None]] = [
        lambda: server.event(name, "TriggeredScaleUp", "pool-1 1->2", "Normal"),
        lambda: server.status(name, phase="Pending", conditions=[SCHEDULED]),
        lambda: waiting("ErrImagePull", "i/o timeout")(server.objects["pods"][name]),
        lambda: server.status(
            name,
            phase="Running",
            conditions=[SCHEDULED],
            containerStatuses=[{"state": {"running": {}}}],
        ),
        lambda: running(server.objects["pods"][name]),
    ]

    def pending(pod: Body) -> None:
        pod["status"] = {"phase": "Pending", "conditions": [NO_ROOM]}

    server.starts = pending
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: steps.pop(0)())
    monkeypatch.setattr(podded, "time", clock)
    assert up(server) == [
        f"RayCluster pods is in the namespace {NAMESPACE}",
        "no node has room for it: 0/3 nodes are available: 3 Insufficient memory.",
        "a node is brought for it: pool-1 1->2",
        "the image is pulled",
        "its image hub/x:1 cannot be pulled: i/o timeout; it is tried again",
        "it runs: mlcloud is installed, and the gateway starts",
        "its gateway listens",
    ]


def test_a_second_up_finds_it_and_changes_what_it_can(server: ApiServer) -> None:
    up(server)
    before = podded.Kept.read(server.all("secrets")["pods-head"]["data"])
    server.objects["rayclusters"]["pods"]["spec"]["workerGroupSpecs"] = []  # the head's own
    assert "token" not in repr(before.specification)
    kept = podded.up(wanted(server, nodes=[{"cpus": 1, "max": 7}]), Settings(), lambda _: None)
    assert (kept.token, kept.fingerprint) == (before.token, before.fingerprint)
    cluster = server.all("rayclusters")["pods"]
    assert cluster["metadata"]["annotations"]["mlcloud/max-nodes"] == "7"
    assert cluster["spec"]["workerGroupSpecs"] == []
    assert len(server.all("pods")) == 1


def test_a_cluster_of_that_name_elsewhere_is_not_forgotten(server: ApiServer) -> None:
    """Another namespace would be another cluster, and nobody would end the first one."""
    note = notes.Note(
        "pods", "pods-1", "kubernetes", {"host": "pods"}, [], 0,
        specification=wanted(server).model_dump(mode="json"),
    )  # fmt: skip
    notes.write(note, _made(Settings()))
    other = wanted(server).model_copy(update={"network": {"namespace": "other"}})
    with pytest.raises(
        Conflict, match=r"(?s)network\.namespace .*lab .*other.*Nothing was changed"
    ):
        launching.up(other, Settings(), lambda _: None)
    assert notes.note_of("pods", Settings()) == note
    assert server.all("secrets") == {}


def test_a_shell_in_a_pod_is_kubectls(server: ApiServer) -> None:
    up(server)
    note = notes.Note("pods", "pods-1", "kubernetes", {"host": "pods"}, [], 0)
    notes.write(note, _made(Settings()))
    with pytest.raises(UsageError, match=r"kubectl exec .*ray\.io/cluster=pods"):
        reaching.target(None, "pods", Settings())


def _made(settings: Settings) -> Settings:
    settings.make_folders()
    settings.clusters.mkdir(exist_ok=True)
    return settings
