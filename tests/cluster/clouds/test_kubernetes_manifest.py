"""The RayCluster that would be sent: of KubeRay's schema, and read by Ray's own autoscaler."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlcloud.cluster.clouds.kubernetes import KubernetesCloud, manifest
from mlcloud.cluster.clouds.kubernetes.manifest import Group
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.shapes import node_types
from mlcloud.errors import CloudRefused, NoSuchResources, UsageError
from tests.cluster.clouds import discovery
from tests.cluster.clouds.selling import NOW, offer, request, settings

REGION = "europe-west4"
HEAD = offer("kubernetes", "e2-standard-4", REGION, REGION, "on-demand", "0.15")
SPOT = offer("kubernetes", "g2-standard-4", f"{REGION}-a", REGION, gpu=("L4", 1))
FIRM = offer(
    "kubernetes", "g2-standard-4", f"{REGION}-a", REGION, "on-demand", "0.9", gpu=("L4", 1)
)
OFFERS = [HEAD, SPOT, FIRM]
TYPES = {each.name: each for each in node_types(OFFERS)}
KINDS = ["gke", "eks", "aks", "karpenter"]


def cloud(provider: str | None = "gke", **more: Any) -> KubernetesCloud:
    names = {**({"provider": provider} if provider else {}), **more.pop("network", {})}
    return KubernetesCloud(settings(REGION, network=names, **more), OFFERS, now=lambda: NOW)


def asked(node_type: str, **more: Any) -> Any:
    resources = TYPES[node_type].resources if node_type in TYPES else TYPES["cpu4"].resources
    return request(node_type, resources=resources, bootstrap="", **more)


def whole(provider: str | None = "gke", **more: Any) -> dict[str, Any]:
    groups = [
        Group(SPOT, asked("l4-1x4cpu", labels={"mlcloud.instance": "x"}), most=8),
        Group(FIRM, asked("l4-1x4cpu-on-demand"), least=1, replicas=1, most=2),
    ]
    return cloud(provider, **more).manifest((HEAD, asked("head")), groups)


def pod(manifest: dict[str, Any], index: int) -> dict[str, Any]:
    return dict(manifest["spec"]["workerGroupSpecs"][index]["template"]["spec"])


@pytest.mark.parametrize("provider", KINDS)
def test_a_cluster_is_of_the_crds_schema(provider: str) -> None:
    network = {"service_account": "ray", "pull_secret": "hub", "priority_class": "low"}
    for body in (whole(provider), whole(provider, network=network)):
        assert discovery.faults(body, "RayCluster", discovery.RAY) == []
    policy = manifest.network_policy(cloud().settings, NOW)
    assert discovery.faults(policy, "V1NetworkPolicy", discovery.RAY) == []


def test_the_check_itself_notices_a_wrong_field_type_and_word() -> None:
    body = whole()
    body["spec"]["autoscalerOptions"]["version"] = "v3"
    body["spec"]["workerGroupSpecs"][0]["replicas"] = "1"
    del body["spec"]["workerGroupSpecs"][1]["maxReplicas"]
    pod(body, 0)["containers"][0]["resource"] = {}
    found = "\n".join(discovery.faults(body, "RayCluster", discovery.RAY))
    for words in (
        "version: 'v3' is none of",
        "workerGroupSpecs[0].replicas: no integer",
        "workerGroupSpecs[1]: no maxReplicas",
        "containers[0].resource: no such",
    ):
        assert words in found


def test_the_schema_here_is_what_the_client_ships() -> None:
    pytest.importorskip("kubernetes")
    from tests.cluster.clouds import ray_schema

    for name, schema in ray_schema.build().items():
        mine = discovery.RAY[name]["properties"].keys()
        assert mine <= schema["properties"].keys(), name


def test_rays_own_autoscaler_reads_the_node_types_as_they_were_declared() -> None:
    from ray.autoscaler._private.kuberay import autoscaling_config

    body = whole()
    body["metadata"]["namespace"] = "default"
    read = autoscaling_config._derive_autoscaling_config_from_ray_cr(body)
    groups = body["spec"]["workerGroupSpecs"]
    for group, name in zip(groups, ["l4-1x4cpu", "l4-1x4cpu-on-demand"], strict=True):
        found = read["available_node_types"][group["groupName"]]
        assert found["resources"] == TYPES[name].resources
        assert found["max_workers"] == group["maxReplicas"]
    assert read["available_node_types"][groups[1]["groupName"]]["min_workers"] == 1
    assert read["available_node_types"][groups[0]["groupName"]]["labels"] == {
        "mlcloud.instance": "x"
    }
    assert read["idle_timeout_minutes"] == 1.0


def test_autoscaling_is_rays_own_v2() -> None:
    spec = whole()["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"


@pytest.mark.parametrize(
    ("provider", "label", "spot", "taint"),
    [
        ("gke", "cloud.google.com/gke-spot", "true", True),
        ("eks", "eks.amazonaws.com/capacityType", "SPOT", False),
        ("aks", "kubernetes.azure.com/scalesetpriority", "spot", True),
        ("karpenter", "karpenter.sh/capacity-type", "spot", False),
    ],
)
def test_spot_pods_go_to_spot_nodes_and_on_demand_pods_never(
    provider: str, label: str, spot: str, taint: bool
) -> None:
    body = whole(provider)
    there, never = pod(body, 0), pod(body, 1)
    assert there["nodeSelector"] == {
        "node.kubernetes.io/instance-type": "g2-standard-4",
        "topology.kubernetes.io/zone": "europe-west4-a",
        label: spot,
    }
    keys = [each["key"] for each in there["tolerations"]]
    assert (label in keys) is taint
    assert "nvidia.com/gpu" in keys
    assert label not in [each["key"] for each in never["tolerations"]]
    rules = json.dumps(never.get("affinity", {}))
    assert never["nodeSelector"].get(label) in ("ON_DEMAND", "on-demand") or (
        f'{{"key": "{label}", "operator": "NotIn", "values": ["{spot}"]}}' in rules
    )
    assert there["terminationGracePeriodSeconds"] <= 120


def test_gpus_are_limited_and_a_pod_fits_on_its_node() -> None:
    container = pod(whole(), 0)["containers"][0]
    assert container["resources"] == {
        "requests": {"cpu": "3200m", "memory": "12288Mi", "nvidia.com/gpu": "1"},
        "limits": {"memory": "12288Mi", "nvidia.com/gpu": "1"},
    }


def test_the_token_is_a_reference_everywhere_and_stands_nowhere() -> None:
    body = whole()
    secret = {"secretKeyRef": {"name": "exp-7-token", "key": "auth_token"}}
    head = body["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    autoscaler = body["spec"]["autoscalerOptions"]
    for each in (autoscaler, head, pod(body, 0)["containers"][0]):
        assert {"name": "RAY_AUTH_TOKEN", "valueFrom": secret} in each["env"]
    named = whole(network={"token_secret": "mine"})
    assert "exp-7-token" not in json.dumps(named)


def test_nothing_listens_to_the_world_and_pods_may_do_little() -> None:
    body = whole()
    assert body["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    worker = pod(body, 0)
    assert worker["automountServiceAccountToken"] is False
    assert worker["securityContext"]["runAsNonRoot"] is True
    assert worker["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    policy = manifest.network_policy(cloud().settings, NOW)["spec"]
    assert policy["ingress"] == [{"from": [{"podSelector": policy["podSelector"]}]}]


def test_labels_say_whose_it_is_and_a_worker_has_a_lifetime() -> None:
    body = whole(tags={"team": "Vision & Co."})
    assert body["metadata"]["labels"] == {
        "team": "Vision---Co",
        "mlcloud-cluster": "exp-7",
        "mlcloud-owner": "ada-example-com",
        "mlcloud-expires": "1767873600",
    }
    group = body["spec"]["workerGroupSpecs"][0]["template"]
    assert group["metadata"]["labels"]["mlcloud-price"] == "0-28"
    assert group["metadata"]["labels"]["mlcloud-market"] == "spot"
    assert group["spec"]["activeDeadlineSeconds"] == 604800


def test_groups_are_named_after_node_type_market_and_offer() -> None:
    names = [group["groupName"] for group in whole()["spec"]["workerGroupSpecs"]]
    assert names[0].startswith("l4-1x4cpu-spot-")
    assert names[1].startswith("l4-1x4cpu-on-demand-od-")
    assert all(len(name) <= 63 for name in names)
    other = offer("kubernetes", "g2-standard-8", f"{REGION}-a", REGION, gpu=("L4", 1))
    assert manifest.group_name(other, asked("l4-1x4cpu")) != names[0]


def test_a_worker_alone_is_one_group_of_one() -> None:
    entry = cloud().configuration(SPOT, asked("l4-1x4cpu"))
    assert discovery.faults(entry, "WorkerGroupSpec", discovery.RAY) == []
    assert (entry["replicas"], entry["minReplicas"]) == (1, 0)


def test_what_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(UsageError, match="how this Kubernetes marks spot nodes is not known"):
        cloud(None).configuration(SPOT, asked("l4-1x4cpu"))
    assert cloud(None).configuration(FIRM, asked("l4-1x4cpu"))
    with pytest.raises(UsageError, match=r"provider: 'gkee' is none of .*; did you mean 'gke'"):
        cloud("gkee")
    with pytest.raises(UsageError, match="did you mean 'namespace'"):
        cloud(network={"name-space": "x"})
    wrong = offer("kubernetes", "g2-standard-5", f"{REGION}-a", REGION)
    with pytest.raises(NoSuchResources, match="did you mean 'g2-standard-4'"):
        cloud().configuration(wrong, asked("l4-1x4cpu"))
    foreign = offer("kubernetes", "g2-standard-4", "us-east1-b", "us-east1")
    with pytest.raises(CloudRefused, match="outside the regions"):
        cloud().configuration(foreign, asked("l4-1x4cpu"))
    with pytest.raises(UsageError, match="leave instance_id out"):
        cloud().launch(SPOT, asked("l4-1x4cpu", instance_id="n-1"))


def test_offers_outside_the_regions_are_not_offered() -> None:
    foreign: Offer = offer("kubernetes", "g2-standard-4", "us-east1-b", "us-east1")
    assert KubernetesCloud(settings(REGION), [HEAD, foreign]).offers() == [HEAD]
