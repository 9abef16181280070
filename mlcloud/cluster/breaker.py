"""The circuit breaker: no third node is bought where two of a kind came to nothing.

Ray's autoscaler launches again every few seconds as long as its demand is not met. Where nodes of a
type start and never join, or join and are of no use to whoever waits, that is money for nothing,
for ever. A launch is *futile* when

    it ended before it held any session, and neither a preemption nor Ray's own scale-down ended it
    or it joined `SETTLE` ago, holds nothing yet, and Ray asks for another of the same type

Two in a row open the breaker for that type. After `REST` one launch is let through again: if it
holds a session, all is well; if not, the breaker opens for longer. Pure: the time is passed in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from mlcloud.cluster.clouds.base import Instance

AT_MOST = 2
SETTLE = timedelta(minutes=2)
REST = timedelta(minutes=10)
LONGEST_REST = timedelta(hours=6)
#: Ends that say nothing about a node's use, by the first words of their reason.
NO_FAULT = ("idle", "preempted", "the cluster", "left over", "it was too old", "budget")


@dataclass(frozen=True)
class Open:
    """Launches of a node type are stopped until then."""

    until: datetime
    why: str


def futile(instance: Instance, now: datetime) -> str | None:
    """Why this launch came to nothing, None where it did not (or not yet)."""
    if instance.served_at is not None or instance.notice is not None:
        return None
    if instance.ended_at is not None:
        if instance.reason.startswith(NO_FAULT):
            return None
        return instance.reason or "it ended"
    if instance.joined_at is not None and now - instance.joined_at > SETTLE:
        return "it joined, and nothing that waits could use it"
    return None


def look(instances: Iterable[Instance], node_type: str, now: datetime) -> Open | None:
    """Whether launches of `node_type` are stopped at `now`, Ray having asked for one."""
    ours = sorted(
        (each for each in instances if each.node_type == node_type), key=lambda e: e.launched_at
    )
    row: list[tuple[Instance, str]] = []
    for each in reversed(ours):
        if each.served_at is not None or each.notice is not None:
            break
        why = futile(each, now)
        if why is not None:
            row.append((each, why))
    if len(row) < AT_MOST:
        return None
    last, why = row[0]
    rest = min(REST * 2 ** min(len(row) - AT_MOST, 10), LONGEST_REST)
    until = (last.ended_at or last.launched_at) + rest
    if now >= until:
        return None
    return Open(
        until,
        f"launches of {node_type} are stopped: {len(row)} nodes in a row were of no use "
        f"({last.offer.instance_type} in {last.offer.zone}: {why})",
    )
