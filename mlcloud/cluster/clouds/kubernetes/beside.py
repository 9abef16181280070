"""What stands beside a cluster's RayCluster: who its head is, how it is reached, what it is told.

    service account, role    the head may change its own RayCluster, and make its nodes' secrets
    service                  an address inside the cluster; a load balancer or an ingress is never
                             made
    network policy           pods of the cluster are reached by each other, and the gateway's port
                             by pods that are labelled as its clients, such as a JupyterHub's
    secret                   the head's script, with all that it holds, and Ray's token
    config maps              mlcloud's wheel, in parts: one may hold 1 MiB

https://kubernetes.io/docs/concepts/configuration/configmap/
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from mlcloud.cluster.clouds import tags
from mlcloud.cluster.clouds.base import CloudSettings
from mlcloud.cluster.clouds.kubernetes.manifest import (
    GATEWAY_PORT,
    NODE_SCRIPT,
    labels,
    name,
    node_secret,
)

PART_BYTES = 512 * 1024
#: The pods that may use the gateway, unless `network: {clients: KEY=VALUE}` says which.
CLIENTS = "mlcloud-client"
_RBAC = "rbac.authorization.k8s.io"


def service_name(settings: CloudSettings) -> str:
    return f"{name(settings)}-gateway"


def account(
    settings: CloudSettings, namespace: str, now: datetime
) -> list[tuple[str, dict[str, Any]]]:
    """The head's own, by kind; where the user names one, what that may do here is added to it."""
    metadata, own = _metadata(settings, now), name(settings)
    theirs = settings.network.get("service_account")
    rules = [
        {
            "apiGroups": ["ray.io"],
            "resources": ["rayclusters"],
            "resourceNames": [own],
            "verbs": ["get", "patch", "delete"],
        },
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]},
        # Of nodes. They go with the RayCluster: so it need not see or remove anybody's.
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
    ]
    subject = {"kind": "ServiceAccount", "name": theirs or own, "namespace": namespace}
    binding = {
        "kind": "RoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": _RBAC, "kind": "Role", "name": own},
        "subjects": [subject],
    }
    return [
        *(
            []
            if theirs
            else [("service-account", {"kind": "ServiceAccount", "metadata": metadata})]
        ),
        ("role", {"kind": "Role", "metadata": metadata, "rules": rules}),
        ("role-binding", binding),
    ]


def service(settings: CloudSettings, now: datetime) -> dict[str, Any]:
    """An address of the gateway inside the cluster, whichever pod is its head."""
    return {
        "kind": "Service",
        "metadata": {**_metadata(settings, now), "name": service_name(settings)},
        "spec": {
            "type": "ClusterIP",
            "selector": {"ray.io/cluster": name(settings), "ray.io/node-type": "head"},
            "ports": [{"name": "gateway", "port": GATEWAY_PORT, "targetPort": GATEWAY_PORT}],
        },
    }


def network_policy(settings: CloudSettings, now: datetime) -> dict[str, Any]:
    """Pods of the cluster are reached by each other only, and their gateway by its clients."""
    ours = {"matchLabels": {"ray.io/cluster": name(settings)}}
    key, _, value = settings.network.get("clients", f"{CLIENTS}={name(settings)}").partition("=")
    clients = {"podSelector": {"matchLabels": {key: value}}, "namespaceSelector": {}}
    return {
        "kind": "NetworkPolicy",
        "metadata": _metadata(settings, now),
        "spec": {
            "podSelector": ours,
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": ours}]},
                {"from": [clients], "ports": [{"protocol": "TCP", "port": GATEWAY_PORT}]},
            ],
        },
    }


def secret(
    settings: CloudSettings, name: str, data: Mapping[str, str], now: datetime
) -> dict[str, Any]:
    encoded = {key: b64encode(text.encode()).decode() for key, text in data.items()}
    metadata = {**_metadata(settings, now), "name": name}
    return {"kind": "Secret", "type": "Opaque", "metadata": metadata, "data": encoded}


def secret_of_node(
    settings: CloudSettings, instance: str, script: str, owner: Mapping[str, Any], now: datetime
) -> dict[str, Any]:
    """It goes with the RayCluster `owner`, should nobody be there to remove it."""
    made = secret(settings, node_secret(settings, instance), {NODE_SCRIPT: script}, now)
    reference = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }
    made["metadata"]["ownerReferences"] = [reference]
    return made


def parts(settings: CloudSettings, wheel: bytes, now: datetime) -> list[dict[str, Any]]:
    """Config maps whose keys, in order, hold the wheel. Another wheel has others."""
    digest = hashlib.blake2b(wheel, digest_size=4).hexdigest()
    return [
        {
            "kind": "ConfigMap",
            "metadata": {**_metadata(settings, now), "name": f"{name(settings)}-{digest}-{number}"},
            "binaryData": {
                f"part-{number:03}": b64encode(wheel[start : start + PART_BYTES]).decode()
            },
        }
        for number, start in enumerate(range(0, len(wheel), PART_BYTES))
    ]


def _metadata(settings: CloudSettings, now: datetime) -> dict[str, Any]:
    return {"name": name(settings), "labels": labels(tags.of_resource(settings, now))}
