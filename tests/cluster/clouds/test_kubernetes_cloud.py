"""Launch, list and terminate through the official client, on a mocked API server (kmock).

KubeRay's operator is played here: it makes pods for the head and for each replica, and takes away
the ones in `workersToDelete`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from mlcloud.cluster.clouds.kubernetes import KubernetesCloud
from mlcloud.cluster.clouds.kubernetes.manifest import Group
from mlcloud.errors import (
    CloudCredentialsExpired,
    CloudRefused,
    CredentialsMissing,
    QuotaExceeded,
)
from tests.cluster.clouds import discovery
from tests.cluster.clouds.selling import NOW, offer, request, settings

pytest.importorskip("kubernetes")
kmock = pytest.importorskip("kmock")

REGION = "europe-west4"
HEAD = offer("kubernetes", "e2-standard-4", REGION, REGION, "on-demand", "0.15")
SPOT = offer("kubernetes", "g2-standard-4", f"{REGION}-a", REGION, gpu=("L4", 1))
OFFERS = [HEAD, SPOT]
CLUSTERS, PODS = "ray.io/v1/rayclusters", "v1/pods"


class Cluster:
    """An API server with KubeRay's operator, which `works` or does not."""

    def __init__(self, server: Any, url: str) -> None:
        self.server = server
        self.url = url
        self.works = True
        self.count = 0
        for kind in (CLUSTERS, PODS, "v1/secrets", "networking.k8s.io/v1/networkpolicies"):
            server.resources[kind] = {"namespaced": True}

    def all(self, kind: str) -> dict[str, dict[str, Any]]:
        return {
            name: each.raw
            for (of, _, name), each in self.server.objects.items()
            if of.plural == kind.rsplit("/", 1)[-1] and not each.deleted
        }

    async def operate(self) -> None:
        while True:
            await asyncio.sleep(0.005)
            if self.works:
                self.reconcile()

    def reconcile(self) -> None:
        clusters = self.all(CLUSTERS)
        for name, pod in self.all(PODS).items():
            if pod["metadata"]["labels"]["ray.io/cluster"] not in clusters:
                self.remove(name)
        for name, each in clusters.items():
            head = each["spec"]["headGroupSpec"]
            if not self.of(name, "headgroup"):
                self.make(name, "headgroup", "head", head["template"])
            for group in each["spec"]["workerGroupSpecs"]:
                for doomed in group.get("scaleStrategy", {}).get("workersToDelete", []):
                    self.remove(doomed)
                running = self.of(name, group["groupName"])
                for _ in range(group["replicas"] - len(running)):
                    self.make(name, group["groupName"], "worker", group["template"])

    def of(self, cluster: str, group: str) -> list[str]:
        return [
            name
            for name, pod in self.all(PODS).items()
            if pod["metadata"]["labels"]["ray.io/cluster"] == cluster
            and pod["metadata"]["labels"]["ray.io/group"] == group
        ]

    def make(self, cluster: str, group: str, kind: str, template: dict[str, Any]) -> None:
        self.count += 1
        name = f"{cluster}-{group}-{kind}-{self.count}"
        labels = {"ray.io/cluster": cluster, "ray.io/group": group, "ray.io/node-type": kind}
        self.server.objects[PODS, "default", name] = {
            "metadata": {
                "name": name,
                "namespace": "default",
                "labels": {**template["metadata"]["labels"], **labels},
                "creationTimestamp": "2026-01-01T12:00:00Z",
            },
            "spec": template["spec"],
            "status": {"phase": "Running", "podIP": f"10.8.0.{self.count}"},
        }

    def remove(self, name: str) -> None:
        with suppress(KeyError):
            del self.server.objects[PODS, "default", name]


@pytest.fixture
async def k8s() -> AsyncIterator[Cluster]:
    async with kmock.KubernetesEmulator() as emulator, kmock.Server(emulator) as server:
        cluster = Cluster(emulator, str(server.url).rstrip("/"))
        operator = asyncio.create_task(cluster.operate())
        yield cluster
        operator.cancel()
        with suppress(asyncio.CancelledError):
            await operator


def cloud(k8s: Cluster, **more: Any) -> KubernetesCloud:
    names = {"provider": "gke", "namespace": "default", **more.pop("network", {})}
    given = settings(REGION, network=names, endpoints={"api": k8s.url}, **more)
    return KubernetesCloud(given, OFFERS, now=lambda: NOW, pod_s=10)


def asked(node_type: str = "l4-1x4cpu") -> Any:
    return request(node_type, resources={"CPU": 4, "GPU": 1, "L4": 1}, bootstrap="")


async def test_a_cluster_goes_up_as_planned_grows_and_shrinks(k8s: Cluster) -> None:
    def story() -> None:
        here = cloud(k8s)
        here.check()
        assert here.instances() == []
        head = here.launch(HEAD, asked("head"))
        [sent] = k8s.all(CLUSTERS).values()
        assert {**sent, "metadata": {k: sent["metadata"][k] for k in ("name", "labels")}} == (
            here.configuration(HEAD, asked("head"))
        )
        assert head.node_type == "head"
        one, two = (here.launch(SPOT, asked()) for _ in range(2))
        assert one.id != two.id
        assert one.offer == SPOT
        assert one.private_ip
        [group] = next(iter(k8s.all(CLUSTERS).values()))["spec"]["workerGroupSpecs"]
        assert group["replicas"] == 2
        # another process sees the same, and ends one of them
        there = cloud(k8s)
        found = {each.id: each for each in there.instances()}
        assert found.keys() == {head.id, one.id, two.id}
        assert found[two.id].offer == SPOT
        assert found[two.id].launched_at == datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
        there.terminate(two.id, "idle")
        there.terminate(two.id, "idle")
        there.terminate("never-was", "idle")
        ended = {each.id: each for each in there.instances()}[two.id]
        assert (ended.alive, ended.reason) == (False, "idle")
        [after] = next(iter(k8s.all(CLUSTERS).values()))["spec"]["workerGroupSpecs"]
        assert after["replicas"] == 1
        assert after["scaleStrategy"] == {"workersToDelete": [two.id]}
        assert discovery.faults(after, "WorkerGroupSpec", discovery.RAY) == []
        there.terminate(head.id, "down")
        assert k8s.all(CLUSTERS) == {}

    await asyncio.to_thread(story)


async def test_two_launches_at_once_are_two_pods(k8s: Cluster) -> None:
    here = cloud(k8s)
    await asyncio.to_thread(here.launch, HEAD, asked("head"))
    launches = [asyncio.to_thread(here.launch, SPOT, asked()) for _ in range(4)]
    made = await asyncio.gather(*launches)
    assert len({each.id for each in made}) == 4


async def test_a_change_that_came_second_is_made_again(k8s: Cluster) -> None:
    here = cloud(k8s)
    await asyncio.to_thread(here.launch, HEAD, asked("head"))
    conflict = kmock.Response(status=409, payload={"message": "the object has been modified"})
    k8s.server["patch"][:2] << conflict
    await asyncio.to_thread(here.launch, SPOT, asked())
    patches = list(k8s.server["patch"])
    assert len(patches) == 3
    assert "resourceVersion" in patches[-1].data["metadata"]


async def test_groups_change_under_a_running_cluster_and_its_pods_stay(k8s: Cluster) -> None:
    def story() -> None:
        here = cloud(k8s)
        group = Group(SPOT, asked(), most=3)
        here.up((HEAD, asked("head")), [group])
        one = here.launch(SPOT, asked())
        here.up((HEAD, asked("head")), [Group(SPOT, asked(), most=9)])
        [present] = next(iter(k8s.all(CLUSTERS).values()))["spec"]["workerGroupSpecs"]
        assert (present["replicas"], present["maxReplicas"]) == (1, 9)
        assert one.id in k8s.all(PODS)
        here.up((HEAD, asked("head")), [])
        [present] = next(iter(k8s.all(CLUSTERS).values()))["spec"]["workerGroupSpecs"]
        assert (present["replicas"], present["maxReplicas"]) == (0, 0)

    await asyncio.to_thread(story)


async def test_an_operator_that_does_nothing_is_told_and_the_wish_is_taken_back(
    k8s: Cluster,
) -> None:
    here = cloud(k8s)
    await asyncio.to_thread(here.launch, HEAD, asked("head"))
    k8s.works, here._pod_s = False, 0.1
    with pytest.raises(
        CloudRefused, match=r"operator made no pod in 0.1 s: kubectl describe raycl"
    ):
        await asyncio.to_thread(here.launch, SPOT, asked())
    [group] = next(iter(k8s.all(CLUSTERS).values()))["spec"]["workerGroupSpecs"]
    assert group["replicas"] == 0


async def test_a_worker_without_a_head_is_refused(k8s: Cluster) -> None:
    with pytest.raises(CloudRefused, match="the head comes first"):
        await asyncio.to_thread(cloud(k8s).launch, SPOT, asked())


async def test_a_pod_that_waits_says_for_what_and_one_that_ended_says_why(k8s: Cluster) -> None:
    here = cloud(k8s)
    await asyncio.to_thread(here.launch, HEAD, asked("head"))
    made = [await asyncio.to_thread(here.launch, SPOT, asked()) for _ in range(3)]
    waits = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}
    finished = {"state": {"terminated": {"finishedAt": "2026-01-01T13:00:00Z"}}}
    states = [
        {"phase": "Pending", "conditions": [waits]},
        {"phase": "Failed", "reason": "Terminated", "containerStatuses": [finished]},
        {"phase": "Failed", "reason": "DeadlineExceeded"},
    ]
    for each, status in zip(made, states, strict=True):
        k8s.server.objects[PODS, "default", each.id].patch({"status": None})
        k8s.server.objects[PODS, "default", each.id].patch({"status": status})
    k8s.works = False
    found = {each.id: each for each in await asyncio.to_thread(here.instances)}
    pending, taken, old = (found[each.id] for each in made)
    assert (pending.alive, pending.reason) == (True, "0/3 nodes are available")
    assert (taken.reason, taken.ended_at) == (
        "the node was shut down",
        datetime(2026, 1, 1, 13, tzinfo=timezone.utc),
    )
    assert (old.alive, old.reason) == (False, "past its lifetime")
    assert taken.offer.usd_per_hour == Decimal("0.28")


async def test_down_and_gc_find_everything_with_its_tags(k8s: Cluster) -> None:
    def story() -> None:
        here, other = cloud(k8s), cloud(k8s, cluster="other")
        here.launch(HEAD, asked("head"))
        other.launch(HEAD, asked("head"))
        found = here.leftovers(NOW)
        assert [(each.kind, each.id) for each in found] == [
            ("raycluster", "exp-7"),
            ("secret", "exp-7-token"),
            ("network-policy", "exp-7"),
        ]
        late = here.leftovers(NOW + timedelta(days=8))
        assert len(late) == 6
        for _ in range(2):
            for each in found:
                here.remove(each)
        assert here.leftovers(NOW) == []
        assert list(k8s.all(CLUSTERS)) == ["other"]

    await asyncio.to_thread(story)


async def test_the_token_is_made_once_and_no_two_are_alike(k8s: Cluster) -> None:
    def story() -> None:
        cloud(k8s).launch(HEAD, asked("head"))
        first = k8s.all("v1/secrets")["exp-7-token"]["data"]["auth_token"]
        cloud(k8s).launch(HEAD, asked("head"))
        assert k8s.all("v1/secrets")["exp-7-token"]["data"]["auth_token"] == first
        cloud(k8s, cluster="other").launch(HEAD, asked("head"))
        assert k8s.all("v1/secrets")["other-token"]["data"]["auth_token"] != first
        cloud(k8s, cluster="mine", network={"token_secret": "kept"}).launch(HEAD, asked("head"))
        assert "mine-token" not in k8s.all("v1/secrets")

    await asyncio.to_thread(story)


@pytest.mark.parametrize(
    ("status", "message", "kind", "words"),
    [
        (401, "Unauthorized", CloudCredentialsExpired, "get new ones with gcloud, aws eks or az"),
        (403, 'rayclusters is forbidden: User "x" cannot create', CloudRefused, "not allowed: ray"),
        (403, "exceeded quota: gpus, requested: 1", QuotaExceeded, "namespace's ResourceQuota"),
        (422, "spec.headGroupSpec: Required value", CloudRefused, "Required value .HTTP 422"),
        (500, "etcd is down", CloudRefused, "etcd is down .HTTP 500"),
    ],
)
async def test_a_refused_request_says_why(
    k8s: Cluster, status: int, message: str, kind: type[Exception], words: str
) -> None:
    k8s.server["post /apis/ray.io/v1/namespaces/default/rayclusters"] << kmock.Response(
        status=status, payload={"message": message}
    )
    k8s.works = False
    with pytest.raises(kind, match=words) as caught:
        await asyncio.to_thread(cloud(k8s).launch, HEAD, asked("head"))
    assert type(caught.value) is kind


async def test_without_kuberay_the_line_says_how_to_install_it(k8s: Cluster) -> None:
    k8s.works = False
    k8s.server["get"] << kmock.Response(status=404, payload=b"404 page not found")
    with pytest.raises(CloudRefused, match="helm install kuberay-operator"):
        await asyncio.to_thread(cloud(k8s).check)


def test_no_configuration_and_no_client_are_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    import sys

    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(CredentialsMissing, match="set KUBECONFIG, or get credentials"):
        KubernetesCloud(settings(REGION), OFFERS).check()
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(CredentialsMissing, match=r"pip install 'mlcloud\[kubernetes\]'"):
        KubernetesCloud(settings(REGION), OFFERS).check()


def test_an_api_server_that_cannot_be_reached_is_no_hang() -> None:
    given = settings(REGION, endpoints={"api": "http://127.0.0.1:9"})
    with pytest.raises(CloudRefused, match="the API server cannot be reached"):
        KubernetesCloud(given, OFFERS).check()


async def test_a_refused_list_says_why(k8s: Cluster) -> None:
    k8s.works = False
    k8s.server["get /api/v1/namespaces/default/pods"] << kmock.Response(
        status=403, payload={"message": "pods is forbidden"}
    )
    with pytest.raises(CloudRefused, match="pods: not allowed: pods is forbidden"):
        await asyncio.to_thread(cloud(k8s).instances)


async def test_two_who_end_one_pod_end_one(k8s: Cluster) -> None:
    here, there = cloud(k8s), cloud(k8s)
    await asyncio.to_thread(here.launch, HEAD, asked("head"))
    pods = [await asyncio.to_thread(here.launch, SPOT, asked()) for _ in range(3)]
    k8s.works = False  # the pod is still there when the second comes
    for each in (here, there):
        await asyncio.to_thread(each.terminate, pods[0].id, "idle")
    [group] = next(iter(k8s.all(CLUSTERS).values()))["spec"]["workerGroupSpecs"]
    assert group["replicas"] == 2
    assert group["scaleStrategy"]["workersToDelete"] == [pods[0].id]
