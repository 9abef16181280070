"""The `RayCluster` of a cluster, from offers. Nothing is asked of Kubernetes.

A worker group is one offer for one of Ray's node types: pods that go to the nodes of that offer,
and start Ray with exactly the resources that the node type declares. The operator adds Ray's
autoscaler to the head's pod.

A pod asks Kubernetes for less than a node has, else it would fit on none: system pods and the
kubelet take their part (GKE keeps 0.08 of 4 CPUs and 17 % of 16 GB,
https://cloud.google.com/kubernetes-engine/docs/concepts/plan-node-sizes).

Fields: https://docs.ray.io/en/latest/cluster/kubernetes/references/api.html
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Any

from mlcloud.cluster.clouds import tags
from mlcloud.cluster.clouds.base import CloudSettings, LaunchRequest
from mlcloud.cluster.clouds.kubernetes import placing
from mlcloud.cluster.offers import Offer

HEAD = "head"
#: What `CloudSettings.network` may say.
NETWORK = (
    "namespace", "context", "provider", "service_account", "token_secret", "pull_secret",
    "priority_class",
)  # fmt: skip
#: The part of a node that its one Ray pod asks for.
CPU_PART, MEMORY_PART = 0.8, 0.75
TOKEN_KEY = "auth_token"
_AUTOSCALER_IDLE_S = 60
_STANDARD = {"CPU", "GPU", "memory", "object_store_memory"}


@dataclass(frozen=True)
class Group:
    """A worker group: pods of one offer, for one node type. `most` is its `maxReplicas`."""

    offer: Offer
    request: LaunchRequest
    replicas: int = 0
    least: int = 0
    most: int = 100


def name(settings: CloudSettings) -> str:
    """The RayCluster's name; KubeRay makes names of pods and services from it."""
    return slug(settings.cluster)[:40].strip("-")


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9-]", "-", text.lower()).strip("-")


def token_secret(settings: CloudSettings) -> str:
    return settings.network.get("token_secret") or f"{name(settings)}-token"


def group_name(offer: Offer, request: LaunchRequest) -> str:
    """One for each node type and offer, the same each time, 63 characters at most."""
    key = zlib.crc32("/".join((offer.instance_type, offer.zone, offer.market)).encode())
    market = "spot" if offer.market == "spot" else "od"
    return f"{slug(request.node_type)[:30].strip('-')}-{market}-{key:08x}"


def labels(ours: Mapping[str, str]) -> dict[str, str]:
    """Tags as labels: a value begins and ends with a letter or a digit."""
    return {
        re.sub(r"[^A-Za-z0-9_./-]", "-", key)[:63].strip("-_./"): re.sub(
            r"[^A-Za-z0-9_.-]", "-", value
        )[:63].strip("-_.")
        for key, value in ours.items()
    }


def cluster(
    settings: CloudSettings,
    head: tuple[Offer, LaunchRequest],
    groups: Iterable[Group],
    now: datetime,
) -> dict[str, Any]:
    """The whole RayCluster."""
    marked = labels(tags.of_resource(settings, now))
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": name(settings), "labels": marked},
        "spec": {
            "rayVersion": version("ray"),
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {
                "version": "v2",
                "idleTimeoutSeconds": _AUTOSCALER_IDLE_S,
                "upscalingMode": "Default",
                "env": _auth(settings),
                "securityContext": _confined(),
            },
            "headGroupSpec": {
                "serviceType": "ClusterIP",
                "labels": dict(head[1].labels),
                "rayStartParams": _start(head[1], head=True),
                "template": _pod(settings, *head, now),
            },
            "workerGroupSpecs": [worker_group(settings, each, now) for each in groups],
        },
    }


def worker_group(settings: CloudSettings, group: Group, now: datetime) -> dict[str, Any]:
    """One of the RayCluster's `workerGroupSpecs`."""
    return {
        "groupName": group_name(group.offer, group.request),
        "replicas": group.replicas,
        "minReplicas": group.least,
        "maxReplicas": max(group.most, group.replicas),
        "labels": dict(group.request.labels),
        "rayStartParams": _start(group.request, head=False),
        "template": _pod(settings, group.offer, group.request, now),
    }


def network_policy(settings: CloudSettings, now: datetime) -> dict[str, Any]:
    """Pods of the cluster are reached by each other only (and by `kubectl port-forward`)."""
    ours = {"matchLabels": {"ray.io/cluster": name(settings)}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name(settings), "labels": labels(tags.of_resource(settings, now))},
        "spec": {
            "podSelector": ours,
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": ours}]}],
        },
    }


def _pod(
    settings: CloudSettings, offer: Offer, request: LaunchRequest, now: datetime
) -> dict[str, Any]:
    head = request.node_type == HEAD
    where = placing.kind(settings.network.get("provider"))
    spec: dict[str, Any] = {
        **placing.place(offer, where),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "ray-head" if head else "ray-worker",
                "image": settings.image or _image(offer),
                "env": _auth(settings),
                "resources": _resources(offer),
                "securityContext": _confined(),
            }
        ],
    }
    if not head:
        # The operator gives the head an account that may change its own RayCluster.
        spec["automountServiceAccountToken"] = False
        # The lifetime is Kubernetes' to keep. A head would be made anew: its end is `gc`'s.
        spec["activeDeadlineSeconds"] = int(settings.lifetime_s)
    if account := settings.network.get("service_account"):
        spec["serviceAccountName"] = account
    if secret := settings.network.get("pull_secret"):
        spec["imagePullSecrets"] = [{"name": secret}]
    if priority := settings.network.get("priority_class"):
        spec["priorityClassName"] = priority
    return {"metadata": {"labels": labels(_tags(settings, offer, request, now))}, "spec": spec}


def _tags(
    settings: CloudSettings, offer: Offer, request: LaunchRequest, now: datetime
) -> dict[str, str]:
    """A pod's own start is in its creation: a group's is not that of each of its pods."""
    ours = tags.of_node(settings, offer, request, now)
    return {key: value for key, value in ours.items() if key != tags.LAUNCHED}


def _image(offer: Offer) -> str:
    """Ray's image, of this Ray and this Python: both sides must agree."""
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return f"rayproject/ray:{version('ray')}-{python}{'-gpu' if offer.accelerator else '-cpu'}"


def _auth(settings: CloudSettings) -> list[dict[str, Any]]:
    """Ray's token, by reference: it stands in a secret, never in a manifest."""
    reference = {"name": token_secret(settings), "key": TOKEN_KEY}
    return [
        {"name": "RAY_AUTH_MODE", "value": "token"},
        {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": reference}},
    ]


def _confined() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _resources(offer: Offer) -> dict[str, dict[str, str]]:
    memory = f"{int(offer.memory_bytes * MEMORY_PART) // 2**20}Mi"
    requests = {"cpu": f"{int(offer.cpus * CPU_PART * 1000)}m", "memory": memory}
    limits = {"memory": memory}
    if offer.accelerator:
        gpus = {"nvidia.com/gpu": str(offer.accelerator_count)}
        requests.update(gpus)
        limits.update(gpus)
    return {"requests": requests, "limits": limits}


def _start(request: LaunchRequest, *, head: bool) -> dict[str, str]:
    """What `ray start` is told, as KubeRay writes it into a shell command."""
    wanted = request.resources
    params = {"num-cpus": f"{wanted.get('CPU', 0):g}"}
    if head:
        params["dashboard-host"] = "0.0.0.0"  # the operator's probes ask there
    if "GPU" in wanted:
        params["num-gpus"] = f"{wanted['GPU']:g}"
    if "memory" in wanted:
        params["memory"] = str(int(wanted["memory"]))
    own = {key: int(value) for key, value in wanted.items() if key not in _STANDARD}
    if own:
        params["resources"] = json.dumps(json.dumps(own))  # quoted for the shell, as Ray reads it
    return params
