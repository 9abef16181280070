"""The facts that advice is drawn from, and what several kinds of it ask of them."""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from mlcloud.cluster.clouds.base import Leftover
from mlcloud.cluster.offers import Market, Offer
from mlcloud.cost.advice.working import HOURS_A_MONTH, Confidence, Working, number, short
from mlcloud.cost.ledger import Ledger, NodeSpan
from mlcloud.cost.own_machine import OwnMachine
from mlcloud.cost.usage import Usage

_HOUR = timedelta(hours=1)
_DAY_H = 24


@dataclass(frozen=True)
class SessionFacts:
    """A session that is there. `idle_since` None: a cell runs, or it holds no node; `memory_bytes`
    is its limit, 0 where it has none."""

    id: str
    name: str
    market: Market
    idle_timeout_s: float
    idle_since: datetime | None = None
    busy_why: str = ""  # why it was not parked, where something keeps it
    memory_bytes: int = 0
    asks: tuple[str | None, float] | None = None  # GPUs as NAME:COUNT, and CPUs


class Own(NamedTuple):
    """A machine that might be bought, and what it has."""

    machine: OwnMachine
    offer: Offer


@dataclass(frozen=True)
class Facts:
    """Everything since `since`, as of `now` (UTC). `offers` are those of the cluster's own cloud
    and regions: nothing else is advised. `preempted` are ids of nodes that were taken back,
    `heads` of those that hold no session by intent; `spares` so many nodes are kept, used or not;
    `lost_s` is the work that a preemption costs."""

    now: datetime
    since: datetime
    usage: Sequence[Usage]
    offers: Sequence[Offer]
    ledger: Ledger
    sessions: Sequence[SessionFacts] = ()
    preempted: frozenset[str] = frozenset()
    heads: frozenset[str] = frozenset()
    leftovers: Sequence[Leftover] = ()
    own: Sequence[Own] = ()
    spares: int = 0
    node_idle_s: float = 60.0
    idle_timeout_s: float = 0.0  # of sessions that name none; 0: not known
    cold_start_s: float = 120.0
    lost_s: float = 60.0
    accelerator_memory: Mapping[str, int] = field(default_factory=dict)  # bytes, by instance type

    @functools.cached_property
    def kinds(self) -> list[Offer]:
        """Of each machine in each market the cheapest offer, cheapest first."""
        found: dict[tuple[str, str], Offer] = {}
        for offer in sorted(self.offers, key=lambda each: each.rank):
            found.setdefault((offer.instance_type, offer.market), offer)
        return list(found.values())

    @property
    def hours(self) -> float:
        return max(0.0, (self.now - self.since) / _HOUR)

    @property
    def confidence(self) -> Confidence:
        """By the length of the history."""
        if self.hours < _DAY_H:
            return "low"
        return "medium" if self.hours < 7 * _DAY_H else "high"

    def monthly(self, working: Working, saved: Decimal) -> Decimal:
        """What `saved` dollars in this history are a month, with the line for it."""
        history = short(self.hours)
        if self.hours < _DAY_H:
            working.fact(f"history: {history} h, less than 24 h: taken for the work of a day")
            history = number(_DAY_H)
        else:
            working.fact(f"history: {history} h")
        pace = f"{number(saved)} × {number(HOURS_A_MONTH)} ÷ {history}"
        return working.line("a month at this pace", pace, "$")

    @property
    def months(self) -> Decimal:
        """The history in months, as `monthly` takes it."""
        return Decimal(str(max(self.hours, _DAY_H))) / HOURS_A_MONTH

    def nodes(self) -> list[tuple[NodeSpan, float]]:
        """Nodes that billed in this history, and their hours in it; those that cost nothing (the
        head on your own computer) are left out."""
        found = []
        for node in self.ledger.nodes:
            begin, end = max(node.started_at, self.since), min(node.until(self.now), self.now)
            if begin < end and node.offer.usd_per_hour > 0:
                found.append((node, (end - begin) / _HOUR))
        return found

    def usd(self, node: NodeSpan) -> float:
        """What it billed in this history, at the prices that were in force."""
        begin, end = max(node.started_at, self.since), min(node.until(self.now), self.now)
        if begin >= end:
            return 0.0
        rates = self.ledger.rates(node, begin, end)
        return sum(float(each.usd_per_hour) * ((each.end - each.begin) / _HOUR) for each in rates)

    def session(self, session_id: str) -> SessionFacts | None:
        return next((each for each in self.sessions if each.id == session_id), None)


def gaps(
    held: Iterable[tuple[datetime, datetime]], used: Iterable[tuple[datetime, datetime]]
) -> list[tuple[datetime, datetime]]:
    """The parts of `held` that are in none of `used`, in order."""
    busy: list[tuple[datetime, datetime]] = []
    for start, stop in sorted(used):  # joined, so that their ends are in order too
        if busy and start <= busy[-1][1]:
            busy[-1] = (busy[-1][0], max(busy[-1][1], stop))
        else:
            busy.append((start, stop))
    ends = [stop for _, stop in busy]
    found = []
    for begin, end in sorted(held):
        at = begin
        for index in range(bisect_left(ends, begin), len(busy)):
            start, stop = busy[index]
            if start >= end:
                break
            if start > at:
                found.append((at, start))
            at = max(at, stop)
        if at < end:
            found.append((at, end))
    return found


def seconds(spans: Iterable[tuple[datetime, datetime]]) -> float:
    return sum((end - begin).total_seconds() for begin, end in spans)
