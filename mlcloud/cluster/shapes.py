"""From offers to Ray's node types, and from a session's wishes to one of them.

A *node type* is the minimum envelope of a shape (vCPUs, memory, accelerator): every offer sold
under it has at least that much, and Ray starts with exactly that much declared. The market is no
part of the shape, with two exceptions, each a node type of its own whose nodes carry a resource for
which only such requests ask: who asks for on-demand must never be given spot (`on_demand`), and who
waits for spot to come back, on a node that costs more, must not be given another of those
(`spot_only`).

    offers ── node_types() ──► {"cpu2", "cpu2-on-demand", "cpu2-spot", …} ──► Ray's cluster config
    session's cpus/gpu/memory/market ── choose() ──► node type + what its host asks of Ray
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from mlcloud.cluster.offers import Offer
from mlcloud.errors import NoSuchResources

NodeMarket = Literal["spot", "on-demand", "spot-only"]
GONE = "gone"
ON_DEMAND = "on_demand"
SPOT_ONLY = "spot_only"
# What a market's nodes carry, and the end of their type's name.
_MARKS: dict[NodeMarket, tuple[str, str]] = {
    "spot": ("", ""),
    "on-demand": (ON_DEMAND, "-on-demand"),
    "spot-only": (SPOT_ONLY, "-spot"),
}
# Of a node's memory this part is the cell's; the rest is the system's and Ray's own.
USABLE_MEMORY = 0.85
_MUCH_GIB = 3.5  # for each vCPU


@dataclass(frozen=True)
class NodeType:
    """One of Ray's `available_node_types`."""

    name: str
    cpus: int
    memory_bytes: int
    accelerator: str | None
    accelerator_count: int
    market: NodeMarket = "spot"

    @property
    def on_demand(self) -> bool:
        return self.market == "on-demand"

    @property
    def resources(self) -> dict[str, float]:
        resources: dict[str, float] = {
            "CPU": self.cpus,
            "memory": int(self.memory_bytes * USABLE_MEMORY),
        }
        if self.accelerator:
            resources["GPU"] = self.accelerator_count
            resources[self.accelerator] = self.accelerator_count
        if self.mark:
            resources[self.mark] = 1
        return resources

    @property
    def mark(self) -> str:
        """The resource that keeps other requests away; empty where any may come."""
        return _MARKS[self.market][0]

    @property
    def node_config(self) -> dict[str, Any]:
        """What the provider walks the offers with."""
        return {
            "shape": {
                "cpus": self.cpus,
                "memory_bytes": self.memory_bytes,
                "accelerator": self.accelerator,
                "accelerator_count": self.accelerator_count,
            },
            "market": "on-demand" if self.on_demand else "spot",
            "fallback": self.market != "spot-only",
        }

    def describe(self) -> str:
        if self.accelerator:
            return f"{self.accelerator}:{self.accelerator_count}"
        much = f", {self.memory_bytes / 2**30:g} GiB" if "gb" in self.name else ""
        return f"{self.cpus} CPUs{much}"


@dataclass(frozen=True)
class HostRequest:
    """What a session's host asks of Ray, and the share of a node it thereby holds (0 … 1]."""

    node_type: NodeType
    num_cpus: float
    num_gpus: float
    resources: dict[str, float]
    share: float


def node_types(offers: Iterable[Offer]) -> list[NodeType]:
    """Every distinct shape on sale, in each of its markets, smallest first."""
    found: dict[str, NodeType] = {}
    for offer in offers:
        if offer.accelerator:
            name = f"{offer.accelerator.lower()}-{offer.accelerator_count}x{offer.cpus:g}cpu"
        else:
            name = _cpu_name(offer)
        for market, (_, suffix) in _MARKS.items():
            if market != "spot" and offer.market != market.removesuffix("-only"):
                continue
            key = f"{name}{suffix}"
            memory = min(
                offer.memory_bytes, found[key].memory_bytes if key in found else offer.memory_bytes
            )
            found[key] = NodeType(
                key, int(offer.cpus), memory, offer.accelerator, offer.accelerator_count, market
            )
    return sorted(
        found.values(),
        key=lambda each: (
            each.accelerator_count,
            each.cpus,
            each.memory_bytes,
            list(_MARKS).index(each.market),
        ),
    )


def _cpu_name(offer: Offer) -> str:
    """`cpu2`, or `cpu2-16gb` of the machines with much memory: 2 vCPUs are sold with 4, 8 and 16
    GiB, and who needs 12 is not to pay for 8 vCPUs. By itself, so that any part of a catalogue has
    the names that the whole has."""
    each_gib = offer.memory_bytes / 2**30 / offer.cpus
    if each_gib < _MUCH_GIB:
        return f"cpu{offer.cpus:g}"
    whole = 2 ** math.floor(math.log2(each_gib) + 0.1) * offer.cpus
    return f"cpu{offer.cpus:g}-{whole:g}gb"


def choose(
    types: list[NodeType],
    *,
    cpus: float = 1,
    memory_bytes: int = 0,
    gpu: tuple[str, int] | None = None,
    market: NodeMarket = "spot",
) -> HostRequest:
    """The smallest node type that holds the request.

    No GPU node is started for a session without a GPU. Raises `NoSuchResources`, at once and naming
    what there is.
    """
    wanted, count = gpu or (None, 0)
    fitting = [
        each
        for each in types
        if each.market == market
        and (each.accelerator or "").lower() == (wanted or "").lower()
        and each.accelerator_count >= count
        and each.cpus >= cpus
        and each.resources["memory"] >= memory_bytes
    ]
    if not fitting:
        raise NoSuchResources(_explain(types, cpus, memory_bytes, gpu))
    best = fitting[0]
    resources: dict[str, float] = {}
    if best.accelerator:
        resources[best.accelerator] = count
    if best.mark:
        resources[best.mark] = 0.001
    share = max(
        cpus / best.cpus,
        memory_bytes / best.resources["memory"],
        count / best.accelerator_count if best.accelerator else 0.0,
    )
    return HostRequest(best, cpus, count, resources, min(1.0, share))


def gone(cpus: float, gpu: tuple[str, int] | None) -> HostRequest:
    """A request for a shape that the cluster has no more: of a node type that there is none of."""
    name, count = gpu or (None, 0)
    lost = NodeType(GONE, int(cpus) or 1, 0, name, count)
    return HostRequest(lost, cpus, count, {name: count} if name else {}, 1.0)


def _explain(
    types: list[NodeType], cpus: float, memory_bytes: int, gpu: tuple[str, int] | None
) -> str:
    gpus = sorted({f"{t.accelerator}:{t.accelerator_count}" for t in types if t.accelerator})
    if gpu is not None:
        asked = f"{gpu[0]}:{gpu[1]}"
        names = sorted({t.accelerator for t in types if t.accelerator})
        near = get_close_matches(gpu[0].upper(), [name.upper() for name in names], 1, 0.5)
        hint = f" Did you mean {near[0]}?" if near and near[0] != gpu[0].upper() else ""
        if any((t.accelerator or "").lower() == gpu[0].lower() for t in types):
            largest = [t for t in types if (t.accelerator or "").lower() == gpu[0].lower()]
            shapes = ", ".join(sorted({_shape(t) for t in largest}))
            return f"no node has {asked} with {cpus:g} CPUs here; it comes as: {shapes}."
        return (
            f"this cluster cannot offer {asked}.{hint} It can offer: "
            f"{', '.join([*gpus, 'CPU only (leave --gpu out)'])}."
        )
    plain = [t for t in types if not t.accelerator]
    shapes = ", ".join(sorted({_shape(t) for t in plain}))
    return (
        f"no node here has {cpus:g} CPUs and {memory_bytes / 2**30:g} GiB of memory; "
        f"without a GPU there are: {shapes}."
    )


def _shape(each: NodeType) -> str:
    gpu = f"{each.accelerator}:{each.accelerator_count}, " if each.accelerator else ""
    return f"{gpu}{each.cpus} CPUs and {each.resources['memory'] / 2**30:.3g} GiB"
