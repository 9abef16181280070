"""Hours that come back every month: a year's commitment, or a machine of one's own.

A commitment bills every hour of the year at a discount, used or not:

    break-even hours a month = 730.5 × (1 − discount) × on-demand price ÷ price paid

The discounts are typical ones of a year without money upfront, not offers: what a cloud gives
depends on machine and region. Of several nodes at once, as many are committed as ran longer than
the break-even: the hours "with at least n nodes" are counted for each n.

A machine of one's own costs its purchase less what it sells for, and its power while it works. It
takes over one node at a time, of those that it holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import NamedTuple

from mlcloud.cluster.offers import Offer
from mlcloud.cost.advice.accelerators import ACCELERATORS
from mlcloud.cost.advice.facts import Facts, Own
from mlcloud.cost.advice.working import HOURS_A_MONTH, Advice, Working, number, short
from mlcloud.cost.ledger import NodeSpan

LEAST_H = 7 * 24  # a shorter history says nothing of a year
_MONTHS_A_YEAR = 12


class Discount(NamedTuple):
    part: Decimal
    name: str
    source: str


#: Of a year, nothing upfront; read in November 2026.
DISCOUNTS = {
    "aws": Discount(
        Decimal("0.28"),
        "Compute Savings Plan",
        "typical: https://vantage.sh/blog/what-is-an-aws-savings-plan (most are near 30 %); yours: "
        "https://aws.amazon.com/savingsplans/compute-pricing",
    ),
    "gcp": Discount(
        Decimal("0.28"),
        "flexible committed use discount",
        "https://cloud.google.com/compute/docs/instances/committed-use-discounts-overview",
    ),
    "azure": Discount(
        Decimal("0.25"),
        "savings plan for compute",
        "estimated; yours: https://azure.microsoft.com/pricing/offers/savings-plan-compute",
    ),
}


def commitment(facts: Facts) -> Iterator[Advice]:
    by_type: dict[tuple[str, str], list[NodeSpan]] = {}
    for node, _ in facts.nodes():
        by_type.setdefault((node.offer.cloud, node.offer.instance_type), []).append(node)
    for (cloud, name), nodes in by_type.items():
        if cloud in DISCOUNTS and facts.hours >= LEAST_H:
            advice = _committed(facts, name, nodes, DISCOUNTS[cloud])
            if advice is not None:
                yield advice
    for own in facts.own:
        advice = _own(facts, own)
        if advice is not None:
            yield advice


def _committed(facts: Facts, name: str, nodes: list[NodeSpan], discount: Discount) -> Advice | None:
    at_least, average = _together(facts, nodes), _average(facts, nodes)
    listed = max(
        node.offer.usd_per_hour
        if node.on_demand_usd_per_hour is None
        else node.on_demand_usd_per_hour
        for node in nodes
    )
    working = Working()
    working.fact(f"{discount.name}, a year, nothing upfront: {number(discount.part)} off "
                 f"({discount.source})")  # fmt: skip
    price = working.line(
        f"an hour of {name}, committed", f"{number(listed)} × (1 − {number(discount.part)})", "$"
    )
    month = number(HOURS_A_MONTH)
    paid = working.line("paid an hour, on average", *average)
    even = working.line("break-even", f"{month} × {number(price)} ÷ {number(paid)}", "h a month")
    hours = [each / float(facts.months) for each in at_least]
    enough = [each for each in hours if each > float(even)]
    if not enough:
        return None
    count = len(enough)
    total = short(sum(enough), 5)
    working.fact(f"at this pace {total} h a month of the first {count} of its nodes at once")
    saved = working.line(
        "saved a month",
        f"{total} × {number(paid)} − {count} × {month} × {number(price)}",
        "$",
    )
    if saved <= 0:
        return None
    return Advice(
        kind="commitment",
        about=name,
        text=f"{total} h a month: a {discount.name} of a year for {count} of them pays from "
        f"{number(even)} h a month each",
        saves_usd=saved,
        per="month",
        arithmetic=tuple(working.lines),
        action=f"{count} × {number(price)} $/h, in the cloud's own console",
        confidence="medium" if facts.hours >= 4 * LEAST_H else "low",
        simulated=any(node.offer.simulated for node in nodes),
    )


def _own(facts: Facts, own: Own) -> Advice | None:
    machine = own.machine
    nodes = [node for node, _ in facts.nodes() if replaces(own.offer, node.offer)]
    if not nodes:
        return None
    working = Working()
    working.fact(f"{len(nodes)} of the nodes of this history would fit: {own.offer.cpus:g} CPUs")
    hours = _together(facts, nodes)[0] / float(facts.months)
    used = short(hours)
    working.fact(f"at this pace {used} h a month with at least one of them")
    paid = working.line("paid an hour, on average", *_average(facts, nodes))
    months = working.line("horizon", f"{number(machine.years)} × {_MONTHS_A_YEAR}", "months")
    cloud = working.line(
        "in the cloud", f"{used} × {number(paid)} × {number(months)}", "$", digits=6
    )
    power = working.line(
        "its power an hour", f"{number(machine.watts)} ÷ 1000 × {number(machine.price_per_kwh)}",
        "$",
    )  # fmt: skip
    worth = f"{number(machine.purchase)} − {number(machine.resale)}"
    bought = working.line(
        "of your own", f"{worth} + {number(power)} × {used} × {number(months)}", "$", digits=6
    )
    saved = working.line(
        "saved a month", f"({number(cloud)} − {number(bought)}) ÷ {number(months)}", "$"
    )
    even = "never"
    if paid > power:
        least = working.line(
            "break-even",
            f"({worth}) ÷ {number(months)} ÷ ({number(paid)} − {number(power)})",
            "h a month",
        )
        part = working.line("of all hours", f"{number(least)} ÷ {number(HOURS_A_MONTH)}", digits=2)
        even = f"from {number(least)} h a month ({number(part)} of all hours)"
    buy = saved > 0
    return Advice(
        kind="own-machine",
        about=machine.name,
        text=f"{'pays' if buy else 'does not pay'} at {used} h a month; it pays {even}",
        saves_usd=max(saved, Decimal(0)),
        per="month",
        arithmetic=tuple(working.lines),
        action=f"{'buy' if buy else 'do not buy'} {machine.name}",
        confidence="medium" if facts.hours >= 4 * LEAST_H else "low",
        simulated=any(node.offer.simulated for node in nodes),
    )


def replaces(own: Offer, rented: Offer) -> bool:
    """Whether a machine has all that the rented one has, its accelerators being the same or known
    to be no slower and no smaller."""
    if own.cpus < rented.cpus or own.memory_bytes < rented.memory_bytes:
        return False
    if rented.accelerator is None:
        return True
    if own.accelerator is None or own.accelerator_count < rented.accelerator_count:
        return False
    if own.accelerator.casefold() == rented.accelerator.casefold():
        return True
    mine, theirs = ACCELERATORS.get(own.accelerator), ACCELERATORS.get(rented.accelerator)
    return (
        mine is not None
        and theirs is not None
        and mine.family == theirs.family
        and mine.tflops >= theirs.tflops
        and mine.gb_per_s >= theirs.gb_per_s
        and mine.memory_gib >= theirs.memory_gib
    )


def _average(facts: Facts, nodes: Iterable[NodeSpan]) -> tuple[str, str]:
    """Dollars ÷ hours of these nodes, and the unit."""
    ids = {node.node_id for node in nodes}
    spent = [(h, facts.usd(n)) for n, h in facts.nodes() if n.node_id in ids]
    return f"{short(sum(u for _, u in spent), 6)} ÷ {short(sum(h for h, _ in spent), 6)}", "$"


def _together(facts: Facts, nodes: Iterable[NodeSpan]) -> list[float]:
    """Hours of the history with at least 1, 2, 3 … of these nodes."""
    changes = []
    for node in nodes:
        begin, end = max(node.started_at, facts.since), min(node.until(facts.now), facts.now)
        if begin < end:
            changes += [(begin, 1), (end, -1)]
    changes.sort()
    found: list[float] = []
    running, at = 0, facts.since
    for time, change in changes:
        hours = (time - at) / timedelta(hours=1)
        found += [0.0] * (running - len(found))
        for n in range(running):
            found[n] += hours
        running, at = running + change, time
    return found
