"""What is listed: the living, the ended with reason and time, and what EC2 does not show yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from mlcloud.cluster.clouds.aws import machines
from tests import ec2
from tests.cluster.aws.conftest import REGION, Clock, offer, request

Make = Callable[..., Any]

EMPTY = b"""<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">
<requestId>x</requestId><reservationSet/></DescribeInstancesResponse>"""


def nothing(_: Any) -> ec2.Answer:
    return 200, EMPTY


def test_a_new_head_knows_what_its_machines_cost(cloud: Make, aws: ec2.Door) -> None:
    """From tags and catalogue alone, in another process."""
    bought = cloud().launch(offer(price="0.3999"), request())
    (seen,) = cloud().instances()
    assert seen.id == bought.id
    assert seen.offer == replace(offer(), usd_per_hour=Decimal("0.3999"))
    assert (seen.private_ip, seen.node_type) == (bought.private_ip, "a10g")
    # The catalogue sells it no more: EC2 knows the type.
    (seen,) = cloud(offers=[]).instances()
    assert (seen.offer.cpus, seen.offer.memory_bytes) == (4, 16 * 2**30)
    assert (seen.offer.accelerator, seen.offer.accelerator_count) == ("A10G", 1)
    assert (seen.offer.market, seen.offer.usd_per_hour) == ("spot", Decimal("0.3999"))
    assert (seen.offer.region, seen.offer.zone) == (REGION, "us-east-1a")


def test_other_clusters_are_not_ours(cloud: Make, aws: ec2.Door) -> None:
    other = cloud(cluster="other").launch(offer(), request())
    namesake = cloud(owner="bob").launch(offer(), request())
    mine = cloud().launch(offer(), request())
    assert [each.id for each in cloud().instances()] == [mine.id]
    cloud().terminate(other.id, "by mistake")
    cloud().terminate(namesake.id, "by mistake")
    assert all(each.alive for each in cloud(cluster="other").instances())
    assert all(each.alive for each in cloud(owner="bob").instances())


def test_what_ec2_does_not_list_yet_is_there(cloud: Make, aws: ec2.Door, clock: Clock) -> None:
    made = cloud()
    bought = made.launch(offer(), request())
    aws.plays["DescribeInstances"] = [nothing] * 2
    assert [each.id for each in made.instances() if each.alive] == [bought.id]
    clock.sleep(600)
    (gone,) = made.instances()
    assert (gone.alive, gone.reason) == (False, "AWS does not list it")
    assert gone.ended_at == bought.launched_at + timedelta(minutes=5)
    (back,) = made.instances()  # EC2 lists it after all: it bills
    assert back.alive


def test_what_was_ended_is_ended_though_ec2_lists_it_as_running(
    cloud: Make, aws: ec2.Door, clock: Clock
) -> None:
    made = cloud()
    bought = made.launch(offer(), request())
    stale: list[ec2.Answer] = []
    aws.plays["DescribeInstances"] = [lambda ask: stale.append(ask()) or stale[0]]
    made.instances()
    made.terminate(bought.id, "session closed")
    at = clock.at
    clock.sleep(60)
    aws.plays["DescribeInstances"] = [lambda _: stale[0]]
    for _ in range(2):
        (ended,) = made.instances()
        assert (ended.ended_at, ended.reason) == (at, "session closed")


def test_terminating_is_idempotent(cloud: Make, aws: ec2.Door) -> None:
    made = cloud()
    bought = made.launch(offer(), request())
    for _ in range(2):
        made.terminate(bought.id, "idle")
        cloud().terminate(bought.id, "idle")  # another process
    made.terminate("i-0123456789abcdef0", "never was")
    made.terminate("no such", "never was")
    (ended,) = made.instances()
    assert ended.reason == "idle"
    assert cloud().instances()[0].reason == "terminated through AWS's API"


def test_all_pages_are_read(cloud: Make, aws: ec2.Door) -> None:
    made = cloud()
    ids = {made.launch(offer(), request()).id for _ in range(5)}
    client = made.api.client("ec2", REGION)
    pages = client.get_paginator("describe_instances")

    class ByTwo:
        def paginate(self, **asked: Any) -> Any:
            return pages.paginate(**asked, PaginationConfig={"PageSize": 5})

    listed = [
        each["InstanceId"]
        for page in ByTwo().paginate()
        for reservation in page["Reservations"]
        for each in reservation["Instances"]
    ]
    assert set(listed) == {each.id for each in made.instances()} == ids


def test_one_that_was_stopped_by_hand_has_ended_and_can_still_be_terminated(
    cloud: Make, aws: ec2.Door
) -> None:
    made = cloud()
    bought = made.launch(offer(market="on-demand"), request())
    made.api.client("ec2", REGION).stop_instances(InstanceIds=[bought.id])
    (stopped,) = made.instances()
    assert not stopped.alive
    assert stopped.reason == "stopped by hand: its disk goes on billing"
    made.terminate(bought.id, "over")
    assert len(aws.calls("TerminateInstances")) == 1


STARTED = datetime(2026, 1, 1, 12, 0, tzinfo=timezone.utc)


def listed(state: str = "terminated", **more: Any) -> dict[str, Any]:
    return {
        "InstanceId": "i-1",
        "InstanceType": "g5.xlarge",
        "Placement": {"AvailabilityZone": "us-east-1a"},
        "LaunchTime": STARTED,
        "State": {"Name": state},
        "InstanceLifecycle": "spot",
        **more,
    }


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("Server.SpotInstanceTermination", "preempted"),
        ("Client.UserInitiatedShutdown", "terminated through AWS's API"),
        ("Client.InstanceInitiatedShutdown", "it shut itself down"),
        ("Server.InsufficientInstanceCapacity", "AWS had no capacity to start it"),
        ("Client.Newfangled", "Client.Newfangled: new"),
    ],
)
def test_why_it_ended(code: str, reason: str) -> None:
    said = {"Code": code, "Message": f"{code}: new"}
    ended = machines.instance_of(listed(StateReason=said), offer())
    assert ended.reason == reason


def test_when_it_ended() -> None:
    told = "User initiated (2026-01-01 13:30:00 GMT)"
    ended = machines.instance_of(listed(StateTransitionReason=told), offer())
    assert ended.ended_at == STARTED + timedelta(minutes=90)
    assert machines.instance_of(listed("running"), offer()).ended_at is None


def test_a_preempted_nodes_end_is_the_spot_requests(cloud: Make, aws: ec2.Door) -> None:
    """EC2 dates a user's terminations in the instance, and its own in the spot request."""
    from botocore.stub import ANY, Stubber

    made = cloud()
    client = made.api.client("ec2", REGION)
    end = STARTED + timedelta(minutes=47)
    gone = listed(
        SpotInstanceRequestId="sir-1",
        StateReason={"Code": "Server.SpotInstanceTermination", "Message": "x"},
        StateTransitionReason="Server.SpotInstanceTermination",
        Tags=[{"Key": "mlcloud-price", "Value": "0-5"}],
    )
    status = {"Code": "instance-terminated-no-capacity", "UpdateTime": end}
    asked = {"SpotInstanceRequestId": "sir-1", "State": "closed", "Status": status}
    with Stubber(client) as stub:
        stub.add_response("describe_instances", {"Reservations": [{"Instances": [gone]}]})
        stub.add_response(
            "describe_spot_instance_requests",
            {"SpotInstanceRequests": [asked]},
            {"Filters": [{"Name": "spot-instance-request-id", "Values": ["sir-1"]}]},
        )
        stub.add_response(
            "describe_instances", {"Reservations": [{"Instances": [gone]}]}, {"Filters": ANY}
        )
        (first,) = made.instances()
        (again,) = made.instances()
        stub.assert_no_pending_responses()
    assert first == again
    assert (first.ended_at, first.reason) == (end, "preempted")
    assert first.offer.usd_per_hour == Decimal("0.5")


def test_a_spot_request_is_cancelled_with_its_machine(cloud: Make, aws: ec2.Door) -> None:
    """Else it counts against the quota until AWS has noticed."""
    made = cloud()
    aws.plays["RunInstances"] = [ec2.with_spot_request]
    aws.plays["CancelSpotInstanceRequests"] = [ec2.refuse("InvalidSpotInstanceRequestID.NotFound")]
    bought = made.launch(offer(), request())
    made.terminate(bought.id, "idle")
    (cancelled,) = aws.calls("CancelSpotInstanceRequests")
    assert cancelled["SpotInstanceRequestId.1"] == "sir-77"
