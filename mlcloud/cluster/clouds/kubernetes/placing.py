"""Which nodes of a Kubernetes cluster a pod goes to: type, zone and market of its offer.

Every kind of Kubernetes marks its spot nodes in its own way, and some keep other pods off them:

    gke        cloud.google.com/gke-spot=true              and a taint of that name, in some pools
    eks        eks.amazonaws.com/capacityType=SPOT         (managed node groups)
    karpenter  karpenter.sh/capacity-type=spot
    aks        kubernetes.azure.com/scalesetpriority=spot  and a taint of that name

https://cloud.google.com/kubernetes-engine/docs/concepts/spot-vms
https://docs.aws.amazon.com/eks/latest/userguide/managed-node-groups.html
https://karpenter.sh/docs/concepts/scheduling/
https://learn.microsoft.com/azure/aks/spot-node-pool
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlcloud.cluster.offers import Offer
from mlcloud.errors import UsageError
from mlcloud.units import suggest

#: The region of a Kubernetes cluster of which nobody said whose it is: any of its nodes will do.
OWN = "own"
TYPE = "node.kubernetes.io/instance-type"
#: A pod's own label, for one that may go to any node.
SHAPE = "mlcloud-shape"
ZONE = "topology.kubernetes.io/zone"


@dataclass(frozen=True)
class Kind:
    """How a kind of Kubernetes marks markets. `on_demand` None: by the absence of `spot`.

    `grace_s` is how long a pod on a spot node has at most, from the notice to the end.
    """

    label: str
    spot: str
    on_demand: str | None
    tainted: bool
    grace_s: int


KINDS = {
    "gke": Kind("cloud.google.com/gke-spot", "true", None, True, 25),
    "eks": Kind("eks.amazonaws.com/capacityType", "SPOT", "ON_DEMAND", False, 110),
    "karpenter": Kind("karpenter.sh/capacity-type", "spot", "on-demand", False, 110),
    "aks": Kind("kubernetes.azure.com/scalesetpriority", "spot", None, True, 25),
}
#: What an on-demand node leaves a pod: enough to save, and no longer.
GRACE_S = 120


def kind(name: str | None) -> Kind | None:
    """The kind of Kubernetes that `network={'provider': …}` names. Raises `UsageError`."""
    if name is None:
        return None
    if name not in KINDS:
        raise UsageError(
            f"network: provider: {name!r} is none of {', '.join(KINDS)}{suggest(name, KINDS)}"
        )
    return KINDS[name]


def place(offer: Offer, where: Kind | None) -> dict[str, Any]:
    """The fields of a pod's spec that bind it to the nodes of an offer.

    Raises `UsageError` for a spot offer where nobody said which Kubernetes it is.
    """
    if where is None and offer.market == "spot":
        raise UsageError(
            f"{offer}: how this Kubernetes marks spot nodes is not known: set network="
            f"{{'provider': …}} to one of {', '.join(KINDS)}"
        )
    selector = {} if offer.region == OWN else {TYPE: offer.instance_type}
    if offer.zone and offer.zone != offer.region:
        selector[ZONE] = offer.zone
    fields: dict[str, Any] = {"terminationGracePeriodSeconds": GRACE_S}
    tolerations: list[dict[str, str]] = []
    if offer.accelerator:
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
        if where is KINDS["aks"]:
            tolerations.append(_taint("sku", "gpu"))
    if where is not None and offer.market == "spot":
        selector[where.label] = where.spot
        fields["terminationGracePeriodSeconds"] = where.grace_s
        if where.tainted:
            tolerations.append(_taint(where.label, where.spot))
    elif where is not None and where.on_demand:
        selector[where.label] = where.on_demand
    elif where is not None:
        fields["affinity"] = _not_on(where)
    return {**fields, "nodeSelector": selector, "tolerations": tolerations}


def _taint(key: str, value: str) -> dict[str, str]:
    return {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}


def _not_on(where: Kind) -> dict[str, Any]:
    rule = {"key": where.label, "operator": "NotIn", "values": [where.spot]}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [rule]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
