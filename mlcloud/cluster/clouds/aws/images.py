"""Which machine image a node starts from.

Without `image` in the specification: Ubuntu 24.04, and on NVIDIA GPUs AWS's Deep Learning Base AMI
on the same Ubuntu, which has the driver. Both are named by public SSM parameters, which every
region keeps up to date; where these may not be read, the newest image of the owner's is looked up.

https://documentation.ubuntu.com/aws/aws-how-to/instances/find-ubuntu-images/,
https://docs.aws.amazon.com/dlami/latest/devguide/find-dlami-id.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mlcloud.cluster.clouds.aws.api import Api, as_filters
from mlcloud.cluster.clouds.aws.quotas import family
from mlcloud.cluster.clouds.aws.refusals import code_of
from mlcloud.cluster.offers import Offer
from mlcloud.errors import CloudRefused, UsageError

CANONICAL, AMAZON = "099720109477", "amazon"
ROOT_DEVICE = "/dev/sda1"  # Ubuntu's


@dataclass(frozen=True)
class Image:
    """An image as a launch needs it. `least_gb` is the disk that it does not fit on less than."""

    id: str
    root_device: str = ROOT_DEVICE
    least_gb: int = 0


@dataclass(frozen=True)
class Choice:
    """How an image is named: by its id, by a parameter, or by owner and name."""

    id: str = ""
    parameter: str = ""
    owner: str = ""
    name: str = ""

    def __str__(self) -> str:
        return self.id or f"resolve:ssm:{self.parameter}"


def architecture(instance_type: str) -> str:
    """`arm64` or `x86_64`, by the type's name: a `g` after the generation is AWS's own Graviton.

    https://docs.aws.amazon.com/ec2/latest/instancetypes/instance-type-names.html
    """
    prefix = instance_type.split(".")[0]
    if prefix == "a1" or "-gb" in prefix:  # the first Graviton; Grace in P6e
        return "arm64"
    return "arm64" if re.match(r"[a-z]+\d+g", prefix) else "x86_64"


def choice(image: str | None, offer: Offer) -> Choice:
    """The image for `offer`. Raises `UsageError` where it must be named and is not."""
    if image:
        if image.startswith("ami-"):
            return Choice(id=image)
        if image.removeprefix("ssm:").startswith("/"):
            return Choice(parameter=image.removeprefix("ssm:"))
        raise UsageError(
            f"image {image!r} is none for AWS: an id such as 'ami-0123456789abcdef0', or an SSM "
            "parameter that holds one, such as '/my/image'"
        )
    arch = architecture(offer.instance_type)
    if offer.accelerator is None:
        short = {"x86_64": "amd64", "arm64": "arm64"}[arch]
        return Choice(
            parameter=f"/aws/service/canonical/ubuntu/server/24.04/stable/current/{short}/hvm/ebs-gp3/ami-id",
            owner=CANONICAL,
            name=f"ubuntu/images/hvm-ssd*/ubuntu-noble-24.04-{short}-server-*",
        )
    if family(offer.instance_type) not in {"g", "gr", "p"} or offer.instance_type[:4] == "g4ad":
        raise UsageError(
            f"{offer.instance_type} has no NVIDIA GPU, and mlcloud has no image for it: name one "
            "by `image` (for Trainium and Inferentia: a Neuron DLAMI)"
        )
    arm = "ARM64 " if arch == "arm64" else ""
    return Choice(
        parameter=f"/aws/service/deeplearning/ami/{arch}/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id",
        owner=AMAZON,
        name=f"Deep Learning {arm}Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) *",
    )


def find(api: Api, region: str, chosen: Choice) -> Image:
    """The image itself, in `region`. Raises botocore's errors, and `CloudRefused` for none."""
    ec2 = api.client("ec2", region)
    image_id = chosen.id or _by_parameter(api, region, chosen)
    if image_id:
        listed = ec2.describe_images(ImageIds=[image_id])["Images"]
    else:
        listed = ec2.describe_images(
            Owners=[chosen.owner], Filters=as_filters(name=chosen.name, state="available")
        )["Images"]
    if not listed:
        raise CloudRefused(
            f"no image {image_id or chosen.name!r} in {region}: images belong to one region; name "
            "one of this region's by `image`"
        )
    return _image(max(listed, key=lambda each: str(each.get("CreationDate", ""))))


def _by_parameter(api: Api, region: str, chosen: Choice) -> str | None:
    from botocore.exceptions import ClientError

    try:
        answer = api.client("ssm", region).get_parameter(Name=chosen.parameter)
    except ClientError as error:
        if chosen.name and code_of(error) in {"AccessDeniedException", "ParameterNotFound"}:
            return None
        raise
    return str(answer["Parameter"]["Value"])


def _image(listed: dict[str, Any]) -> Image:
    root = listed.get("RootDeviceName") or ROOT_DEVICE
    sizes = [
        int(each.get("Ebs", {}).get("VolumeSize", 0))
        for each in listed.get("BlockDeviceMappings", [])
        if each.get("DeviceName") == root
    ]
    return Image(listed["ImageId"], root, max(sizes, default=0))
