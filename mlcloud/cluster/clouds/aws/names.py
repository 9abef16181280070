"""What AWS's resources of a cluster are called.

The owner is part of every name: roles and profiles are one namespace for a whole account, and two
people may both call their cluster "work".
"""

from __future__ import annotations

import hashlib

from mlcloud.cluster.clouds.base import CloudSettings
from mlcloud.cluster.clouds.tags import plain

ROLE_PATH = "/mlcloud/"
_LONGEST = 48  # a role's name has 64 at most, and "-worker" follows


def cluster_name(settings: CloudSettings) -> str:
    """`mlcloud-<owner>-<cluster>`, cut with a digest where it would be too long."""
    name = f"mlcloud-{plain(settings.owner)}-{plain(settings.cluster)}"
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def role_name(settings: CloudSettings, kind: str) -> str:
    """The role, and the instance profile, of `head` or `worker` nodes."""
    return f"{cluster_name(settings)}-{kind}"


def partition(region: str) -> str:
    """`aws`, `aws-cn` or `aws-us-gov`: the part of AWS that a region belongs to."""
    if region.startswith("cn-"):
        return "aws-cn"
    return "aws-us-gov" if region.startswith("us-gov-") else "aws"


def buckets(store: str) -> tuple[str, ...]:
    """The bucket of a store's URL, if it is on S3."""
    scheme, _, rest = store.partition("://")
    return (rest.partition("/")[0],) if scheme in ("s3", "s3a") else ()


def values(text: str) -> tuple[str, ...]:
    """The values of a setting that may hold several, separated by commas or spaces."""
    return tuple(text.replace(",", " ").split())
