"""What AWS says no with: capacity, quota, credentials and rights told apart, with the place."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from mlcloud.cluster.clouds.aws import AwsCloud
from mlcloud.cluster.offers import Market
from mlcloud.errors import (
    CloudCredentialsExpired,
    CloudRefused,
    CredentialsMissing,
    MLCloudError,
    NoCapacity,
    QuotaExceeded,
    UsageError,
)
from tests import ec2
from tests.cluster.aws.conftest import REGION, SETTINGS, Clock, offer, request

Make = Callable[..., Any]
PLACE = r"g5.xlarge spot in us-east-1a \(region us-east-1\)"


def refused(
    cloud: Make, aws: ec2.Door, code: str, message: str = "told so", status: int = 400, **more: Any
) -> MLCloudError:
    """What a launch raises where RunInstances answers so."""
    aws.plays["RunInstances"] = [ec2.refuse(code, message, status)]
    with pytest.raises(MLCloudError) as raised:
        cloud(ssh_public_key=None).launch(offer(**more), request())
    assert len(aws.calls("RunInstances")) == 1, "asked again for nothing"
    return raised.value


@pytest.mark.parametrize(
    "code",
    [
        "InsufficientInstanceCapacity",
        "SpotMaxPriceTooLow",
        "Unsupported",
        "InsufficientFreeAddressesInSubnet",
        "Server.InsufficientInstanceCapacity",
    ],
)
def test_capacity(cloud: Make, aws: ec2.Door, code: str) -> None:
    error = refused(cloud, aws, code, "We currently do not have sufficient g5.xlarge capacity")
    assert type(error) is NoCapacity
    assert error.args[0] == (
        "AWS has no g5.xlarge spot in us-east-1a (region us-east-1) now "
        f"({code.removeprefix('Server.')}: We currently do not have sufficient g5.xlarge capacity)"
    )


@pytest.mark.parametrize(
    ("code", "kind", "market", "quota"),
    [
        ("MaxSpotInstanceCountExceeded", "g5.xlarge", "spot", "L-3819A6DF"),
        ("VcpuLimitExceeded", "g5.xlarge", "on-demand", "L-DB2E81BA"),
        ("VcpuLimitExceeded", "p4d.24xlarge", "on-demand", "L-417A185B"),
        ("MaxSpotInstanceCountExceeded", "p4d.24xlarge", "spot", "L-7212CCBC"),
        ("VcpuLimitExceeded", "m7i.large", "on-demand", "L-1216C47A"),
        ("MaxSpotInstanceCountExceeded", "c7g.large", "spot", "L-34B43A08"),
        ("InstanceLimitExceeded", "trn1.2xlarge", "on-demand", "L-2C3B7624"),
    ],
)
def test_quota(
    cloud: Make, aws: ec2.Door, code: str, kind: str, market: Market, quota: str
) -> None:
    """An account's quota is no want of capacity: no other zone helps."""
    error = refused(cloud, aws, code, kind=kind, market=market)
    assert type(error) is QuotaExceeded
    text = str(error)
    assert f"{kind} {market} in us-east-1a (region us-east-1)" in text
    assert f"quota {quota}" in text
    assert (
        f"https://us-east-1.console.aws.amazon.com/servicequotas/home/services/ec2/quotas/{quota}"
        in text
    )


def test_a_quota_on_something_else_names_no_vcpus(cloud: Make, aws: ec2.Door) -> None:
    error = refused(cloud, aws, "VolumeLimitExceeded")
    assert type(error) is QuotaExceeded
    assert "vCPU" not in str(error)


@pytest.mark.parametrize(
    "code", ["AuthFailure", "UnrecognizedClientException", "InvalidClientTokenId"]
)
def test_credentials_that_are_none(cloud: Make, aws: ec2.Door, code: str) -> None:
    error = refused(cloud, aws, code, status=401)
    assert type(error) is CredentialsMissing
    assert "AWS_PROFILE" in str(error)


@pytest.mark.parametrize("code", ["ExpiredToken", "RequestExpired", "ExpiredTokenException"])
def test_credentials_that_have_expired(cloud: Make, aws: ec2.Door, code: str) -> None:
    error = refused(cloud, aws, code)
    assert type(error) is CloudCredentialsExpired
    assert "aws sso login" in str(error)
    assert "g5.xlarge spot in us-east-1a" in str(error)


def test_expired_credentials_in_the_middle_end_nothing_and_are_read_again(
    aws: ec2.Door, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = AwsCloud(SETTINGS, [offer()], now=clock, sleep=clock.sleep)
    first = cloud.launch(offer(), request())
    aws.plays["RunInstances"] = [ec2.refuse("ExpiredToken")]
    aws.plays["DescribeInstances"] = [ec2.refuse("RequestExpired")]
    with pytest.raises(CloudCredentialsExpired):
        cloud.launch(offer(), request())
    with pytest.raises(CloudCredentialsExpired):
        cloud.instances()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "renewed")
    assert [each.id for each in cloud.instances() if each.alive] == [first.id]
    assert cloud.launch(offer(), request()).alive
    client = cloud.api.client("ec2", REGION)
    assert client._request_signer._credentials.access_key == "renewed"


def test_no_credentials_at_all(
    aws: ec2.Door, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    cloud = AwsCloud(SETTINGS, [offer()], now=clock, sleep=clock.sleep)
    with pytest.raises(CredentialsMissing, match="asking who we are in us-east-1"):
        cloud.check()
    with pytest.raises(CredentialsMissing, match=f"launching {PLACE}"):
        cloud.launch(offer(), request())
    assert aws.seen == []
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(CredentialsMissing, match="nobody"):
        AwsCloud(SETTINGS, []).check()


def test_a_check_with_credentials_is_one_call(cloud: Make, aws: ec2.Door) -> None:
    cloud().check()
    assert [action for action, _ in aws.seen] == ["GetCallerIdentity"]


def test_rights_are_decoded_and_the_line_to_add_is_told(cloud: Make, aws: ec2.Door) -> None:
    why = {
        "allowed": False,
        "explicitDeny": False,
        "context": {
            "principal": {"arn": "arn:aws:iam::1:user/ann"},
            "action": "ec2:CreateTags",
            "resource": "arn:aws:ec2:us-east-1:1:volume/*",
        },
    }
    decoded = f"""<DecodeAuthorizationMessageResponse
        xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><DecodeAuthorizationMessageResult>
        <DecodedMessage>{json.dumps(why)}</DecodedMessage></DecodeAuthorizationMessageResult>
        </DecodeAuthorizationMessageResponse>"""
    aws.plays["DecodeAuthorizationMessage"] = [lambda _: (200, decoded.encode())]
    error = refused(
        cloud,
        aws,
        "UnauthorizedOperation",
        "You are not authorized to perform this operation. "
        "Encoded authorization failure message: 4xqXYZ_z",
        403,
    )
    assert type(error) is CloudRefused
    assert aws.calls("DecodeAuthorizationMessage")[0]["EncodedMessage"] == "4xqXYZ_z"
    text = str(error)
    assert "arn:aws:iam::1:user/ann do ec2:CreateTags on arn:aws:ec2:us-east-1:1:volume/*" in text
    line = json.loads(text[text.index("{") : text.rindex("}") + 1])
    assert line == {
        "Effect": "Allow",
        "Action": "ec2:CreateTags",
        "Resource": "arn:aws:ec2:us-east-1:1:volume/*",
        "Condition": {"StringEquals": {"aws:RequestedRegion": "us-east-1"}},
    }


def test_rights_that_may_not_be_decoded_are_told_as_far_as_is_known(
    cloud: Make, aws: ec2.Door
) -> None:
    aws.plays["DecodeAuthorizationMessage"] = [ec2.refuse("AccessDenied", status=403)]
    said = (
        "You are not authorized to perform this operation. User: arn:aws:iam::1:user/ann is not "
        "authorized to perform: ec2:RunInstances on resource: arn:aws:ec2:us-east-1:1:instance/* "
        "because no identity-based policy allows it. Encoded authorization failure message: 4xq"
    )
    error = refused(cloud, aws, "UnauthorizedOperation", said, 403)
    assert '"Action": "ec2:RunInstances"' in str(error)


def test_a_deny_is_an_administrators(cloud: Make, aws: ec2.Door) -> None:
    said = "is not authorized to perform: ec2:RunInstances with an explicit deny in a policy"
    error = refused(cloud, aws, "UnauthorizedOperation", said, 403)
    assert "an administrator must lift it" in str(error)
    assert "Add to its policy" not in str(error)


def test_the_accounts_first_spot_instance(cloud: Make, aws: ec2.Door) -> None:
    code = "AuthFailure.ServiceLinkedRoleCreationNotPermitted"
    assert '"Action": "iam:CreateServiceLinkedRole"' in str(refused(cloud, aws, code, status=403))


def test_an_unknown_type_with_the_nearest(cloud: Make, aws: ec2.Door) -> None:
    error = refused(
        cloud,
        aws,
        "InvalidParameterValue",
        "Invalid value 'g5.xlrage' for InstanceType.",
        kind="g5.xlrage",
    )
    assert type(error) is CloudRefused
    assert "did you mean 'g5.xlarge'?" in str(error)


def test_an_unknown_region_with_the_nearest(cloud: Make, aws: ec2.Door) -> None:
    with pytest.raises(UsageError, match=r"no region 'us-eas-1'; did you mean 'us-east-1'\?"):
        cloud(regions=("us-eas-1",)).check()
    assert aws.seen == []


def test_being_throttled_for_long_is_told(cloud: Make, aws: ec2.Door, clock: Clock) -> None:
    aws.plays["RunInstances"] = [ec2.refuse("RequestLimitExceeded", status=503)] * 20
    with pytest.raises(
        CloudRefused, match=f"takes no more requests for a while, launching {PLACE}"
    ):
        cloud().launch(offer(), request())
    assert 5 < len(aws.calls("RunInstances")) < 10
    assert sum(clock.slept) > 20


def test_reads_are_repeated_when_throttled(
    cloud: Make, aws: ec2.Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    aws.plays["DescribeInstances"] = [
        ec2.refuse("RequestLimitExceeded", status=503),
        ec2.break_line,
    ]
    assert cloud().instances() == []
    assert len(aws.calls("DescribeInstances")) == 3


def test_a_line_that_stays_broken(cloud: Make, aws: ec2.Door, clock: Clock) -> None:
    aws.plays["RunInstances"] = [ec2.break_line] * 20
    with pytest.raises(CloudRefused, match=f"AWS was not reached, launching {PLACE}"):
        cloud().launch(offer(), request())


def test_a_proxy_that_answers_html(cloud: Make, aws: ec2.Door) -> None:
    aws.plays["RunInstances"] = [lambda _: (502, b"<!doctype html>bad gateway")] * 20
    with pytest.raises(CloudRefused, match="AWS was not reached"):
        cloud().launch(offer(), request())
