"""The ledger: the facts from which the meter (`meter.py`) works out every dollar.

    NodeSpan       this node was billed at this price, from then till then
    Placement      this session held this share of that node, from then till then
    ExecutionSpan  this session worked on this execution, from then till then

Entries are only ever appended. What is still going on is entered open, and entered once more with
its end when that is known.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from operator import itemgetter

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

    @property
    def on_demand_rate(self) -> Decimal:
        known = self.on_demand_usd_per_hour
        return self.offer.usd_per_hour if known is None else known


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


Entry = NodeSpan | Placement | ExecutionSpan


class Ledger:
    """Entries in the order in which they became known; nothing is ever changed or removed.

    What is still going on is entered open and entered again, with its end, once that is known: of
    entries with the same `identity` the last one counts.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries: list[Entry] = []
        self._nodes: dict[str, NodeSpan] = {}
        # Each index holds the latest version of an entry, by its identity.
        self._on_node: dict[str, dict[object, Placement]] = {}
        self._placed: dict[str, dict[object, Placement]] = {}
        self._in_session: dict[str, dict[object, ExecutionSpan]] = {}
        self._of_execution: dict[str, dict[object, ExecutionSpan]] = {}
        # A session has thousands of executions, and a cell's footer asks for a moment of them:
        # those that go on, and the others by their end (one that has another end since is stale).
        self._going_on: dict[str, dict[object, ExecutionSpan]] = {}
        self._by_end: dict[str, list[tuple[datetime, int, ExecutionSpan]]] = {}
        for entry in entries:
            self.append(entry)

    def append(self, entry: Entry) -> None:
        self._entries.append(entry)
        if isinstance(entry, NodeSpan):
            self._nodes[entry.node_id] = entry
        elif isinstance(entry, Placement):
            self._on_node.setdefault(entry.node_id, {})[entry.identity] = entry
            self._placed.setdefault(entry.session_id, {})[entry.identity] = entry
        else:
            self._in_session.setdefault(entry.session_id, {})[entry.identity] = entry
            self._of_execution.setdefault(entry.execution_id, {})[entry.identity] = entry
            going_on = self._going_on.setdefault(entry.session_id, {})
            going_on.pop(entry.identity, None)
            if entry.ended_at is None:
                going_on[entry.identity] = entry
            else:
                ends = self._by_end.setdefault(entry.session_id, [])
                insort(ends, (entry.ended_at, len(self._entries), entry))

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries)

    @property
    def nodes(self) -> list[NodeSpan]:
        return list(self._nodes.values())

    def node(self, node_id: str) -> NodeSpan:
        """Raises `KeyError` for a node that was never entered."""
        return self._nodes[node_id]

    def placements_on(self, node_id: str) -> list[Placement]:
        return list(self._on_node.get(node_id, {}).values())

    def placements_of(self, session_id: str) -> list[Placement]:
        return list(self._placed.get(session_id, {}).values())

    def executions_of(self, session_id: str) -> list[ExecutionSpan]:
        return list(self._in_session.get(session_id, {}).values())

    def executions_after(self, session_id: str, moment: datetime) -> list[ExecutionSpan]:
        """Those that had not ended by then."""
        latest = self._in_session.get(session_id, {})
        ends = self._by_end.get(session_id, [])
        later = (entry for _, _, entry in ends[bisect_right(ends, moment, key=itemgetter(0)) :])
        ended = [entry for entry in later if latest[entry.identity] is entry]
        return [*self._going_on.get(session_id, {}).values(), *ended]

    def last_end(self, session_id: str) -> datetime | None:
        """When it last ended an execution."""
        ends = self._by_end.get(session_id)
        return ends[-1][0] if ends else None

    def spans_of(self, execution_id: str) -> list[ExecutionSpan]:
        return list(self._of_execution.get(execution_id, {}).values())
