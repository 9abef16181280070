"""Node groups at work: how many nodes of each of Ray's types there may be, and who is full.

    groups, offers ── limits() ──► each type's least and most, and of all: for Ray's autoscaler
    groups, nodes ─── open_to() ──► which offers a group has room for: for the provider

Several types may belong to one group (every shape that has at least what it asks for), and Ray
counts types: so a group's `max` is kept by the provider, which counts nodes by what was bought.
Without groups anything may be bought.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlcloud.cluster.clouds.base import Instance
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.shapes import NodeType, node_types
from mlcloud.cluster.specification.parts import NodeGroup


@dataclass(frozen=True)
class Limits:
    """By node type: so many are kept, and so many there may be at most (of a type that is not in
    `most`: `total`). `groups` as JSON has them."""

    total: int
    least: Mapping[str, int] = field(default_factory=dict)
    most: Mapping[str, int] = field(default_factory=dict)
    groups: Sequence[Mapping[str, Any]] = ()

    def of(self, node_type: str) -> tuple[int, int]:
        """The least and the most."""
        most = min(self.most.get(node_type, self.total), self.total)
        return min(self.least.get(node_type, 0), most), most


def bought(groups: Sequence[NodeGroup], offers: Iterable[Offer]) -> list[Offer]:
    """The offers that some group takes; all of them without groups."""
    return [each for each in offers if not groups or any(group.takes(each) for group in groups)]


def limits(
    groups: Sequence[NodeGroup],
    offers: Sequence[Offer],
    *,
    total: int,
    spares: int = 0,
) -> Limits:
    """For nodes bought of `offers`. `total` nodes at once; `spares` of the smallest type are kept
    beside what groups keep."""
    types = node_types(bought(groups, offers))
    least: dict[str, int] = {types[0].name: spares} if types and spares else {}
    most: dict[str, int] = {}
    for group in groups:
        of_group = {each.name for each in node_types(bought([group], offers))}
        for name in of_group:
            most[name] = most.get(name, 0) + group.max
        kept = _cheapest(group, offers)
        if group.min and kept is not None:
            least[kept.name] = least.get(kept.name, 0) + group.min
    return Limits(total, least, most, [written(each) for each in groups])


def _cheapest(group: NodeGroup, offers: Sequence[Offer]) -> NodeType | None:
    """The type of which a group's nodes are kept where nobody asks for one of them."""
    taken = sorted(bought([group], offers), key=lambda each: each.usd_per_hour)
    for offer in taken:
        for each in node_types([offer]):
            if each.on_demand == (group.market == "on-demand") and each.market != "spot-only":
                return each
    return None


def written(group: NodeGroup) -> dict[str, Any]:
    """As JSON has it; `read` is the way back."""
    return group.model_dump(mode="json", exclude_defaults=True)


def read(told: Iterable[Mapping[str, Any]]) -> list[NodeGroup]:
    return [NodeGroup.model_validate(each) for each in told]


def open_to(groups: Sequence[NodeGroup], nodes: Iterable[Instance]) -> Callable[[Offer], bool]:
    """Tells of an offer whether a group that takes it may have one more node beside `nodes`, the
    live ones. A node counts for the first group that takes it and is not full."""
    left = {group.key: group.max for group in groups}
    # Those that only one group takes first: who may go elsewhere, does.
    takers = [[group for group in groups if group.takes(each.offer)] for each in nodes]
    for each in sorted(takers, key=len):
        for group in each:
            if left[group.key] > 0:
                left[group.key] -= 1
                break

    def is_open(offer: Offer) -> bool:
        return not groups or any(left[each.key] > 0 for each in groups if each.takes(offer))

    return is_open
