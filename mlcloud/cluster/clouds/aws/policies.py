"""What a user, a head and a worker must be allowed in AWS: the least that serves, as IAM policies.

Everything is bound to the cluster's regions, and what changes or ends something to resources that
carry this cluster's tags. `user_policy` is for who runs `mlcloud up`, `down` and `gc`; the others
are those of the roles that `mlcloud up` makes.

    print(json.dumps(user_policy(settings), indent=2))

https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mlcloud.cluster.clouds.aws import names
from mlcloud.cluster.clouds.base import CloudSettings
from mlcloud.cluster.clouds.tags import CLUSTER, OWNER, plain

_READ = (
    "DescribeAddresses",
    "DescribeAvailabilityZones",
    "DescribeImages",
    "DescribeInstances",
    "DescribeInstanceTypes",
    "DescribeKeyPairs",
    "DescribeNetworkInterfaces",
    "DescribePlacementGroups",
    "DescribeSecurityGroups",
    "DescribeSpotInstanceRequests",
    "DescribeSpotPriceHistory",
    "DescribeSubnets",
    "DescribeVolumes",
    "DescribeVpcs",
)
# What a launch makes, and what it uses that was there before.
_MADE = ("instance", "volume", "network-interface", "spot-instances-request")
_USED = ("image", "key-pair", "security-group", "snapshot", "subnet")

EC2_TRUST: dict[str, Any] = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"Service": "ec2.amazonaws.com"},
            "Action": "sts:AssumeRole",
        }
    ],
}


def user_policy(settings: CloudSettings, buckets: Iterable[str] = ()) -> dict[str, Any]:
    """For the identity on the laptop: all that the head may, and to make and remove the rest."""
    partition = _partition(settings)
    role = f"arn:{partition}:iam::*:role{names.ROLE_PATH}{names.cluster_name(settings)}-*"
    profile = (
        f"arn:{partition}:iam::*:instance-profile{names.ROLE_PATH}{names.cluster_name(settings)}-*"
    )
    return _policy(
        *_nodes(settings),
        _allow(
            "MakeNetwork",
            ["ec2:CreateSecurityGroup", "ec2:ImportKeyPair"],
            [_ec2(settings, kind) for kind in ("security-group", "key-pair", "vpc")],
            **_in_regions(settings),
        ),
        _allow(
            "ChangeOwn",
            [
                "ec2:AuthorizeSecurityGroupIngress",
                "ec2:RevokeSecurityGroupIngress",
                "ec2:DeleteSecurityGroup",
                "ec2:DeleteKeyPair",
                "ec2:DeleteVolume",
                "ec2:DeleteNetworkInterface",
                "ec2:DeletePlacementGroup",
                "ec2:ReleaseAddress",
            ],
            ["*"],
            **_own(settings),
        ),
        _allow(
            "Roles",
            [
                "iam:CreateRole",
                "iam:GetRole",
                "iam:TagRole",
                "iam:PutRolePolicy",
                "iam:DeleteRolePolicy",
                "iam:DeleteRole",
                "iam:ListRolePolicies",
                "iam:PassRole",
            ],
            [role],
        ),
        _allow(
            "Profiles",
            [
                "iam:CreateInstanceProfile",
                "iam:GetInstanceProfile",
                "iam:TagInstanceProfile",
                "iam:AddRoleToInstanceProfile",
                "iam:RemoveRoleFromInstanceProfile",
                "iam:DeleteInstanceProfile",
            ],
            [profile],
        ),
        _allow(
            "FirstSpotOfTheAccount",
            ["iam:CreateServiceLinkedRole"],
            [f"arn:{partition}:iam::*:role/aws-service-role/spot.amazonaws.com/*"],
        ),
        _allow("FindRoles", ["iam:ListRoles", "iam:ListInstanceProfiles"], ["*"]),
        _allow("Quotas", ["servicequotas:ListServiceQuotas"], ["*"], **_in_regions(settings)),
        *_store(settings, buckets),
    )


def head_policy(settings: CloudSettings, buckets: Iterable[str] = ()) -> dict[str, Any]:
    """For the head: launch workers with the worker's role, end its own cluster's machines, itself
    included. It may make no roles, and touch no other cluster."""
    worker = names.role_name(settings, "worker")
    role = f"arn:{_partition(settings)}:iam::*:role{names.ROLE_PATH}{worker}"
    return _policy(
        *_nodes(settings),
        _allow("PassWorkerRole", ["iam:PassRole"], [role]),
        # What its nodes cost by now; the price list is served from a few regions only.
        _allow("ReadPrices", ["pricing:GetProducts"], ["*"]),
        *_store(settings, buckets),
    )


def worker_policy(settings: CloudSettings, buckets: Iterable[str] = ()) -> dict[str, Any]:
    """For a worker: the store, and nothing else of AWS."""
    return _policy(*_store(settings, buckets))


def _nodes(settings: CloudSettings) -> list[dict[str, Any]]:
    """To look, to launch with this cluster's tags, and to end what carries them."""
    return [
        _allow("Look", [f"ec2:{name}" for name in _READ], ["*"], **_in_regions(settings)),
        _allow(
            "LaunchTagged",
            ["ec2:RunInstances"],
            [_ec2(settings, kind) for kind in _MADE],
            **_in_regions(settings),
            **{
                f"aws:RequestTag/{CLUSTER}": plain(settings.cluster),
                f"aws:RequestTag/{OWNER}": plain(settings.owner),
            },
        ),
        _allow(
            "LaunchWith",
            ["ec2:RunInstances"],
            [_ec2(settings, kind) for kind in _USED],
            **_in_regions(settings),
        ),
        _allow(
            "TagWhatIsMade",
            ["ec2:CreateTags"],
            [_ec2(settings, "*")],
            **_in_regions(settings),
            **{
                "ec2:CreateAction": ["RunInstances", "CreateSecurityGroup", "ImportKeyPair"],
            },
        ),
        _allow(
            "EndOwn",
            ["ec2:TerminateInstances", "ec2:CancelSpotInstanceRequests", "ec2:CreateTags"],
            [_ec2(settings, "*")],
            **_own(settings),
        ),
        _allow(
            "NameImages",
            ["ssm:GetParameter"],
            [f"arn:{_partition(settings)}:ssm:*::parameter/aws/service/*"],
            **_in_regions(settings),
        ),
    ]


def _store(settings: CloudSettings, buckets: Iterable[str]) -> list[dict[str, Any]]:
    arns = [f"arn:{_partition(settings)}:s3:::{bucket}" for bucket in buckets]
    if not arns:
        return []
    return [
        _allow("ListStore", ["s3:ListBucket", "s3:GetBucketLocation"], arns),
        _allow(
            "UseStore",
            [
                "s3:GetObject",
                "s3:PutObject",
                "s3:DeleteObject",
                "s3:AbortMultipartUpload",
                "s3:ListMultipartUploadParts",
            ],
            [f"{arn}/*" for arn in arns],
        ),
    ]


def _policy(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _allow(
    name: str, actions: list[str], resources: list[str], **equal: str | list[str]
) -> dict[str, Any]:
    statement: dict[str, Any] = {
        "Sid": name,
        "Effect": "Allow",
        "Action": actions,
        "Resource": resources,
    }
    if equal:
        statement["Condition"] = {"StringEquals": dict(equal)}
    return statement


def _in_regions(settings: CloudSettings) -> dict[str, list[str]]:
    return {"aws:RequestedRegion": list(settings.regions)}


def _own(settings: CloudSettings) -> dict[str, Any]:
    return {
        **_in_regions(settings),
        f"aws:ResourceTag/{CLUSTER}": plain(settings.cluster),
        f"aws:ResourceTag/{OWNER}": plain(settings.owner),
    }


def _ec2(settings: CloudSettings, kind: str) -> str:
    return f"arn:{_partition(settings)}:ec2:*:*:{kind}/*"


def _partition(settings: CloudSettings) -> str:
    return names.partition(settings.regions[0] if settings.regions else "")
