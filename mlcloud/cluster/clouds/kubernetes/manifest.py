"""The `RayCluster` of a cluster, and its pods. Nothing is asked of Kubernetes.

The operator makes the pods; what runs in them is mlcloud's, as on a machine of any other cloud:

    head    /mlcloud/head.sh (a secret) ──► the gateway's keeper ──► gateway, Ray's head, autoscaler
    worker  /mlcloud/node.sh (a secret of its own) ──► the node's agent ──► ray start

So KubeRay's own commands are left out (`ray.io/overwrite-container-cmd`), and its autoscaler, which
knows no prices, is off: Ray's runs at the head and buys through mlcloud. Each node is a worker
group of one replica, named as the node is. What the operator adds is served: workers wait until
Ray's port at the head's service answers (`wait-gcs-ready`), with the token of their environment;
probes that ask Ray's dashboard are replaced by ours.

https://docs.ray.io/en/latest/cluster/kubernetes/user-guides/pod-command.html
https://docs.ray.io/en/latest/cluster/kubernetes/references/api.html
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any

from mlcloud.cluster.clouds import named, tags
from mlcloud.cluster.clouds.base import CloudSettings, LaunchRequest
from mlcloud.cluster.clouds.kubernetes import placing
from mlcloud.cluster.headspec import ADDRESS
from mlcloud.cluster.offers import Offer

HEAD = "head"
#: What `CloudSettings.network` may say.
NETWORK = (
    "namespace", "context", "provider", "service_account", "pull_secret", "priority_class",
    "clients",
)  # fmt: skip
#: The part of a node's CPUs that its one pod asks for; it may use all (GKE keeps 0.08 of 4, and
#: system pods ask for theirs).
CPU_PART = 0.8
TOKEN_KEY = "auth_token"
HEAD_SCRIPT, NODE_SCRIPT = "head.sh", "node.sh"
GATEWAY_PORT, GCS_PORT = 8443, 6379
#: Nodes that the cluster may have at once; `up` changes it while the cluster runs.
MOST = "mlcloud/max-nodes"
_MOUNT, _HOME = "/mlcloud", "/home/mlcloud"
_USER = 1000  # as in Ray's images

# The operator's variables would send `ray.init()` of a cell elsewhere.
_START = f"""unset RAY_ADDRESS RAY_IP RAY_PORT
umask 077
mkdir -p "$HOME"
%s
pid=$(sh {_MOUNT}/%s) || exit 1
trap 'kill -TERM "$pid" 2>/dev/null' TERM INT
while kill -0 "$pid" 2>/dev/null; do sleep 1 & wait $!; done
%s
"""
_WHEEL = """mkdir -p "$HOME/.mlcloud-node/{folder}"
cat {mount}/wheel/* >"$HOME/.mlcloud-node/{folder}/{wheel}" 2>/dev/null || :"""
_LAST = """failed="$HOME/.mlcloud-node/{folder}/failed"
[ ! -s "$failed" ] || {{ cat "$failed" >&2; exit 1; }}"""


def name(settings: CloudSettings) -> str:
    """The RayCluster's name; KubeRay makes names of pods and services from it."""
    return named.slug(settings.cluster)[:40].strip("-")


def labels(ours: Mapping[str, str]) -> dict[str, str]:
    """Tags as labels: a value begins and ends with a letter or a digit."""
    return {
        re.sub(r"[^A-Za-z0-9_./-]", "-", key)[:63].strip("-_./"): re.sub(
            r"[^A-Za-z0-9_.-]", "-", value
        )[:63].strip("-_.")
        for key, value in ours.items()
    }


# --- the head -------------------------------------------------------------------------------------


def cluster(
    settings: CloudSettings,
    offer: Offer,
    *,
    folder: str,
    wheel: str,
    parts: Sequence[str],
    most: int,
    now: datetime,
) -> dict[str, Any]:
    """The whole RayCluster, without worker groups: these are the head's own to write.

    `folder` is the gateway's home below `~/.mlcloud-node`; `wheel` is put there, out of the config
    maps that are called `parts`. `most` nodes may be there at once.
    """
    request = LaunchRequest(HEAD, {"CPU": 0})
    begin = _WHEEL.format(folder=folder, mount=_MOUNT, wheel=wheel) if parts else ""
    pod = _pod(settings, offer, request, now)
    pod["spec"] |= {
        "serviceAccountName": settings.network.get("service_account") or name(settings),
        "restartPolicy": "Always",  # its home is kept: a gateway finds its cluster again
    }
    pod["spec"]["containers"][0] |= {
        "command": ["/bin/sh", "-c"],
        "args": [_START % (begin, HEAD_SCRIPT, _LAST.format(folder=folder))],
        "ports": [
            {"name": "gateway", "containerPort": GATEWAY_PORT},
            {"name": "gcs-server", "containerPort": GCS_PORT},
        ],
        # Packages may have to be installed first.
        "startupProbe": {**_gateway_listens(), "periodSeconds": 5, "failureThreshold": 180},
        "readinessProbe": {**_gateway_listens(), "periodSeconds": 10},
        "livenessProbe": {**_gateway_listens(), "periodSeconds": 30, "failureThreshold": 10},
    }
    _mount(pod, head_secret(settings), HEAD_SCRIPT)
    if parts:
        sources = [{"configMap": {"name": each}} for each in parts]
        pod["spec"]["volumes"].append({"name": "wheel", "projected": {"sources": sources}})
        pod["spec"]["containers"][0]["volumeMounts"].append(
            {"name": "wheel", "mountPath": f"{_MOUNT}/wheel", "readOnly": True}
        )
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {
            "name": name(settings),
            "labels": labels(tags.of_resource(settings, now)),
            "annotations": {"ray.io/overwrite-container-cmd": "true", MOST: str(most)},
        },
        "spec": {
            "rayVersion": version("ray"),
            "enableInTreeAutoscaling": False,
            "headGroupSpec": {
                "serviceType": "ClusterIP",
                "rayStartParams": {"num-cpus": "0", "port": str(GCS_PORT)},
                "template": pod,
            },
        },
    }


def head_secret(settings: CloudSettings) -> str:
    return f"{name(settings)}-head"


def _gateway_listens() -> dict[str, Any]:
    return {"tcpSocket": {"port": GATEWAY_PORT}, "timeoutSeconds": 5}


# --- a node ---------------------------------------------------------------------------------------


def worker_group(
    settings: CloudSettings, offer: Offer, request: LaunchRequest, now: datetime
) -> dict[str, Any]:
    """One of the RayCluster's `workerGroupSpecs`: the node `request.instance_id`."""
    group = request.instance_id or "planned"
    pod = _pod(settings, offer, request, now)
    if account := settings.network.get("service_account"):
        pod["spec"]["serviceAccountName"] = account  # it may be who the store knows
    pod["spec"] |= {
        "automountServiceAccountToken": False,
        # The lifetime is Kubernetes' to keep. A head would be made anew: its end is `gc`'s.
        "activeDeadlineSeconds": int(settings.lifetime_s),
        "restartPolicy": "Never",  # a node that ended is another one
    }
    idle = {"exec": {"command": ["/bin/sh", "-c", "kill -0 1"]}, "periodSeconds": 30}
    pod["spec"]["containers"][0] |= {
        "command": ["/bin/sh", "-c"],
        "args": [_START % ("", NODE_SCRIPT, "")],
        "readinessProbe": idle,  # the agent tells the gateway more
        "livenessProbe": idle,
    }
    _mount(pod, node_secret(settings, group), NODE_SCRIPT)
    return {
        "groupName": group,
        "replicas": 1,
        "minReplicas": 0,
        "maxReplicas": 1,
        "rayStartParams": {},
        "template": pod,
    }


def node_secret(settings: CloudSettings, instance: str) -> str:
    return f"{name(settings)}-{instance}"


# --- any pod --------------------------------------------------------------------------------------


def _pod(
    settings: CloudSettings, offer: Offer, request: LaunchRequest, now: datetime
) -> dict[str, Any]:
    head = request.node_type == HEAD
    where = placing.kind(settings.network.get("provider"))
    spec: dict[str, Any] = {
        **placing.place(offer, where),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "ray-head" if head else "ray-worker",
                "image": settings.image or _image(offer),
                "env": [
                    {"name": "HOME", "value": _HOME},
                    {"name": ADDRESS, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    *_auth(settings),
                ],
                "resources": _resources(offer),
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "home", "mountPath": _HOME}],
            }
        ],
        "volumes": [{"name": "home", "emptyDir": {}}],
    }
    if secret := settings.network.get("pull_secret"):
        spec["imagePullSecrets"] = [{"name": secret}]
    if priority := settings.network.get("priority_class"):
        spec["priorityClassName"] = priority
    marked = {
        **tags.of_node(settings, offer, request, now),
        placing.SHAPE: offer.instance_type,
    }
    return {"metadata": {"labels": labels(marked)}, "spec": spec}


def _mount(pod: dict[str, Any], secret: str, script: str) -> None:
    """The script that is kept in a secret, into its container."""
    volume = {"secretName": secret, "items": [{"key": script, "path": script}]}
    pod["spec"]["volumes"].append({"name": "start", "secret": volume})
    pod["spec"]["containers"][0]["volumeMounts"].append(
        {
            "name": "start",
            "mountPath": f"{_MOUNT}/{script}",
            "subPath": script,
            "readOnly": True,
        }
    )


def _image(offer: Offer) -> str:
    """Ray's image, of this Ray and this Python: both sides must agree."""
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return f"rayproject/ray:{version('ray')}-{python}{'-gpu' if offer.accelerator else '-cpu'}"


def _auth(settings: CloudSettings) -> list[dict[str, Any]]:
    """Ray's token, by reference, for the operator's own question: it stands in a secret alone."""
    reference = {"name": head_secret(settings), "key": TOKEN_KEY}
    return [
        {"name": "RAY_AUTH_MODE", "value": "token"},
        {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": reference}},
    ]


def _resources(offer: Offer) -> dict[str, dict[str, str]]:
    memory = f"{offer.memory_bytes // 2**20}Mi"
    part = 1.0 if offer.region == placing.OWN else CPU_PART
    requests = {"cpu": f"{int(offer.cpus * part * 1000)}m", "memory": memory}
    limits = {"memory": memory}
    if offer.accelerator:
        gpus = {"nvidia.com/gpu": str(offer.accelerator_count)}
        requests.update(gpus)
        limits.update(gpus)
    return {"requests": requests, "limits": limits}
