"""Where a node is put: one VPC a region, its subnet of the offer's zone, and a security group.

The group lets everything through between the cluster's own nodes and nothing in from the world; SSH
from `network.ssh_from` alone (addresses or CIDRs; `me` is this computer's address as AWS sees it).

    settings.network   vpc, subnet (ids), security_group (ids): yours, used as they are
    otherwise          the region's default VPC and its subnets; the group is made, tagged, and goes
                       with `down`
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any

from mlcloud.cluster.clouds import reach, tags
from mlcloud.cluster.clouds.aws import names
from mlcloud.cluster.clouds.aws.api import Api, as_filters, as_tags, from_tags
from mlcloud.cluster.clouds.aws.refusals import code_of
from mlcloud.cluster.clouds.base import CloudSettings
from mlcloud.cluster.offers import Offer
from mlcloud.errors import CloudRefused, NoCapacity, UsageError

SSH = 22


class Network:
    """The network of one cluster, looked up once for each region. Safe from several threads."""

    def __init__(self, api: Api, settings: CloudSettings, now: Callable[[], datetime]) -> None:
        self.api, self.settings, self._now = api, settings, now
        self._subnets: dict[str, list[dict[str, Any]]] = {}
        self._groups: dict[str, tuple[str, ...]] = {}
        self._lock = threading.RLock()

    # --- what a launch asks -----------------------------------------------------------------------

    def subnet(self, offer: Offer) -> str:
        """The subnet of the offer's zone. Raises `NoCapacity` where there is none."""
        fitting = [each for each in self.subnets(offer.region) if _zone(each) == offer.zone]
        if not fitting:
            zones = sorted({_zone(each) for each in self.subnets(offer.region)})
            raise NoCapacity(
                f"no subnet for {offer.instance_type} {offer.market} in {offer.zone} (region "
                f"{offer.region}): there are some in {', '.join(zones) or 'no zone'}; make one, or "
                "name others by `network.subnet`"
            )
        return str(max(fitting, key=_preferred)["SubnetId"])

    def groups(self, region: str) -> tuple[str, ...]:
        """The security groups of every node; ours is made where there is none yet."""
        given = names.values(self.settings.network.get("security_group", ""))
        if given:
            return given
        with self._lock:
            if region not in self._groups:
                self._groups[region] = (self._group(region, self._vpc(region)),)
            return self._groups[region]

    def known(self, offer: Offer) -> tuple[str, tuple[str, ...]]:
        """Subnet and groups as far as they are known without asking; else what they will be."""
        fitting = [
            each for each in self._subnets.get(offer.region, []) if _zone(each) == offer.zone
        ]
        subnet = max(fitting, key=_preferred)["SubnetId"] if fitting else f"subnet-of-{offer.zone}"
        given = names.values(self.settings.network.get("security_group", ""))
        made = (f"group-{names.cluster_name(self.settings)}",)
        return subnet, given or self._groups.get(offer.region, made)

    def forget(self, region: str) -> None:
        """Look again: something of it is gone."""
        with self._lock:
            self._subnets.pop(region, None)
            self._groups.pop(region, None)

    # --- subnets ----------------------------------------------------------------------------------

    def subnets(self, region: str) -> list[dict[str, Any]]:
        with self._lock:
            if region not in self._subnets:
                ec2 = self.api.client("ec2", region)
                given = names.values(self.settings.network.get("subnet", ""))
                if given:
                    asked: dict[str, Any] = {"SubnetIds": list(given)}
                else:
                    asked = {
                        "Filters": as_filters(vpc_id=self._vpc(region), state="available"),
                    }
                self._subnets[region] = list(
                    self.api.pages(ec2, "describe_subnets", "Subnets", **asked)
                )
            return self._subnets[region]

    def _vpc(self, region: str) -> str:
        given = self.settings.network.get("vpc", "")
        if given:
            return given
        if self.settings.network.get("subnet"):
            vpcs = sorted({str(each["VpcId"]) for each in self.subnets(region)})
            if len(vpcs) != 1:
                raise UsageError(
                    f"`network.subnet` names subnets of {len(vpcs)} VPCs ({', '.join(vpcs)}): "
                    "nodes in different ones do not reach each other; name subnets of one"
                )
            return vpcs[0]
        ec2 = self.api.client("ec2", region)
        listed = ec2.describe_vpcs(Filters=as_filters(is_default="true"))["Vpcs"]
        if not listed:
            raise CloudRefused(
                f"{region} has no default VPC: name one by `network.vpc` or subnets by "
                f"`network.subnet`, or make it: aws ec2 create-default-vpc --region {region}"
            )
        return str(listed[0]["VpcId"])

    # --- the security group -----------------------------------------------------------------------

    def _group(self, region: str, vpc: str) -> str:
        name = names.cluster_name(self.settings)
        ec2 = self.api.client("ec2", region)
        group = self._find_group(ec2, vpc, name) or self._make_group(ec2, vpc, name)
        group_id = str(group["GroupId"])
        _keep_tagged(ec2, group_id, from_tags(group.get("Tags")), self.settings, self._now())
        self._set_rules(ec2, group_id, group.get("IpPermissions", []))
        return group_id

    def _find_group(self, ec2: Any, vpc: str, name: str) -> dict[str, Any] | None:
        asked = as_filters(vpc_id=vpc, group_name=name)
        found: list[dict[str, Any]] = ec2.describe_security_groups(Filters=asked)["SecurityGroups"]
        for group in found:
            if from_tags(group.get("Tags")).get(tags.CLUSTER) != tags.plain(self.settings.cluster):
                raise CloudRefused(
                    f"security group {group['GroupId']} in {vpc} is called {name} and does not "
                    "carry this cluster's tags: it is not touched; remove or rename it"
                )
            return group
        return None

    def _make_group(self, ec2: Any, vpc: str, name: str) -> dict[str, Any]:
        from botocore.exceptions import ClientError

        made = tags.of_resource(self.settings, self._now())
        try:
            answer = ec2.create_security_group(
                GroupName=name,
                Description="mlcloud: the cluster's own nodes",
                VpcId=vpc,
                TagSpecifications=[
                    {
                        "ResourceType": "security-group",
                        "Tags": as_tags({"Name": name, **made}),
                    }
                ],
            )
        except ClientError as error:
            found = self._find_group(ec2, vpc, name)
            if code_of(error) != "InvalidGroup.Duplicate" or found is None:
                raise
            return found  # somebody of this cluster was faster
        return {"GroupId": answer["GroupId"], "Tags": as_tags(made)}

    def _set_rules(self, ec2: Any, group_id: str, present: list[dict[str, Any]]) -> None:
        """All between the nodes; SSH from `ssh_from` and from nowhere else, where it is given."""
        from botocore.exceptions import ClientError

        sources = ssh_sources(self.settings)
        wanted = [_inside(group_id), *(_ssh(source) for source in sources)]
        have = [rule for each in present for rule in _single(each)]
        missing = [rule for rule in wanted if rule not in have]
        # Without `ssh_from` (the head itself) the laptop's rule stays; an address it had goes.
        stale = [rule for rule in have if sources and _is_ssh(rule) and rule not in wanted]
        if missing:
            try:
                ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=missing)
            except ClientError as error:
                if code_of(error) != "InvalidPermission.Duplicate":
                    raise
        if stale:
            ec2.revoke_security_group_ingress(GroupId=group_id, IpPermissions=stale)


def ssh_sources(settings: CloudSettings) -> list[str]:
    return reach.ssh_from(settings.network, settings.endpoints.get("checkip", reach.CHECKIP))


def _keep_tagged(
    ec2: Any, resource: str, present: dict[str, str], settings: CloudSettings, now: datetime
) -> None:
    """Move the expiry of something that is used again, before `gc` takes it for left behind."""
    until = tags.read_time(present.get(tags.EXPIRES))
    if until is None or (until - now).total_seconds() < settings.lifetime_s / 2:
        ec2.create_tags(Resources=[resource], Tags=as_tags(tags.of_resource(settings, now)))


def _zone(subnet: dict[str, Any]) -> str:
    return str(subnet["AvailabilityZone"])


def _preferred(subnet: dict[str, Any]) -> tuple[bool, int]:
    """One whose nodes reach the internet by themselves, then the one with most free addresses."""
    return bool(subnet.get("MapPublicIpOnLaunch")), int(subnet.get("AvailableIpAddressCount", 0))


def _inside(group_id: str) -> dict[str, Any]:
    return {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group_id}]}


def _ssh(source: str) -> dict[str, Any]:
    ports = {"IpProtocol": "tcp", "FromPort": SSH, "ToPort": SSH}
    if ":" in source:
        return {**ports, "Ipv6Ranges": [{"CidrIpv6": source}]}
    return {**ports, "IpRanges": [{"CidrIp": source}]}


def _single(permission: dict[str, Any]) -> list[dict[str, Any]]:
    """One of EC2's permissions as rules with one source each, written as ours are."""
    fields = ("IpProtocol", "FromPort", "ToPort")
    ports: dict[str, Any] = {key: permission[key] for key in fields if key in permission}
    if ports.get("IpProtocol") == "-1":
        ports = {"IpProtocol": "-1"}
    rules: list[dict[str, Any]] = [
        {**ports, "UserIdGroupPairs": [{"GroupId": pair["GroupId"]}]}
        for pair in permission.get("UserIdGroupPairs", [])
    ]
    rules += [
        {**ports, "IpRanges": [{"CidrIp": each["CidrIp"]}]}
        for each in permission.get("IpRanges", [])
    ]
    rules += [
        {**ports, "Ipv6Ranges": [{"CidrIpv6": each["CidrIpv6"]}]}
        for each in permission.get("Ipv6Ranges", [])
    ]
    return rules


def _is_ssh(rule: dict[str, Any]) -> bool:
    return rule.get("FromPort") == SSH and "UserIdGroupPairs" not in rule
