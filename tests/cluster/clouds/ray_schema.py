"""KubeRay's RayCluster as a schema of the same form as the others (`discovery`).

    python -m tests.cluster.clouds.ray_schema > tests/cluster/clouds/schemas/raycluster.json

What is KubeRay's own stands here, as in `helm-chart/kuberay-operator/crds/ray.io_rayclusters.yaml`
of ray-project/kuberay (Apache-2.0) at 017710c0; the CRD's 900 kB are Kubernetes' PodTemplateSpec,
twice, and that comes from the official client's models. Of a pod's volumes those are left out that
we never use.
"""

from __future__ import annotations

import json
import re
from typing import Any

_WORDS = {"type": "object", "additionalProperties": {"type": "string"}}
_TEMPLATE = {
    "type": "object",
    "properties": {
        "metadata": {
            "type": "object",
            "properties": {
                "annotations": _WORDS,
                "finalizers": {"type": "array", "items": {"type": "string"}},
                "labels": _WORDS,
                "name": {"type": "string"},
                "namespace": {"type": "string"},
            },
        },
        "spec": {"$ref": "V1PodSpec"},
    },
}
_INTEGER, _STRING, _BOOLEAN = {"type": "integer"}, {"type": "string"}, {"type": "boolean"}
_OWN: dict[str, Any] = {
    "RayCluster": {
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string", "enum": ["ray.io/v1"]},
            "kind": {"type": "string", "enum": ["RayCluster"]},
            "metadata": {"$ref": "V1ObjectMeta"},
            "spec": {"$ref": "RayClusterSpec"},
            "status": {"readOnly": True},
        },
    },
    "RayClusterSpec": {
        "type": "object",
        "required": ["headGroupSpec"],
        "properties": {
            "authOptions": {
                "type": "object",
                "properties": {
                    "enableK8sTokenAuth": _BOOLEAN,
                    "mode": {"type": "string", "enum": ["disabled", "token"]},
                },
            },
            "autoscalerOptions": {
                "type": "object",
                "properties": {
                    "env": {"type": "array", "items": {"$ref": "V1EnvVar"}},
                    "envFrom": {"type": "array", "items": {"$ref": "V1EnvFromSource"}},
                    "idleTimeoutSeconds": _INTEGER,
                    "image": _STRING,
                    "imagePullPolicy": _STRING,
                    "resources": {"$ref": "V1ResourceRequirements"},
                    "securityContext": {"$ref": "V1SecurityContext"},
                    "upscalingMode": {
                        "type": "string",
                        "enum": ["Default", "Aggressive", "Conservative"],
                    },
                    "version": {"type": "string", "enum": ["v1", "v2"]},
                    "volumeMounts": {"type": "array", "items": {"$ref": "V1VolumeMount"}},
                },
            },
            "enableInTreeAutoscaling": _BOOLEAN,
            "headGroupSpec": {"$ref": "HeadGroupSpec"},
            "headServiceAnnotations": _WORDS,
            "managedBy": _STRING,
            "rayVersion": _STRING,
            "suspend": _BOOLEAN,
            "ttlSecondsAfterIdle": _INTEGER,
            "upgradeStrategy": {
                "type": "object",
                "properties": {"type": {"type": "string", "enum": ["Recreate", "None"]}},
            },
            "workerGroupSpecs": {"type": "array", "items": {"$ref": "WorkerGroupSpec"}},
        },
    },
    "HeadGroupSpec": {
        "type": "object",
        "required": ["template"],
        "properties": {
            "enableIngress": _BOOLEAN,
            "labels": _WORDS,
            "rayStartParams": _WORDS,
            "resources": _WORDS,
            "serviceType": _STRING,
            "template": _TEMPLATE,
        },
    },
    "WorkerGroupSpec": {
        "type": "object",
        "required": ["groupName", "maxReplicas", "minReplicas", "template"],
        "properties": {
            "groupName": _STRING,
            "idleTimeoutSeconds": _INTEGER,
            "labels": _WORDS,
            "maxReplicas": _INTEGER,
            "minReplicas": _INTEGER,
            "numOfHosts": _INTEGER,
            "rayStartParams": _WORDS,
            "replicas": _INTEGER,
            "resources": _WORDS,
            "scaleStrategy": {
                "type": "object",
                "properties": {"workersToDelete": {"type": "array", "items": _STRING}},
            },
            "suspend": _BOOLEAN,
            "template": _TEMPLATE,
        },
    },
}
_SIMPLE = {"str": _STRING, "int": _INTEGER, "bool": _BOOLEAN, "float": {"type": "number"},
           "datetime": _STRING}  # fmt: skip
_LEFT_OUT = {"V1EphemeralContainer", "V1PersistentVolumeClaimTemplate"}
_BESIDE = (
    "V1NetworkPolicy", "V1Secret", "V1ConfigMap", "V1Service", "V1ServiceAccount", "V1Role",
    "V1RoleBinding",
)  # fmt: skip
_VOLUMES = {"name", "secret", "config_map", "empty_dir", "projected"}


def build() -> dict[str, Any]:
    from kubernetes import client

    found = dict(_OWN)
    for name in re.findall(r"V1\w+", json.dumps(_OWN)):
        _visit(name, client, found)
    for name in _BESIDE:
        _visit(name, client, found)
    return found


def _visit(name: str, client: Any, found: dict[str, Any]) -> None:
    if name in found:
        return
    model = getattr(client, name)
    found[name] = schema = {"type": "object", "properties": {}}
    for attribute, kind in model.openapi_types.items():
        if name == "V1Volume" and attribute not in _VOLUMES:
            continue
        field = model.attribute_map[attribute]
        schema["properties"][field] = _type(kind, client, found)


def _type(kind: str, client: Any, found: dict[str, Any]) -> dict[str, Any]:
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        return {"type": "array", "items": _type(inner[1], client, found)}
    if inner := re.fullmatch(r"dict\(str, (.+)\)", kind):
        return {"type": "object", "additionalProperties": _type(inner[1], client, found)}
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if kind in _LEFT_OUT:
        return {"type": "object"}
    if kind == "object":  # so the client's models call Kubernetes' IntOrString
        return {"type": "int-or-string"}
    _visit(kind, client, found)
    return {"$ref": kind}


if __name__ == "__main__":
    print('{"source": "see ray_schema.py; kubernetes 35.0.0 (Apache-2.0)", "schemas": {')
    print(",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in build().items()))
    print("}}")
