"""Launch, list and terminate through the official client, on an API server as documented."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from mlcloud.cluster.clouds.kubernetes import KubernetesCloud
from mlcloud.cluster.clouds.kubernetes.selling import pod_of
from mlcloud.errors import (
    CloudCredentialsExpired,
    CloudRefused,
    CredentialsMissing,
    NoCapacity,
    QuotaExceeded,
    UsageError,
)
from tests.cluster.clouds.selling import NOW, offer, request, settings

pytest.importorskip("kubernetes")

from tests.cluster.clouds.kubelet import NAMESPACE, ApiServer

REGION = "europe-west4"
HEAD = pod_of(offer("kubernetes", "e2-standard-4", REGION, REGION, "on-demand", "0.15"))
SPOT = pod_of(offer("kubernetes", "g2-standard-4", f"{REGION}-a", REGION, gpu=("L4", 1)))
OFFERS = [HEAD, SPOT]


@pytest.fixture
def k8s() -> Iterator[ApiServer]:
    with ApiServer() as server:
        made = cloud(server).configuration(HEAD, request("head"))
        server.put("rayclusters", made)
        server.operate()
        yield server


def cloud(k8s: ApiServer, **more: Any) -> KubernetesCloud:
    names = {"provider": "gke", "namespace": NAMESPACE, **more.pop("network", {})}
    given = settings(REGION, network=names, endpoints={"api": k8s.url}, **more)
    return KubernetesCloud(given, OFFERS, now=lambda: datetime.now(timezone.utc))


def asked(name: str, **more: Any) -> Any:
    wanted = {"CPU": 4, "GPU": 1, "L4": 1}
    return request(resources=wanted, instance_id=name, bootstrap=f"echo {name}\n", **more)


def allow(k8s: ApiServer, most: int) -> None:
    k8s.objects["rayclusters"]["exp-7"]["metadata"]["annotations"]["mlcloud/max-nodes"] = str(most)


def groups(k8s: ApiServer) -> dict[str, int]:
    spec = k8s.all("rayclusters")["exp-7"]["spec"]
    return {each["groupName"]: each["replicas"] for each in spec.get("workerGroupSpecs", [])}


def test_nodes_come_and_go(k8s: ApiServer) -> None:
    allow(k8s, 9)
    here = cloud(k8s)
    here.check()
    assert here.instances() == []
    one, two = (here.launch(SPOT, asked(name)) for name in ("i-1", "i-2"))
    assert (one.id, two.id, one.offer) == ("i-1", "i-2", SPOT)
    # Another process sees the same, with what each was bought for, and ends one of them.
    there = cloud(k8s)
    found = {each.id: each for each in there.instances()}
    assert found.keys() == {"i-1", "i-2"}
    assert found["i-2"].offer == SPOT
    assert abs(found["i-2"].launched_at - two.launched_at) < timedelta(seconds=2)
    assert (found["i-1"].node_type, found["i-1"].private_ip) == ("l4-1x4cpu", "10.8.0.5")
    for _ in range(2):
        there.terminate("i-1", "idle")
    there.terminate("never-was", "idle")
    assert [each.id for each in here.instances()] == ["i-2"]
    pods = [each["metadata"]["labels"]["ray.io/group"] for each in k8s.all("pods").values()]
    assert sorted(pods) == ["headgroup", "i-2"]
    # The group of a node that is gone goes with the next change.
    here.launch(SPOT, asked("i-3"))
    assert groups(k8s) == {"i-2": 1, "i-3": 1}
    here.release()
    assert k8s.all("pods") == k8s.all("rayclusters") == {}
    assert k8s.all("secrets") == {}  # of its nodes: they belonged to it
    assert here.instances() == []
    here.terminate("i-2", "down")


def test_a_node_has_its_own_script(k8s: ApiServer) -> None:
    from base64 import b64decode

    cloud(k8s).launch(SPOT, asked("i-1"))
    secret = k8s.all("secrets")["exp-7-i-1"]
    assert b64decode(secret["data"]["node.sh"]) == b"echo i-1\n"
    assert "echo i-1" not in repr(k8s.all("rayclusters"))
    (pod,) = [p for p in k8s.all("pods").values() if "i-1" in p["metadata"]["name"]]
    mounted = [v["secret"]["secretName"] for v in pod["spec"]["volumes"] if "secret" in v]
    assert mounted == ["exp-7-i-1"]


def test_launches_at_once_are_all_there(k8s: ApiServer) -> None:
    """Each reads the list, adds itself and writes it: who comes second reads it again."""
    allow(k8s, 9)
    names = [f"i-{number}" for number in range(4)]
    start = threading.Barrier(len(names))

    def launch(name: str) -> None:
        start.wait()
        cloud(k8s).launch(SPOT, asked(name))

    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(launch, names))
    assert groups(k8s) == dict.fromkeys(names, 1)


def test_a_change_that_came_second_is_made_again(k8s: ApiServer) -> None:
    k8s.refuse["PATCH", "rayclusters"] = 409, "the object has been modified"
    k8s.once["PATCH", "rayclusters"] = 2
    cloud(k8s).launch(SPOT, asked("i-1"))
    assert [m for m, plural, _ in k8s.asked if (m, plural) == ("PATCH", "rayclusters")] == (
        ["PATCH"] * 3
    )
    assert groups(k8s) == {"i-1": 1}


def test_the_most_that_the_cluster_may_have_is_changed_while_it_runs(k8s: ApiServer) -> None:
    here = cloud(k8s)
    allow(k8s, 1)
    here.launch(SPOT, asked("i-1"))
    with pytest.raises(NoCapacity, match="may have 1 nodes at once: raise `max`"):
        here.launch(SPOT, asked("i-2"))
    allow(k8s, 2)
    here.launch(SPOT, asked("i-3"))
    here.terminate("i-1", "idle")
    here.launch(SPOT, asked("i-4"))
    assert {each.id for each in here.instances()} == {"i-3", "i-4"}


def test_a_new_head_ends_the_nodes_of_the_one_before(k8s: ApiServer) -> None:
    allow(k8s, 9)
    for name in ("i-1", "i-2"):
        cloud(k8s).launch(SPOT, asked(name))
    cloud(k8s).clear()
    assert cloud(k8s).instances() == []
    assert len(k8s.all("pods")) == 1


def test_a_head_is_not_for_it_to_launch(k8s: ApiServer) -> None:
    with pytest.raises(UsageError, match="made by `mlcloud up`"):
        cloud(k8s).launch(HEAD, request("head"))
    with pytest.raises(CloudRefused, match="the head comes first"):
        cloud(k8s, cluster="other").launch(SPOT, asked("i-1"))


WAITS = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}
FINISHED = {"state": {"terminated": {"finishedAt": "2026-01-01T13:00:00Z"}}}


def test_a_pod_that_waits_says_for_what_and_one_that_ended_says_why(k8s: ApiServer) -> None:
    allow(k8s, 9)
    here = cloud(k8s)
    for name in ("i-1", "i-2", "i-3", "i-4"):
        here.launch(SPOT, asked(name))
    k8s.works = False
    pods = {p["metadata"]["labels"]["ray.io/group"]: n for n, p in k8s.all("pods").items()}
    k8s.status(pods["i-1"], phase="Pending", conditions=[WAITS])
    ended = {"phase": "Failed", "reason": "Terminated", "containerStatuses": [FINISHED]}
    k8s.status(pods["i-2"], **ended)
    k8s.status(pods["i-3"], phase="Failed", reason="DeadlineExceeded")
    found = {each.id: each for each in here.instances()}
    assert found["i-1"].alive
    assert found["i-1"].reason == "no node has room for it: 0/3 nodes are available"
    assert found["i-2"].reason == "the node was shut down"
    assert found["i-2"].ended_at == datetime(2026, 1, 1, 13, tzinfo=timezone.utc)
    assert (found["i-3"].alive, found["i-3"].reason) == (False, "past its lifetime")
    assert (found["i-4"].alive, found["i-4"].offer.usd_per_hour) == (True, Decimal("0.28"))
    # No node came for it in all that time: it cannot be had, and another offer may.
    here._now = lambda: datetime.now(timezone.utc) + timedelta(minutes=8)
    late = {each.id: each for each in here.instances()}
    assert (late["i-1"].alive, late["i-4"].alive) == (False, True)
    assert "0/3 nodes are available" in late["i-1"].reason


def test_a_pod_that_the_operator_made_anew_is_another_node(k8s: ApiServer) -> None:
    here = cloud(k8s)
    here.launch(SPOT, asked("i-1"))
    (pod,) = [n for n, p in k8s.all("pods").items() if "i-1" in n]
    later = datetime.now(timezone.utc) + timedelta(minutes=30)
    k8s.objects["pods"][pod]["metadata"]["creationTimestamp"] = later.strftime("%Y-%m-%dT%H:%M:%SZ")
    (found,) = here.instances()
    assert (found.alive, found.reason) == (False, "its pod ended")


def test_down_and_gc_find_everything_with_its_tags(k8s: ApiServer) -> None:
    here = cloud(k8s)
    here.launch(SPOT, asked("i-1"))
    foreign = {"metadata": {"name": "theirs", "labels": {"app": "x"}}}
    other = {"mlcloud-cluster": "other", "mlcloud-expires": "1800000000"}
    for plural in ("secrets", "configmaps", "services", "pods"):
        k8s.put(plural, foreign)
        k8s.put(plural, {"metadata": {"name": "others", "labels": other}})
    found = here.leftovers(NOW)
    assert {each.kind for each in found} == {"raycluster", "pod", "secret"}
    assert all("other" not in each.id for each in found)
    assert [each.usd_per_hour for each in found if "i-1-worker" in each.id] == [Decimal("0.28")]
    late = here.leftovers(datetime(2027, 6, 1, tzinfo=timezone.utc))
    assert {each.kind for each in late if each.id == "others"} == {
        "secret", "config-map", "service", "pod",
    }  # fmt: skip
    for _ in range(2):
        for each in found:
            here.remove(each)
    assert here.leftovers(NOW) == []
    assert set(k8s.all("secrets")) == {"theirs", "others"}


@pytest.mark.parametrize(
    ("status", "message", "kind", "words"),
    [
        (401, "Unauthorized", CloudCredentialsExpired, "get new ones with gcloud, aws eks or az"),
        (403, 'rayclusters is forbidden: User "x" cannot patch', CloudRefused, "not allowed: ray"),
        (403, "exceeded quota: gpus, requested: 1", QuotaExceeded, "namespace's ResourceQuota"),
        (422, "spec.headGroupSpec: Required value", CloudRefused, "Required value .HTTP 422"),
        (500, "etcd is down", CloudRefused, "etcd is down .HTTP 500"),
    ],
)
def test_a_refused_request_says_why(
    k8s: ApiServer, status: int, message: str, kind: type[Exception], words: str
) -> None:
    k8s.refuse["PATCH", "rayclusters"] = status, message
    with pytest.raises(kind, match=words) as caught:
        cloud(k8s).launch(SPOT, asked("i-1"))
    assert type(caught.value) is kind


def test_without_kuberay_the_line_says_how_to_install_it(k8s: ApiServer) -> None:
    k8s.refuse["GET", "rayclusters"] = 404, "404 page not found"
    with pytest.raises(CloudRefused, match="helm install kuberay-operator"):
        cloud(k8s).check()


def test_no_configuration_and_no_client_are_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sys

    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(CredentialsMissing, match="set KUBECONFIG, or get credentials"):
        KubernetesCloud(settings(REGION), OFFERS).check()
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(CredentialsMissing, match=r"pip install 'mlcloud\[kubernetes\]'"):
        KubernetesCloud(settings(REGION), OFFERS).check()


def test_a_kubeconfig_is_read(k8s: ApiServer, tmp_path: Path, monkeypatch: Any) -> None:
    """Its server, token and namespace."""
    import json

    k8s.token = "kubectl's"
    told = {
        "clusters": [{"name": "c", "cluster": {"server": k8s.url}}],
        "users": [{"name": "u", "user": {"token": k8s.token}}],
        "contexts": [
            {"name": "x", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}
        ],
        "current-context": "x",
    }
    (tmp_path / "config").write_text(json.dumps(told))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION",
                        str(tmp_path / "config"))  # fmt: skip
    made = KubernetesCloud(settings(REGION, network={"provider": "gke"}), OFFERS)
    made.check()
    assert made.api.namespace == NAMESPACE
    with pytest.raises(CloudCredentialsExpired):
        cloud(k8s).check()


def test_an_api_server_that_cannot_be_reached_is_no_hang() -> None:
    given = settings(REGION, endpoints={"api": "http://127.0.0.1:9"})
    with pytest.raises(CloudRefused, match="the API server cannot be reached"):
        KubernetesCloud(given, OFFERS).check()


def test_a_refused_list_says_why(k8s: ApiServer) -> None:
    k8s.refuse["GET", "pods"] = 403, "pods is forbidden"
    with pytest.raises(CloudRefused, match="pod: not allowed: pods is forbidden"):
        cloud(k8s).instances()
