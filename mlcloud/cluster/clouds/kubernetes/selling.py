"""What a Kubernetes cluster sells: pods. An offer's CPUs and memory are those that a pod gets.

    provider gke | eks | karpenter | aks   one pod a node, each node at its cloud's price: the
                                           offers are those of Google Cloud, AWS or Azure
    no provider                            a pod of each node group's own shape, on whatever node
                                           has room; nobody knows its price

So there is one figure: a pod asks for an offer's memory, and Ray and its cells share that as they
share a machine's (`shapes.USABLE_MEMORY`).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from decimal import Decimal

from mlcloud.cluster.clouds.kubernetes import placing
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.specification import Specification
from mlcloud.errors import UsageError
from mlcloud.units import parse_gpu

#: Whose machines the nodes are.
SOLD_BY = {"gke": "gcp", "eks": "aws", "karpenter": "aws", "aks": "azure"}
#: The part of a node's memory that its one pod gets: the kubelet and system pods take theirs. GKE,
#: the strictest, keeps 17 % of 16 GB, https://cloud.google.com/kubernetes-engine/docs/concepts/
#: plan-node-sizes, and daemons for logs and GPUs some 100 MB each.
MEMORY_PART = 0.75
_MEMORY_A_CPU = 4 * 2**30  # where a group names none
_DEFAULT_CPUS = 2.0


def offers(wanted: Specification) -> list[Offer]:
    """What there is for nodes and the head. Asks nobody.

    Raises `UsageError` where nobody said in which region the nodes are.
    """
    provider = wanted.network.get("provider")
    placing.kind(provider)
    if provider is None:
        return _own(wanted)
    if not wanted.node_regions:
        raise UsageError(
            f"regions: name the region of the {provider} cluster: its nodes have that one's prices"
        )
    from mlcloud.cost import catalogue

    return [pod_of(each) for each in catalogue.offers(SOLD_BY[provider], wanted.node_regions)]


def pod_of(node: Offer) -> Offer:
    """The pod that has this node for itself."""
    memory = int(node.memory_bytes * MEMORY_PART)
    return replace(node, cloud="kubernetes", memory_bytes=memory)


def _own(wanted: Specification) -> list[Offer]:
    head = wanted.head
    found = [_shape("head", head.cpus, head.memory, None)]
    for group in wanted.nodes:
        cpus = group.cpus or _DEFAULT_CPUS
        memory = group.memory or int(cpus * _MEMORY_A_CPU)
        gpu = parse_gpu(group.gpu) if group.gpu else None
        found.append(_shape(group.instance_type or group.key, cpus, memory, gpu))
    if not wanted.nodes:
        found.append(_shape("node", _DEFAULT_CPUS, int(_DEFAULT_CPUS * _MEMORY_A_CPU), None))
    return found


def _shape(name: str, cpus: float, memory: int, gpu: tuple[str, int] | None) -> Offer:
    return Offer(
        cloud="kubernetes",
        region=placing.OWN,
        zone=placing.OWN,
        instance_type=name,
        cpus=cpus,
        memory_bytes=memory,
        accelerator=gpu[0] if gpu else None,
        accelerator_count=gpu[1] if gpu else 0,
        market="on-demand",
        usd_per_hour=Decimal(0),
        simulated=False,
        source="a Kubernetes cluster whose nodes' prices are not known",
        as_of=date(2026, 11, 1),
    )
