"""The network of a cluster on GCP: closed to the world, made once, found again by its name.

    network mlcloud-<cluster> (custom mode: no subnets but ours)
      ├ firewall …-inside   machines of the cluster reach each other
      ├ firewall …-ssh      the head's port 22, from `ssh_from` only (none: no such rule)
      └ in each region used: a subnet, and a router with NAT when workers have no address of
        their own, so that they reach the package index and the store but nobody reaches them

The project's `default` network lets SSH in from everywhere
(https://cloud.google.com/firewall/docs/firewalls#more_rules_default_vpc), so it is not used unless
it is named. None of these can carry labels on GCP: what they are stands in their `description`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from mlcloud.cluster.clouds import reach, tags
from mlcloud.cluster.clouds.base import CloudSettings
from mlcloud.cluster.clouds.gcp.api import Compute
from mlcloud.cluster.clouds.gcp.body import group
from mlcloud.errors import CloudRefused, Conflict, NotFound

WAIT_S = 180.0
#: 10.<n>.0.0/16 for the n-th region.
_FIRST = 100


class Network:
    """Makes what is missing. Nothing at all where the settings name a network or a subnet."""

    def __init__(self, compute: Compute, settings: CloudSettings) -> None:
        self._compute = compute
        self._settings = settings
        self._ready: set[str] = set()
        self._making = threading.Lock()

    def ensure(self, region: str, now: datetime) -> None:
        """A subnet in `region`, on the cluster's network."""
        with self._making:
            if not self._settings.network.keys() & {"network", "subnet"}:
                self._ensure(region, now)

    def _ensure(self, region: str, now: datetime) -> None:
        if region in self._ready:
            return
        marked = describe(tags.of_resource(self._settings, now))
        name = group(self._settings)
        self._make("global/networks", network(name, marked))
        for rule in firewalls(name, marked, reach.ssh_from(self._settings.network)):
            if not self._make("global/firewalls", rule):
                self._update(rule)
        self._make_subnet(name, region, marked)
        if reach.public_ip(self._settings.network) != "all":
            self._make(f"regions/{region}/routers", router(name, region, marked))
        self._ready.add(region)

    def _make(self, collection: str, body: Mapping[str, Any]) -> bool:
        """False where it was there already, made by us or by another process just now."""
        path = self._compute.path(collection)
        what = f"{collection.rsplit('/')[-1]} {body['name']}"
        try:
            self._compute.call("GET", f"{path}/{body['name']}", what)
            return False
        except NotFound:
            pass
        try:
            operation = self._compute.change("POST", path, what, body=body)
            if self._compute.wait(operation, what, WAIT_S) is None:
                raise CloudRefused(f"{what}: not there after {WAIT_S:g} s; try again")
        except Conflict:
            return False
        return True

    def _update(self, rule: Mapping[str, Any]) -> None:
        """Gives a rule that is there its ranges of today: `ssh_from` may have changed."""
        if "sourceRanges" not in rule:
            return
        path = self._compute.path(f"global/firewalls/{rule['name']}")
        what = f"firewall {rule['name']}"
        present = self._compute.call("GET", path, what)
        if sorted(present.get("sourceRanges", [])) != sorted(rule["sourceRanges"]):
            changed = {"sourceRanges": rule["sourceRanges"]}
            operation = self._compute.change("PATCH", path, what, body=changed)
            self._compute.wait(operation, what, WAIT_S)

    def _make_subnet(self, name: str, region: str, marked: str) -> None:
        taken = {
            each["ipCidrRange"]
            for each in self._compute.items(
                self._compute.path("aggregated/subnetworks"),
                "subnets",
                params={"filter": f"name={name}"},
            )
            if each["name"] == name
        }
        free = next(n for n in range(_FIRST, 256) if f"10.{n}.0.0/16" not in taken)
        body = subnet(name, region, f"10.{free}.0.0/16", marked)
        self._make(f"regions/{region}/subnetworks", body)


# --- what is sent ---------------------------------------------------------------------------------


def network(name: str, marked: str) -> dict[str, Any]:
    return {
        "name": name,
        "description": marked,
        "autoCreateSubnetworks": False,
        "routingConfig": {"routingMode": "REGIONAL"},
    }


def subnet(name: str, region: str, cidr: str, marked: str) -> dict[str, Any]:
    return {
        "name": name,
        "description": marked,
        "network": f"global/networks/{name}",
        "region": region,
        "ipCidrRange": cidr,
        "privateIpGoogleAccess": True,  # gs:// without an address and without NAT's fee
    }


def firewalls(name: str, marked: str, ssh_from: list[str]) -> list[dict[str, Any]]:
    inside = {
        "name": f"{name}-inside",
        "description": marked,
        "network": f"global/networks/{name}",
        "direction": "INGRESS",
        "sourceTags": [name],
        "targetTags": [name],
        "allowed": [{"IPProtocol": each} for each in ("tcp", "udp", "icmp")],
    }
    ssh = {
        "name": f"{name}-ssh",
        "description": marked,
        "network": f"global/networks/{name}",
        "direction": "INGRESS",
        "sourceRanges": ssh_from,
        "targetTags": [f"{name}-head"],
        "allowed": [{"IPProtocol": "tcp", "ports": ["22"]}],
    }
    return [inside, ssh] if ssh_from else [inside]


def router(name: str, region: str, marked: str) -> dict[str, Any]:
    return {
        "name": name,
        "description": marked,
        "network": f"global/networks/{name}",
        "region": region,
        "nats": [
            {
                "name": name,
                "natIpAllocateOption": "AUTO_ONLY",
                "sourceSubnetworkIpRangesToNat": "ALL_SUBNETWORKS_ALL_IP_RANGES",
            }
        ],
    }


# --- tags of what takes no labels -----------------------------------------------------------------


def describe(ours: Mapping[str, str]) -> str:
    return " ".join(f"{key}={tags.plain(value)}" for key, value in ours.items())


def described(text: str | None) -> dict[str, str]:
    """What `describe` wrote."""
    pairs = (word.partition("=") for word in (text or "").split())
    return {key: value for key, mark, value in pairs if mark}
