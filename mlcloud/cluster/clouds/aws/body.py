"""An offer and a request as the body of EC2's RunInstances. Pure: nothing is asked of the cloud.

https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RunInstances.html
"""

from __future__ import annotations

import base64
import hashlib
import re
import uuid
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from mlcloud.cluster.clouds import reach
from mlcloud.cluster.clouds.aws import names, userdata
from mlcloud.cluster.clouds.aws.api import as_tags
from mlcloud.cluster.clouds.aws.images import Image
from mlcloud.cluster.clouds.base import CloudSettings, LaunchRequest
from mlcloud.cluster.clouds.local import HEAD
from mlcloud.cluster.clouds.tags import of_node, plain
from mlcloud.cluster.offers import Offer, key_of
from mlcloud.errors import UsageError

RAY_CLUSTER = "ray-cluster-name"  # Ray's provider puts it first
# What a tag's key may hold where the instance's metadata shows tags:
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/work-with-tags-in-IMDS.html
_KEY = re.compile(r"[A-Za-z0-9+\-=.,_:@]{1,128}")
_MOST_TAGS = 50


@dataclass(frozen=True)
class Found:
    """What a launch needs of what is in the account: by id where it is known."""

    image: Image
    subnet: str
    groups: tuple[str, ...]
    profile: str | None = None
    key: str | None = None


def body(
    settings: CloudSettings, offer: Offer, request: LaunchRequest, found: Found, now: datetime
) -> dict[str, Any]:
    """The whole request for one instance, as boto3 takes it.

    `UserData` is bytes here: boto3 encodes it. Raises `UsageError` for tags or a setup that EC2
    does not take.
    """
    tags = _checked({**request.tags, **of_node(settings, offer, request, now)})
    if "ray-node-name" in tags:
        tags["Name"] = tags.pop("ray-node-name")
    tags.setdefault("Name", f"{names.cluster_name(settings)}-{plain(request.node_type)}")
    cluster = {RAY_CLUSTER: names.cluster_name(settings)}
    shared = as_tags(tags)
    interface: dict[str, Any] = {
        "DeviceIndex": 0,
        "SubnetId": found.subnet,
        "Groups": list(found.groups),
        "DeleteOnTermination": True,
    }
    public = reach.public_ip(settings.network, default="")
    if public:
        interface["AssociatePublicIpAddress"] = public == "all" or (
            public == "head" and request.node_type == HEAD
        )
    asked: dict[str, Any] = {
        "ImageId": found.image.id,
        "InstanceType": offer.instance_type,
        "NetworkInterfaces": [interface],
        "BlockDeviceMappings": [
            {
                "DeviceName": found.image.root_device,
                "Ebs": {
                    "VolumeSize": max(settings.disk_gb, found.image.least_gb),
                    "VolumeType": "gp3",
                    "Encrypted": True,
                    "DeleteOnTermination": True,
                },
            }
        ],
        "MetadataOptions": {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 2,  # a container is one hop further
            "InstanceMetadataTags": "enabled",
        },
        # A node that shuts itself down, because nobody is left to, must not go on billing.
        "InstanceInitiatedShutdownBehavior": "terminate",
        "ClientToken": token(settings, offer, request),
        "TagSpecifications": [
            {"ResourceType": "instance", "Tags": as_tags(cluster) + shared},
            {"ResourceType": "volume", "Tags": shared},
            {"ResourceType": "network-interface", "Tags": shared},
        ],
        "MinCount": 1,
        "MaxCount": 1,
    }
    if offer.market == "spot":
        # Without a maximum price the cap is the on-demand price: AWS's own advice.
        asked["InstanceMarketOptions"] = {
            "MarketType": "spot",
            "SpotOptions": {
                "SpotInstanceType": "one-time",
                "InstanceInterruptionBehavior": "terminate",
            },
        }
        asked["TagSpecifications"].append(
            {"ResourceType": "spot-instances-request", "Tags": shared}
        )
    if request.bootstrap:
        asked["UserData"] = userdata.packed(request.bootstrap)
    if found.profile:
        asked["IamInstanceProfile"] = {"Name": found.profile}
    if found.key:
        asked["KeyName"] = found.key
    return asked


def on_the_wire(asked: dict[str, Any]) -> dict[str, Any]:
    """`asked` as it is sent: the user data in base64."""
    if "UserData" not in asked:
        return asked
    return {**asked, "UserData": base64.b64encode(asked["UserData"]).decode()}


def token(settings: CloudSettings, offer: Offer, request: LaunchRequest) -> str:
    """EC2 launches once for a token, however often it is asked.

    The same for the same `instance_id` and offer; where a request has no id it is meant anew each
    time.
    """
    if request.instance_id is None:
        return uuid.uuid4().hex
    parts = (settings.owner, settings.cluster, request.instance_id, *key_of(offer))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def named(request: LaunchRequest) -> LaunchRequest:
    """`request` with an id, so that all its attempts carry one token."""
    return request if request.instance_id else replace(request, instance_id=uuid.uuid4().hex)


def _checked(tags: dict[str, str]) -> dict[str, str]:
    for key, value in tags.items():
        if (
            not _KEY.fullmatch(key)
            or key.lower().startswith("aws:")
            or key in {".", "..", "_index"}
        ):
            raise UsageError(
                f"tag {key!r} is none for AWS: letters, digits and + - = . , _ : @ only, at most "
                "128 of them, and no 'aws:' at its beginning"
            )
        if len(value) > 256:
            raise UsageError(f"tag {key!r} is too long for AWS: {len(value)} characters of 256")
    if len(tags) > _MOST_TAGS - 2:
        raise UsageError(f"{len(tags)} tags are too many for AWS: {_MOST_TAGS - 2} at most")
    return tags
