"""What a pod waits for, in words that tell one cause from another, from its status and its events.

    Pending ─┬─ no node has room             waits: a node may be brought
             ├─ a quota, an admission's no   final: the operator is told, the pod is never made
             ├─ the image cannot be had      final where the registry says so; else waits
             ├─ a secret or volume missing   waits: it may come
    Running ─┴─ ended, and again             final, with its last words

Reasons are the kubelet's and the scheduler's: https://kubernetes.io/docs/concepts/workloads/pods/
pod-lifecycle/, https://kubernetes.io/docs/concepts/containers/images/#imagepullbackoff
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlcloud.errors import CloudRefused, MLCloudError, NoCapacity, QuotaExceeded

_NEVER = re.compile(
    "not found|manifest unknown|denied|unauthorized|authorization failed|does not exist|"
    "invalid reference|InvalidImageName|no basic auth|forbidden|no match for platform",
    re.IGNORECASE,
)
_DENIED = re.compile("denied|unauthorized|authorization|no basic auth|forbidden", re.IGNORECASE)
_IMAGE = {
    "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull",
    "RegistryUnavailable", "ImageInspectError",
}  # fmt: skip
_CONFIG = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_AUTOSCALER = {"TriggeredScaleUp", "NotTriggerScaleUp", "FailedScaleUp", "Nominated"}
_MOUNTS = {"FailedMount", "FailedAttachVolume"}
_RESTARTS = 2  # a container that ended so often does so again


@dataclass(frozen=True)
class Trouble:
    """`error` is what it is raised as where it is final, or when nobody waits any more."""

    text: str
    final: bool = False
    error: type[MLCloudError] = CloudRefused

    def __str__(self) -> str:
        return self.text


def trouble(pod: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> Trouble | None:
    """What keeps the pod from running; None of one that is on its way, or runs."""
    status = pod.get("status") or {}
    for each in [
        *(status.get("initContainerStatuses") or []),
        *(status.get("containerStatuses") or []),
    ]:
        found = _of_container(each)
        if found is not None:
            return found
    told = list(events)
    for each in status.get("conditions") or []:
        if each.get("type") == "PodScheduled" and each.get("status") == "False":
            return _unscheduled(str(each.get("message") or each.get("reason") or ""), told)
    for each in reversed(told):
        if each.get("reason") in _MOUNTS:
            return Trouble(f"a volume cannot be mounted: {each.get('message')}")
        if each.get("reason") == "FailedCreatePodSandBox":
            return Trouble(f"the node cannot start it: {each.get('message')}")
    return None


def refused(events: Sequence[Mapping[str, Any]]) -> Trouble | None:
    """Why the operator made no pod, from the RayCluster's events; None where they do not say."""
    for each in reversed(events):
        text = str(each.get("message") or "")
        if each.get("type") != "Warning":
            continue
        if "exceeded quota" in text:
            return Trouble(
                f"the namespace's quota has no room for the pod: {text}; raise the ResourceQuota, "
                "or ask for less under `head`",
                True,
                QuotaExceeded,
            )
        if "forbidden" in text or "denied the request" in text or "violates" in text:
            return Trouble(f"the cluster's rules do not allow the pod: {text}", True)
        return Trouble(f"KubeRay's operator: {text}")
    return None


def progress(pod: Mapping[str, Any]) -> str:
    """Where it is on its way."""
    status = pod.get("status") or {}
    conditions = {
        each.get("type"): each.get("status") == "True" for each in status.get("conditions") or []
    }
    node = (pod.get("spec") or {}).get("nodeName")
    if conditions.get("Ready"):
        return "its gateway listens"
    if any(
        "running" in (each.get("state") or {}) for each in status.get("containerStatuses") or []
    ):
        return "it runs: mlcloud is installed, and the gateway starts"
    if node or conditions.get("PodScheduled"):
        return f"the image is pulled on node {node}" if node else "the image is pulled"
    return "it waits for a node"


def ready(pod: Mapping[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)


def _of_container(status: Mapping[str, Any]) -> Trouble | None:
    state = status.get("state") or {}
    waits = state.get("waiting") or {}
    reason, message = str(waits.get("reason") or ""), str(waits.get("message") or "")
    image = status.get("image") or "?"
    if reason in _IMAGE:
        final = bool(_NEVER.search(f"{reason} {message}")) or reason == "ErrImageNeverPull"
        hint = (
            "; name a pull secret, `network: {pull_secret: …}`"
            if _DENIED.search(message)
            else "; is `image` right?"
            if final
            else "; it is tried again"
        )
        said = message or reason
        return Trouble(f"its image {image} cannot be pulled: {said}{hint}", final)
    if reason in _CONFIG:
        return Trouble(f"its container cannot be made: {message or reason}", reason != _FIRST)
    ended = state.get("terminated") or (status.get("lastState") or {}).get("terminated")
    if not ended or (not waits and not state.get("terminated")):
        return None
    code = ended.get("exitCode")
    if ended.get("reason") == "OOMKilled":
        return Trouble("it was killed for memory: give the head more, `head: {memory: …}`", True)
    if code:
        final = int(status.get("restartCount") or 0) >= _RESTARTS or reason == "CrashLoopBackOff"
        return Trouble(f"it ended with status {code}", final)
    return None


#: A secret that it refers to may be made a moment later.
_FIRST = "CreateContainerConfigError"


def _unscheduled(message: str, events: Sequence[Mapping[str, Any]]) -> Trouble:
    last = next((each for each in reversed(events) if each.get("reason") in _AUTOSCALER), None)
    if last is None:
        return Trouble(f"no node has room for it: {message}", error=NoCapacity)
    if last["reason"] in ("TriggeredScaleUp", "Nominated"):
        return Trouble(f"a node is brought for it: {last.get('message')}", error=NoCapacity)
    return Trouble(
        f"no node has room for it, and none can be added: {message}; {last.get('message')}",
        error=NoCapacity,
    )
