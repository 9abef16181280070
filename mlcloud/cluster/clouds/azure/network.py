"""The network of a cluster on Azure: closed to the world, made once, found again by its name.

    resource group mlcloud-<cluster>: everything of the cluster, and removed as one
      └ in each region used
          network security group   from outside only SSH, only from `ssh_from`
          NAT gateway + address    when workers have no address of their own, so that they reach
                                   the package index and the store but nobody reaches them
          virtual network, with one subnet that has both

A NAT gateway bills while it is there (some $0.05/h with its address), the rest of these do not.
Networks of two regions do not reach each other: a cluster's nodes belong into one region, or into
subnets of yours that are peered.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from mlcloud.cluster.clouds import reach, tags
from mlcloud.cluster.clouds.azure.api import Arm
from mlcloud.cluster.clouds.azure.body import group, tagged
from mlcloud.cluster.clouds.base import CloudSettings
from mlcloud.errors import CloudRefused, NotFound

_FIRST = 100  # 10.<n>.0.0/16 for the n-th region
SUBNET = "nodes"


class Network:
    """Makes what is missing, and knows the names of the rest."""

    def __init__(self, arm: Arm, settings: CloudSettings) -> None:
        self._arm = arm
        self._settings = settings
        self._ready: set[str] = set()
        self._making = threading.Lock()

    def within(self, rest: str = "") -> str:
        """A path in the cluster's resource group."""
        return self._arm.path(f"resourceGroups/{group(self._settings)}/{rest}")

    def of(self, kind: str, name: str) -> str:
        return self.within(f"providers/Microsoft.Network/{kind}/{name}")

    def subnet(self, region: str) -> str:
        named = self._settings.network.get("subnet")
        if named and named.startswith("/"):
            return named
        vnet, _, name = (named or f"mlcloud-{region}/{SUBNET}").partition("/")
        return self.of("virtualNetworks", f"{vnet}/subnets/{name or 'default'}")

    def security_group(self, region: str) -> str | None:
        """None where the subnet is the user's own, and its rules with it."""
        named = self._settings.network.get("security_group")
        if named:
            return named if named.startswith("/") else self.of("networkSecurityGroups", named)
        if "subnet" in self._settings.network:
            return None
        return self.of("networkSecurityGroups", f"mlcloud-{region}")

    def ensure(self, region: str, now: datetime) -> None:
        """The resource group, and a subnet in `region`."""
        with self._making:
            if region not in self._ready:
                self._ensure(region, now)

    def _ensure(self, region: str, now: datetime) -> None:
        marked = tagged(tags.of_resource(self._settings, now))
        if "resource_group" not in self._settings.network:
            self._ensure_group(marked)
        if "subnet" not in self._settings.network:
            self._ensure_region(region, marked)
        self._ready.add(region)

    def _ensure_group(self, marked: dict[str, str]) -> None:
        """It lies where the residency list begins: what it says about itself is stored there."""
        name = f"resource group {group(self._settings)}"
        try:
            place = str(self._arm.call("GET", self.within(), name)["location"])
            if place not in self._settings.regions:
                raise CloudRefused(
                    f"{name} lies in {place!r}, outside the regions of the cluster "
                    f"({', '.join(self._settings.regions)}); name another: "
                    "network={'resource_group': …}"
                )
        except NotFound:
            place = self._settings.regions[0]
        body = {"location": place, "tags": marked}
        self._arm.change("PUT", self.within(), name, body=body)

    def _ensure_region(self, region: str, marked: dict[str, str]) -> None:
        name = f"mlcloud-{region}"
        rules = self.of("networkSecurityGroups", name)
        if "security_group" not in self._settings.network:
            ranges = reach.ssh_from(self._settings.network)
            # Without any (the head itself) who was let in before stays let in.
            if ranges or not self._is_there(rules):
                self._put(rules, security_group(region, marked, ranges))
        vnets = {each["name"]: each for each in self._vnets()}
        if name in vnets:
            return
        nat = None
        if reach.public_ip(self._settings.network) != "all":
            address = self.of("publicIPAddresses", f"{name}-nat")
            self._put(address, public_ip(region, marked))
            nat = self.of("natGateways", name)
            self._put(nat, nat_gateway(region, marked, address))
        taken = {
            prefix
            for each in vnets.values()
            for prefix in each["properties"]["addressSpace"]["addressPrefixes"]
        }
        free = next(n for n in range(_FIRST, 256) if f"10.{n}.0.0/16" not in taken)
        given = self.security_group(region) or rules
        body = virtual_network(region, marked, f"10.{free}.0.0/16", given, nat)
        self._put(self.of("virtualNetworks", name), body)

    def _vnets(self) -> list[dict[str, Any]]:
        path = self.within("providers/Microsoft.Network/virtualNetworks")
        return list(self._arm.items(path, "networks"))

    def _is_there(self, path: str) -> bool:
        try:
            self._arm.call("GET", path, "/".join(path.split("/")[-2:]))
        except NotFound:
            return False
        return True

    def _put(self, path: str, body: Mapping[str, Any]) -> None:
        what = "/".join(path.split("/")[-2:])
        if not self._arm.change("PUT", path, what, body=body):
            raise CloudRefused(f"{what}: not there after 5 minutes; try again")


# --- what is sent ---------------------------------------------------------------------------------


def security_group(region: str, marked: dict[str, str], ssh_from: list[str]) -> dict[str, Any]:
    """Azure's own rules below these let machines of the network reach each other, and shut out
    the rest; the last of ours says so where people look."""
    anywhere = {"sourcePortRange": "*", "destinationAddressPrefix": "*"}
    ssh = {
        "name": "ssh",
        "properties": {
            **anywhere,
            "priority": 1000,
            "direction": "Inbound",
            "access": "Allow",
            "protocol": "Tcp",
            "sourceAddressPrefixes": ssh_from,
            "destinationPortRange": "22",
        },
    }
    world = {
        "name": "nobody-else",
        "properties": {
            **anywhere,
            "priority": 4096,
            "direction": "Inbound",
            "access": "Deny",
            "protocol": "*",
            "sourceAddressPrefix": "Internet",
            "destinationPortRange": "*",
        },
    }
    rules = [ssh, world] if ssh_from else [world]
    return {"location": region, "tags": marked, "properties": {"securityRules": rules}}


def public_ip(region: str, marked: dict[str, str]) -> dict[str, Any]:
    return {
        "location": region,
        "tags": marked,
        "sku": {"name": "Standard"},
        "properties": {"publicIPAllocationMethod": "Static", "publicIPAddressVersion": "IPv4"},
    }


def nat_gateway(region: str, marked: dict[str, str], address: str) -> dict[str, Any]:
    return {
        "location": region,
        "tags": marked,
        "sku": {"name": "Standard"},
        "properties": {"publicIpAddresses": [{"id": address}]},
    }


def virtual_network(
    region: str, marked: dict[str, str], cidr: str, rules: str, nat: str | None
) -> dict[str, Any]:
    subnet: dict[str, Any] = {
        "addressPrefix": cidr,
        "defaultOutboundAccess": False,
        "networkSecurityGroup": {"id": rules},
    }
    if nat:
        subnet["natGateway"] = {"id": nat}
    return {
        "location": region,
        "tags": marked,
        "properties": {
            "addressSpace": {"addressPrefixes": [cidr]},
            "subnets": [{"name": SUBNET, "properties": subnet}],
        },
    }
