"""Pieces of days that are over, as rows of whole numbers; and exact sums of such rows.

pieces of a node's day ─► Share(day, node, session, execution, price, paid / parts µs …)
rows of a table ─┐
rows of today   ─┴─► Sums.add(key, …) ─► Amount(usd, on demand, idle, node hours), exact
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Generic, NamedTuple, TypeVar

from mlcloud.cost.ledger import Ledger
from mlcloud.cost.pieces import MICROSECONDS_PER_HOUR, pieces

DAY = timedelta(days=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

Key = TypeVar("Key", bound=Hashable)


class Share(NamedTuple):
    """As `pieces.Piece`, of one day. No session: the node's overhead, `session_id` empty."""

    day: int
    node_id: str
    session_id: str
    execution_id: str
    usd_per_hour: str
    on_demand: str
    parts: int
    paid: int
    needed: int


def day_of(moment: datetime) -> int:
    """Days since 1970, UTC."""
    return (moment - _EPOCH) // DAY


def midnight(day: int) -> datetime:
    """When that day begins."""
    return _EPOCH + day * DAY


def shares(ledger: Ledger, begin: datetime, end: datetime, now: datetime) -> Iterator[Share]:
    """Who caused what from `begin` to `end`, day by day (UTC)."""
    day = day_of(begin)
    while midnight(day) < end:
        since, until = max(begin, midnight(day)), min(end, midnight(day + 1))
        for node in ledger.nodes_after(since):
            start, stop = max(node.started_at, since), min(node.until(now), until)
            for piece in pieces(ledger, node, start, stop, now):
                yield Share(
                    day,
                    node.node_id,
                    piece.session_id or "",
                    piece.execution_id or "",
                    str(piece.usd_per_hour),
                    str(piece.on_demand_usd_per_hour),
                    piece.parts,
                    piece.paid,
                    piece.needed,
                )
        day += 1


class Amount(NamedTuple):
    """Exact dollars and hours, as whole numbers of one part: each is its number over `of`.

    Read as fractions by the names without `n_`; `rounded` is much quicker, for many of them.
    """

    n_usd: int
    n_on_demand: int
    n_idle: int
    n_hours: int
    of: int

    @property
    def usd(self) -> Fraction:
        return Fraction(self.n_usd, self.of)

    @property
    def on_demand(self) -> Fraction:
        return Fraction(self.n_on_demand, self.of)

    @property
    def idle(self) -> Fraction:
        """That part of `usd` in which nothing ran."""
        return Fraction(self.n_idle, self.of)

    @property
    def hours(self) -> Fraction:
        """Of whole nodes."""
        return Fraction(self.n_hours, self.of)

    def rounded(self) -> tuple[Decimal, Decimal, Decimal, Decimal]:
        """Dollars, on demand, idle, hours: each to the nearest billionth, as `to_usd`."""
        of = self.of
        return (
            _billionths(self.n_usd, of),
            _billionths(self.n_on_demand, of),
            _billionths(self.n_idle, of),
            _billionths(self.n_hours, of),
        )


NO_AMOUNT = Amount(0, 0, 0, 0, 1)


def _billionths(number: int, of: int) -> Decimal:
    """Half to even. `scaleb` is exact below 10^28 billionths: it only moves the point."""
    whole, rest = divmod(number * 10**9, of)
    if 2 * rest > of or (2 * rest == of and whole % 2):
        whole += 1
    return Decimal(whole).scaleb(-9)


class Sums(Generic[Key]):
    """Exact sums by a key. Rows are added up as whole numbers, by what they are parts of; only the
    end result is made a fraction."""

    def __init__(self) -> None:
        self._sums: tuple[dict[tuple[Key, int], int], ...] = ({}, {}, {}, {})
        self._keys: dict[Key, None] = {}

    def add(
        self,
        key: Key,
        usd_per_hour: str,
        on_demand: str,
        parts: int,
        paid: int,
        needed: int,
        busy: bool,
    ) -> None:
        usd, market, idle, hours = self._sums
        self._keys[key] = None
        price, of = _ratio(usd_per_hour)
        at = key, of * parts
        cost = price * paid
        usd[at] = usd.get(at, 0) + cost
        if not busy:
            idle[at] = idle.get(at, 0) + cost
        price, of = _ratio(on_demand)
        at = key, of * parts
        market[at] = market.get(at, 0) + price * needed
        at = key, parts
        hours[at] = hours.get(at, 0) + paid

    def add_total(
        self,
        key: Key,
        parts: tuple[int, int],
        usd: int,
        on_demand: int,
        idle: int,
        hours: int,
    ) -> None:
        """What is summed up already: dollars are in `parts[0]` of a dollar-microsecond an hour,
        `hours` in `parts[1]` of a microsecond."""
        self._keys[key] = None
        at = key, parts[0]
        for sums, value in zip(self._sums, (usd, on_demand, idle), strict=False):
            sums[at] = sums.get(at, 0) + value
        at = key, parts[1]
        self._sums[3][at] = self._sums[3].get(at, 0) + hours

    def amounts(self) -> dict[Key, Amount]:
        whole = math.lcm(*{parts for sums in self._sums for _, parts in sums})
        found = [dict.fromkeys(self._keys, 0) for _ in self._sums]
        for sums, totals in zip(self._sums, found, strict=True):
            for (key, parts), value in sums.items():
                totals[key] += value * (whole // parts)
        of = whole * MICROSECONDS_PER_HOUR
        usd, on_demand, idle, hours = found
        return {
            key: Amount(usd[key], on_demand[key], idle[key], hours[key], of) for key in self._keys
        }


@cache
def _ratio(price: str) -> tuple[int, int]:
    return Decimal(price).as_integer_ratio()
