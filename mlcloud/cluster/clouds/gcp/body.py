"""The request that makes a machine on Compute Engine, from an offer. Nothing is asked of Google.

What a machine gets, and why:

- GPUs: the families a2, a3, a4, g2, g4 have them built in; N1 takes T4, V100, P100 and P4 beside.
- spot: `instanceTerminationAction: DELETE` (a stopped machine's disk bills on), and a notice 120 s
  ahead instead of 30 (`preemptionNoticeDuration`, in the published v1 schema).
- a lifetime that Google itself enforces: `maxRunDuration`, on both markets, the head included.
- no way in but SSH keys of its own, no external address unless it is the head.

Fields: https://cloud.google.com/compute/docs/reference/rest/v1/instances/insert
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from mlcloud.cluster.clouds import named, tags
from mlcloud.cluster.clouds.base import CloudSettings, LaunchRequest
from mlcloud.cluster.offers import Offer
from mlcloud.errors import NoSuchResources

HEAD = "head"
#: What `CloudSettings.network` may say.
NETWORK = ("project", "network", "subnet", "service_account", "public_ip", "ssh_from")

#: Canonical's images; the second has NVIDIA's driver, signed, so that Secure Boot stays on.
#: https://cloud.google.com/compute/docs/images/os-details
IMAGE = "projects/ubuntu-os-cloud/global/images/family/ubuntu-2404-lts-amd64"
GPU_IMAGE = (
    "projects/ubuntu-os-accelerator-images/global/images/family/"
    "ubuntu-accelerator-2404-amd64-with-nvidia-580"
)
#: https://cloud.google.com/compute/docs/gpus#n1-gpus
_N1_GPUS = {
    "T4": "nvidia-tesla-t4",
    "V100": "nvidia-tesla-v100",
    "P100": "nvidia-tesla-p100",
    "P4": "nvidia-tesla-p4",
}
_WITH_GPUS = {"a2", "a3", "a4", "a4x", "g2", "g4"}
#: These take no Persistent Disk. https://cloud.google.com/compute/docs/disks/hyperdisks
_HYPERDISK = {"a4", "a4x", "c4", "c4a", "c4d", "g4", "h4d", "n4", "n4a", "n4d", "x4"}
_ARM = {"a4x", "c4a", "n4a", "t2a"}
#: Machines that Google cannot move while they run, beside all that have a GPU.
_PINNED = {"h3", "h4d", "x4", "z3"}
#: https://cloud.google.com/compute/docs/metadata/setting-custom-metadata#limitations
BOOTSTRAP_LIMIT = 256 * 1024
_LONGEST_RUN_S = 120 * 86400
NOTICE_S = 120
_SCOPES = "https://www.googleapis.com/auth/"


def group(settings: CloudSettings) -> str:
    """The name of a cluster's network, and of the network tag of its machines."""
    return f"mlcloud-{named.slug(settings.cluster)[:40]}".rstrip("-")


def new_name(settings: CloudSettings, request: LaunchRequest) -> str:
    """The machine's name, which is its id."""
    rule = "GCP: lower-case letters, digits and '-', a letter first, 63 at most"
    return named.new_name(request, group(settings), r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?", rule)


def labels(ours: dict[str, str]) -> dict[str, str]:
    """Tags as labels: Google takes lower case only, in keys too, which begin with a letter."""
    plain = {tags.plain(key): tags.plain(value) for key, value in ours.items()}
    return {key if key[:1].isalpha() else f"x{key}"[:63]: value for key, value in plain.items()}


def instance(
    settings: CloudSettings, offer: Offer, request: LaunchRequest, name: str, now: datetime
) -> dict[str, Any]:
    """The body of `instances.insert`. Raises `NoSuchResources` for what is no such machine, and
    `UsageError` for a bootstrap script that is too long."""
    family = offer.instance_type.split("-")[0]
    marked = labels(tags.of_node(settings, offer, request, now))
    disk = "hyperdisk-balanced" if family in _HYPERDISK else "pd-balanced"
    body: dict[str, Any] = {
        "name": name,
        "machineType": f"zones/{offer.zone}/machineTypes/{offer.instance_type}",
        "labels": marked,
        "tags": {"items": _network_tags(settings, request)},
        "scheduling": _scheduling(settings, offer, family),
        "disks": [
            {
                "boot": True,
                "autoDelete": True,
                "type": "PERSISTENT",
                "initializeParams": {
                    "sourceImage": settings.image or _image(offer, family),
                    "diskSizeGb": str(settings.disk_gb),
                    "diskType": f"zones/{offer.zone}/diskTypes/{disk}",
                    "labels": marked,
                },
            }
        ],
        "networkInterfaces": [_interface(settings, offer, request)],
        "metadata": {"items": _metadata(settings, request)},
        "serviceAccounts": _service_accounts(settings, request),
        "shieldedInstanceConfig": {
            "enableSecureBoot": True,
            "enableVtpm": True,
            "enableIntegrityMonitoring": True,
        },
        "deletionProtection": False,
    }
    if accelerators := _accelerators(offer, family):
        body["guestAccelerators"] = accelerators
    return body


def _scheduling(settings: CloudSettings, offer: Offer, family: str) -> dict[str, Any]:
    lifetime = int(min(settings.lifetime_s, _LONGEST_RUN_S))
    pinned = offer.market == "spot" or offer.accelerator is not None or family in _PINNED
    scheduling: dict[str, Any] = {
        "provisioningModel": "SPOT" if offer.market == "spot" else "STANDARD",
        "instanceTerminationAction": "DELETE",
        "onHostMaintenance": "TERMINATE" if pinned else "MIGRATE",
        # A machine that came back by itself would be one that nobody asked for.
        "automaticRestart": False,
        "maxRunDuration": {"seconds": str(lifetime)},
    }
    if offer.market == "spot":
        scheduling["preemptionNoticeDuration"] = {"seconds": str(NOTICE_S)}
    return scheduling


def _accelerators(offer: Offer, family: str) -> list[dict[str, Any]]:
    if offer.accelerator is None or family in _WITH_GPUS:
        return []
    if offer.accelerator.upper().startswith("TPU") or family.startswith("ct"):
        raise NoSuchResources(
            f"{offer}: TPUs are not supported (they have an API of their own, and torch needs XLA "
            "there); the GPU families are a2, a3, a4, g2, g4 and n1"
        )
    kind = _N1_GPUS.get(offer.accelerator.upper())
    if family != "n1" or kind is None:
        raise NoSuchResources(
            f"{offer}: Google attaches no {offer.accelerator} to {family}; N1 takes "
            f"{', '.join(_N1_GPUS)}, and {', '.join(sorted(_WITH_GPUS))} have theirs built in"
        )
    return [
        {
            "acceleratorType": f"zones/{offer.zone}/acceleratorTypes/{kind}",
            "acceleratorCount": offer.accelerator_count,
        }
    ]


def _image(offer: Offer, family: str) -> str:
    image = GPU_IMAGE if offer.accelerator else IMAGE
    return image.replace("amd64", "arm64") if family in _ARM else image


def _network_tags(settings: CloudSettings, request: LaunchRequest) -> list[str]:
    ours = group(settings)
    return [ours, f"{ours}-head"] if request.node_type == HEAD else [ours]


def _interface(settings: CloudSettings, offer: Offer, request: LaunchRequest) -> dict[str, Any]:
    network = settings.network
    subnet = network.get("subnet") or ("" if network.get("network") else group(settings))
    interface: dict[str, Any] = {}
    if subnet:
        whole = subnet if "/" in subnet else f"regions/{offer.region}/subnetworks/{subnet}"
        interface["subnetwork"] = whole
    else:
        name = network["network"]
        interface["network"] = name if "/" in name else f"global/networks/{name}"
    who = network.get("public_ip", HEAD)
    if who == "all" or (who == HEAD and request.node_type == HEAD):
        interface["accessConfigs"] = [{"name": "External NAT", "type": "ONE_TO_ONE_NAT"}]
    return interface


def _metadata(settings: CloudSettings, request: LaunchRequest) -> list[dict[str, str]]:
    named.require_short(request, BOOTSTRAP_LIMIT, "Google")
    items = {
        "block-project-ssh-keys": "TRUE",
        "enable-oslogin": "FALSE",
        "serial-port-enable": "FALSE",
    }
    if request.bootstrap:
        items["startup-script"] = request.bootstrap
    if settings.ssh_public_key:
        items["ssh-keys"] = f"{settings.ssh_user}:{settings.ssh_public_key.strip()}"
    return [{"key": key, "value": value} for key, value in items.items()]


def _service_accounts(settings: CloudSettings, request: LaunchRequest) -> list[dict[str, Any]]:
    """Whom a machine can be: nobody, unless a service account is named.

    With one, workers may reach the store; the head, which launches and ends machines, Compute
    Engine too. What the account may do there is its roles' (see `roles`).
    """
    email = settings.network.get("service_account")
    if not email:
        return []
    wanted = ["devstorage.read_write", *(["compute"] if request.node_type == HEAD else [])]
    return [{"email": email, "scopes": [_SCOPES + each for each in wanted]}]


def roles() -> dict[str, list[str]]:
    """The permissions that a custom role needs: for the one who launches (and the head)."""
    return {
        "mlcloudLauncher": [
            "compute.disks.create", "compute.disks.delete", "compute.disks.list",
            "compute.disks.setLabels",
            "compute.firewalls.create", "compute.firewalls.delete", "compute.firewalls.get",
            "compute.firewalls.list", "compute.firewalls.update",
            "compute.globalOperations.get",
            "compute.images.useReadOnly",
            "compute.instances.create", "compute.instances.delete", "compute.instances.get",
            "compute.instances.list", "compute.instances.setLabels",
            "compute.instances.setMetadata", "compute.instances.setServiceAccount",
            "compute.instances.setTags",
            "compute.networks.create", "compute.networks.delete", "compute.networks.get",
            "compute.networks.list", "compute.networks.updatePolicy",
            "compute.projects.get",
            "compute.regionOperations.get",
            "compute.routers.create", "compute.routers.delete", "compute.routers.get",
            "compute.routers.list", "compute.routers.update",
            "compute.subnetworks.create", "compute.subnetworks.delete", "compute.subnetworks.get",
            "compute.subnetworks.list", "compute.subnetworks.use",
            "compute.subnetworks.useExternalIp",
            "compute.zoneOperations.get", "compute.zoneOperations.list",
            "iam.serviceAccounts.actAs",
        ]
    }  # fmt: skip
