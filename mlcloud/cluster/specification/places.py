"""The clouds, and what each is told in its own way: stores, networks, tags, regions.

Residency is decided here: `allowed(region, of whose cloud, the list, the cluster's cloud)`.
"""

from __future__ import annotations

import re
from typing import Literal, get_args
from urllib.parse import urlsplit

CloudName = Literal["local", "ssh", "aws", "gcp", "azure", "kubernetes"]
CLOUDS: tuple[CloudName, ...] = get_args(CloudName)
#: Clouds that sell machines in regions: they must be told in which.
IN_REGIONS: tuple[CloudName, ...] = ("aws", "gcp", "azure")

#: Whose object store a URL's scheme is.
STORES: dict[str, CloudName] = {
    **{"s3": "aws", "s3a": "aws", "gs": "gcp", "gcs": "gcp"},
    **{"az": "azure", "abfs": "azure", "abfss": "azure"},
}

_REACH = ("public_ip", "ssh_from")  # of what is made where no network is named
#: What each cloud may be told of its network, most of it names of what is there already.
NETWORK: dict[CloudName, tuple[str, ...]] = {
    "local": (),
    "ssh": (),
    "aws": (
        *("vpc", "subnet", "security_group", "instance_profile", "worker_instance_profile"),
        *("key_pair", *_REACH),
    ),
    "gcp": ("project", "network", "subnet", "service_account", *_REACH),
    "azure": (
        *("subscription", "resource_group", "subnet", "security_group", "identity"),
        *_REACH,
    ),
    "kubernetes": (
        *("provider", "context", "namespace", "service_account", "pull_secret", "priority_class"),
        "clients",
    ),
}

# A tag's value, as strict as each cloud is: GCP's labels and Kubernetes' are not free text.
TAGS: dict[CloudName, tuple[str, str]] = {
    "gcp": ("[a-z0-9_-]{0,63}", "at most 63 of lower-case letters, digits, `-` and `_`"),
    "kubernetes": (
        "([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?",
        "at most 63 of letters, digits, `-`, `_` and `.`",
    ),
}
ANY_TAG = (r"[^\x00-\x1f]{0,256}", "at most 256 characters on one line")


def store_cloud(url: str) -> CloudName | None:
    """Whose store a URL is in; None for a file."""
    return STORES.get(urlsplit(url).scheme)


def region_told(url: str) -> str | None:
    """The region that a store's URL itself tells: an S3 access point's ARN does."""
    match = re.match(r"s3a?://arn:aws[a-z-]*:s3[a-z-]*:([a-z0-9-]+):", url)
    return match.group(1) if match else None


def own(region: str, cloud: str) -> str | None:
    """The region's plain name, if it is one of `cloud`."""
    of, colon, name = region.partition(":")
    return region if not colon else name if of == cloud else None


def allowed(region: str, of: str | None, regions: tuple[str, ...], cloud: str) -> bool:
    """Whether `region` of the cloud `of` (None: of any) is in the list of a cluster in `cloud`."""
    for each in regions:
        name_of, colon, name = each.partition(":")
        if colon and name == region and of in (None, name_of):
            return True
        # Without a cloud before it, a name is the cluster's cloud's, where that has regions.
        if each == region and (of in (None, cloud) or cloud not in IN_REGIONS):
            return True
    return False


def outside(
    what: str, region: str, of: str | None, regions: tuple[str, ...], cloud: str | None
) -> str:
    """That something is in a region (of the cloud `of`) where it may not be."""
    name = region if of in (None, cloud) else f"{of}:{region}"
    return (
        f"{what} is in {region}, and `regions` allows only {', '.join(regions)}: choose another "
        f"place, or add {name} if data may be there"
    )
