"""What a cluster has on Azure, and what clusters that are over left there.

    instances        of this cluster; of others: past their lifetime, switched off from inside (such
                     a machine bills in full), or deallocated (its disk bills)
    resource groups  of this cluster; of others, expired: all that is in them goes with them
    disks, network cards, addresses    in a resource group that is not ours, used by nothing

In this order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from mlcloud.cluster.clouds import tags
from mlcloud.cluster.clouds.azure.api import Arm
from mlcloud.cluster.clouds.base import Leftover
from mlcloud.errors import NotFound

#: What a NAT gateway and its address cost (https://azure.microsoft.com/pricing/details/azure-nat-gateway,
#: 2025-03): the order of size, not the bill.
NAT_HOUR = Decimal("0.05")
_LOOSE = (
    ("network-interface", "Microsoft.Network/networkInterfaces", "virtualMachine"),
    ("public-ip", "Microsoft.Network/publicIPAddresses", "ipConfiguration"),
    ("disk", "Microsoft.Compute/disks", "managedBy"),
)
ADDRESS_HOUR = Decimal("0.005")


def find(arm: Arm, cluster: str, now: datetime) -> list[Leftover]:
    """`cluster` is this one, as its tag says it."""
    groups = list(_groups(arm, cluster, now))
    going = tuple(f"{each.id.lower()}/" for each in groups)
    loose = [each for each in _loose(arm, cluster, now) if not each.id.lower().startswith(going)]
    return [*_instances(arm, cluster, now), *groups, *loose]


def remove(arm: Arm, leftover: Leftover) -> None:
    what = f"{leftover.kind} {leftover.id.rsplit('/', 1)[-1]}"
    try:
        arm.change("DELETE", leftover.id, what, seconds=900)
    except NotFound:
        return


def power(machine: Mapping[str, Any]) -> str:
    """`running`, `stopped`, `deallocated` …; "" where Azure does not say."""
    for status in machine["properties"].get("instanceView", {}).get("statuses", []):
        kind, _, state = status["code"].partition("/")
        if kind == "PowerState":
            return str(state)
    return ""


def _instances(arm: Arm, cluster: str, now: datetime) -> Iterator[Leftover]:
    path = arm.path("providers/Microsoft.Compute/virtualMachines")
    for each in arm.items(path, "machines", params={"$expand": "instanceView"}):
        marked = each.get("tags") or {}
        if tags.CLUSTER not in marked:
            continue
        price = tags.read_price(marked.get(tags.PRICE))
        if power(each) == "stopped":
            why = "switched off from inside, which bills in full"
        elif power(each) == "deallocated":
            why, price = "deallocated: its disk bills", None
        elif tags.expired(marked, now):
            why = "past its lifetime"
        elif marked[tags.CLUSTER] == cluster:
            why = "a machine of this cluster"
        else:
            continue
        yield Leftover("instance", each["id"], each["location"], marked, price, why)


def _groups(arm: Arm, cluster: str, now: datetime) -> Iterator[Leftover]:
    params = {"$filter": f"tagName eq '{tags.CLUSTER}'"}
    for each in arm.items(arm.path("resourcegroups"), "resource groups", params=params):
        marked = each["tags"]
        if marked[tags.CLUSTER] == cluster:
            why = "all that this cluster made"
        elif tags.expired(marked, now) and not _in_use(arm, each["id"], now):
            why = "its cluster is past its lifetime"
        else:
            continue
        path = f"{each['id']}/providers/Microsoft.Network/natGateways"
        gateways = len(list(arm.items(path, "gateways")))
        price = gateways * NAT_HOUR
        yield Leftover("resource-group", each["id"], each["location"], marked, price, why)


def _in_use(arm: Arm, group: str, now: datetime) -> bool:
    path = f"{group}/providers/Microsoft.Compute/virtualMachines"
    machines = arm.items(path, "machines")
    return any(not tags.expired(each.get("tags") or {}, now) for each in machines)


def _loose(arm: Arm, cluster: str, now: datetime) -> Iterator[Leftover]:
    for kind, what, user in _LOOSE:
        for each in arm.items(arm.path(f"providers/{what}"), f"{kind}s"):
            marked = each.get("tags") or {}
            ours = marked.get(tags.CLUSTER) == cluster
            if tags.CLUSTER not in marked or not (ours or tags.expired(marked, now)):
                continue
            used = {"natGateway", user} & {*each, *each.get("properties", {})}
            if not used:
                price = ADDRESS_HOUR if kind == "public-ip" else None
                why = "used by nothing"
                yield Leftover(kind, each["id"], each["location"], marked, price, why)
