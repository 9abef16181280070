"""No budget is passed by more than what ten seconds of its nodes cost, minimum billing included.

Real ledger, budgets and ceiling; clock, cloud and sessions are played.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, insert

from mlcloud.cluster import ceiling
from mlcloud.cluster.clouds.base import Instance
from mlcloud.cluster.offers import Offer
from mlcloud.cost.advice import Facts, advise
from mlcloud.cost.ledger import ExecutionSpan, Placement
from mlcloud.cost.shares import day_of
from mlcloud.errors import BudgetExceeded
from mlcloud.gateway import advising, billing, budgets, buying, db, payers
from mlcloud.gateway.billing import Billing
from mlcloud.gateway.budgets import STOP_S, Budgets
from mlcloud.models import SessionRequest
from tests.cost.test_meter import at, offer

INTERVAL_S = Decimal(10)


def sold(cloud: str, price: str) -> Offer:
    return replace(offer(price), cloud=cloud, simulated=False)


def twin(of: Offer, times: str = "3") -> Offer:
    """The same machine on demand: what its price on spot may rise to."""
    return replace(of, market="on-demand", usd_per_hour=of.usd_per_hour * Decimal(times))


@dataclass
class Played:
    """A session as the budgets see it."""

    id: str
    owner: str | None = None
    host: Any = None
    current: Any = None
    queue: list[Any] = field(default_factory=list)
    pending: dict[str, int] = field(default_factory=dict)
    story: Any = None

    @property
    def request(self) -> SessionRequest:
        return SessionRequest(name=self.id, owner=self.owner)

    @property
    def host_request(self) -> Any:
        kind = SimpleNamespace(
            cpus=2, memory_bytes=0, accelerator=None, accelerator_count=0, market="spot"
        )
        return SimpleNamespace(node_type=kind, share=0.5)


@cache
def _database() -> Engine:
    return db.open_database("sqlite://")


def _empty_database() -> Engine:
    """To make one takes longer than an example."""
    with _database().begin() as connection:
        for table in db.metadata.sorted_tables:
            connection.execute(delete(table))
    return _database()


class World:
    """One cluster; `clock` seconds have passed."""

    def __init__(self, root: Path, offers: list[Offer]) -> None:
        self.clock = 0.0
        self.nodes: dict[str, Instance] = {}
        self.sessions: list[Played] = []
        engine = self.engine = _empty_database()
        self.billing = Billing(engine, offers)
        self.offers = offers
        cloud = SimpleNamespace(
            root=root, offers=lambda: offers, instances=lambda: list(self.nodes.values())
        )
        self.services = SimpleNamespace(
            engine=engine, billing=self.billing, cluster=SimpleNamespace(cloud=cloud)
        )
        self.budgets = Budgets(self)  # type: ignore[arg-type]
        self.root = root

    def __iter__(self) -> Iterator[Played]:
        return iter(self.sessions)

    def now(self) -> datetime:
        return at(self.clock)

    @contextmanager
    def running(self) -> Iterator[World]:
        with _clock(self.now):
            yield self

    def session(self, name: str, owner: str | None = None) -> Played:
        made = Played(name, owner)
        self.sessions.append(made)
        row = {"id": name, "name": name, "state": "idle", "created_at": self.now()}
        with self.engine.begin() as connection:
            request = made.request.model_dump_json()
            connection.execute(insert(db.sessions).values(**row, request=request))
        return made

    def sold(self, of: Offer) -> None:
        self.offers += [of, twin(of)]
        self.billing.sold(self.offers)

    def launch(self, of: Offer) -> str:
        name = f"i-{len(self.nodes)}"
        self.nodes[name] = Instance(name, "cpu2", of, launched_at=self.now())
        self.billing.see(list(self.nodes.values()))
        return name

    def end(self, name: str) -> None:
        if self.nodes[name].alive:
            self.nodes[name] = replace(self.nodes[name], ended_at=self.now())
            for each in self.billing.ledger.placements_on(name):
                if each.ended_at is None:
                    self.billing.add(replace(each, ended_at=self.now()))
        self.billing.see(list(self.nodes.values()))

    def place(self, session: Played, node: str, share: str = "0.5") -> None:
        self.billing.add(Placement(session.id, node, Decimal(share), self.now()))
        session.host = SimpleNamespace(instance=node)

    def rate(self, whose: str) -> Decimal:
        return self.budgets.payers.per_hour(whose)


@contextmanager
def _clock(now: Any) -> Iterator[None]:
    with (
        mock.patch.object(billing, "now", now),
        mock.patch.object(budgets, "now", now),
        mock.patch.object(payers, "now", now),
        mock.patch.object(buying, "now", now),
    ):
        yield


clouds = st.sampled_from(["aws", "gcp", "azure", "local"])
prices = st.decimals("0.03", "60", places=2).map(str)
steps = st.lists(
    st.tuples(
        st.sampled_from([1.0, 1.0, 1.3, 3.0]),  # to the next look; a busy gateway is late
        st.sampled_from(["none", "quiet", "launch", "launch", "price", "end"]),
        clouds,
        prices,
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=200, deadline=None)
@given(limit=st.decimals("0.001", "3", places=3), steps=steps, stop_s=st.floats(0, STOP_S))
def test_the_clusters_budget(limit: Decimal, steps: list[Any], stop_s: float) -> None:
    """Nodes are bought as Ray's autoscaler does, as far as the ceiling lets it; prices move; at the
    stop all are given back, some before their cloud's least time, in which spot's price may have
    risen to that on demand."""
    with tempfile.TemporaryDirectory() as root:
        world = World(Path(root), [])
        with world.running():
            world.budgets.put("cluster", str(limit))
            world.budgets.buying.limit()
            rate = Decimal(0)
            for wait, what, cloud, price in steps:
                stops = _stops(world, "cluster", wait, what)
                rate = world.rate("cluster")
                if stops:
                    break
                world.budgets.buying.limit()
                world.clock += 0.01
                alive = [each for each in world.nodes.values() if each.alive]
                if what == "launch":
                    _buy(world, replace(sold(cloud, price), instance_type=f"m{price}"))
                elif what == "price" and alive:
                    first = alive[len(world.nodes) % len(alive)]
                    rise = Decimal("1.5") * world.billing.price_of(first.id)
                    most = first.offer.usd_per_hour * 3
                    world.billing.price(first.id, min(most, rise), source="test")
                    rate = world.rate("cluster")  # what it costs now, for ten seconds
                elif what == "end" and alive:
                    world.end(alive[0].id)
            world.clock += stop_s
            for name in world.nodes:
                world.end(name)
            world.clock += 3600
            assert world.billing.spent() <= limit + INTERVAL_S * rate / 3600


def _stops(world: World, whose: str, wait: float, what: str) -> bool:
    """Whether one of the next looks says so: of many, where nothing happens."""
    for _ in range(30 if what == "quiet" else 1):
        world.clock += wait
        world.billing.see(list(world.nodes.values()))
        if world.budgets.look(world.budgets._all[whose]).stop:
            return True
    return False


def _buy(world: World, of: Offer, node_type: str = "cpu2") -> str | None:
    """As the provider does."""
    world.sold(of)
    most = ceiling.read(world.root)
    dearest = world.billing._on_demand.of
    left = None
    if most is not None:
        left, _ = most.left(world.nodes.values(), node_type, dearest)
    if most is None or left is None or most.least(of, dearest(of)) < left:
        return world.launch(of)
    return None


@settings(max_examples=200, deadline=None)
@given(
    limit=st.decimals("0.001", "3", places=3),
    steps=steps,
    stop_s=st.floats(0, STOP_S),
    cloud=clouds,
    price=prices,
)
def test_a_users_budget(
    limit: Decimal, steps: list[Any], stop_s: float, cloud: str, price: str
) -> None:
    """Two sessions of hers and one of his on the same nodes: hers are stopped, and what her halves
    of the nodes are billed after that is hers too."""
    of = sold(cloud, price)
    with tempfile.TemporaryDirectory() as root:
        world = World(Path(root), [of])
        with world.running():
            hers = [world.session("s-1", "ada"), world.session("s-2", "ada")]
            his = world.session("s-3", "bob")
            world.budgets.put("user:ada", str(limit))
            for wait, what, _, _ in steps:
                if _stops(world, "user:ada", wait, what):
                    break
                world.clock += 0.01
                for session in [*hers, his] if what == "launch" else []:
                    if session.host is None and _may_start(world, session):
                        alive = [e for e in world.nodes.values() if e.alive and _free(world, e)]
                        world.place(session, alive[0].id if alive else world.launch(of))
                        break
            rate = world.rate("user:ada")
            world.clock += stop_s
            ends = world.now()
            owed = world.billing.owed(ends, frozenset({"s-1", "s-2"}))
            for name in world.nodes:
                world.end(name)
            world.clock += 3600
            spent = world.billing.spent(frozenset({"s-1", "s-2"}))
            apart = sum(world.billing.spent(each.id) for each in hers)
            assert abs(spent - apart) <= Decimal("2E-9")  # each is rounded
            assert spent + owed <= limit + INTERVAL_S * rate / 3600


@settings(max_examples=200, deadline=None)
@given(
    limit=st.decimals("0.001", "3", places=3),
    steps=steps,
    stop_s=st.floats(0, STOP_S),
    share=st.sampled_from([0.1, 0.5, 1.0]),
    whose=st.sampled_from(["s-1", "user:ada", "job:j"]),
)
def test_what_is_bought_for_a_session_its_budget_pays(
    limit: Decimal, steps: list[Any], stop_s: float, share: float, whose: str
) -> None:
    """Ray asks for a node and gets what there is: the offer that was reckoned with may be gone, and
    others are dearer. Nobody else has a budget, and others ask for other types."""
    with tempfile.TemporaryDirectory() as root:
        world = World(Path(root), [])
        with world.running():
            session = world.session("s-1", "ada")
            request: Any = SimpleNamespace(node_type=SimpleNamespace(name="cpu2"), share=share)
            other: Any = SimpleNamespace(node_type=SimpleNamespace(name="cpu4"), share=1.0)
            world.budgets.payers.charge("job:j", "s-1")
            world.budgets.put(whose, str(limit))
            rate = Decimal(0)
            bought: list[str] = []
            with world.budgets.buying.asking(other, world.session("s-2", "bob")):  # type: ignore[arg-type]
                for wait, what, cloud, price in steps:
                    if _stops(world, whose, wait, what):
                        break
                    world.budgets.buying.limit()
                    if what == "launch" and not bought:
                        with world.budgets.buying.asking(request, session):  # type: ignore[arg-type]
                            world.clock += 0.01
                            of = replace(sold(cloud, price), instance_type=f"m{price}")
                            assert _buy(world, of, "cpu4") is not None, "nothing limits his"
                            node = _buy(world, of)
                        if node is not None:
                            bought.append(node)
                            world.place(session, node, str(share))
                    elif what == "price" and bought:
                        first = world.nodes[bought[0]]
                        rise = Decimal("1.5") * world.billing.price_of(first.id)
                        most = first.offer.usd_per_hour * 3
                        world.billing.price(first.id, min(most, rise), source="test")
                    rate = max(rate, world.rate(whose))
            world.clock += stop_s
            ends = world.now()
            ids = frozenset({"s-1", "job:j"})
            owed = world.billing.owed(ends, ids)
            spent = world.billing.spent(ids)
            for name in world.nodes:
                world.end(name)
            assert spent + owed <= limit + INTERVAL_S * rate / 3600


def test_a_price_may_rise_while_a_node_is_billed_its_least_time(tmp_path: Path) -> None:
    """Azure's five minutes of a node at $3.60 are $0.30, and $0.90 at what it costs on demand: two
    of them may be had for $1.90, and when both prices have risen that was enough."""
    world = World(tmp_path, [])
    of = sold("azure", "3.6")
    with world.running():
        world.budgets.put("cluster", "1.90")
        bought = []
        for _ in range(6):
            world.budgets.buying.limit()
            world.clock += 0.01
            bought.append(_buy(world, of))
        nodes = [each for each in bought if each]
        assert len(nodes) == 2
        for each in nodes:
            world.billing.price(each, Decimal("10.8"), source="test")
        world.clock += 1
        for each in nodes:
            world.end(each)
        assert Decimal("1.79") < world.billing.spent() <= Decimal("1.90")


def test_of_several_who_ask_for_a_type_the_richest_sets_its_limit(tmp_path: Path) -> None:
    world = World(tmp_path, [])
    request: Any = SimpleNamespace(node_type=SimpleNamespace(name="cpu2"), share=0.5)
    of = sold("azure", "3.6")  # $0.90 at least, should its price rise to that on demand
    with world.running():
        poor, rich, free = (world.session(name, name) for name in ("s-1", "s-2", "s-3"))
        world.budgets.put("s-1", "0.40")
        world.budgets.put("s-2", "0.46")
        asking = world.budgets.buying.asking
        world.budgets.buying.limit()
        assert ceiling.read(tmp_path) is None, "nobody asks"
        with asking(request, poor):  # type: ignore[arg-type]
            world.clock += 1
            assert _buy(world, of) is None
            most = ceiling.read(tmp_path)
            assert most is not None
            assert most.types["cpu2"].why == "of the budget of session 's-1' of $0.40 too little " \
                "is left"  # fmt: skip
            with asking(request, rich):  # type: ignore[arg-type]
                world.clock += 1
                node = _buy(world, of)
                assert node is not None
                # Half of a node is his, and that one is not paid by anybody yet.
                world.clock += 1
                assert _buy(world, of) is None
                world.budgets.buying.limit()
                assert _buy(world, of) is None
                with asking(request, free):  # type: ignore[arg-type]
                    assert _buy(world, of) is not None
            with asking(request, []):  # type: ignore[arg-type]
                pass
        world.budgets.buying.limit()
        assert ceiling.read(tmp_path) is None


def _may_start(world: World, session: Played) -> bool:
    try:
        world.budgets.refuse(session, {})  # type: ignore[arg-type]
    except BudgetExceeded:
        return False
    return True


def _free(world: World, node: Instance) -> bool:
    held = [p.share for p in world.billing.ledger.placements_on(node.id) if p.ended_at is None]
    return sum(map(Fraction, held), Fraction(0)) <= Fraction(1, 2)


def test_what_a_node_costs_at_least_is_asked_before_it_is_bought(tmp_path: Path) -> None:
    """Azure's five minutes of a $3.60 node are $0.30."""
    world = World(tmp_path, [sold("azure", "3.6")])
    with world.running():
        session = world.session("s-1", "ada")
        world.budgets.put("cluster", "0.29")
        with pytest.raises(BudgetExceeded, match=r"to start a node costs \$0.30 at least"):
            world.budgets.refuse(session, {})  # type: ignore[arg-type]
        world.budgets.put("cluster", "0.31")
        world.budgets.refuse(session, {})  # type: ignore[arg-type]
        node = world.launch(sold("azure", "3.6"))
        world.place(session, node)
        world.clock += 1
        # It is owed from its launch on, so a second one is not bought.
        world.budgets.buying.limit()
        most = ceiling.read(tmp_path)
        assert most is not None
        left, why = most.left([])
        assert left is not None
        assert most.least(sold("azure", "3.6")) >= left
        assert why == "of the budget of the cluster of $0.31 too little is left"
        world.budgets.put("cluster", "0.30")
        assert world.budgets.look(world.budgets._all["cluster"]).stop
        world.end(node)
        assert world.billing.spent() == Decimal("0.300000000")


def test_a_job_pays_for_its_executions_and_for_sessions_of_its_own(tmp_path: Path) -> None:
    world = World(tmp_path, [offer("3.6")])
    with world.running():
        shared, own = world.session("s-1", "ada"), world.session("s-2", "ada")
        node = world.launch(offer("3.6"))
        for each in (shared, own):
            world.place(each, node)
        world.budgets.put("job:j", "1")
        world.budgets.refuse(shared, {"job": "j"}, "e-1")  # type: ignore[arg-type]
        world.budgets.payers.charge("job:j", "s-2")
        world.billing.add(ExecutionSpan("e-1", "s-1", at(0)))
        world.billing.add(ExecutionSpan("e-2", "s-2", at(0)))
        world.budgets.payers.charge("job:j", "e-2")  # of a session that is charged: not twice
        world.clock = 10
        # Half of $0.001 a second each.
        assert world.budgets.payers.spent("job:j", None) == Decimal("0.01")
        world.billing.add(ExecutionSpan("e-1", "s-1", at(0), at(10)))
        world.clock = 20
        assert world.budgets.payers.spent("job:j", None) == Decimal("0.015")
        world.billing.add(ExecutionSpan("e-1", "s-1", at(20)))  # it runs again
        world.clock = 30
        assert world.budgets.payers.spent("job:j", None) == Decimal("0.025")
        # A new gateway knows whose they are.
        again = Budgets(world)  # type: ignore[arg-type]
        assert again.payers.spent("job:j", None) == Decimal("0.025")
        (info,) = again.infos()
        assert (info.job, info.session, info.spent_usd) == ("j", None, Decimal("0.025"))
        world.budgets.put("job:j", "0.026")
        with pytest.raises(BudgetExceeded, match="job 'j' has spent"):
            world.budgets.refuse(shared, {"job": "j"}, "e-3")  # type: ignore[arg-type]
        world.budgets.refuse(shared, {}, "e-4")  # type: ignore[arg-type]
        with pytest.raises(BudgetExceeded):  # all of it is the job's
            world.budgets.refuse(own, {}, "e-5")  # type: ignore[arg-type]


def test_advice_reads_the_days_that_are_settled(tmp_path: Path) -> None:
    """Six weeks of a session that is closed by now: it stood still for an hour each day, and its
    node ran on AWS all the time, at a price that rose."""
    day_s = timedelta(days=1).total_seconds()
    world = World(tmp_path, [sold("aws", "0.30")])
    with world.running():
        session = world.session("s-1", "ada")
        node = world.launch(sold("aws", "0.30"))
        for number in range(42):
            world.clock = number * day_s + 3600
            stay = Placement("s-1", node, Decimal(1), world.now())
            world.billing.add(replace(stay, ended_at=at(world.clock + 7200)))
            begun = ExecutionSpan(f"e-{number}", "s-1", world.now())
            world.billing.add(replace(begun, ended_at=at(world.clock + 3600)))
        world.billing.price(node, Decimal("0.60"), at(21 * day_s))
        world.clock = 42 * day_s
        world.sessions.clear()
        today = day_of(world.now())
        world.billing.settled.settle(today, world.now())
        world.billing.take(today)
        assert not world.billing.ledger.placements_of(session.id)
        ledger = advising.history(world.engine, world.billing.ledger, at(0), [])
        facts = Facts(
            now=world.now(), since=at(0), usage=[], offers=[], ledger=ledger, idle_timeout_s=900.0
        )
        found = {each.kind: each for each in advise(facts)}
    idle = found["park"]
    assert idle.about == "the session that there was"
    assert "idle on a node: 42 times, 151200 s" in "\n".join(idle.arithmetic)
    assert idle.action == "MLCLOUD_IDLE_TIMEOUT=1m"
    assert idle.confidence == "high"
    reserved = found["commitment"]
    assert "÷ 1008 = 0.45 $" in "\n".join(reserved.arithmetic)  # half of it at either price
    assert reserved.saves_usd > 0
    # Of a history that is too long to be read, what is of sessions that are there.
    with mock.patch.object(advising, "MOST_ROWS", 1):
        assert not advising.history(world.engine, world.billing.ledger, at(0), []).placements
        own = advising.history(world.engine, world.billing.ledger, at(0), ["s-1"])
    assert len(own.placements) == 42


def test_a_closed_sessions_cost_stays_its_users(tmp_path: Path) -> None:
    """Also of days that are settled."""
    world = World(tmp_path, [offer("3.6")])
    with world.running():
        session = world.session("s-1", "ada")
        node = world.launch(offer("3.6"))
        world.place(session, node, "1")
        world.clock = 100
        world.end(node)
        world.sessions.clear()
        world.clock = timedelta(days=3).total_seconds()
        day = (world.now() - datetime(1970, 1, 1, tzinfo=world.now().tzinfo)).days - 1
        world.billing.settled.settle(day, world.now())
        world.billing.take(day)
        again = Budgets(world)  # type: ignore[arg-type]
        assert again.payers.spent("user:ada", None) == Decimal("0.1")
        assert again.payers.spent("user:ada", at(timedelta(days=2).total_seconds())) == 0
        assert again.payers.spent("user:bob", None) == 0
