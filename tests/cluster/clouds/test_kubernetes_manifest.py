"""The RayCluster that would be sent, and what stands beside it: of KubeRay's schema, and ours."""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import replace
from typing import Any

import pytest

from mlcloud.cluster.clouds.kubernetes import KubernetesCloud, beside, manifest, selling
from mlcloud.cluster.clouds.kubernetes.selling import pod_of
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.shapes import USABLE_MEMORY, node_types
from mlcloud.cluster.specification import specify
from mlcloud.errors import CloudRefused, NoSuchResources, UsageError
from tests.cluster.clouds import discovery
from tests.cluster.clouds.selling import NOW, offer, request, settings

REGION = "europe-west4"
HEAD = offer("kubernetes", "e2-standard-4", REGION, REGION, "on-demand", "0.15")
SPOT = offer("kubernetes", "g2-standard-4", f"{REGION}-a", REGION, gpu=("L4", 1))
FIRM = offer(
    "kubernetes", "g2-standard-4", f"{REGION}-a", REGION, "on-demand", "0.9", gpu=("L4", 1)
)
OFFERS = [pod_of(each) for each in (HEAD, SPOT, FIRM)]
HEAD, SPOT, FIRM = OFFERS
KINDS = ["gke", "eks", "aks", "karpenter"]


def cloud(provider: str | None = "gke", **more: Any) -> KubernetesCloud:
    names = {**({"provider": provider} if provider else {}), **more.pop("network", {})}
    return KubernetesCloud(settings(REGION, network=names, **more), OFFERS, now=lambda: NOW)


def whole(provider: str | None = "gke", **more: Any) -> dict[str, Any]:
    given = cloud(provider, **more).settings
    parts = ["exp-7-wheel-0", "exp-7-wheel-1"]
    return manifest.cluster(
        given, HEAD, folder="exp-7/head", wheel="m.whl", parts=parts, most=8, now=NOW
    )


def group(of: Offer = SPOT, provider: str | None = "gke", **more: Any) -> dict[str, Any]:
    asked = request("l4-1x4cpu", instance_id="i-0123456789ab")
    return cloud(provider, **more).configuration(of, asked)


def pod(entry: dict[str, Any]) -> dict[str, Any]:
    return dict(entry["template"]["spec"])


def head(body: dict[str, Any]) -> dict[str, Any]:
    return dict(body["spec"]["headGroupSpec"]["template"]["spec"])


@pytest.mark.parametrize("provider", KINDS)
def test_a_cluster_is_of_the_crds_schema(provider: str) -> None:
    network = {"service_account": "ray", "pull_secret": "hub", "priority_class": "low"}
    for given in ({}, network):
        body = whole(provider, network=given)
        body["spec"]["workerGroupSpecs"] = [
            group(SPOT, provider, network=given),
            group(FIRM, provider, network=given),
        ]
        assert discovery.faults(body, "RayCluster", discovery.RAY) == []


def test_what_stands_beside_it_is_of_kubernetes_schemas() -> None:
    given = cloud().settings
    owner = {"metadata": {"name": "exp-7", "uid": "1"}}
    made = {
        "V1NetworkPolicy": [beside.network_policy(given, NOW)],
        "V1Service": [beside.service(given, NOW)],
        "V1ConfigMap": beside.parts(given, bytes(1_200_000), NOW),
        "V1Secret": [beside.secret_of_node(given, "i-1", "echo", owner, NOW)],
    }
    kinds = {
        "service-account": "V1ServiceAccount",
        "role": "V1Role",
        "role-binding": "V1RoleBinding",
    }
    for kind, body in beside.account(given, "lab", NOW):
        made[kinds[kind]] = [body]
    assert len(made) == 7
    for name, bodies in made.items():
        for body in bodies:
            assert discovery.faults(body, name, discovery.RAY) == []
            assert body["metadata"]["labels"]["mlcloud-cluster"] == "exp-7"


def test_the_check_itself_notices_a_wrong_field_type_and_word() -> None:
    body = whole()
    body["spec"]["workerGroupSpecs"] = [group(), group()]
    body["kind"] = "RayClutter"
    body["spec"]["workerGroupSpecs"][0]["replicas"] = "1"
    del body["spec"]["workerGroupSpecs"][1]["maxReplicas"]
    pod(body["spec"]["workerGroupSpecs"][0])["containers"][0]["resource"] = {}
    head(body)["containers"][0]["readinessProbe"]["tcpSocket"]["port"] = None
    found = "\n".join(discovery.faults(body, "RayCluster", discovery.RAY))
    for words in (
        "kind: 'RayClutter' is none of",
        "workerGroupSpecs[0].replicas: no integer",
        "workerGroupSpecs[1]: no maxReplicas",
        "containers[0].resource: no such",
        "tcpSocket.port: neither integer nor string",
    ):
        assert words in found


def test_the_schema_here_is_what_the_client_ships() -> None:
    pytest.importorskip("kubernetes")
    from tests.cluster.clouds import ray_schema

    for name, schema in ray_schema.build().items():
        mine = discovery.RAY[name]["properties"].keys()
        assert mine <= schema["properties"].keys(), name


def test_what_runs_in_a_pod_is_ours_and_the_operator_is_served() -> None:
    """KubeRay writes its own `ray start` unless it is told not to, gives a container that has none
    probes of Ray's dashboard, and has workers wait for Ray at its default port."""
    body = whole()
    assert body["metadata"]["annotations"] == {
        "ray.io/overwrite-container-cmd": "true",
        "mlcloud/max-nodes": "8",
    }
    assert body["spec"]["enableInTreeAutoscaling"] is False
    assert "workerGroupSpecs" not in body["spec"]  # the head's own to write
    container = head(body)["containers"][0]
    assert {"name": "gcs-server", "containerPort": 6379} in container["ports"]
    assert "sh /mlcloud/head.sh" in container["args"][0]
    assert "sh /mlcloud/node.sh" in pod(group())["containers"][0]["args"][0]
    for each in (container, pod(group())["containers"][0]):
        assert {"readinessProbe", "livenessProbe"} <= each.keys()
    assert head(body)["restartPolicy"] == "Always"
    assert pod(group())["restartPolicy"] == "Never"


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
    there, never = pod(group(SPOT, provider)), pod(group(FIRM, provider))
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


def test_a_pod_fits_on_its_node_and_ray_into_its_pod() -> None:
    """One figure: an offer is a pod, and a node type is the usable part of an offer."""
    container = pod(group())["containers"][0]
    assert container["resources"] == {
        "requests": {"cpu": "3200m", "memory": "12288Mi", "nvidia.com/gpu": "1"},
        "limits": {"memory": "12288Mi", "nvidia.com/gpu": "1"},
    }
    limit = 12288 * 2**20
    for each in node_types([SPOT, FIRM]):
        assert each.resources["memory"] == int(limit * USABLE_MEMORY)


def test_a_cluster_that_is_nobodys_has_pods_of_the_shapes_that_are_asked_for() -> None:
    told = specify(
        name="own",
        cloud="kubernetes",
        store="s3://bucket/x",
        nodes=[{"gpu": "L4:2", "cpus": 8, "memory": "32GB"}, {"cpus": 3}],
    )
    offers = selling.offers(told)
    assert [(each.instance_type, each.cpus, each.accelerator) for each in offers] == [
        ("head", 2, None),
        ("l4-2", 8, "L4"),
        ("cpu3", 3, None),
    ]
    made = KubernetesCloud(told.settings(), offers, now=lambda: NOW)
    assert [each.usd_per_hour for each in made.offers()] == [0, 0, 0]
    spec = pod(made.configuration(made.offers()[1], request("l4", instance_id="i-1")))
    assert spec["nodeSelector"] == {}  # any node that has the GPUs
    assert spec["containers"][0]["resources"]["requests"] == {
        "cpu": "8000m",
        "memory": "30517Mi",
        "nvidia.com/gpu": "2",
    }


def test_a_managed_one_sells_its_clouds_nodes() -> None:
    told = specify(
        name="k",
        cloud="kubernetes",
        store="s3://bucket/x",
        regions=["europe-west4"],
        network={"provider": "gke"},
        nodes=[{"gpu": "L4:1"}],
    )
    offers = selling.offers(told)
    assert {(each.cloud, each.region) for each in offers} == {("kubernetes", "europe-west4")}
    from mlcloud.cost import catalogue

    node = next(each for each in catalogue.offers("gcp", ["europe-west4"]) if each.accelerator)
    mine = next(
        each
        for each in offers
        if (each.instance_type, each.zone, each.market)
        == (node.instance_type, node.zone, node.market)
    )
    assert mine == replace(
        node, cloud="kubernetes", memory_bytes=int(node.memory_bytes * selling.MEMORY_PART)
    )
    with pytest.raises(UsageError, match="name the region of the gke cluster"):
        selling.offers(told.model_copy(update={"regions": ()}))


def test_secrets_are_references_and_the_head_may_touch_its_own_alone() -> None:
    body = whole()
    reference = {"secretKeyRef": {"name": "exp-7-head", "key": "auth_token"}}
    for each in (head(body)["containers"][0], pod(group())["containers"][0]):
        assert {"name": "RAY_AUTH_TOKEN", "valueFrom": reference} in each["env"]
    made = dict(beside.account(cloud().settings, "lab", NOW))
    rules = {each["resources"][0]: each for each in made["role"]["rules"]}
    assert rules["rayclusters"]["resourceNames"] == ["exp-7"]
    assert rules["secrets"]["verbs"] == ["create"]
    assert not any("*" in text for rule in rules.values() for text in rule["verbs"])
    assert head(body)["serviceAccountName"] == "exp-7"
    theirs = dict(beside.account(cloud(network={"service_account": "wi"}).settings, "lab", NOW))
    assert "service-account" not in theirs
    assert theirs["role-binding"]["subjects"] == [
        {"kind": "ServiceAccount", "name": "wi", "namespace": "lab"}
    ]


def test_nothing_listens_to_the_world_and_pods_may_do_little() -> None:
    body = whole()
    assert body["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert beside.service(cloud().settings, NOW)["spec"]["type"] == "ClusterIP"
    worker = pod(group())
    assert worker["automountServiceAccountToken"] is False
    for each in (worker, head(body)):
        assert each["securityContext"]["runAsNonRoot"] is True
        assert each["containers"][0]["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
    policy = beside.network_policy(cloud().settings, NOW)["spec"]
    inner, clients = policy["ingress"]
    assert inner == {"from": [{"podSelector": policy["podSelector"]}]}
    assert clients["ports"] == [{"protocol": "TCP", "port": 8443}]
    (who,) = clients["from"]
    assert who["podSelector"] == {"matchLabels": {"mlcloud-client": "exp-7"}}
    hub = cloud(network={"clients": "component=singleuser-server"}).settings
    (who,) = beside.network_policy(hub, NOW)["spec"]["ingress"][1]["from"]
    assert who["podSelector"] == {"matchLabels": {"component": "singleuser-server"}}


def test_labels_say_whose_it_is_and_a_worker_has_a_lifetime() -> None:
    body = whole(tags={"team": "Vision & Co."})
    assert body["metadata"]["labels"] == {
        "team": "Vision---Co",
        "mlcloud-cluster": "exp-7",
        "mlcloud-owner": "ada-example-com",
        "mlcloud-expires": "1767873600",
    }
    template = group()["template"]
    assert template["metadata"]["labels"]["mlcloud-price"] == "0-28"
    assert template["metadata"]["labels"]["mlcloud-market"] == "spot"
    assert template["spec"]["activeDeadlineSeconds"] == 604800


def test_a_wheel_is_put_together_again_from_its_parts() -> None:
    wheel = bytes(range(256)) * 5000
    parts = beside.parts(cloud().settings, wheel, NOW)
    assert len({each["metadata"]["name"] for each in parts}) == len(parts) == 3
    named = {key: b64decode(text) for each in parts for key, text in each["binaryData"].items()}
    assert max(map(len, named.values())) < 2**20
    assert b"".join(named[key] for key in sorted(named)) == wheel


def test_a_node_is_a_group_of_one_that_is_named_after_it() -> None:
    entry = group()
    assert entry["groupName"] == "i-0123456789ab"
    assert (entry["replicas"], entry["minReplicas"], entry["maxReplicas"]) == (1, 0, 1)


def test_what_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(UsageError, match="how this Kubernetes marks spot nodes is not known"):
        group(SPOT, None)
    assert group(FIRM, None)
    with pytest.raises(UsageError, match=r"provider: 'gkee' is none of .*; did you mean 'gke'"):
        cloud("gkee")
    with pytest.raises(UsageError, match="did you mean 'namespace'"):
        cloud(network={"name-space": "x"})
    with pytest.raises(NoSuchResources, match="did you mean 'g2-standard-4'"):
        group(offer("kubernetes", "g2-standard-5", f"{REGION}-a", REGION))
    with pytest.raises(CloudRefused, match="outside the regions"):
        group(offer("kubernetes", "g2-standard-4", "us-east1-b", "us-east1"))


def test_offers_outside_the_regions_are_not_offered() -> None:
    foreign: Offer = offer("kubernetes", "g2-standard-4", "us-east1-b", "us-east1")
    assert KubernetesCloud(settings(REGION), [HEAD, foreign]).offers() == [HEAD]
