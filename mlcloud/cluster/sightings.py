"""Whether spot could be had in each zone, from what happened here: the history of a live policy.

    attempts    had: there is some · no capacity: none, until it is tried again
    instances   taken back: none, for as long as an offer is left alone after a refusal
                                      ─► by zone, oldest first ─► policy.decide, lifetimes

A zone has spot while any of its offers has; of one that nobody tried nothing is known, and one that
is tried again may have some. Between two tries the first one's answer holds. Where a node runs that
nobody takes back there is spot for who is on it, also while no second one is to be had.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from mlcloud.cluster.attempts import Attempt
from mlcloud.cluster.clouds.base import Instance
from mlcloud.cluster.lifetimes import Sighting
from mlcloud.cluster.offers import Offer

Place = tuple[str, str]  # zone, instance type


def sightings(
    offers: Iterable[Offer],
    attempts: Iterable[Attempt],
    instances: Iterable[Instance],
    now: datetime,
    cooldown: timedelta,
) -> Mapping[str, Sequence[Sighting]]:
    """Of the zones of those `offers` that are spot."""
    places = {(each.zone, each.instance_type) for each in offers if each.market == "spot"}
    seen: list[tuple[datetime, Place, bool]] = []
    for each in attempts:
        place = (each.zone, each.instance_type)
        if each.market != "spot" or place not in places:
            continue
        if each.what == "launched":
            seen.append((each.at, place, True))
        elif each.what == "no capacity":
            seen.append((each.at, place, False))
            if each.until is not None:
                seen.append((each.until, place, True))
    for node in instances:
        place = (node.offer.zone, node.offer.instance_type)
        taken = _taken(node)
        if node.offer.market != "spot" or place not in places:
            continue
        if taken is not None:
            seen += [(taken, place, False), (taken + cooldown, place, True)]
        elif node.alive and node.launched_at <= now:
            seen.append((now, place, True))
    known: dict[Place, bool] = {}
    found: dict[str, list[Sighting]] = {}
    for at, place, up in sorted(each for each in seen if each[0] <= now):
        known[place] = up
        zone = place[0]
        there = any(up for where, up in known.items() if where[0] == zone)
        before = found.setdefault(zone, [])
        if not before or before[-1].up != there:
            before.append(Sighting(at, there))
    return found


def _taken(node: Instance) -> datetime | None:
    """When it was taken back, or was told that it would be."""
    if node.notice is not None:
        return node.notice.given_at
    return node.ended_at if node.reason == "preempted" else None
