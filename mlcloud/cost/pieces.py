"""How one node's bill is divided: cut at every change, each piece given to who caused it.

    Ledger, a node, from, until ─► pieces() ─► Piece(session, execution, price, µs of the node) …

Whole numbers throughout: a session with a third of a node and two executions at once pays each of
them so many sixths of a microsecond. What is summed up from pieces is exact, in any order, also by
a database.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal, localcontext
from fractions import Fraction
from operator import itemgetter
from typing import NamedTuple

from mlcloud.cost.ledger import ExecutionSpan, Ledger, NodeSpan, Placement

MICROSECOND = timedelta(microseconds=1)
MICROSECONDS_PER_HOUR = timedelta(hours=1) // MICROSECOND

#: Amounts are read in billionths of a dollar, half of one being the error.
_NANODOLLAR = Decimal("1E-9")

_FIRST = itemgetter(0)


class Piece(NamedTuple):
    """A part of a node's bill at one price: `paid` / `parts` microseconds of the whole node, and
    `needed` / `parts` that on-demand would have needed too. Whole numbers, so sums are exact."""

    node_id: str
    session_id: str | None
    execution_id: str | None
    usd_per_hour: Decimal
    on_demand_usd_per_hour: Decimal
    parts: int
    paid: int
    needed: int

    @property
    def usd(self) -> Fraction:
        return per_microsecond(self.usd_per_hour) * Fraction(self.paid, self.parts)

    @property
    def on_demand_usd(self) -> Fraction:
        return per_microsecond(self.on_demand_usd_per_hour) * Fraction(self.needed, self.parts)


def pieces(
    ledger: Ledger,
    node: NodeSpan,
    begin: datetime,
    end: datetime,
    now: datetime,
    *,
    executions: bool = True,
) -> Iterator[Piece]:
    """A node's bill from `begin` to `end`, by who caused it.

    Without `executions` their part is their session's idle time: far fewer facts to look at.
    """
    if begin >= end:
        return
    for rate in ledger.rates(node, begin, end):
        sums = _divide(ledger, node.node_id, rate.begin, rate.end, now, executions)
        for (session_id, execution_id, parts), (paid, needed) in sums.items():
            if paid:
                yield Piece(node.node_id, session_id, execution_id, *rate[2:], parts, paid, needed)


_Sums = dict[tuple[str | None, str | None, int], tuple[int, int]]


def _divide(
    ledger: Ledger, node_id: str, begin: datetime, end: datetime, now: datetime, executions: bool
) -> _Sums:
    """Microseconds of a node from `begin` to `end`, cut at every change, by who caused them."""
    changes: list[tuple[datetime, bool, Placement | ExecutionSpan]] = []
    spans: list[Placement | ExecutionSpan] = [*ledger.placements_on(node_id)]
    if executions:
        sessions = dict.fromkeys(
            p.session_id
            for p in ledger.placements_on(node_id)
            if p.started_at < end and (p.ended_at is None or p.ended_at > begin)
        )
        for session in sessions:
            spans.extend(ledger.executions_after(session, begin))
    for span in spans:
        if span.started_at < end and (span.ended_at is None or span.ended_at > begin):
            start, stop = max(span.started_at, begin), min(span.until(now), end)
            if start < stop:
                changes += [(start, True, span), (stop, False, span)]
    changes.sort(key=_FIRST)

    placed: list[Placement] = []
    shares: list[tuple[Placement, int, int]] = []
    free: tuple[int, int] = (1, 1)
    running: dict[str, list[ExecutionSpan]] = {}
    sums: _Sums = {}

    def charge(
        session: str | None, execution: str | None, parts: int, part: int, only_on_spot: bool
    ) -> None:
        key = session, execution, parts
        paid, needed = sums.get(key, (0, 0))
        sums[key] = (paid + part, needed if only_on_spot else needed + part)

    def settle(time: int) -> None:
        for placement, share, of in shares:
            session, only_on_spot = placement.session_id, placement.only_on_spot
            current = running.get(session)
            if not current:
                charge(session, None, of, share * time, only_on_spot)
                continue
            parts = of * len(current)
            for execution in current:
                spot = only_on_spot or execution.only_on_spot
                charge(session, execution.execution_id, parts, share * time, spot)
        if free[0]:
            charge(None, None, free[1], free[0] * time, False)

    at = begin
    for time, starts, span in changes:
        if time > at:
            settle(microseconds(at, time))
            at = time
        if isinstance(span, Placement):
            placed.append(span) if starts else placed.remove(span)
            parts, free = _scaled(tuple(p.share for p in placed))
            shares = [(p, *part) for p, part in zip(placed, parts, strict=True)]
        else:
            active = running.setdefault(span.session_id, [])
            active.append(span) if starts else active.remove(span)
    settle(microseconds(at, end))
    return sums


@functools.lru_cache(maxsize=256)
def _scaled(
    shares: tuple[Fraction | Decimal, ...],
) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """What each of `shares` has of a node, together no more than all of it, and what is left."""
    total = sum((Fraction(share) for share in shares), Fraction(0))
    parts = [Fraction(share) / max(Fraction(1), total) for share in shares]
    return [part.as_integer_ratio() for part in parts], max(
        Fraction(0), 1 - total
    ).as_integer_ratio()


def to_usd(amount: Fraction) -> Decimal:
    """`amount` dollars to the nearest billionth."""
    with localcontext() as context:
        context.prec = 50
        return (Decimal(amount.numerator) / Decimal(amount.denominator)).quantize(_NANODOLLAR)


def microseconds(begin: datetime, end: datetime) -> int:
    return max(0, (end - begin) // MICROSECOND)


@functools.cache
def per_microsecond(usd_per_hour: Decimal) -> Fraction:
    return Fraction(usd_per_hour) / MICROSECONDS_PER_HOUR
