"""How much was spent, and how fast: what budgets ask every second.

While nothing starts or ends, what is spent grows evenly. So the sum is worked out once after each
change of a node, a price or a placement, and after that read from a line:

    spent(now) = usd + rate × (now - base)
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from mlcloud.cost.ledger import Ledger, NodeSpan
from mlcloud.cost.pieces import (
    MICROSECOND,
    MICROSECONDS_PER_HOUR,
    microseconds,
    per_microsecond,
    pieces,
    to_usd,
)

_MOST_LINES = 10_000

#: A session's id, the ids of several, or None: all of the cluster.
Whose = str | frozenset[str] | None


def spent(
    ledger: Ledger, now: datetime, *, since: datetime | None = None, session_id: Whose = None
) -> Fraction:
    """The `exact` of `cluster_cost`, or of `session_cost`, alone: cheap enough for every second.

    With several ids, what their sessions cost together.
    """
    return _line(ledger, now, since, session_id).at(now)


def usd_per_hour_now(ledger: Ledger, now: datetime, session_id: Whose = None) -> Decimal:
    """The rate at which money is being spent at `now`: by the cluster, or by sessions."""
    return to_usd(_line(ledger, now, None, session_id).rate * MICROSECONDS_PER_HOUR)


class Line(NamedTuple):
    """Spending while nothing changes: `usd` at `base`, `rate` dollars a microsecond from then."""

    changes: int
    base: datetime
    usd: Fraction
    rate: Fraction

    def at(self, now: datetime) -> Fraction:
        return self.usd + self.rate * microseconds(self.base, now)


def _line(ledger: Ledger, now: datetime, since: datetime | None, session_id: Whose) -> Line:
    key = since, session_id
    known: Line | None = ledger.lines.get(key)
    if known is not None and known.changes == ledger.changes and known.base <= now:
        return known
    usd = rate = Fraction(0)
    for node in _nodes(ledger, session_id, since):
        begin = node.started_at if since is None else max(node.started_at, since)
        if begin < node.until(now):
            usd += _part(ledger, node, begin, node.until(now), now, session_id)
        if node.started_at <= now and (node.ended_at is None or now < node.ended_at):
            rate += _part(ledger, node, now, now + MICROSECOND, now + MICROSECOND, session_id)
    found = Line(ledger.changes, now, usd, rate)
    # What is known of a later time, as a clock that was set back leaves it, bends the line.
    if ledger.latest <= now and (since is None or since <= now):
        if len(ledger.lines) >= _MOST_LINES:
            ledger.lines.clear()
        ledger.lines[key] = found
    return found


def _nodes(ledger: Ledger, whose: Whose, since: datetime | None) -> Iterable[NodeSpan]:
    if whose is None:
        return ledger.nodes_after(since)
    if isinstance(whose, str):
        return ledger.nodes_of(whose, since)
    found = {node.node_id: node for each in whose for node in ledger.nodes_of(each, since)}
    return found.values()


def _part(
    ledger: Ledger,
    node: NodeSpan,
    begin: datetime,
    end: datetime,
    now: datetime,
    session_id: Whose,
) -> Fraction:
    if session_id is None:
        return sum(
            (
                per_microsecond(rate.usd_per_hour) * microseconds(rate.begin, rate.end)
                for rate in ledger.rates(node, begin, end)
            ),
            Fraction(0),
        )
    every = pieces(ledger, node, begin, end, now, executions=False)
    ids = (session_id,) if isinstance(session_id, str) else session_id
    return sum((each.usd for each in every if each.session_id in ids), Fraction(0))
