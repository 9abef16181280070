"""The ledger: the facts from which the meter (`meter.py`) works out every dollar.

    NodeSpan       this node was billed at this price, from then till then
    PriceChange    from then on that node was billed at this price instead
    Placement      this session held this share of that node, from then till then
    ExecutionSpan  this session worked on this execution, from then till then

Entries are only ever appended. What is still going on is entered open, and entered once more with
its end when that is known.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from decimal import Decimal
from fractions import Fraction
from operator import attrgetter, itemgetter
from typing import Any, Generic, NamedTuple, TypeVar

from mlcloud.cluster.offers import Offer


class Span:
    """Times are aware and UTC; `ended_at` None means: still going on. An end before the start, as a
    clock that was set back gives it, counts as no time at all."""

    started_at: datetime
    ended_at: datetime | None

    def __post_init__(self) -> None:
        for time in (self.started_at, self.ended_at):
            if time is not None and time.utcoffset() is None:
                raise ValueError(f"{time!r} has no time zone: the meter's times are UTC")

    def until(self, now: datetime) -> datetime:
        """The end, or `now` where it is still going on."""
        return now if self.ended_at is None else self.ended_at


@dataclass(frozen=True)
class NodeSpan(Span):
    """One node's billed life.

    `on_demand_usd_per_hour` is what it would have cost on demand when it was launched; without it
    no saving is claimed.
    """

    node_id: str
    offer: Offer
    started_at: datetime
    ended_at: datetime | None = None
    on_demand_usd_per_hour: Decimal | None = None

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.node_id,)


@dataclass(frozen=True)
class PriceChange:
    """From `at` on a node costs `usd_per_hour`, as a spot price does that moves with its zone.
    `source` is who said so."""

    node_id: str
    at: datetime
    usd_per_hour: Decimal
    source: str = ""

    def __post_init__(self) -> None:
        if self.at.utcoffset() is None:
            raise ValueError(f"{self.at!r} has no time zone: the meter's times are UTC")
        if not self.usd_per_hour.is_finite() or self.usd_per_hour < 0:
            raise ValueError(f"a node does not cost {self.usd_per_hour} an hour")

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.node_id, self.at)


class Rate(NamedTuple):
    """What a node costs an hour from `begin` to `end`, and what it would on demand."""

    begin: datetime
    end: datetime
    usd_per_hour: Decimal
    on_demand_usd_per_hour: Decimal


@dataclass(frozen=True)
class Placement(Span):
    """A session holds `share` (0 to 1) of a node. A gang has several at once."""

    session_id: str
    node_id: str
    share: Fraction | Decimal
    started_at: datetime
    ended_at: datetime | None = None
    only_on_spot: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.share <= 1:
            raise ValueError(f"a share of a node lies between 0 and 1, not {self.share}")

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.session_id, self.node_id, self.started_at)


@dataclass(frozen=True)
class ExecutionSpan(Span):
    """A session works on an execution. One that is run again has several spans."""

    execution_id: str
    session_id: str
    started_at: datetime
    ended_at: datetime | None = None
    only_on_spot: bool = False

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.execution_id, self.session_id, self.started_at)


Entry = NodeSpan | PriceChange | Placement | ExecutionSpan
AnySpan = TypeVar("AnySpan", bound=NodeSpan | Placement | ExecutionSpan)

_AT = attrgetter("at")


class _ByEnd(Generic[AnySpan], dict[str, list[tuple[datetime, int, AnySpan]]]):
    """Spans that have ended, by whose they are; one that has another end since is stale."""

    def add(self, key: str, number: int, span: AnySpan) -> None:
        if span.ended_at is not None:
            insort(self.setdefault(key, []), (span.ended_at, number, span))

    def after(self, key: str, moment: datetime) -> Iterator[AnySpan]:
        ends = self.get(key, [])
        return (span for _, _, span in ends[bisect_right(ends, moment, key=itemgetter(0)) :])


class Ledger:
    """Entries in the order in which they became known; nothing is ever changed or removed.

    What is still going on is entered open and entered again, with its end, once that is known: of
    entries with the same `identity` the last one counts.

    `changes` counts entries that change what somebody pays in all (executions only divide it);
    `latest` is the latest moment that any of those names.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries: list[Entry] = []
        self._nodes: dict[str, NodeSpan] = {}
        self._prices: dict[str, list[PriceChange]] = {}
        # Each index holds the latest version of an entry, by its identity.
        self._on_node: dict[str, dict[object, Placement]] = {}
        self._placed: dict[str, dict[object, Placement]] = {}
        self._in_session: dict[str, dict[object, ExecutionSpan]] = {}
        self._of_execution: dict[str, dict[object, ExecutionSpan]] = {}
        # A session has thousands of executions and a cluster of nodes, and most questions ask for
        # a moment of them: those that go on, and the others by their end.
        self._going_on: dict[str, dict[object, ExecutionSpan]] = {}
        self._ended: _ByEnd[ExecutionSpan] = _ByEnd()
        self._open_nodes: dict[str, NodeSpan] = {}
        self._ended_nodes: _ByEnd[NodeSpan] = _ByEnd()
        self.changes = 0
        self.lines: dict[object, Any] = {}  # `meter.spent`'s, by what was asked
        self.latest = datetime.min.replace(tzinfo=timezone.utc)
        for entry in entries:
            self.append(entry)

    def append(self, entry: Entry) -> datetime | None:
        """Enter it. Returns the first moment for which it changes what was known, None for none."""
        self._entries.append(entry)
        if isinstance(entry, ExecutionSpan):
            return self._append_execution(entry)
        self.changes += 1
        if isinstance(entry, PriceChange):
            self.latest = max(self.latest, entry.at)
            changes = self._prices.setdefault(entry.node_id, [])
            place = bisect_right(changes, entry.at, key=_AT)
            if place and changes[place - 1].at == entry.at:
                changes[place - 1] = entry
            else:
                changes.insert(place, entry)
            return entry.at
        self.latest = max(self.latest, entry.started_at, entry.ended_at or entry.started_at)
        if isinstance(entry, NodeSpan):
            old: Span | None = self._nodes.get(entry.node_id)
            self._nodes[entry.node_id] = entry
            self._open_nodes.pop(entry.node_id, None)
            if entry.ended_at is None:
                self._open_nodes[entry.node_id] = entry
            self._ended_nodes.add("", len(self._entries), entry)
        else:
            on_node = self._on_node.setdefault(entry.node_id, {})
            old = on_node.get(entry.identity)
            on_node[entry.identity] = entry
            self._placed.setdefault(entry.session_id, {})[entry.identity] = entry
        return _touched(old, entry)

    def _append_execution(self, entry: ExecutionSpan) -> datetime | None:
        of_session = self._in_session.setdefault(entry.session_id, {})
        old = of_session.get(entry.identity)
        of_session[entry.identity] = entry
        self._of_execution.setdefault(entry.execution_id, {})[entry.identity] = entry
        going_on = self._going_on.setdefault(entry.session_id, {})
        going_on.pop(entry.identity, None)
        if entry.ended_at is None:
            going_on[entry.identity] = entry
        self._ended.add(entry.session_id, len(self._entries), entry)
        return _touched(old, entry)

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries)

    def after(self, moment: datetime) -> Ledger:
        """All nodes and prices, and what had not ended by then of everything else."""
        kept: list[Entry] = [*self._nodes.values()]
        kept += [change for changes in self._prices.values() for change in changes]
        spans: list[dict[object, Placement] | dict[object, ExecutionSpan]] = [
            *self._on_node.values(),
            *self._in_session.values(),
        ]
        for index in spans:
            kept += [e for e in index.values() if e.ended_at is None or e.ended_at > moment]
        return Ledger(kept)

    # --- nodes ------------------------------------------------------------------------------------

    @property
    def nodes(self) -> list[NodeSpan]:
        return list(self._nodes.values())

    @property
    def price_changes(self) -> list[PriceChange]:
        return [change for changes in self._prices.values() for change in changes]

    def knows(self, node_id: str) -> bool:
        return node_id in self._nodes

    def node(self, node_id: str) -> NodeSpan:
        """Raises `KeyError` for a node that was never entered."""
        return self._nodes[node_id]

    def nodes_after(self, moment: datetime | None) -> list[NodeSpan]:
        """Those that had not ended by then."""
        if moment is None:
            return self.nodes
        later = self._ended_nodes.after("", moment)
        # By their name: what was entered twice is one.
        ended = {each.node_id: each for each in later if self._nodes[each.node_id] is each}
        return [*self._open_nodes.values(), *ended.values()]

    def nodes_of(self, session_id: str, after: datetime | None = None) -> list[NodeSpan]:
        """Those that it was placed on, as far as that had not ended by `after`."""
        placed = dict.fromkeys(
            each.node_id
            for each in self._placed.get(session_id, {}).values()
            if after is None or each.ended_at is None or each.ended_at > after
        )
        return [self._nodes[node_id] for node_id in placed if node_id in self._nodes]

    def rates(self, node: NodeSpan, begin: datetime, end: datetime) -> list[Rate]:
        """The prices in force, one after the other, without a gap between `begin` and `end`."""
        price, cuts = node.offer.usd_per_hour, []
        for change in self._prices.get(node.node_id, ()):
            if change.at <= begin:
                price = change.usd_per_hour
            elif change.at < end:
                cuts.append(change)
        if not cuts:
            return [Rate(begin, end, price, _on_demand(node, price))]
        found = [Rate(begin, cuts[0].at, price, _on_demand(node, price))]
        for change, until in zip(cuts, [*(cut.at for cut in cuts[1:]), end], strict=True):
            price = change.usd_per_hour
            found.append(Rate(change.at, until, price, _on_demand(node, price)))
        return found

    # --- sessions and executions ------------------------------------------------------------------

    def placements_on(self, node_id: str) -> list[Placement]:
        return list(self._on_node.get(node_id, {}).values())

    @property
    def placements(self) -> list[Placement]:
        return [each for on_node in self._on_node.values() for each in on_node.values()]

    def placements_of(self, session_id: str) -> list[Placement]:
        return list(self._placed.get(session_id, {}).values())

    def executions_of(self, session_id: str) -> list[ExecutionSpan]:
        return list(self._in_session.get(session_id, {}).values())

    def executions_after(self, session_id: str, moment: datetime) -> list[ExecutionSpan]:
        """Those that had not ended by then."""
        latest = self._in_session.get(session_id, {})
        later = self._ended.after(session_id, moment)
        ended = {entry.identity: entry for entry in later if latest[entry.identity] is entry}
        return [*self._going_on.get(session_id, {}).values(), *ended.values()]

    def last_end(self, session_id: str) -> datetime | None:
        """When it last ended an execution."""
        ends = self._ended.get(session_id)
        return ends[-1][0] if ends else None

    def spans_of(self, execution_id: str) -> list[ExecutionSpan]:
        return list(self._of_execution.get(execution_id, {}).values())


def _touched(old: Span | None, new: Span) -> datetime | None:
    if old is None:
        return new.started_at
    if old == new:
        return None
    if _with_end(old, new.ended_at) == new:
        ends = [each for each in (old.ended_at, new.ended_at) if each is not None]
        return max(min(ends), new.started_at)
    return min(old.started_at, new.started_at)


def _with_end(span: Span, ended_at: datetime | None) -> Span:
    return replace(span, ended_at=ended_at)  # type: ignore[type-var]


def _on_demand(node: NodeSpan, price: Decimal) -> Decimal:
    known = node.on_demand_usd_per_hour
    return price if known is None or node.offer.market == "on-demand" else known
