"""What a cluster has on GCP, and what clusters that are over left there.

    instances   of this cluster; of others: past their lifetime, or stopped (their disks bill)
    disks       attached to nothing
    routers, firewalls, subnets, networks    of this cluster; of others, expired and without machine

In this order: a network goes when nothing is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from mlcloud.cluster.clouds import tags
from mlcloud.cluster.clouds.base import Leftover
from mlcloud.cluster.clouds.gcp.api import Compute
from mlcloud.cluster.clouds.gcp.network import described
from mlcloud.errors import NotFound
from mlcloud.units import parse_moment

YOUNG = timedelta(minutes=10)
STOPPED = {"TERMINATED", "STOPPED", "SUSPENDED"}
#: $ per GB and hour of a balanced disk in us-central1 (0.10 $/GB a month, 2025-03,
#: https://cloud.google.com/compute/disks-image-pricing): the order of size, not the bill.
DISK_GB_HOUR = Decimal("0.10") / 730
_FILTER = {"filter": f"labels.{tags.CLUSTER}:*"}
_NETWORKING = (
    ("router", "aggregated/routers"),
    ("firewall", "global/firewalls"),
    ("subnet", "aggregated/subnetworks"),
    ("network", "global/networks"),
)


def find(compute: Compute, cluster: str, now: datetime) -> list[Leftover]:
    """`cluster` is this one, as its tag says it."""
    path = compute.path("aggregated/instances")
    machines = list(compute.items(path, "instances", params=_FILTER))
    in_use = {each["labels"][tags.CLUSTER] for each in machines} - {cluster}
    return [
        *_instances(machines, cluster, now),
        *_disks(compute, cluster, now),
        *_networking(compute, cluster, in_use, now),
    ]


def remove(compute: Compute, leftover: Leftover, wait_s: float = 180.0) -> None:
    what = f"{leftover.kind} {leftover.id.rsplit('/', 1)[-1]}"
    try:
        operation = compute.change("DELETE", leftover.id, what)
        compute.wait(operation, what, wait_s)
    except NotFound:
        return


def _instances(machines: list[dict[str, Any]], cluster: str, now: datetime) -> Iterator[Leftover]:
    for each in machines:
        labels = each["labels"]
        price: Decimal | None = tags.read_price(labels.get(tags.PRICE))
        if each.get("status") in STOPPED:
            why, price = "stopped: its disk bills", _disk_price(each)
        elif tags.expired(labels, now):
            why = "past its lifetime"
        elif labels[tags.CLUSTER] == cluster:
            why = "a machine of this cluster"
        else:
            continue
        yield Leftover("instance", path_of(each), region_of(each), labels, price, why)


def _disks(compute: Compute, cluster: str, now: datetime) -> Iterator[Leftover]:
    for each in compute.items(compute.path("aggregated/disks"), "disks", params=_FILTER):
        ours = each["labels"][tags.CLUSTER] == cluster
        if not each.get("users") and (ours or not _young(each, now)):
            price = int(each.get("sizeGb", 0)) * DISK_GB_HOUR
            why = "attached to no machine"
            yield Leftover("disk", path_of(each), region_of(each), each["labels"], price, why)


def _networking(
    compute: Compute, cluster: str, in_use: set[str], now: datetime
) -> Iterator[Leftover]:
    for kind, where in _NETWORKING:
        params = {"filter": "name:mlcloud-*"}
        for each in compute.items(compute.path(where), f"{kind}s", params=params):
            marked = described(each.get("description"))
            whose = marked.get(tags.CLUSTER)
            if whose == cluster:
                why = "of this cluster"
            elif whose and whose not in in_use and tags.expired(marked, now):
                why = "its cluster has no machine any more"
            else:
                continue
            yield Leftover(kind, path_of(each), region_of(each), marked, Decimal(0), why)


def _young(each: Mapping[str, Any], now: datetime) -> bool:
    made = each.get("creationTimestamp")
    return made is not None and now - parse_moment(made) < YOUNG


def _disk_price(instance: Mapping[str, Any]) -> Decimal:
    size = sum(int(disk.get("diskSizeGb", 0)) for disk in instance.get("disks", []))
    return size * DISK_GB_HOUR


def path_of(each: Mapping[str, Any]) -> str:
    """`projects/…`, of a resource's own link."""
    return str(each["selfLink"]).split("/compute/v1/")[-1]


def region_of(each: Mapping[str, Any]) -> str:
    if "zone" in each:
        return str(each["zone"]).rsplit("/", 1)[-1].rsplit("-", 1)[0]
    return str(each.get("region", "global")).rsplit("/", 1)[-1]
