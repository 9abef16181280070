"""A pod of a RayCluster as an instance: what it was bought as, since when, and how it ended.

Pending    alive, not billing yet as far as Kubernetes knows; `reason` says what it waits for
Running    alive
Succeeded, Failed, or gone: ended; `DeadlineExceeded` is the lifetime, a node's shutdown a taking
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from mlcloud.cluster.clouds import sold, tags
from mlcloud.cluster.clouds.base import CloudSettings, Instance
from mlcloud.cluster.clouds.kubernetes import placing
from mlcloud.cluster.offers import Market, Offer

_WHY = {
    "DeadlineExceeded": "past its lifetime",
    "Evicted": "evicted: the node was short of memory or disk",
    "Terminated": "the node was shut down",
    "NodeShutdown": "the node was shut down",
    "Preempting": "another pod took its place",
}


def instance(pod: Mapping[str, Any], offers: Iterable[Offer], settings: CloudSettings) -> Instance:
    metadata, status = pod["metadata"], pod.get("status", {})
    marked = dict(metadata.get("labels") or {})
    launched_at = when(metadata["creationTimestamp"])
    ended_at, reason = _end(pod, launched_at)
    return Instance(
        id=str(metadata["name"]),
        node_type=marked.get(tags.NODE_TYPE, ""),
        offer=_offer(pod, list(offers), settings, launched_at),
        launched_at=launched_at,
        ended_at=ended_at,
        reason=reason,
        tags=marked,
        private_ip=status.get("podIP"),
    )


def when(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _offer(
    pod: Mapping[str, Any], offers: list[Offer], settings: CloudSettings, launched_at: datetime
) -> Offer:
    """From what the pod was bound to, and the market and price on it."""
    marked = pod["metadata"].get("labels") or {}
    selector = pod.get("spec", {}).get("nodeSelector") or {}
    kind = selector.get(placing.TYPE, "unknown")
    market: Market = "spot" if marked.get(tags.MARKET) == "spot" else "on-demand"
    zone = selector.get(placing.ZONE)
    alike = [each for each in offers if each.instance_type == kind]
    known = next((each for each in alike if zone is None or each.zone == zone), None)
    region = known.region if known else next(iter(settings.regions), "")
    return sold.rebuilt(
        offers,
        cloud="kubernetes",
        region=region,
        zone=zone or (known.zone if known else region),
        instance_type=kind,
        market=market,
        labels=marked,
        launched_at=launched_at,
    )


def _end(pod: Mapping[str, Any], launched_at: datetime) -> tuple[datetime | None, str]:
    status = pod.get("status", {})
    if status.get("phase") not in ("Succeeded", "Failed"):
        return None, _waits_for(status)
    ends = [
        each["state"]["terminated"]["finishedAt"]
        for each in status.get("containerStatuses") or []
        if each.get("state", {}).get("terminated", {}).get("finishedAt")
    ]
    reason = str(status.get("reason") or status["phase"])
    return (max(map(when, ends)) if ends else launched_at), _WHY.get(reason, reason)


def _waits_for(status: Mapping[str, Any]) -> str:
    """`0/3 nodes are available: …`, of a pod that found no node; "" otherwise."""
    for each in status.get("conditions") or []:
        if each.get("type") == "PodScheduled" and each.get("status") == "False":
            return str(each.get("message") or each.get("reason") or "")
    return ""
