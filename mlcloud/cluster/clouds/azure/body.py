"""The request that makes a virtual machine on Azure, from an offer. Nothing is asked of Azure.

What a machine gets, and why:

- its network card, address and disk are made with it and deleted with it (`deleteOption`): one
  call, and nothing is left beside a machine that is gone.
- spot: evicted means deleted, and the price is never a reason (`maxPrice` -1).
- an event five minutes before a deletion (`terminateNotificationProfile`, 5 minutes is Azure's
  least); the node approves it once it has drained, else it bills that long.
- no way in but an SSH key, no external address unless it is the head, no extensions.

Fields: https://learn.microsoft.com/rest/api/compute/virtual-machines/create-or-update
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from mlcloud.cluster.clouds import named, reach, tags
from mlcloud.cluster.clouds.base import CloudSettings, LaunchRequest
from mlcloud.cluster.offers import Offer
from mlcloud.errors import UsageError

HEAD = "head"
#: What `CloudSettings.network` may say.
NETWORK = (
    "subscription", "resource_group", "subnet", "security_group", "identity", "public_ip",
    "ssh_from",
)  # fmt: skip

IMAGE = "Canonical:ubuntu-24_04-lts:server:latest"
ARM_IMAGE = "Canonical:ubuntu-24_04-lts:server-arm64:latest"
#: Microsoft's image with NVIDIA's driver. https://learn.microsoft.com/azure/virtual-machines/azure-hpc-vm-images
GPU_IMAGE = "microsoft-dsvm:ubuntu-hpc:2204:latest"
#: https://learn.microsoft.com/azure/virtual-machines/custom-data (64 KB, before base64)
BOOTSTRAP_LIMIT = 65535
_NETWORK_API = "2022-11-01"
#: Characters that a tag's name may not have.
_NOT_IN_A_NAME = re.compile(r"[<>%&\\?/]")


def group(settings: CloudSettings) -> str:
    """The resource group: the cluster's own, unless one is named."""
    return settings.network.get("resource_group") or f"mlcloud-{named.slug(settings.cluster)[:60]}"


def new_name(settings: CloudSettings, request: LaunchRequest) -> str:
    """The machine's name, which is its id."""
    rule = "Azure: letters, digits and '-', 64 at most"
    cluster = named.slug(settings.cluster)[:32].strip("-")
    return named.new_name(request, cluster, r"[A-Za-z0-9](?:[-A-Za-z0-9]{0,62}[A-Za-z0-9])?", rule)


def tagged(ours: Mapping[str, str]) -> dict[str, str]:
    """Tags as Azure takes them: it forbids a few characters in names, and long values."""
    return {_NOT_IN_A_NAME.sub("-", key)[:512]: value[:256] for key, value in ours.items()}


def zone(offer: Offer) -> str | None:
    """`"1"` of `westeurope-1`; None for an offer of the whole region."""
    number = re.search(r"\d+$", offer.zone)
    return number[0] if number and offer.zone != offer.region else None


def machine(
    settings: CloudSettings,
    offer: Offer,
    request: LaunchRequest,
    name: str,
    now: datetime,
    *,
    subnet: str,
    security_group: str | None,
) -> dict[str, Any]:
    """The body of the virtual machine's PUT. `subnet` and `security_group` are resource ids.

    Raises `UsageError` for a bootstrap script that is too long, and without an SSH key: Azure makes
    no machine without one.
    """
    marked = tagged(tags.of_node(settings, offer, request, now))
    arm = re.search(r"_[A-Z]+\d+[a-z]*p[a-z]*", offer.instance_type) is not None
    properties: dict[str, Any] = {
        "hardwareProfile": {"vmSize": offer.instance_type},
        "storageProfile": {
            "imageReference": _image(settings, offer, arm),
            "osDisk": {
                "name": f"{name}-disk",
                "createOption": "FromImage",
                "deleteOption": "Delete",
                "caching": "ReadWrite",
                "diskSizeGB": settings.disk_gb,
                "managedDisk": {"storageAccountType": "StandardSSD_LRS"},
            },
        },
        "osProfile": _os(settings, request, name),
        "networkProfile": {
            "networkApiVersion": _NETWORK_API,
            "networkInterfaceConfigurations": [
                _card(settings, request, name, marked, subnet, security_group)
            ],
        },
        "scheduledEventsProfile": {
            "terminateNotificationProfile": {"enable": True, "notBeforeTimeout": "PT5M"}
        },
        "priority": "Spot" if offer.market == "spot" else "Regular",
    }
    if offer.market == "spot":
        properties["evictionPolicy"] = "Delete"
        properties["billingProfile"] = {"maxPrice": -1}
    if settings.image is None and offer.accelerator is None and not arm:
        # Not with GPUs (the driver of that image is not signed), nor for an image we do not know.
        properties["securityProfile"] = {
            "securityType": "TrustedLaunch",
            "uefiSettings": {"secureBootEnabled": True, "vTpmEnabled": True},
        }
    body: dict[str, Any] = {"location": offer.region, "tags": marked, "properties": properties}
    if number := zone(offer):
        body["zones"] = [number]
    if identity := settings.network.get("identity"):
        body["identity"] = {"type": "UserAssigned", "userAssignedIdentities": {identity: {}}}
    return body


def _image(settings: CloudSettings, offer: Offer, arm: bool) -> dict[str, str]:
    image = settings.image or (GPU_IMAGE if offer.accelerator else ARM_IMAGE if arm else IMAGE)
    if image.startswith("/"):
        gallery = image.lower().startswith("/communitygalleries/")
        return {"communityGalleryImageId" if gallery else "id": image}
    parts = image.split(":")
    if len(parts) != 4:
        raise UsageError(
            f"image {image!r} is neither a resource id nor publisher:offer:sku:version, such as "
            f"{IMAGE}"
        )
    return dict(zip(("publisher", "offer", "sku", "version"), parts, strict=True))


def _os(settings: CloudSettings, request: LaunchRequest, name: str) -> dict[str, Any]:
    if not settings.ssh_public_key:
        raise UsageError(
            "azure: a machine needs an SSH key: set ssh_public_key (passwords are off)"
        )
    profile: dict[str, Any] = {
        "computerName": name,
        "adminUsername": settings.ssh_user,
        "allowExtensionOperations": False,
        "linuxConfiguration": {
            "disablePasswordAuthentication": True,
            "ssh": {
                "publicKeys": [
                    {
                        "path": f"/home/{settings.ssh_user}/.ssh/authorized_keys",
                        "keyData": settings.ssh_public_key.strip(),
                    }
                ]
            },
        },
    }
    named.require_short(request, BOOTSTRAP_LIMIT, "Azure")
    if request.bootstrap:
        profile["customData"] = base64.b64encode(request.bootstrap.encode()).decode()
    return profile


def _card(
    settings: CloudSettings,
    request: LaunchRequest,
    name: str,
    marked: Mapping[str, str],
    subnet: str,
    security_group: str | None,
) -> dict[str, Any]:
    address: dict[str, Any] = {"primary": True, "subnet": {"id": subnet}}
    who = reach.public_ip(settings.network)
    if who == "all" or (who == "head" and request.node_type == HEAD):
        address["publicIPAddressConfiguration"] = {
            "name": f"{name}-ip",
            "sku": {"name": "Standard"},
            "tags": dict(marked),
            "properties": {"deleteOption": "Delete", "publicIPAllocationMethod": "Static"},
        }
    properties: dict[str, Any] = {
        "primary": True,
        "deleteOption": "Delete",
        "ipConfigurations": [{"name": "main", "properties": address}],
    }
    if security_group:
        properties["networkSecurityGroup"] = {"id": security_group}
    return {"name": f"{name}-nic", "tags": dict(marked), "properties": properties}
