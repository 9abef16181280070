"""The meter: who caused which part of what the nodes cost, exact to the last fraction of a cent.

It computes from the facts of a `Ledger` alone; it asks no clock and no cloud:

            node  ████████████████████████████████████   price × time = the node's bill
        placement      ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒          × share      = the session's part
       executions         ▓▓▓▓▓▓   ▓▓▓▓▓                 = theirs
                  ├─┤                          ├───────┤  the node's overhead (and 1 - shares)
                       ├─┤      ├─┤     ├────┤            the session's idle time

`charges()` cuts a node's life at every such change and gives each piece to exactly one
(session, execution), so that always

    executions + sessions' idle time + nodes' overhead == the nodes' bills

without rounding: money is a `Fraction` of a dollar inside and becomes a `Decimal` when read.
Where facts overlap, the sum still holds: executions running at once in one session divide it
evenly, and shares that add up to more than a node are scaled down to it.

**Saved** is what the same node time would have cost on demand, less what it did cost. Time that
only spot makes necessary (work done again after a preemption, a second node during a handover) is
marked `only_on_spot` and would have cost nothing on demand, so a saving may come out negative.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from operator import itemgetter

from mlcloud.cost.ledger import Ledger, NodeSpan, Placement, Span
from mlcloud.cost.pieces import microseconds, per_microsecond, pieces
from mlcloud.cost.pieces import to_usd as to_usd
from mlcloud.cost.spent import spent as spent
from mlcloud.cost.spent import usd_per_hour_now as usd_per_hour_now

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

_FIRST = itemgetter(0)


# --- the answer -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Charge:
    """A piece of one node's bill. No execution: the session's idle time; no session either: the
    node's overhead."""

    node_id: str
    session_id: str | None
    execution_id: str | None
    usd: Fraction
    on_demand_usd: Fraction


@dataclass(frozen=True)
class Bill:
    """What something cost, and where it ran.

    `nodes` are those it paid for, in the order in which it came to them; `seconds` is time on the
    clock; `moves` how often it went on to another node; `exact` and `exact_on_demand` are dollars.
    """

    exact: Fraction = Fraction(0)
    exact_on_demand: Fraction = Fraction(0)
    seconds: float = 0.0
    nodes: tuple[NodeSpan, ...] = ()
    moves: int = 0
    execution_id: str | None = None
    session_id: str | None = None
    charges: tuple[Charge, ...] = field(default=(), repr=False)

    @property
    def usd(self) -> Decimal:
        return to_usd(self.exact)

    @property
    def on_demand_usd(self) -> Decimal:
        return to_usd(self.exact_on_demand)

    @property
    def saved_usd(self) -> Decimal:
        """Below zero where spot came dearer than on-demand would have."""
        return to_usd(self.exact_on_demand - self.exact)

    @property
    def simulated(self) -> bool:
        """Whether any part of it has a price that nobody is charged."""
        return any(node.offer.simulated for node in self.nodes)


# --- questions ------------------------------------------------------------------------------------


def execution_cost(
    ledger: Ledger, execution_id: str, now: datetime, *, since: datetime | None = None
) -> Bill:
    """What an execution cost on all nodes that it saw, up to `now` if it still runs."""
    spans = ledger.spans_of(execution_id)
    if not spans:
        return Bill(execution_id=execution_id)
    session_id = spans[0].session_id
    window = min(s.started_at for s in spans), max(s.until(now) for s in spans)
    if since is not None:
        window = max(window[0], since), window[1]
    mine = [
        charge
        for charge in charges(ledger, now, since=window[0], until=window[1], session_id=session_id)
        if charge.execution_id == execution_id
    ]
    return _bill(ledger, mine, spans, now, session_id, execution_id)


def session_cost(
    ledger: Ledger, session_id: str, now: datetime, *, since: datetime | None = None
) -> Bill:
    """What a session cost: its executions and its idle time, up to `now`, perhaps from `since`."""
    spans = ledger.placements_of(session_id)
    every = charges(ledger, now, since=since, session_id=session_id)
    mine = [charge for charge in every if charge.session_id == session_id]
    return _bill(ledger, mine, spans, now, session_id)


def cluster_cost(
    ledger: Ledger, now: datetime, *, since: datetime | None = None, until: datetime | None = None
) -> Bill:
    """What all nodes cost, optionally only from `since` and only to `until` (a day's budget)."""
    lower, upper = since or _EPOCH, min(until or now, now)
    spans = [
        NodeSpan(n.node_id, n.offer, max(n.started_at, lower), min(n.until(now), upper))
        for n in ledger.nodes_after(since)
    ]
    every = list(charges(ledger, now, since=since, until=until))
    return _bill(ledger, every, spans, now)


def node_cost(node: NodeSpan, now: datetime, ledger: Ledger | None = None) -> Fraction:
    """A node's bill, in exact dollars: its price times its time; `ledger` knows when it changed."""
    begin, end = node.started_at, node.until(now)
    if ledger is None:
        return per_microsecond(node.offer.usd_per_hour) * microseconds(begin, end)
    return sum(
        (
            per_microsecond(rate.usd_per_hour) * microseconds(rate.begin, rate.end)
            for rate in (ledger.rates(node, begin, end) if begin < end else ())
        ),
        Fraction(0),
    )


def charges(
    ledger: Ledger,
    now: datetime,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    session_id: str | None = None,
) -> Iterator[Charge]:
    """Every piece of every node's bill, one for each (node, session, execution).

    `since` and `until` cut off what lies outside; with `session_id` only the nodes that this
    session was placed on are looked at.
    """
    of = ledger.nodes_after(since) if session_id is None else ledger.nodes_of(session_id, since)
    for node in of:
        begin = node.started_at if since is None else max(node.started_at, since)
        end = node.until(now) if until is None else min(node.until(now), until)
        sums: dict[tuple[str | None, str | None], tuple[Fraction, Fraction]] = {}
        for piece in pieces(ledger, node, begin, end, now):
            key = piece.session_id, piece.execution_id
            usd, on_demand = sums.get(key, (Fraction(0), Fraction(0)))
            sums[key] = (usd + piece.usd, on_demand + piece.on_demand_usd)
        for (session, execution), (usd, on_demand) in sums.items():
            yield Charge(node.node_id, session, execution, usd, on_demand)


# --- bills ----------------------------------------------------------------------------------------


def _bill(
    ledger: Ledger,
    mine: list[Charge],
    spans: Iterable[Span],
    now: datetime,
    session_id: str | None = None,
    execution_id: str | None = None,
) -> Bill:
    """Sum up `mine`; `spans` are the times during which it was caused."""
    own = sorted((s.started_at, s.until(now)) for s in spans if s.started_at < s.until(now))
    paid = {charge.node_id: ledger.node(charge.node_id) for charge in mine}
    arrivals = {node_id: node.started_at for node_id, node in paid.items()}
    moves = 0
    if session_id is not None and own:
        stays = _stays(ledger.placements_of(session_id), own[0][0], own[-1][1], now)
        arrivals = {}
        for start, _, node_id in stays:
            arrivals.setdefault(node_id, start)
        moves = _moves(stays)
    order = sorted(paid, key=lambda node_id: (arrivals[node_id], node_id))
    return Bill(
        exact=sum((c.usd for c in mine), Fraction(0)),
        exact_on_demand=sum((c.on_demand_usd for c in mine), Fraction(0)),
        seconds=_union(own).total_seconds(),
        nodes=tuple(paid[node_id] for node_id in order),
        moves=moves,
        execution_id=execution_id,
        session_id=session_id,
        charges=tuple(mine),
    )


def _stays(
    placements: Iterable[Placement], begin: datetime, end: datetime, now: datetime
) -> list[tuple[datetime, datetime, str]]:
    """When a session was on which node between `begin` and `end`, in order of arrival."""
    clipped = ((max(p.started_at, begin), min(p.until(now), end), p.node_id) for p in placements)
    return sorted(stay for stay in clipped if stay[0] < stay[1])


def _moves(stays: list[tuple[datetime, datetime, str]]) -> int:
    """How many of `stays` began by coming from another node.

    The nodes of a gang start together, so nothing that starts first is a move; nor is a new host on
    the node where the session is, or was last.
    """
    moves = 0
    ends: dict[str, datetime] = {}  # of stays that began earlier, by node
    last: tuple[datetime, str] | None = None
    for _, group in itertools.groupby(stays, key=_FIRST):
        together = list(group)
        for start, _, node_id in together:
            if last is not None:
                still_here = node_id in ends and ends[node_id] >= start
                moves += not still_here and last[1] != node_id
        for _, end, node_id in together:
            ends[node_id] = max(end, ends.get(node_id, end))
            if last is None or end > last[0]:
                last = end, node_id
    return moves


def _union(spans: list[tuple[datetime, datetime]]) -> timedelta:
    """How long at least one of the sorted `spans` went on."""
    total, reached = timedelta(0), _EPOCH
    for start, stop in spans:
        if stop > reached:
            total += stop - max(start, reached)
            reached = stop
    return total
