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

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal, localcontext
from fractions import Fraction

from mlcloud.cost.ledger import ExecutionSpan, Ledger, NodeSpan, Placement, Span

_MICROSECOND = timedelta(microseconds=1)
_MICROSECONDS_PER_HOUR = timedelta(hours=1) // _MICROSECOND
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

#: Amounts are read in billionths of a dollar, half of one being the error.
_NANODOLLAR = Decimal("1E-9")


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


def to_usd(amount: Fraction) -> Decimal:
    """`amount` dollars to the nearest billionth."""
    with localcontext() as context:
        context.prec = 50
        return (Decimal(amount.numerator) / Decimal(amount.denominator)).quantize(_NANODOLLAR)


# --- questions ------------------------------------------------------------------------------------


def execution_cost(ledger: Ledger, execution_id: str, now: datetime) -> Bill:
    """What an execution cost on all nodes that it saw, up to `now` if it still runs."""
    spans = ledger.spans_of(execution_id)
    if not spans:
        return Bill(execution_id=execution_id)
    session_id = spans[0].session_id
    window = min(s.started_at for s in spans), max(s.until(now) for s in spans)
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
        for n in ledger.nodes
    ]
    every = list(charges(ledger, now, since=since, until=until))
    return _bill(ledger, every, spans, now)


def node_cost(node: NodeSpan, now: datetime) -> Fraction:
    """A node's bill, in exact dollars: its price times its time."""
    return _per_microsecond(node.offer.usd_per_hour) * _microseconds(
        node.started_at, node.until(now)
    )


def usd_per_hour_now(ledger: Ledger, now: datetime, session_id: str | None = None) -> Decimal:
    """The rate at which money is being spent at `now`: by the cluster, or by one session."""
    rate = Fraction(0)
    for node in ledger.nodes:
        if not _covers(node, now):
            continue
        price = Fraction(node.offer.usd_per_hour)
        if session_id is not None:
            shares, _ = _shares([p for p in ledger.placements_on(node.node_id) if _covers(p, now)])
            price *= sum((share for p, share in shares if p.session_id == session_id), Fraction(0))
        rate += price
    return to_usd(rate)


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
    for node in ledger.nodes:
        placed = ledger.placements_on(node.node_id)
        if session_id is not None and all(p.session_id != session_id for p in placed):
            continue
        begin = node.started_at if since is None else max(node.started_at, since)
        end = node.until(now) if until is None else min(node.until(now), until)
        if begin < end:
            yield from _divide(node, placed, ledger, begin, end, now)


# --- how a node's bill is divided -----------------------------------------------------------------


def _divide(
    node: NodeSpan,
    placements: list[Placement],
    ledger: Ledger,
    begin: datetime,
    end: datetime,
    now: datetime,
) -> Iterator[Charge]:
    """One node's bill from `begin` to `end`, cut at every change and summed by who caused it."""
    changes: list[tuple[datetime, bool, Placement | ExecutionSpan]] = []
    spans: list[Placement | ExecutionSpan] = [*placements]
    for session in dict.fromkeys(p.session_id for p in placements):
        spans.extend(ledger.executions_after(session, begin))
    for span in spans:
        if span.started_at < end and (span.ended_at is None or span.ended_at > begin):
            start, stop = max(span.started_at, begin), min(span.until(now), end)
            if start < stop:
                changes += [(start, True, span), (stop, False, span)]
    changes.sort(key=lambda change: change[0])

    placed: list[Placement] = []
    shares: list[tuple[Placement, Fraction | int]] = []
    free: Fraction | int = 1
    running: dict[str, list[ExecutionSpan]] = {}
    # Microseconds of the whole node, and those of them that on-demand would have needed too.
    sums: dict[tuple[str | None, str | None], tuple[Fraction | int, Fraction | int]] = {}

    def charge(
        session: str | None, execution: str | None, part: Fraction | int, only_on_spot: bool
    ) -> None:
        paid, needed = sums.get((session, execution), (0, 0))
        sums[session, execution] = (paid + part, needed if only_on_spot else needed + part)

    def settle(time: int) -> None:
        for placement, share in shares:
            part = share * time
            current = running.get(placement.session_id)
            if not current:
                charge(placement.session_id, None, part, placement.only_on_spot)
                continue
            for execution in current:
                charge(
                    placement.session_id,
                    execution.execution_id,
                    part if len(current) == 1 else Fraction(part) / len(current),
                    placement.only_on_spot or execution.only_on_spot,
                )
        if free:
            charge(None, None, free * time, False)

    at = begin
    for time, starts, span in changes:
        if time > at:
            settle(_microseconds(at, time))
            at = time
        if isinstance(span, Placement):
            placed.append(span) if starts else placed.remove(span)
            shares, free = _shares(placed)
        else:
            active = running.setdefault(span.session_id, [])
            active.append(span) if starts else active.remove(span)
    settle(_microseconds(at, end))
    price, on_demand = node.offer.usd_per_hour, node.on_demand_rate
    for (session_id, execution_id), (paid, needed) in sums.items():
        if paid:
            yield Charge(
                node.node_id,
                session_id,
                execution_id,
                _per_microsecond(price) * paid,
                _per_microsecond(on_demand) * needed,
            )


def _shares(placed: list[Placement]) -> tuple[list[tuple[Placement, Fraction | int]], Fraction]:
    """What each of `placed` has of the node, together no more than all of it, and what is left."""
    parts, left = _scaled(tuple(p.share for p in placed))
    return list(zip(placed, parts, strict=True)), left


@functools.lru_cache(maxsize=256)
def _scaled(
    shares: tuple[Fraction | Decimal, ...],
) -> tuple[list[Fraction | int], Fraction]:
    total = sum((Fraction(share) for share in shares), Fraction(0))
    parts = [Fraction(share) / max(Fraction(1), total) for share in shares]
    left = max(Fraction(0), 1 - total)
    # Most sessions have a node for themselves, and whole numbers add up twenty times faster.
    return [int(part) if part.denominator == 1 else part for part in parts], left


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
    for number, (start, _, node_id) in enumerate(stays):
        before = [stay for stay in stays[:number] if stay[0] < start]
        if not before:
            continue
        still_here = any(stay[1] >= start and stay[2] == node_id for stay in before)
        last = max(before, key=lambda stay: stay[1])
        moves += not still_here and last[2] != node_id
    return moves


def _union(spans: list[tuple[datetime, datetime]]) -> timedelta:
    """How long at least one of the sorted `spans` went on."""
    total, reached = timedelta(0), _EPOCH
    for start, stop in spans:
        if stop > reached:
            total += stop - max(start, reached)
            reached = stop
    return total


def _covers(span: Span, now: datetime) -> bool:
    return span.started_at <= now and (span.ended_at is None or now < span.ended_at)


def _microseconds(begin: datetime, end: datetime) -> int:
    return max(0, (end - begin) // _MICROSECOND)


@functools.cache
def _per_microsecond(usd_per_hour: Decimal) -> Fraction:
    return Fraction(usd_per_hour) / _MICROSECONDS_PER_HOUR
