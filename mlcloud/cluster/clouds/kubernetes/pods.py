"""A worker group and its pod as an instance: what it was bought as, since when, and how it ended.

no pod yet, Pending        alive; after `PENDING` it is taken for one that cannot be had, and
                           `reason` says what it waited for
Running                    alive
Succeeded, Failed          ended; `DeadlineExceeded` is the lifetime, a node's shutdown a taking
a pod made much later      the operator's, in place of one that ended: that node is gone
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from mlcloud.cluster.clouds import sold, tags
from mlcloud.cluster.clouds.base import CloudSettings, Instance
from mlcloud.cluster.clouds.kubernetes import placing
from mlcloud.cluster.clouds.kubernetes.waiting import trouble
from mlcloud.cluster.offers import Market, Offer
from mlcloud.units import parse_moment

#: How long a pod may wait for a node: a cluster's own autoscaler needs some minutes to bring one.
PENDING = timedelta(minutes=7)
#: How long after its node's launch the operator makes the first pod, at the latest.
FIRST_POD = timedelta(minutes=2)
_WHY = {
    "DeadlineExceeded": "past its lifetime",
    "Evicted": "evicted: the node was short of memory or disk",
    "Terminated": "the node was shut down",
    "NodeShutdown": "the node was shut down",
    "Preempting": "another pod took its place",
}


def instance(
    group: Mapping[str, Any],
    pods: Sequence[Mapping[str, Any]],
    offers: Iterable[Offer],
    settings: CloudSettings,
    now: datetime,
) -> Instance:
    """`pods` are those of the group, of which there may be none yet."""
    template = group["template"]
    marked = dict(template["metadata"].get("labels") or {})
    launched_at = tags.read_time(marked.get(tags.LAUNCHED)) or now
    first = min(pods, key=_made, default=None)
    ended_at, reason = _end(first, launched_at, now)
    return Instance(
        id=str(group["groupName"]),
        node_type=marked.get(tags.NODE_TYPE, ""),
        offer=_offer(template["spec"], marked, list(offers), settings, launched_at),
        launched_at=launched_at,
        ended_at=ended_at,
        reason=reason,
        tags=marked,
        private_ip=(first or {}).get("status", {}).get("podIP"),
    )


def _made(pod: Mapping[str, Any]) -> datetime:
    return parse_moment(pod["metadata"]["creationTimestamp"])


def _offer(
    spec: Mapping[str, Any],
    marked: Mapping[str, str],
    offers: list[Offer],
    settings: CloudSettings,
    launched_at: datetime,
) -> Offer:
    """From what the pod is bound to, and the market and price on it."""
    selector = spec.get("nodeSelector") or {}
    kind = selector.get(placing.TYPE) or marked.get(placing.SHAPE, "unknown")
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


def _end(
    pod: Mapping[str, Any] | None, launched_at: datetime, now: datetime
) -> tuple[datetime | None, str]:
    if pod is None:
        late = now - launched_at > PENDING
        return (now, "KubeRay's operator made no pod for it") if late else (None, "")
    if _made(pod) - launched_at > FIRST_POD:
        return _made(pod), "its pod ended"
    status = pod.get("status", {})
    if status.get("phase") not in ("Succeeded", "Failed"):
        found = trouble(pod, [])
        reason = str(found) if found is not None else ""
        stuck = status.get("phase", "Pending") == "Pending" and now - launched_at > PENDING
        return (now if stuck else None), reason
    ends = [
        each["state"]["terminated"]["finishedAt"]
        for each in status.get("containerStatuses") or []
        if each.get("state", {}).get("terminated", {}).get("finishedAt")
    ]
    reason = str(status.get("reason") or status["phase"])
    return (max(map(parse_moment, ends)) if ends else launched_at), _WHY.get(reason, reason)
