"""Nothing is left: what a cluster made is found by its tags, and goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from mlcloud.cluster.clouds.base import CloudWithLeftovers, Leftover
from mlcloud.errors import CloudRefused, UsageError
from tests import ec2
from tests.cluster.aws.conftest import IMAGE, REGION, Clock, offer, request

Make = Callable[..., Any]
WEEK = 7 * 86400


def sweep(cloud: CloudWithLeftovers, clock: Clock) -> list[str]:
    """What `down` does; the kinds that went, in order."""
    found = cloud.leftovers(clock())
    for each in found:
        cloud.remove(each)
    return [each.kind for each in found]


def tagged(made: Any) -> dict[str, list[Any]]:
    """Everything in the account that carries a tag of ours, by any `describe_`."""
    client = made.api.client("ec2", REGION)
    iam = made.api.client("iam", REGION)
    ours = [{"Name": "tag-key", "Values": ["mlcloud-cluster"]}]
    instances = [
        each["InstanceId"]
        for reservation in client.describe_instances(Filters=ours)["Reservations"]
        for each in reservation["Instances"]
        if each["State"]["Name"] not in ("shutting-down", "terminated")
    ]
    found = {
        "instances": instances,
        "volumes": client.describe_volumes(Filters=ours)["Volumes"],
        "interfaces": client.describe_network_interfaces(Filters=ours)["NetworkInterfaces"],
        "addresses": client.describe_addresses(Filters=ours)["Addresses"],
        "groups": client.describe_security_groups(Filters=ours)["SecurityGroups"],
        "keys": client.describe_key_pairs(Filters=ours)["KeyPairs"],
        "roles": iam.list_roles(PathPrefix="/mlcloud/")["Roles"],
        "profiles": iam.list_instance_profiles(PathPrefix="/mlcloud/")["InstanceProfiles"],
    }
    return {kind: there for kind, there in found.items() if there}


def test_down_leaves_nothing(cloud: Make, aws: ec2.Door, clock: Clock) -> None:
    made = cloud(buckets=("mine",), network={"ssh_from": "203.0.113.7"})
    made.launch(offer(market="on-demand"), request("head"))
    for _ in range(3):
        made.launch(offer(), request())
    client = made.api.client("ec2", REGION)
    tags = [
        {"Key": "mlcloud-cluster", "Value": "work"},
        {"Key": "mlcloud-owner", "Value": "ann-example"},
    ]
    client.create_volume(
        AvailabilityZone="us-east-1a",
        Size=73,
        VolumeType="gp3",
        TagSpecifications=[{"ResourceType": "volume", "Tags": tags}],
    )
    subnet = client.describe_subnets()["Subnets"][0]["SubnetId"]
    client.create_network_interface(
        SubnetId=subnet, TagSpecifications=[{"ResourceType": "network-interface", "Tags": tags}]
    )
    client.allocate_address(
        Domain="vpc", TagSpecifications=[{"ResourceType": "elastic-ip", "Tags": tags}]
    )
    assert {"instances", "volumes", "groups", "keys", "roles", "profiles"} <= set(tagged(made))

    listed = {(each.kind, each.usd_per_hour) for each in made.leftovers(clock())}
    assert ("instance", Decimal("0.4023")) in listed
    assert ("volume", Decimal("0.008")) in listed
    assert ("address", Decimal("0.005")) in listed
    assert ("security-group", Decimal(0)) in listed

    went = sweep(made, clock)
    assert went == [
        *["instance"] * 4,
        "network-interface",
        "volume",
        "address",
        "security-group",
        "key-pair",
        *["instance-profile"] * 2,
        *["role"] * 2,
    ]
    assert tagged(made) == {}
    assert made.leftovers(clock()) == []
    assert [each.alive for each in made.instances()] == [False] * 4


def test_removing_twice_is_removing_once(cloud: Make, aws: ec2.Door, clock: Clock) -> None:
    made = cloud(buckets=("mine",))
    made.launch(offer(), request("head"))
    found = made.leftovers(clock())
    for each in [*found, *found]:
        made.remove(each)
    assert tagged(made) == {}


def test_a_group_that_a_dying_machine_holds_is_waited_for(
    cloud: Make, aws: ec2.Door, clock: Clock
) -> None:
    made = cloud()
    made.launch(offer(), request())
    aws.plays["DeleteSecurityGroup"] = [ec2.refuse("DependencyViolation")] * 3
    sweep(made, clock)
    assert len(clock.slept) == 3
    assert tagged(made) == {}
    made.launch(offer(), request())
    aws.plays["DeleteSecurityGroup"] = [ec2.refuse("DependencyViolation")] * 1000
    with pytest.raises(CloudRefused, match=r"security-group sg-.* is still held after 300 s"):
        sweep(made, clock)


def test_a_crashed_laptops_cluster_is_found_when_it_has_expired(
    cloud: Make, aws: ec2.Door, clock: Clock
) -> None:
    crashed = cloud(cluster="crashed")
    crashed.launch(offer(), request("head"))
    collector = cloud()
    assert collector.leftovers(clock()) == []
    clock.sleep(WEEK + 3600)
    found = collector.leftovers(clock())
    assert [each.kind for each in found] == [
        "instance",
        "security-group",
        "key-pair",
        "instance-profile",
        "role",
    ]
    assert found[0].why.startswith("cluster crashed of ann-example expired 1 h")
    assert found[0].tags["mlcloud-cluster"] == "crashed"
    sweep(collector, clock)
    assert tagged(collector) == {}


def test_what_a_living_cluster_uses_is_no_leftover_however_old(
    cloud: Make, aws: ec2.Door, clock: Clock
) -> None:
    """Its group was made long ago; a machine of it has not expired."""
    living = cloud(cluster="living", lifetime_s=WEEK)
    first = living.launch(offer(), request("head"))
    clock.sleep(WEEK - 3600)
    living.terminate(first.id, "over")
    living.launch(offer(), request("head"))
    clock.sleep(7200)
    assert cloud().leftovers(clock()) == []
    # Another process of it takes the group up again, and moves its expiry.
    cloud(cluster="living").launch(offer(), request())
    client = living.api.client("ec2", REGION)
    (group,) = client.describe_security_groups(
        Filters=[{"Name": "tag:mlcloud-cluster", "Values": ["living"]}]
    )["SecurityGroups"]
    until = {tag["Key"]: tag["Value"] for tag in group["Tags"]}["mlcloud-expires"]
    assert int(until) == int(clock().timestamp()) + WEEK


def test_what_carries_no_tag_of_ours_is_never_touched(
    cloud: Make, aws: ec2.Door, clock: Clock
) -> None:
    made = cloud()
    client, iam = made.api.client("ec2", REGION), made.api.client("iam", REGION)
    client.run_instances(ImageId=IMAGE, InstanceType="m5.large", MinCount=1, MaxCount=1)
    group = client.create_security_group(GroupName="theirs", Description="x")["GroupId"]
    iam.create_role(RoleName="theirs", Path="/mlcloud/", AssumeRolePolicyDocument=json.dumps({}))
    clock.sleep(10 * WEEK)
    assert made.leftovers(clock()) == []
    client.create_security_group(GroupName="mlcloud-ann-example-work", Description="theirs too")
    with pytest.raises(CloudRefused, match="does not carry this cluster's tags: it is not touched"):
        made.launch(offer(), request())
    assert client.describe_security_groups(GroupIds=[group])["SecurityGroups"]


def test_an_unknown_kind_is_refused(cloud: Make) -> None:
    with pytest.raises(UsageError, match="removing a moon"):
        cloud().remove(Leftover("moon", "m-1", REGION, {}, None, ""))


def test_leftovers_outside_the_regions_are_refused(cloud: Make, aws: ec2.Door) -> None:
    with pytest.raises(CloudRefused, match="eu-west-1 is outside"):
        cloud().remove(Leftover("volume", "vol-1", "eu-west-1", {}, None, ""))
    assert aws.seen == []


def test_each_listing_is_one_that_ec2_has() -> None:
    """Against EC2's own model: moto lacks some of them, and would not tell of a wrong field."""
    from botocore import xform_name
    from botocore.session import Session

    from mlcloud.cluster.clouds.aws.leftovers import KINDS

    model = Session().get_service_model("ec2")
    operations = {xform_name(name): name for name in model.operation_names}
    pages = Session().create_client("ec2", REGION, aws_access_key_id="x", aws_secret_access_key="x")
    for kind in KINDS:
        operation = model.operation_model(operations[kind.operation])
        assert "Filters" in operation.input_shape.members
        shape = operation.output_shape.members[kind.field].member
        if kind.kind == "instance":
            shape = shape.members["Instances"].member
        assert kind.id in shape.members
        assert {"Tags", "TagSet"} & set(shape.members), kind.kind
        if kind.states:
            state = shape.members.get("State") or shape.members["Status"]
            known = (state.members["Name"] if state.type_name == "structure" else state).enum
            assert set(kind.states) <= set(known), kind.kind
        assert pages.can_paginate(kind.operation) == kind.paged
