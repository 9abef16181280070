"""Spot against on-demand, by what happened here: the price of an hour's work in either.

The formula is `cluster.effective`'s, for a node that is wanted for an hour (H = 1):

    hours billed = 1 + ((1 + λ) × c + λ × l) ÷ 3600

λ preemptions an hour, c seconds from the order to the first cell, l seconds of work that one
preemption costs. Of a machine that ran on spot, λ is what was counted; of one that only ran on
demand, as if one preemption had been seen in two hours (the prior of `cluster.preemptions`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal

from mlcloud.cluster.preemptions import PRIOR_S
from mlcloud.cost.advice.facts import Facts
from mlcloud.cost.advice.working import Advice, Working, number, short
from mlcloud.cost.ledger import NodeSpan

LEAST_H = 0.5  # of nodes of a kind, before anything is said of it


@dataclass
class _Kind:
    """The nodes of one instance type."""

    spot_h: float = 0.0
    spot_usd: float = 0.0
    demand_h: float = 0.0
    demand_usd: float = 0.0
    taken: int = 0
    nodes: list[NodeSpan] = field(default_factory=list)


def market(facts: Facts) -> Iterator[Advice]:
    kinds: dict[str, _Kind] = {}
    for node, hours in facts.nodes():
        kind = kinds.setdefault(node.offer.instance_type, _Kind())
        kind.nodes.append(node)
        usd = facts.usd(node)
        if node.offer.market == "spot":
            kind.spot_h, kind.spot_usd = kind.spot_h + hours, kind.spot_usd + usd
            kind.taken += node.node_id in facts.preempted
        else:
            kind.demand_h, kind.demand_usd = kind.demand_h + hours, kind.demand_usd + usd
    for name, kind in kinds.items():
        for find in (_to_demand, _to_spot):
            advice = find(facts, name, kind)
            if advice is not None and advice.saves_usd > 0:
                yield advice


def _to_demand(facts: Facts, name: str, kind: _Kind) -> Advice | None:
    """Preempted so often that on-demand is cheaper."""
    price = _listed(facts, name, "on-demand")
    if not kind.taken or kind.spot_h < LEAST_H or price is None:
        return None
    working = Working()
    hours = short(kind.spot_h)
    working.fact(f"{name} on spot: {hours} h, taken back {kind.taken} times")
    rate = working.line("preemptions an hour", f"{kind.taken} ÷ {hours}")
    billed = _billed(working, facts, number(rate))
    paid = working.line("spot price, on average", f"{short(kind.spot_usd)} ÷ {hours}", "$/h")
    spot = working.line("an hour's work on spot", f"{number(paid)} × {number(billed)}", "$")
    demand = _on_demand(working, facts, price)
    if demand >= spot:
        return None
    work = working.line("hours of work", f"{hours} ÷ {number(billed)}", "h")
    saved = working.line("saved", f"{number(work)} × ({number(spot)} − {number(demand)})", "$")
    return Advice(
        kind="market",
        about=name,
        text=f"taken back {kind.taken} times in {hours} h: an hour's work costs ${number(spot)} on "
        f"spot and ${number(demand)} on demand",
        saves_usd=facts.monthly(working, saved),
        per="month",
        arithmetic=tuple(working.lines),
        action='market="on-demand" (%%remote --on-demand)',
        confidence=facts.confidence if kind.taken > 2 else "low",
        simulated=any(node.offer.simulated for node in kind.nodes),
    )


def _to_spot(facts: Facts, name: str, kind: _Kind) -> Advice | None:
    """On demand, where spot would be cheaper even with its preemptions."""
    price = _listed(facts, name, "spot")
    if kind.demand_h < LEAST_H or price is None:
        return None
    working = Working()
    hours = short(kind.demand_h)
    prior, spot_h = short(PRIOR_S / 3600), short(kind.spot_h)
    working.fact(f"{name} on demand: {hours} h; on spot: {spot_h} h, taken back {kind.taken} times")
    rate = working.line(
        f"preemptions an hour, as if one more had been seen in {prior} h more",
        f"(1 + {kind.taken}) ÷ ({prior} + {spot_h})",
    )
    billed = _billed(working, facts, number(rate))
    spot = working.line("an hour's work on spot", f"{number(price)} × {number(billed)}", "$")
    paid = working.line("on-demand price, on average", f"{short(kind.demand_usd)} ÷ {hours}", "$/h")
    demand = _on_demand(working, facts, paid)
    if spot >= demand:
        return None
    saved = working.line("saved", f"{hours} × ({number(demand)} − {number(spot)})", "$")
    return Advice(
        kind="market",
        about=name,
        text=f"{hours} h on demand: an hour's work costs ${number(demand)}, and would cost "
        f"${number(spot)} on spot, with preemptions",
        saves_usd=facts.monthly(working, saved),
        per="month",
        arithmetic=tuple(working.lines),
        action='market="spot" (%%remote --spot)',
        confidence=facts.confidence if kind.spot_h > PRIOR_S / 3600 else "low",
        simulated=any(node.offer.simulated for node in kind.nodes),
    )


def _billed(working: Working, facts: Facts, rate: str) -> Decimal:
    start, lost = short(facts.cold_start_s), short(facts.lost_s)
    working.fact(f"a node starts in {start} s; a preemption costs {lost} s of work")
    return working.line(
        "hours billed for an hour's work on spot",
        f"1 + ((1 + {rate}) × {start} + {rate} × {lost}) ÷ 3600",
        "h",
        digits=5,
    )


def _on_demand(working: Working, facts: Facts, price: Decimal) -> Decimal:
    start = short(facts.cold_start_s)
    return working.line("an hour's work on demand", f"{number(price)} × (1 + {start} ÷ 3600)", "$")


def _listed(facts: Facts, name: str, market: str) -> Decimal | None:
    """The cheapest price of that machine in that market."""
    found = (
        offer.usd_per_hour
        for offer in facts.kinds
        if offer.instance_type == name and offer.market == market
    )
    return min(found, default=None)
