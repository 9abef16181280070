"""Launching on EC2: what is sent, what it makes, and that a launch is never two."""

from __future__ import annotations

import base64
import gzip
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from mlcloud.cluster.clouds.aws import body as bodies
from mlcloud.cluster.clouds.aws import images, userdata
from mlcloud.cluster.clouds.aws.body import Found
from mlcloud.cluster.clouds.base import LaunchRequest
from mlcloud.errors import CloudRefused, CredentialsMissing, NoCapacity, UsageError
from tests import ec2
from tests.cluster.aws.conftest import IMAGE, KEY, REGION, Clock, offer, request

Make = Callable[..., Any]
OLDER = "ami-0000000000000old"


def fields_of(body: dict[str, Any]) -> dict[str, str]:
    """`body` as it goes over the wire, checked against botocore's own model of EC2."""
    from botocore.serialize import create_serializer
    from botocore.session import Session

    model = Session().get_service_model("ec2").operation_model("RunInstances")
    sent: dict[str, str] = create_serializer("ec2").serialize_to_request(body, model)["body"]
    return {key: _text(value) for key, value in sent.items()}


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_a_node_is_what_was_bought(cloud: Make, aws: ec2.Door, clock: Clock) -> None:
    made = cloud()
    bought = made.launch(offer(), request(session="s-1"))

    assert bought.alive
    assert bought.offer == offer()
    assert bought.node_type == "a10g"
    described = made.api.client("ec2", REGION).describe_instances()["Reservations"][0]["Instances"]
    (node,) = described
    assert node["InstanceId"] == bought.id
    assert node["InstanceType"] == "g5.xlarge"
    assert node["Placement"]["AvailabilityZone"] == "us-east-1a"
    assert node["InstanceLifecycle"] == "spot"
    assert node["ImageId"] == IMAGE
    assert node["MetadataOptions"]["HttpTokens"] == "required"
    assert node["MetadataOptions"]["HttpPutResponseHopLimit"] == 2
    assert node["MetadataOptions"]["InstanceMetadataTags"] == "enabled"
    assert node["PrivateIpAddress"] == bought.private_ip
    tags = {tag["Key"]: tag["Value"] for tag in node["Tags"]}
    assert tags["mlcloud-cluster"] == "work"
    assert tags["mlcloud-owner"] == "ann-example"
    assert tags["mlcloud-session"] == "s-1"
    assert tags["mlcloud-price"] == "0-4023"
    assert tags["mlcloud-expires"] == str(int(clock.at.timestamp()) + 7 * 86400)
    assert tags["team"] == "vision"
    assert tags["ray-user-node-type"] == "a10g"
    volume = made.api.client("ec2", REGION).describe_volumes()["Volumes"][0]
    assert (volume["VolumeType"], volume["Size"], volume["Encrypted"]) == ("gp3", 100, True)
    assert {"Key": "mlcloud-cluster", "Value": "work"} in volume["Tags"]


def test_the_configuration_shown_is_the_body_that_is_sent(cloud: Make, aws: ec2.Door) -> None:
    made = cloud()
    asked = request(instance_id="node-7")
    shown = made.configuration(offer(), asked)
    assert aws.seen == []  # nothing was asked
    assert fields_of(shown)["NetworkInterface.1.SubnetId"] == "subnet-of-us-east-1a"
    assert shown["InstanceInitiatedShutdownBehavior"] == "terminate"

    made.launch(offer(), asked)
    (sent,) = aws.calls("RunInstances")
    expected = fields_of(made.configuration(offer(), asked))
    assert {k: v for k, v in sent.items() if k not in ("Action", "Version")} == {
        k: v for k, v in expected.items() if k not in ("Action", "Version")
    }
    assert sent["MinCount"] == sent["MaxCount"] == "1"
    assert sent["InstanceMarketOptions.SpotOptions.SpotInstanceType"] == "one-time"
    assert sent["InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior"] == "terminate"
    tagged = {v for k, v in sent.items() if k.endswith("ResourceType")}
    assert tagged == {"instance", "volume", "network-interface", "spot-instances-request"}


@pytest.mark.parametrize("seed", range(20))
def test_every_body_is_one_that_botocore_takes(cloud: Make, seed: int) -> None:
    """Any combination of what can be set gives a request that fits EC2's published model."""
    pick = random.Random(seed)
    made = cloud(
        disk_gb=pick.choice([8, 100, 4000]),
        ssh_public_key=pick.choice([None, KEY]),
        image=pick.choice([None, "ami-1", "/my/image"]),
        network=pick.choice([{}, {"public_ip": "none", "subnet": "subnet-1", "key_pair": "mine"}]),
        buckets=pick.choice([(), ("mine",)]),
    )
    kind = pick.choice(["g5.xlarge", "m7g.large", "p5.48xlarge", "g5g.xlarge"])
    node_type = pick.choice(["head", "a10g"])
    body = made.configuration(
        offer(kind, market=pick.choice(["spot", "on-demand"])), request(node_type)
    )
    fields = fields_of(body)
    assert fields["InstanceType"] == kind
    assert ("InstanceMarketOptions.MarketType" in fields) == (
        "spot-instances-request" in fields.values()
    )


def test_a_launch_that_is_retried_never_starts_two(
    cloud: Make, aws: ec2.Door, clock: Clock
) -> None:
    made = cloud()
    aws.plays["RunInstances"] = [
        ec2.lose_answer,
        ec2.refuse("RequestLimitExceeded", status=503),
        ec2.break_line,
        ec2.refuse("InternalError", status=500),
    ]
    bought = made.launch(offer(), request())
    tokens = {fields["ClientToken"] for fields in aws.calls("RunInstances")}
    assert len(aws.calls("RunInstances")) == 5
    assert len(tokens) == 1
    assert [each.id for each in made.instances()] == [bought.id]
    assert clock.slept == sorted(clock.slept)  # waits longer each time
    assert 0.5 <= clock.slept[0] <= 1


def test_the_same_request_asked_for_again_is_the_same_node(
    cloud: Make, aws: ec2.Door, clock: Clock
) -> None:
    asked = request(instance_id="node-7")
    first = cloud().launch(offer(), asked)
    clock.sleep(7)  # so its tags differ
    again = cloud().launch(offer(), asked)  # another process, after a crash
    assert again.id == first.id
    other_zone = cloud().launch(offer(zone="us-east-1b"), asked)
    assert other_zone.id != first.id


def test_no_capacity_is_asked_once_and_not_five_times(
    cloud: Make, aws: ec2.Door, clock: Clock
) -> None:
    """EC2 says so with HTTP 500, on which botocore and Ray's provider would go on asking."""
    aws.plays["RunInstances"] = [ec2.refuse("InsufficientInstanceCapacity", status=500)]
    with pytest.raises(NoCapacity, match=r"g5.xlarge spot in us-east-1a \(region us-east-1\)"):
        cloud().launch(offer(), request())
    assert len(aws.calls("RunInstances")) == 1
    assert clock.slept == []


def test_nothing_is_asked_outside_the_regions(cloud: Make, aws: ec2.Door) -> None:
    made = cloud(offers=[offer(), offer(zone="eu-west-1a")])
    assert [each.region for each in made.offers()] == [REGION]
    for act in (
        lambda: made.launch(offer(zone="eu-west-1a"), request()),
        lambda: made.configuration(offer(zone="eu-west-1a"), request()),
        lambda: made.quotas("eu-west-1"),
    ):
        with pytest.raises(CloudRefused, match="eu-west-1 is outside the regions of cluster work"):
            act()
    assert aws.seen == []


def test_security_group_lets_nothing_in_from_the_world(cloud: Make, aws: ec2.Door) -> None:
    made = cloud(network={"ssh_from": "203.0.113.7"})
    made.launch(offer(), request("head"))
    ec2_client = made.api.client("ec2", REGION)
    (group,) = ec2_client.describe_security_groups(
        Filters=[{"Name": "tag-key", "Values": ["mlcloud-cluster"]}]
    )["SecurityGroups"]
    inside = [p for p in group["IpPermissions"] if p["UserIdGroupPairs"]]
    assert [p["UserIdGroupPairs"][0]["GroupId"] for p in inside] == [group["GroupId"]]
    outside = [p for p in group["IpPermissions"] if p["IpRanges"] or p.get("Ipv6Ranges")]
    assert [(p["FromPort"], p["ToPort"], p["IpRanges"][0]["CidrIp"]) for p in outside] == [
        (22, 22, "203.0.113.7/32")
    ]
    # The laptop has moved: its new address is let in, the old one no more; a head changes nothing.
    cloud(network={"ssh_from": "198.51.100.9"}).launch(offer(), request("head"))
    cloud().launch(offer(), request())
    (group,) = ec2_client.describe_security_groups(GroupIds=[group["GroupId"]])["SecurityGroups"]
    let_in = {r["CidrIp"] for p in group["IpPermissions"] for r in p["IpRanges"]}
    assert let_in == {"198.51.100.9/32"}


def test_ssh_from_me_is_this_computers_address(cloud: Make, aws: ec2.Door) -> None:
    aws.plays[""] = [lambda _: (200, b"203.0.113.9\n"), lambda _: (200, b"<html>no")]
    made = cloud(network={"ssh_from": "me"}, endpoints={"checkip": aws.url})
    made.prepare(REGION)
    allowed = aws.calls("AuthorizeSecurityGroupIngress")[0]
    assert allowed["IpPermissions.2.IpRanges.1.CidrIp"] == "203.0.113.9/32"
    with pytest.raises(CloudRefused, match=r"give it by `network\.ssh_from`"):
        cloud(network={"ssh_from": "me"}, endpoints={"checkip": aws.url}).check()


@pytest.mark.parametrize(
    ("who", "head", "worker"),
    [
        ("head", "true", "false"),
        ("all", "true", "true"),
        ("none", "false", "false"),
        ("", None, None),
    ],
)
def test_who_gets_a_public_address(
    cloud: Make, who: str, head: str | None, worker: str | None
) -> None:
    made = cloud(network={"public_ip": who})
    field = "NetworkInterface.1.AssociatePublicIpAddress"
    assert fields_of(made.configuration(offer(), request("head"))).get(field) == head
    assert fields_of(made.configuration(offer(), request())).get(field) == worker
    with pytest.raises(UsageError, match="'yes' is none of head, all, none"):
        cloud(network={"public_ip": "yes"}).check()


@pytest.mark.parametrize("world", ["0.0.0.0/0", "::/0", "0.0.0.0/1"])
def test_the_world_is_refused(cloud: Make, world: str) -> None:
    with pytest.raises(UsageError, match="lets the world in"):
        cloud(network={"ssh_from": world}).check()


def test_an_address_that_is_none_is_refused(cloud: Make) -> None:
    with pytest.raises(UsageError, match="'office' is no address"):
        cloud(network={"ssh_from": "office"}).check()


def test_the_head_may_launch_and_a_worker_may_not(cloud: Make, aws: ec2.Door) -> None:
    made = cloud(buckets=("mine",))
    made.launch(offer(), request("head"))
    made.launch(offer(), request())
    head, worker = aws.calls("RunInstances")
    assert head["IamInstanceProfile.Name"] == "mlcloud-ann-example-work-head"
    assert worker["IamInstanceProfile.Name"] == "mlcloud-ann-example-work-worker"
    iam = made.api.client("iam", REGION)
    policy = iam.get_role_policy(RoleName="mlcloud-ann-example-work-worker", PolicyName="mlcloud")
    actions = {a for s in policy["PolicyDocument"]["Statement"] for a in s["Action"]}
    assert all(action.startswith("s3:") for action in actions)
    tags = iam.list_role_tags(RoleName="mlcloud-ann-example-work-head")["Tags"]
    assert {"Key": "mlcloud-cluster", "Value": "work"} in tags


def test_a_profile_that_ec2_does_not_know_yet_is_waited_for(
    cloud: Make, aws: ec2.Door, clock: Clock
) -> None:
    unknown = "Value (x) for parameter iamInstanceProfile.name is invalid."
    aws.plays["RunInstances"] = [ec2.refuse("InvalidParameterValue", unknown)] * 3
    assert cloud().launch(offer(), request("head")).alive
    assert len(clock.slept) == 3


def test_a_subnet_that_is_gone_is_looked_up_again(cloud: Make, aws: ec2.Door) -> None:
    made = cloud()
    made.launch(offer(), request())
    aws.plays["RunInstances"] = [ec2.refuse("InvalidSubnetID.NotFound")]
    assert made.launch(offer(), request()).alive
    assert len(aws.calls("DescribeSubnets")) == 2
    aws.plays["RunInstances"] = [ec2.refuse("InvalidSubnetID.NotFound")] * 2
    with pytest.raises(CloudRefused, match="InvalidSubnetID"):
        made.launch(offer(), request())


def test_a_zone_without_a_subnet_has_no_capacity(cloud: Make, aws: ec2.Door) -> None:
    with pytest.raises(NoCapacity, match=r"no subnet for g5\.xlarge spot in us-east-1z"):
        cloud().launch(offer(zone="us-east-1z"), request())
    assert aws.calls("RunInstances") == []


def test_a_region_without_a_default_vpc_says_what_to_do(cloud: Make, aws: ec2.Door) -> None:
    made = cloud()
    client = made.api.client("ec2", REGION)
    for subnet in client.describe_subnets()["Subnets"]:
        client.delete_subnet(SubnetId=subnet["SubnetId"])
    (vpc,) = client.describe_vpcs()["Vpcs"]
    client.delete_vpc(VpcId=vpc["VpcId"])
    with pytest.raises(CloudRefused, match="us-east-1 has no default VPC: name one"):
        made.launch(offer(), request())


def test_a_changed_key_takes_the_old_ones_place(cloud: Make, aws: ec2.Door) -> None:
    cloud().launch(offer(), request())
    other = KEY.replace("AAAAIPWgg4vLCk", "AAAAIPWgg4vLCj")
    made = cloud(ssh_public_key=other)
    made.launch(offer(), request())
    (pair,) = made.api.client("ec2", REGION).describe_key_pairs(IncludePublicKey=True)["KeyPairs"]
    assert pair["KeyName"] == "mlcloud-ann-example-work"
    assert len(aws.calls("ImportKeyPair")) == 2


def test_user_data_is_compressed_beyond_ec2s_limit_and_refused_beyond_that() -> None:
    short = userdata.packed("echo hello")
    assert short == b"#!/bin/bash\necho hello"
    long = "#!/bin/sh\n" + "echo hello\n" * 5000
    packed = userdata.packed(long)
    assert len(packed) < userdata.LIMIT < len(long)
    assert gzip.decompress(packed).decode() == long
    assert userdata.packed(long) == packed
    noise = base64.b64encode(random.Random(0).randbytes(60_000)).decode()
    with pytest.raises(UsageError, match=r"too long for EC2: 80.* compressed"):
        userdata.packed(noise)


def test_long_user_data_arrives_whole(cloud: Make, aws: ec2.Door) -> None:
    script = "#!/bin/sh\n" + "echo hello\n" * 5000
    cloud().launch(offer(), replace(request(), bootstrap=script))
    (sent,) = aws.calls("RunInstances")
    assert gzip.decompress(base64.b64decode(sent["UserData"])).decode() == script


@pytest.mark.parametrize("tag", ["aws:mine", "with space", "a/b", ""])
def test_tags_that_ec2_would_not_take_are_refused(cloud: Make, aws: ec2.Door, tag: str) -> None:
    with pytest.raises(UsageError, match="is none for AWS"):
        cloud(tags={tag: "x"}).configuration(offer(), request())


@pytest.mark.parametrize(
    ("kind", "arch"),
    [
        ("g5.xlarge", "x86_64"),
        ("g5g.xlarge", "arm64"),
        ("c7gn.large", "arm64"),
        ("m7i.large", "x86_64"),
        ("im4gn.large", "arm64"),
        ("a1.large", "arm64"),
        ("p6e-gb200.36xlarge", "arm64"),
        ("p5.48xlarge", "x86_64"),
        ("g6e.xlarge", "x86_64"),
    ],
)
def test_the_architecture_is_in_the_name(kind: str, arch: str) -> None:
    assert images.architecture(kind) == arch


def test_without_an_image_the_clouds_own_is_taken(cloud: Make, aws: ec2.Door) -> None:
    """By AWS's public parameter; where that may not be read, the newest of the owner's."""
    from botocore.stub import Stubber

    made = cloud(image=None)
    name = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
    with Stubber(made.api.client("ssm", REGION)) as stub:
        stub.add_response("get_parameter", {"Parameter": {"Value": OLDER}}, {"Name": name})
        made.launch(offer("m5.xlarge"), request())
        stub.assert_no_pending_responses()
    cloud(image=None).launch(offer("m5.xlarge"), request())  # moto has no such parameter
    assert [sent["ImageId"] for sent in aws.calls("RunInstances")] == [OLDER, IMAGE]


def test_a_gpu_gets_the_image_that_has_its_driver(cloud: Make) -> None:
    from botocore.stub import Stubber

    made = cloud(image=None)
    gpu = images.choice(None, offer())
    assert gpu.parameter.endswith("x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id")
    listed = {
        "ImageId": "ami-gpu",
        "RootDeviceName": "/dev/sda1",
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 120}}],
    }
    with (
        Stubber(made.api.client("ssm", REGION)) as ssm,
        Stubber(made.api.client("ec2", REGION)) as stub,
    ):
        ssm.add_response("get_parameter", {"Parameter": {"Value": "ami-gpu"}})
        stub.add_response("describe_images", {"Images": [listed]}, {"ImageIds": ["ami-gpu"]})
        image = images.find(made.api, REGION, gpu)
    assert image == images.Image("ami-gpu", "/dev/sda1", 120)
    found = Found(image, "subnet-1", ("sg-1",))
    body = bodies.body(made.settings, offer(), request(), found, made._now())
    assert body["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] == 120  # 100 were asked for


@pytest.mark.parametrize("kind", ["trn1.2xlarge", "inf2.xlarge", "g4ad.xlarge"])
def test_accelerators_without_an_image_of_ours_ask_for_one(cloud: Make, kind: str) -> None:
    with pytest.raises(UsageError, match=f"{kind} has no NVIDIA GPU"):
        cloud(image=None).configuration(offer(kind, accelerator="X"), request())


def test_an_image_that_is_none(cloud: Make) -> None:
    with pytest.raises(UsageError, match="image 'ubuntu' is none for AWS"):
        cloud(image="ubuntu").configuration(offer(), request())


def test_a_head_and_a_hundred_nodes_come_and_go(cloud: Make, aws: ec2.Door, clock: Clock) -> None:
    """0 → 100 → 0 from eight threads: each is billed from its launch to its end, none is left."""
    made = cloud()
    made.launch(offer(), request("head"))
    markets = ["spot", "on-demand"]
    offers = [offer(zone=f"us-east-1{z}", market=m) for z in "abc" for m in markets]  # type: ignore[arg-type]
    threads: set[int] = set()

    def launch(n: int) -> str:
        threads.add(threading.get_ident())
        return str(made.launch(offers[n % 6], request(instance_id=f"n-{n}")).id)

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(launch, range(100)))
    assert len(set(ids)) == 100
    assert len(threads) > 1
    assert len(aws.calls("CreateSecurityGroup")) == 1
    alive = [each for each in made.instances() if each.alive]
    assert {each.id for each in alive if each.node_type == "a10g"} == set(ids)

    started = clock.at
    clock.sleep(3600)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda id: made.terminate(id, "idle"), ids))
    ended = [each for each in made.instances() if each.node_type == "a10g"]
    assert len(ended) == 100
    assert all(each.reason == "idle" and each.ended_at == clock.at for each in ended)
    hours = sum((each.ended_at - started).total_seconds() for each in ended if each.ended_at) / 3600
    assert hours == 100
    assert sum(each.offer.usd_per_hour for each in ended) == 100 * Decimal("0.4023")
    (head,) = [each for each in made.leftovers(clock.at) if each.kind == "instance"]
    assert head.tags["mlcloud-node-type"] == "head"
    volumes = made.api.client("ec2", REGION).describe_volumes()["Volumes"]
    assert len(volumes) == 1  # the head's


def test_without_boto3_one_line_says_what_to_install(
    cloud: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    for act in (
        lambda c: c.check(),
        lambda c: c.launch(offer(), request()),
        lambda c: c.instances(),
    ):
        with pytest.raises(CredentialsMissing) as raised:
            act(cloud())
        assert str(raised.value) == (
            'the cloud is aws, and boto3 is not installed here: pip install "mlcloud[aws]"'
        )


def test_a_plan_needs_neither_boto3_nor_ray() -> None:
    """`mlcloud plan` shows a body on a computer that has neither."""
    code = """
import sys
sys.modules.update(boto3=None, botocore=None, ray=None)
from tests.cluster.aws.conftest import SETTINGS, offer, request
from mlcloud.cluster.clouds.aws import AwsCloud
print(AwsCloud(SETTINGS, [offer()]).configuration(offer(), request())["InstanceType"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "g5.xlarge"


def test_a_request_without_a_script_or_key(cloud: Make, aws: ec2.Door) -> None:
    made = cloud(ssh_public_key=None)
    assert made.launch(offer(), LaunchRequest("a10g", {})).alive
    (sent,) = aws.calls("RunInstances")
    assert "KeyName" not in sent
    assert "UserData" not in sent
