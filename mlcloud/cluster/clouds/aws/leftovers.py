"""What is still in the account, by tags, and how it goes.

    spot requests → instances → network interfaces → volumes → addresses → placement groups
    → security groups → key pairs → instance profiles → roles

is the order in which one thing holds the next. Listed is what carries this cluster's tags, and what
any cluster of mlcloud's left whose tags have expired, unless that cluster still has a machine that
has not (then its group and key are in use).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from mlcloud.cluster.clouds import tags
from mlcloud.cluster.clouds.aws import names
from mlcloud.cluster.clouds.aws.api import Api, as_filters, from_tags
from mlcloud.cluster.clouds.aws.machines import UNFINISHED
from mlcloud.cluster.clouds.aws.refusals import Errand, code_of
from mlcloud.cluster.clouds.base import CloudSettings, Leftover
from mlcloud.errors import CloudRefused, UsageError
from mlcloud.units import format_seconds

HELD_S = 300.0  # an ended machine lets go of its group within minutes
_BETWEEN_S = 3.0
_HOURS_A_MONTH = 730

# USD a GB-month of gp3 (https://aws.amazon.com/ebs/pricing/, 2025-03-02), where it is known.
_GP3 = {
    "us-east-1": Decimal("0.08"),
    "us-east-2": Decimal("0.08"),
    "us-west-2": Decimal("0.08"),
    "eu-west-1": Decimal("0.088"),
    "eu-central-1": Decimal("0.0952"),
}
# USD an hour for a public IPv4 address, in use or not (https://aws.amazon.com/vpc/pricing/).
_ADDRESS = Decimal("0.005")
_FREE = Decimal(0)


@dataclass(frozen=True)
class _Listing:
    """One kind of thing: how it is listed, what identifies it, and in which states it is left."""

    kind: str
    operation: str
    field: str
    id: str
    states: tuple[str, ...] = ()
    paged: bool = True


# An interface or volume that is attached goes with its machine.
KINDS = (
    _Listing(
        "spot-request",
        "describe_spot_instance_requests",
        "SpotInstanceRequests",
        "SpotInstanceRequestId",
        ("open", "active"),
    ),
    _Listing("instance", "describe_instances", "Reservations", "InstanceId", UNFINISHED),
    _Listing(
        "network-interface",
        "describe_network_interfaces",
        "NetworkInterfaces",
        "NetworkInterfaceId",
        ("available",),
    ),
    _Listing("volume", "describe_volumes", "Volumes", "VolumeId", ("available", "error")),
    _Listing("address", "describe_addresses", "Addresses", "AllocationId", paged=False),
    _Listing(
        "placement-group", "describe_placement_groups", "PlacementGroups", "GroupName", paged=False
    ),
    _Listing("security-group", "describe_security_groups", "SecurityGroups", "GroupId"),
    _Listing("key-pair", "describe_key_pairs", "KeyPairs", "KeyName", paged=False),
)


class Leftovers:
    """The leftovers in one cluster's regions."""

    def __init__(self, api: Api, settings: CloudSettings) -> None:
        self.api, self.settings = api, settings
        self.sleep: Callable[[float], None] = time.sleep

    # --- finding ----------------------------------------------------------------------------------

    def find(self, now: datetime) -> list[Leftover]:
        found: list[Leftover] = []
        for region in self.settings.regions:
            with self.api.telling(Errand("listing what is left", region)):
                found += self._in_region(region)
        if self.settings.regions:
            region = self.settings.regions[0]
            with self.api.telling(Errand("listing roles", region)):
                found += self._roles(region)
        order = [listing.kind for listing in KINDS] + ["instance-profile", "role"]
        in_use = {
            _cluster(each.tags)
            for each in found
            if each.kind == "instance" and not tags.expired(each.tags, now)
        }
        kept = []
        for each in found:
            why = self._why(each, in_use, now)
            if why:
                kept.append(_with_why(each, why))
        return sorted(kept, key=lambda each: order.index(each.kind))

    def _why(self, each: Leftover, in_use: set[tuple[str, str]], now: datetime) -> str:
        owner, cluster = _cluster(each.tags)
        mine = (tags.plain(self.settings.owner), tags.plain(self.settings.cluster))
        if (owner, cluster) == mine:
            return f"it belongs to cluster {cluster}"
        if not tags.expired(each.tags, now):
            return ""
        if (owner, cluster) in in_use and each.kind != "instance":
            return ""
        until = tags.read_time(each.tags[tags.EXPIRES])
        assert until is not None
        return f"cluster {cluster} of {owner} expired {format_seconds(now - until)} ago"

    def _in_region(self, region: str) -> Iterator[Leftover]:
        ec2 = self.api.client("ec2", region)
        for listing in KINDS:
            filters = as_filters(tag_key=tags.CLUSTER)
            if listing.paged:
                listed = self.api.pages(ec2, listing.operation, listing.field, Filters=filters)
            else:
                answer = getattr(ec2, listing.operation)(Filters=filters)
                listed = iter(answer.get(listing.field, []))
            for each in listed:
                for one in each["Instances"] if listing.kind == "instance" else [each]:
                    carried = from_tags(one.get("Tags") or one.get("TagSet"))  # of interfaces
                    if tags.CLUSTER in carried and _left(one, listing.states):
                        cost = _cost(listing.kind, one, carried, region)
                        yield Leftover(
                            listing.kind, str(one[listing.id]), region, carried, cost, ""
                        )

    def _roles(self, region: str) -> Iterator[Leftover]:
        """Roles and profiles: those under our path, which belong to no region."""
        iam = self.api.client("iam", region)
        for profile in self.api.pages(
            iam, "list_instance_profiles", "InstanceProfiles", PathPrefix=names.ROLE_PATH
        ):
            name = profile["InstanceProfileName"]
            whole = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
            carried = from_tags(whole.get("Tags"))  # a listing does not have them
            if tags.CLUSTER in carried:
                yield Leftover("instance-profile", name, "", carried, _FREE, "")
        for role in self.api.pages(iam, "list_roles", "Roles", PathPrefix=names.ROLE_PATH):
            name = role["RoleName"]
            carried = from_tags(iam.get_role(RoleName=name)["Role"].get("Tags"))
            if tags.CLUSTER in carried:
                yield Leftover("role", name, "", carried, _FREE, "")

    # --- removing ---------------------------------------------------------------------------------

    def remove(self, leftover: Leftover) -> None:
        region = leftover.region or self.settings.regions[0]
        removals: dict[str, Callable[[Any, str], None]] = {
            "spot-request": lambda ec2, id: ec2.cancel_spot_instance_requests(
                SpotInstanceRequestIds=[id]
            ),
            "instance": lambda ec2, id: ec2.terminate_instances(InstanceIds=[id]),
            "network-interface": lambda ec2, id: ec2.delete_network_interface(
                NetworkInterfaceId=id
            ),
            "volume": lambda ec2, id: ec2.delete_volume(VolumeId=id),
            "address": _release,
            "placement-group": lambda ec2, id: ec2.delete_placement_group(GroupName=id),
            "security-group": lambda ec2, id: ec2.delete_security_group(GroupId=id),
            "key-pair": lambda ec2, id: ec2.delete_key_pair(KeyName=id),
            "instance-profile": _delete_profile,
            "role": _delete_role,
        }
        if leftover.kind not in removals:
            raise UsageError(f"nothing is known of removing a {leftover.kind} ({leftover.id})")
        service = "iam" if leftover.kind in ("instance-profile", "role") else "ec2"
        client = self.api.client(service, region)
        with self.api.telling(Errand(f"removing {leftover.kind} {leftover.id}", region)):
            self._until_free(lambda: removals[leftover.kind](client, leftover.id), leftover)

    def _until_free(self, remove: Callable[[], None], leftover: Leftover) -> None:
        """Again while something that is about to go still holds it."""
        from botocore.exceptions import ClientError

        held = {
            "DependencyViolation",
            "VolumeInUse",
            "InvalidPlacementGroup.InUse",
            "DeleteConflict",
        }
        waited = 0.0
        while True:
            try:
                return remove()
            except ClientError as error:
                code = code_of(error)
                if code in {"NoSuchEntity"} or code.endswith((".NotFound", ".Unknown")):
                    return None
                if code not in held:
                    raise
                if waited >= HELD_S:
                    raise CloudRefused(
                        f"{leftover.kind} {leftover.id} in {leftover.region or 'IAM'} is still "
                        f"held after {HELD_S:g} s ({code}): end what uses it, then sweep again"
                    ) from error
            self.sleep(_BETWEEN_S)
            waited += _BETWEEN_S


def _left(listed: Mapping[str, Any], states: tuple[str, ...]) -> bool:
    state = listed.get("State") or listed.get("Status")
    return not states or (state["Name"] if isinstance(state, dict) else state) in states


def _release(ec2: Any, allocation: str) -> None:
    for each in ec2.describe_addresses(AllocationIds=[allocation])["Addresses"]:
        if each.get("AssociationId"):
            ec2.disassociate_address(AssociationId=each["AssociationId"])
    ec2.release_address(AllocationId=allocation)


def _delete_profile(iam: Any, name: str) -> None:
    profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
    for role in profile["Roles"]:
        iam.remove_role_from_instance_profile(InstanceProfileName=name, RoleName=role["RoleName"])
    iam.delete_instance_profile(InstanceProfileName=name)


def _delete_role(iam: Any, name: str) -> None:
    for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]:
        iam.delete_role_policy(RoleName=name, PolicyName=policy)
    iam.delete_role(RoleName=name)


def _cluster(carried: Mapping[str, str]) -> tuple[str, str]:
    return carried.get(tags.OWNER, ""), carried.get(tags.CLUSTER, "")


def _cost(
    kind: str, listed: Mapping[str, Any], carried: Mapping[str, str], region: str
) -> Decimal | None:
    if kind == "instance":
        if listed["State"]["Name"] in ("stopping", "stopped"):
            return None  # its disk, whose size is not told here
        return tags.read_price(carried.get(tags.PRICE))
    if kind == "volume":
        month = _GP3.get(region) if listed.get("VolumeType") == "gp3" else None
        return None if month is None else month * int(listed["Size"]) / _HOURS_A_MONTH
    return _ADDRESS if kind == "address" else _FREE


def _with_why(each: Leftover, why: str) -> Leftover:
    return Leftover(each.kind, each.id, each.region, each.tags, each.usd_per_hour, why)
