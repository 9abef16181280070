"""Up, a cell, and down on Kubernetes: an API server as documented, and real pods' processes.

Pods are network namespaces here, in which their containers' own commands run: head, gateway, Ray,
agent, kernel. The client comes through the API server's port-forward.
"""

from __future__ import annotations

import contextlib
import os
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mlcloud
from mlcloud.client import launching, notes, podded, renting
from mlcloud.cluster import ssh
from mlcloud.cluster.clouds.kubernetes import manifest
from mlcloud.cluster.headspec import Runtime
from mlcloud.cluster.specification import Specification, specify
from mlcloud.config import Settings
from mlcloud.errors import Conflict, ConnectionFailed, MLCloudError
from tests import netns
from tests.cluster.clouds.kubelet import NAMESPACE, ApiServer, Machines
from tests.live import ROOT, until

pytest.importorskip("kubernetes")
boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto.server")

pytestmark = pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "-")

WHEEL = os.urandom(1_300_000)


class World:
    def __init__(self, server: ApiServer, kubelet: Machines) -> None:
        self.server, self.kubelet = server, kubelet
        self.said: list[str] = []
        self.there = list(kubelet.free)

    def specification(self, **more: Any) -> Specification:
        told: dict[str, Any] = {
            "head": {"cpus": 0.1, "memory": "100MB"},
            "nodes": [{"cpus": 1, "memory": "1GB", "max": 1}],
            "store": "s3://bucket/runs",
            **more,
        }
        return specify(
            name="pods",
            cloud="kubernetes",
            network={"namespace": NAMESPACE},
            endpoints={"api": self.server.url},
            **told,
        )

    def up(self, specification: Specification | None = None) -> None:
        wanted = specification or self.specification()
        launching.up(wanted, Settings(), self.said.append).close()

    def logs(self) -> str:
        found = [p for each in self.there for p in each.folder.rglob("*.log")]
        return "\n".join(f"== {path}\n{path.read_text()[-3000:]}" for path in sorted(found))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("MLCLOUD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(podded, "LOOK_S", 0.1)
    monkeypatch.setattr(renting, "LOOK_S", 0.1)
    here = Runtime(
        sys.executable, variables={"PYTHONPATH": str(ROOT)}, wheel="mlcloud.whl", digest="d"
    )
    monkeypatch.setattr(podded, "runtime_of", lambda _: (here, WHEEL))
    Settings().make_folders()
    with contextlib.ExitStack() as stack:
        public = ssh.make_key(tmp_path / "key", "nobody")
        there = stack.enter_context(netns.machines("a", "b", "c", public_key=public))
        bridge = f"{next(iter(there.values())).address.rpartition('.')[0]}.1"
        buckets = moto.ThreadedMotoServer(ip_address=bridge, port=0, verbose=False)
        buckets.start()
        stack.callback(buckets.stop)
        host, port = buckets.get_host_and_port()
        store = f"http://{host}:{port}"
        urllib.request.urlopen(urllib.request.Request(f"{store}/moto-api/reset", method="POST"))
        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
        boto3.client("s3", "us-east-1", endpoint_url=store, **keys).create_bucket(Bucket="bucket")
        server = stack.enter_context(ApiServer(bridge))
        known = {
            "AWS_ENDPOINT_URL": store,
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        made = World(server, Machines(server, there, known))
        try:
            yield made
        finally:
            print(made.logs())  # for who looks at a failure
            if "pods" in notes.known(Settings()):
                launching.down("pods", Settings(), made.said.append)
            made.kubelet.close()


def test_a_cell_in_a_pod(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.up()
    said = [line[9:] for line in world.said]
    assert said[0] == f"RayCluster pods is in the namespace {NAMESPACE}"
    assert said[-1] == 'pods is up: mlcloud.connect("pods")'
    note = Settings().clusters / "pods.json"
    assert note.stat().st_mode & 0o777 == 0o600

    client = mlcloud.connect("pods")
    session = client.session("one", cpus=1)
    session.run("import os, socket\nx = 6 * 7\npid = os.getpid()", quiet=True)
    assert session["x"] == 42
    # It ran in the second pod, which the head asked the operator for.
    head, worker, _ = world.there
    assert session["pid"] in worker.pids()
    (group,) = world.server.all("rayclusters")["pods"]["spec"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (1, 0, 1)
    status = repr(client.cluster.status())
    assert group["groupName"] in status
    assert "on kubernetes: running" in status
    # The wheel came in parts, none of which is too long for a config map.
    (wheel,) = head.home.rglob("mlcloud.whl")
    assert wheel.read_bytes() == WHEEL
    assert len(world.server.all("configmaps")) == 3
    # Nothing of ours listens but on the pods' own addresses; the token stands in secrets alone.
    for each in (head, worker):
        own = {at.rpartition(":")[0].strip("[]").removeprefix("::ffff:") for at in each.listening()}
        assert own <= {each.address, "127.0.0.1"}
    token = notes.note_of("pods", Settings()).token
    for plural in ("rayclusters", "services", "networkpolicies", "configmaps", "pods"):
        assert token not in repr(world.server.all(plural)), plural

    # From a second computer: the same cluster is found, and no second head is made.
    before = world.server.all("pods").keys()
    monkeypatch.setenv("MLCLOUD_HOME", str(note.parents[1] / "second"))
    world.up()
    client = mlcloud.connect("pods")
    session = client.session("one")
    assert session["x"] == 42
    assert world.server.all("pods").keys() == before
    _changed_while_it_runs(world, session)
    assert world.server.all("pods").keys() > before

    launching.down("pods", Settings(), world.said.append)
    left = {plural: list(there) for plural, there in world.server.objects.items() if there}
    left.pop("events", None)
    assert left == {}
    until(lambda: not [pid for each in world.there for pid in each.pids()], "its processes end")
    monkeypatch.setenv("MLCLOUD_HOME", str(note.parents[1]))
    with pytest.raises(ConnectionFailed, match=r"has no head now.*`mlcloud up` brings it back"):
        mlcloud.connect("pods")


def _changed_while_it_runs(world: World, session: mlcloud.Session) -> None:
    """Budgets, groups, tags and limits are in force at once, for who is there and for the next
    head; what cannot be is refused by name, when the rest has been applied."""
    client = mlcloud.connect("pods")
    more = {
        "nodes": [
            {"cpus": 1, "memory": "1GB", "max": 1},
            {"cpus": 2, "memory": "2GB", "name": "larger", "max": 1},
        ],
        "budget": ["60/day", "200/week"],
        "tags": {"team": "vision"},
    }
    world.said.clear()
    world.up(world.specification(**more))
    said = "\n".join(world.said)
    assert "nodes[larger]: – → 2 CPUs, 2 GB" in said
    assert "tags.team: – → vision (applied in place)" in said
    assert {each.limit for each in client.budgets()} == {"60/day", "200/week"}
    assert world.server.all("rayclusters")["pods"]["metadata"]["annotations"][manifest.MOST] == "2"
    larger = client.session("larger", cpus=2, namespace={})
    larger.run("y = 1", quiet=True)
    marked = world.server.all("pods")[_pod_of(world, larger)]["metadata"]["labels"]
    assert marked["team"] == "vision"
    assert session["x"] == 42
    assert "team" not in world.server.all("pods")[_pod_of(world, session)]["metadata"]["labels"]

    with pytest.raises(
        Conflict, match=r"(?s)store .*needs down and up.*was applied: idle\.session"
    ):
        world.up(world.specification(**more, store="s3://bucket/other", idle={"session": "9m"}))
    runs = notes.running(world.specification())
    assert runs.idle.session.total_seconds() == 540
    assert runs.store == "s3://bucket/runs"
    # A head made anew begins with what runs now.
    secret = podded.Kept.read(world.server.all("secrets")["pods-head"]["data"])
    assert Specification.model_validate(secret.specification) == runs


def _pod_of(world: World, session: mlcloud.Session) -> str:
    (found,) = (name for name in world.server.all("pods") if f"-{session.info.node}-" in name)
    return found


@pytest.mark.slow
def test_a_head_that_was_lost_and_one_that_slept(world: World) -> None:
    """The pod is made anew, or the gateway ends and `up` brings it back: the token, the certificate
    and the sessions are what they were, and the nodes of the old head are gone."""
    world.up(world.specification(budget="50/day"))
    client = mlcloud.connect("pods")
    # Before the cell: the record's last second may go with the head, and a node takes longer.
    client.set_budget(mlcloud.Budget("20/day"))
    session = client.session("one", cpus=1)
    session.run("x = 6 * 7", quiet=True)
    until(lambda: "safe to cell 1" in repr(client.cluster.status()), "it is safe")
    (old,) = _pods(world, "worker")
    world.server.lose(*_pods(world, "head"))
    fingerprint = notes.note_of("pods", Settings()).fingerprint
    until(lambda: _answers(client), "another head listens", 60)
    # What the old one knew is in the store: sessions, and what was set since `up`.
    assert [each.name for each in client.sessions()] == ["one"]
    assert [each.limit for each in client.budgets()] == ["20/day"]
    assert _kept(40) == 42
    assert old not in _pods(world, "worker")
    assert notes.note_of("pods", Settings()).fingerprint == fingerprint

    client.cluster.down()
    until(lambda: not world.server.all("rayclusters"), "the head gives itself back", 30)
    assert world.server.all("pods") == {}
    assert "pods-head" in world.server.all("secrets")
    until(lambda: len(world.kubelet.free) == 3, "its pods' processes end")
    world.up(world.specification(budget="80/day"))  # that one is meant
    assert _kept(40) == 42
    assert [each.limit for each in mlcloud.connect("pods").budgets()] == ["80/day"]


def _kept(seconds: float) -> Any:
    """The session's x at a head that takes it up, once the one before is not heard any more."""

    def look() -> Any:
        try:
            return mlcloud.connect("pods").session("one", cpus=1)["x"]
        except (MLCloudError, KeyError, OSError):
            return None

    return until(look, "the session is taken up", seconds, every=1)


def _pods(world: World, kind: str) -> list[str]:
    pods = world.server.all("pods").items()
    return [name for name, pod in pods if pod["metadata"]["labels"]["ray.io/node-type"] == kind]


def _answers(client: Any) -> bool:
    try:
        return bool(client.cluster.status())
    except MLCloudError:
        return False
