"""The gateway's ledger: what the meter needs to know, appended to the database as it happens.

cloud records ─► NodeSpan, PriceChange     ─┐
sessions      ─► Placement, ExecutionSpan ─┴► table `ledger` ─► the same ledger after a restart
                                              days that are over ─► `settled.py`
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction

from sqlalchemy import Connection, Engine

from mlcloud.cluster.clouds.base import Instance
from mlcloud.cluster.clouds.local import HEAD
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.records import now
from mlcloud.cost.least import Least, dollars
from mlcloud.cost.ledger import Entry, ExecutionSpan, Ledger, NodeSpan, Placement, PriceChange
from mlcloud.cost.meter import Bill as MeterBill
from mlcloud.cost.meter import execution_cost, spent, to_usd, usd_per_hour_now
from mlcloud.cost.prices import OnDemand
from mlcloud.cost.shares import Sums, day_of, midnight
from mlcloud.cost.spent import Whose
from mlcloud.gateway import db, entries
from mlcloud.gateway.settled import Settled

log = logging.getLogger(__name__)

#: How long after its end (UTC) a day is settled: most of what is learnt late is known by then.
SETTLE_AFTER = timedelta(hours=6)


class Billing:
    """Entries in, bills out. `ledger` holds what is not settled yet (`settled.py`)."""

    def __init__(self, engine: Engine, offers: list[Offer], least: Least | None = None) -> None:
        self._engine = engine
        self._on_demand = OnDemand(offers)
        self.least = least or Least()
        self.settled = Settled(engine)
        self.ledger = Ledger()
        self._late: datetime | None = None  # the first settled moment that a new fact changes
        self._settling: datetime | None = None  # the same, since settling has begun
        self._is_settling = False
        self.turns = 0  # odd while days move between `settled` and `ledger`
        self._sums: dict[tuple[int | None, str | frozenset[str] | None], Fraction] = {}
        self._by_session: dict[int | None, dict[str, Fraction]] = {}  # of settled days
        with engine.connect() as connection:
            rows = entries.live(connection)
        for row in rows:
            touched = self.ledger.append(row.entry)
            if row.live == entries.NEW:
                self._touch(touched)
        self.mend()

    # --- entries ----------------------------------------------------------------------------------

    def see(self, instances: list[Instance]) -> None:
        """Bring the nodes up to date with the cloud's records."""
        changed = []
        for instance in instances:
            node = self.ledger.node(instance.id) if self.ledger.knows(instance.id) else None
            ended = instance.ended_at
            billed = self.least.billed_until(instance.offer, instance.launched_at, ended)
            # An end that was entered by other rules stays: what was billed was billed.
            if node is None or node.ended_at not in (ended, billed):
                changed.append(
                    NodeSpan(
                        node_id=instance.id,
                        offer=instance.offer,
                        started_at=instance.launched_at,
                        ended_at=billed,
                        on_demand_usd_per_hour=self._on_demand.of(instance.offer),
                    )
                )
        self._enter(changed)
        self.mend()

    def recall(self, recorded: list[NodeSpan | PriceChange], instances: list[Instance]) -> None:
        """What the store knows of nodes. Those that the cloud's own records do not are gone."""
        known = {each.id for each in instances}
        changed: list[NodeSpan | PriceChange] = []
        for each in recorded:
            if isinstance(each, PriceChange):
                if each not in self.ledger.price_changes:
                    changed.append(each)
            elif not self.ledger.knows(each.node_id):
                gone = each.node_id not in known
                changed.append(replace(each, ended_at=each.ended_at or now()) if gone else each)
        self._enter(changed)
        gone_here = [
            replace(node, ended_at=now())
            for node in self.ledger.nodes_after(now())
            if node.ended_at is None and node.node_id not in known
        ]
        self._enter(gone_here)
        self.mend()

    def price(
        self, node_id: str, usd_per_hour: Decimal, at: datetime | None = None, source: str = ""
    ) -> bool:
        """From then on (now) the node costs this, as `source` says of a price that moves.

        Saying what is in force already changes nothing, and is answered with False.
        """
        since = at or now()
        node = self.ledger.node(node_id)
        if self.ledger.rates(node, since, since)[0].usd_per_hour == usd_per_hour:
            return False
        self._enter([PriceChange(node_id, since, usd_per_hour, source)])
        self.mend()
        return True

    def price_of(self, node_id: str, default: Decimal = Decimal(0)) -> Decimal:
        """Dollars an hour, now; the default for a node that is not entered yet."""
        if not self.ledger.knows(node_id):
            return default
        return self.ledger.rates(self.ledger.node(node_id), now(), now())[0].usd_per_hour

    def owed(self, ends_at: datetime, session_ids: Whose = None) -> Decimal:
        """What nodes that end then are billed for all the same; of sessions, their shares of it.

        `ends_at` is now or later.
        """
        total = Decimal(0)
        ids = (session_ids,) if isinstance(session_ids, str) else session_ids
        for node in self.ledger.nodes_after(now()):
            usd = self.owed_by(node.node_id, ends_at)
            if usd and ids is not None:
                held = [
                    Fraction(each.share)
                    for each in self.ledger.placements_on(node.node_id)
                    if each.ended_at is None and each.session_id in ids
                ]
                usd = to_usd(Fraction(usd) * min(Fraction(1), sum(held, Fraction(0))))
            total += usd
        return total

    def owed_by(self, node_id: str, ends_at: datetime) -> Decimal:
        """Of one node; nothing of one whose end is entered, as that is in full."""
        if not self.ledger.knows(node_id) or self.ledger.node(node_id).ended_at is not None:
            return Decimal(0)
        node = self.ledger.node(node_id)
        # Its price may rise until then, but not above what the machine costs on demand.
        most = max(self.price_of(node_id), node.on_demand_usd_per_hour or Decimal(0))
        return self.least.owed(node.offer, most, node.started_at, ends_at)

    def sold(self, offers: list[Offer]) -> None:
        """What the cloud sells has changed."""
        self._on_demand = OnDemand(offers)

    def least_of(self, offer: Offer, seconds: float) -> Decimal:
        """What a node costs that is bought now and runs so long, at most: its cloud's least time
        is billed all the same, and a price of spot may rise to on-demand's meanwhile."""
        dear = self._on_demand.of(offer) or Decimal(0)
        time = max(self.least.of(offer), timedelta(seconds=seconds))
        return dollars(max(dear, offer.usd_per_hour), time)

    def _enter(self, changed: Sequence[NodeSpan | PriceChange]) -> None:
        if changed:
            with db.writing(self._engine) as connection:
                for each in changed:
                    entries.add(each, connection)
            for each in changed:
                self.append(each)

    def add(self, entry: Placement | ExecutionSpan, connection: Connection | None = None) -> None:
        """Enter it, as a part of the caller's transaction where one is given.

        Entering it again after that has failed is fine: the same span counts once.
        """
        with db.part_of(connection, self._engine) as transaction:
            self.write(entry, transaction)
        self.append(entry)

    def write(self, entry: Placement | ExecutionSpan, connection: Connection) -> None:
        """Only into the table; `append` it when that is committed."""
        entries.add(entry, connection)

    def append(self, entry: Entry) -> None:
        """What is in the table already."""
        self._touch(self.ledger.append(entry))

    def open_placements(self, session_id: str) -> list[Placement]:
        return [p for p in self.ledger.placements_of(session_id) if p.ended_at is None]

    def close_placements(self, session_id: str, at: datetime | None = None) -> None:
        """The session holds no node any more (`at` the latest when its node ended)."""
        for placement in self.open_placements(session_id):
            ends = at or now()
            if self.ledger.knows(placement.node_id):
                node_ended = self.ledger.node(placement.node_id).ended_at
                ends = min(ends, node_ended or ends)
            self.add(
                Placement(
                    placement.session_id,
                    placement.node_id,
                    placement.share,
                    placement.started_at,
                    ends,
                    placement.only_on_spot,
                )
            )

    # --- days that are over -----------------------------------------------------------------------

    def _touch(self, moment: datetime | None) -> None:
        if moment is None:
            return
        if self._is_settling:
            self._settling = moment if self._settling is None else min(moment, self._settling)
        horizon = self.settled.horizon
        if horizon is not None and moment < horizon:
            self._late = moment if self._late is None else min(moment, self._late)

    def mend(self) -> None:
        """Have settled days again what has become known of them since. Not in a transaction."""
        horizon = self.settled.horizon
        if horizon is None or self._is_settling:
            return
        if now() < horizon:  # the clock was set back
            self._late = min(now(), self._late or now())
        if self._late is not None:
            log.info("what was known of the costs since %s has changed: once more", self._late)
            self.turns += 1
            self.ledger = Ledger(self.settled.reopen(self._late))
            self.turns += 1
            self._late = None
            self._forget_sums()

    def due(self) -> bool:
        """Whether a day is over that is not settled yet."""
        until = self._until()
        first = min((each.started_at for each in self.ledger.nodes), default=None)
        if first is None or self._is_settling:
            return False
        done = self.settled.day
        return until > (day_of(first) if done is None else done)

    def _until(self) -> int:
        return day_of(now() - SETTLE_AFTER)

    async def settle(self) -> None:
        """Settle the days that are over; what takes long is done in a thread."""
        until = self._until()
        self._is_settling, self._settling = True, None
        try:
            await asyncio.to_thread(self.settled.settle, until, now())
            self.take(until)
        finally:
            self._is_settling = False
        self.mend()

    def take(self, until: int) -> None:
        self.turns += 1
        self.settled.take(until)
        self.ledger = self.ledger.after(midnight(until))
        self.turns += 1
        self._forget_sums()
        if self._settling is not None and self._settling < midnight(until):
            self._late = self._settling

    def _forget_sums(self) -> None:
        self._sums.clear()
        self._by_session.clear()

    # --- bills ------------------------------------------------------------------------------------

    def spent(self, session_id: Whose = None, since: datetime | None = None) -> Decimal:
        """Dollars, by a session, by several or by all. `since`: of a settled day, all of it."""
        return to_usd(self._exact(session_id, since))

    def _exact(self, session_id: Whose, since: datetime | None) -> Fraction:
        horizon = self.settled.horizon
        if horizon is None or (since is not None and since >= horizon):
            return spent(self.ledger, now(), since=since, session_id=session_id)
        key = None if since is None else day_of(since), session_id
        before = self._sums.get(key)
        if before is None:
            before = self._sums[key] = self._settled_spent(*key)
        return before + spent(self.ledger, now(), since=horizon, session_id=session_id)

    def _settled_spent(self, since: int | None, whose: Whose) -> Fraction:
        if not isinstance(whose, frozenset):
            return self.settled.spent(since, whose)
        if since not in self._by_session:  # a user has a new session every now and then
            self._by_session[since] = self.settled.spent_by_session(since)
        by_session = self._by_session[since]
        return sum((by_session[each] for each in whose if each in by_session), Fraction(0))

    @property
    def horizon(self) -> datetime | None:
        """When the first day begins that is not settled; None where none is."""
        return self.settled.horizon

    def spent_on(self, day: datetime) -> dict[str | None, Fraction]:
        """What each session cost on a settled day, None: no session."""
        sums: Sums[str | None] = Sums()
        number = day_of(day)
        for session_id, *row in self.settled.rows(["session_id"], number, number + 1):
            sums.add(session_id or None, *row)
        return {key: amount.usd for key, amount in sums.amounts().items()}

    def spent_before(self, horizon: datetime) -> Fraction:
        """What all cost in the days that are settled."""
        return self.settled.spent(None, None)

    def spent_by(self, execution_id: str) -> Decimal:
        """Dollars, by an execution."""
        horizon = self.settled.horizon
        live = execution_cost(self.ledger, execution_id, now(), since=horizon).exact
        if horizon is not None and self._began_before(execution_id, horizon):
            live += sum(usd for usd, _ in self.settled.execution(execution_id).values())
        return to_usd(live)

    def _began_before(self, execution_id: str, horizon: datetime) -> bool:
        spans = self.ledger.spans_of(execution_id)
        return not spans or min(each.started_at for each in spans) < horizon

    def execution(self, execution_id: str) -> MeterBill:
        """Its bill; one of long ago is worked out from the session's rows."""
        horizon = self.settled.horizon
        if horizon is None or not self._began_before(execution_id, horizon):
            return execution_cost(self.ledger, execution_id, now())
        session_id = self.settled.session_of(execution_id)
        if session_id is None:
            return execution_cost(self.ledger, execution_id, now(), since=horizon)
        with self._engine.connect() as connection:
            rows = entries.of_session(connection, session_id)
        # Others that were on the same nodes are not in these rows: the sums are those that are
        # settled, and what is live.
        whole = execution_cost(Ledger(each.entry for each in rows), execution_id, now())
        live = execution_cost(self.ledger, execution_id, now(), since=horizon)
        parts = self.settled.execution(execution_id).values()
        return replace(
            whole,
            exact=live.exact + sum(usd for usd, _ in parts),
            exact_on_demand=live.exact_on_demand + sum(on_demand for _, on_demand in parts),
            charges=live.charges,
        )

    def simulated(self, session_id: str | None = None) -> bool:
        """Whether any node that it is on has a price that nobody is charged."""
        nodes = self.ledger.nodes if session_id is None else self.ledger.nodes_of(session_id)
        return any(node.offer.simulated for node in nodes)

    def per_hour(self, session_id: Whose = None) -> Decimal:
        return usd_per_hour_now(self.ledger, now(), session_id)


def is_worker(instance: Instance) -> bool:
    return instance.node_type != HEAD
