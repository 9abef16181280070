"""What clusters left behind in the cloud and still bills: idle, orphaned, without tags."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from mlcloud.cost.advice.facts import Facts
from mlcloud.cost.advice.working import HOURS_A_MONTH, Advice, Working, number


def leftover(facts: Facts) -> Iterator[Advice]:
    """None of what belongs to a node that runs, and none of what is free."""
    running = {node.node_id for node in facts.ledger.nodes if node.ended_at is None}
    for each in facts.leftovers:
        price = each.usd_per_hour
        if each.id in running or price == 0:
            continue
        working = Working()
        working.fact(f"{each.kind} {each.id}: {each.why}")
        if price is None:
            working.fact("what it bills is not known")
            bills, month = "its price is not known", Decimal(0)
        else:
            month = working.line("a month", f"{number(price)} × {number(HOURS_A_MONTH)}", "$")
            bills = f"${number(price)}/h"
        where = f" in {each.region}" if each.region else ""
        yield Advice(
            kind="leftover",
            about=f"{each.kind} {each.id}",
            text=f"{each.why}{where}: {bills}",
            saves_usd=month,
            per="month",
            arithmetic=tuple(working.lines),
            action="mlcloud gc",
            confidence="high" if price is not None else "low",
        )
