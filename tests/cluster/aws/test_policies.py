"""What must be allowed: enough for every call that is made, and bound to region and tags."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from mlcloud.cluster.clouds.aws import policies
from tests import ec2
from tests.cluster.aws.conftest import SETTINGS, Clock, offer, request
from tests.cluster.aws.test_leftovers import sweep

Make = Callable[..., Any]
BUCKETS = ("store",)


def statements(policy: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for statement in policy["Statement"]:
        for action in statement["Action"]:
            yield action, statement


def test_every_call_that_is_made_is_allowed(cloud: Make, aws: ec2.Door, clock: Clock) -> None:
    """Up, work and down, as the door saw it, against the user's policy and the head's."""
    made = cloud(buckets=BUCKETS, network={"ssh_from": "203.0.113.7"})
    made.check()
    made.launch(offer(), request("head"))
    aws.seen.clear()
    head = cloud(buckets=BUCKETS)
    aws.plays["RunInstances"] = [ec2.with_spot_request]
    aws.plays["CancelSpotInstanceRequests"] = [ec2.refuse("InvalidSpotInstanceRequestID.NotFound")]
    worker = head.launch(offer(), request())
    head.instances()
    head.terminate(worker.id, "idle")
    by_head = {action for action, _ in aws.seen}
    made.leftovers(clock())
    sweep(made, clock)
    by_user = {action for action, _ in aws.seen} | {"GetCallerIdentity"}

    for called, policy in (
        (by_head, policies.head_policy(SETTINGS, BUCKETS)),
        (by_user, policies.user_policy(SETTINGS, BUCKETS)),
    ):
        allowed = {action.split(":")[1] for action, _ in statements(policy)}
        # Who one is may be asked by everyone.
        assert called - {"GetCallerIdentity"} - allowed == set()
    assert "CreateRole" not in {
        a.split(":")[1] for a, _ in statements(policies.head_policy(SETTINGS))
    }


@pytest.mark.parametrize(
    "make", [policies.user_policy, policies.head_policy, policies.worker_policy]
)
def test_nothing_is_allowed_outside_region_and_tags(make: Callable[..., dict[str, Any]]) -> None:
    settings = replace(SETTINGS, regions=("eu-west-1", "eu-central-1"))
    policy = make(settings, BUCKETS)
    assert len(json.dumps(policy)) < 6144  # what a managed policy may have
    for action, statement in statements(policy):
        assert "*" not in action
        equal = statement.get("Condition", {}).get("StringEquals", {})
        service = action.split(":")[0]
        if service in ("ec2", "ssm", "servicequotas"):
            assert equal["aws:RequestedRegion"] == ["eu-west-1", "eu-central-1"]
        else:
            # The price list is public, and has no resources to be named.
            listed = action.startswith("iam:List") or action == "pricing:GetProducts"
            assert "*" not in statement["Resource"] or listed
        if action.split(":")[1].startswith(("Terminate", "Delete", "Cancel", "Release", "Revoke")):
            if service == "ec2":
                assert equal["aws:ResourceTag/mlcloud-cluster"] == "work"
                assert equal["aws:ResourceTag/mlcloud-owner"] == "ann-example"
            elif service == "iam":
                assert all("mlcloud-ann-example-work" in arn for arn in statement["Resource"])


def test_a_machine_without_our_tags_may_not_be_launched() -> None:
    for action, statement in statements(policies.head_policy(SETTINGS)):
        if action == "ec2:RunInstances" and any("instance/" in r for r in statement["Resource"]):
            equal = statement["Condition"]["StringEquals"]
            assert equal["aws:RequestTag/mlcloud-cluster"] == "work"


def test_the_head_passes_the_workers_role_and_no_other() -> None:
    (passing,) = [
        statement
        for action, statement in statements(policies.head_policy(SETTINGS))
        if action == "iam:PassRole"
    ]
    (pattern,) = passing["Resource"]
    role = "arn:aws:iam::1:role/mlcloud/mlcloud-ann-example-work-{}"
    assert fnmatch.fnmatch(role.format("worker"), pattern)
    assert not fnmatch.fnmatch(role.format("head"), pattern)


def test_china_and_government_have_arns_of_their_own() -> None:
    for region, partition in (("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov")):
        policy = policies.user_policy(replace(SETTINGS, regions=(region,)), BUCKETS)
        arns = [arn for _, s in statements(policy) for arn in s["Resource"] if arn != "*"]
        assert all(arn.startswith(f"arn:{partition}:") for arn in arns)
