"""Where the provider buys: the walk over the offers, what is left alone and for how long, and when
it stops."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

from mlcloud.cluster import ceiling
from mlcloud.cluster import provider as provider_module
from mlcloud.cluster.attempts import AttemptLog
from mlcloud.cluster.ceiling import Ceiling
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.provider import OfferProvider
from mlcloud.cost.ledger import Ledger, NodeSpan
from mlcloud.cost.meter import cluster_cost
from mlcloud.errors import CloudCredentialsExpired, NoCapacity, QuotaExceeded
from tests.cluster.recording import Clock, RecordingCloud, offer

CONFIG: dict[str, Any] = {"shape": {"cpus": 4}, "market": "spot"}
COOLDOWN_S = 300.0


class Buyer:
    """A provider over a recording cloud; `ask` is Ray's autoscaler."""

    def __init__(self, root: Path, offers: list[Offer]) -> None:
        self.clock = Clock()
        self.root = root
        self.cloud = RecordingCloud(root, self.clock, offers)
        self.start()

    def start(self) -> None:
        """As Ray does, at first and when its process was killed."""
        config = {"root": str(self.root), "cooldown_s": COOLDOWN_S, "cloud": self.cloud}
        self.provider = OfferProvider(config, "test")

    def ask(self, config: dict[str, Any] = CONFIG, count: int = 1) -> str:
        """The zone and market that were bought, or why nothing was."""
        before = set(self.cloud.there)
        try:
            self.provider.create_node(config, {TAG_RAY_USER_NODE_TYPE: "cpu4"}, count)
        except NoCapacity as error:
            return str(error)
        new = [self.cloud.there[each] for each in self.cloud.there if each not in before]
        return ", ".join(f"{each.offer.zone} {each.offer.market}" for each in new)

    @property
    def newest(self) -> str:
        return list(self.cloud.there)[-1]

    def told(self) -> list[tuple[str, str]]:
        return [
            (each.what, each.detail) for each in AttemptLog(self.root / "attempts.jsonl").recent()
        ]


@pytest.fixture
def buyer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Offer]], Buyer]:
    def make(offers: list[Offer]) -> Buyer:
        made = Buyer(tmp_path, offers)
        monkeypatch.setattr(provider_module, "now", made.clock)
        return made

    return make


ZONES = [
    offer("a", "0.10"),
    offer("b", "0.11"),
    offer("a", "0.30", "on-demand"),
    offer("b", "0.31", "on-demand"),
]


def test_cheapest_first_and_on_when_there_is_none(buyer: Callable[..., Buyer]) -> None:
    b = buyer(ZONES)
    assert b.ask() == "a spot"
    b.cloud.refusals[("a", "spot")] = NoCapacity("none left")
    assert b.ask() == "b spot"
    b.cloud.refusals[("b", "spot")] = NoCapacity("none left")
    assert b.ask() == "a on-demand"
    # What was refused is left alone, for longer each time; then spot is bought again.
    asked = len(b.cloud.asked)
    assert b.ask() == "a on-demand"
    assert len(b.cloud.asked) == asked + 1
    b.cloud.refusals.clear()
    b.clock.forward(seconds=COOLDOWN_S + 1)
    assert b.ask() == "a spot"
    assert ("no capacity", "none left") in b.told()


def test_an_offer_that_stays_empty_is_asked_for_ever_more_seldom(
    buyer: Callable[..., Buyer],
) -> None:
    b = buyer(ZONES[:1])
    b.cloud.refusals[("a", "spot")] = NoCapacity("none left")
    asked_at = []
    for _ in range(int(timedelta(hours=6).total_seconds() / 15)):
        before = len(b.cloud.asked)
        b.ask()
        if len(b.cloud.asked) > before:
            asked_at.append(b.clock())
        b.clock.forward(seconds=15)
    waits = [later - earlier for earlier, later in pairwise(asked_at)]
    assert waits[0] <= timedelta(seconds=COOLDOWN_S + 15)
    assert waits == sorted(waits)
    assert waits[-1] <= timedelta(hours=1, seconds=15)
    assert 8 <= len(asked_at) <= 14
    # Said once while nothing changes, not at each of Ray's 1,440 requests.
    assert sum(what == "waiting" for what, _ in b.told()) <= len(asked_at)


def test_a_quota_holds_in_every_zone_of_its_region(buyer: Callable[..., Buyer]) -> None:
    b = buyer([*ZONES, offer("z", "0.12", region="r2")])
    b.cloud.refusals[("a", "spot")] = QuotaExceeded("0 spot vCPUs of type c in r1")
    assert b.ask() == "z spot"  # b was not asked: the same quota
    assert [each.zone for each in b.cloud.asked] == ["a", "z"]


def test_expired_credentials_are_not_tried_out_on_every_offer(buyer: Callable[..., Buyer]) -> None:
    b = buyer(ZONES)
    b.cloud.refusals = {
        (each.zone, each.market): CloudCredentialsExpired("log in again") for each in ZONES
    }
    for _ in range(5):
        assert b.ask() == "log in again"
        b.clock.forward(seconds=15)
    assert len(b.cloud.asked) == 5  # one an ask, and it is said once
    assert b.told() == [("waiting", "log in again")]
    b.cloud.refusals.clear()
    assert b.ask() == "a spot"


def test_who_wants_no_fallback_gets_none(buyer: Callable[..., Buyer]) -> None:
    b = buyer(ZONES)
    b.cloud.refusals = {(zone, "spot"): NoCapacity("none left") for zone in "ab"}
    assert "none left" in b.ask({**CONFIG, "fallback": False})
    assert all(each.market == "spot" for each in b.cloud.asked)


def test_a_zone_that_takes_nodes_back_loses_its_price(buyer: Callable[..., Buyer]) -> None:
    """a is a little cheaper, and takes each node back within minutes."""
    b = buyer([offer("a", "0.100"), offer("b", "0.104")])
    for number in range(6):
        answer = b.ask()
        assert number or answer == "a spot"
        b.cloud.serve(b.newest)
        b.clock.forward(minutes=5)
        if b.cloud.there[b.newest].offer.zone == "a":
            b.cloud.take_back(b.newest)
        b.clock.forward(minutes=10)  # cooled down again
    assert b.ask() == "b spot"


def test_no_third_node_where_two_came_to_nothing(buyer: Callable[..., Buyer]) -> None:
    b = buyer([*ZONES, *(offer(zone, "0.5") for zone in "cdefgh")])
    for _ in range(200):  # an hour of Ray asking each 15 s, then some
        answer = b.ask()
        for each in b.cloud.instances():
            if each.alive:
                b.clock.forward(seconds=10)
                b.cloud.terminate(each.id, "its process ended")
        b.clock.forward(seconds=2)
        if "stopped" in answer:
            break
    assert len(b.cloud.asked) == 2
    assert "2 nodes in a row were of no use" in answer
    assert "its process ended" in answer
    # After a rest one more is tried; it holds a session, and all is well again.
    b.clock.forward(minutes=11)
    b.ask()
    assert len(b.cloud.asked) == 3
    b.cloud.join(b.newest)
    b.cloud.serve(b.newest)
    b.ask()
    assert len(b.cloud.asked) == 4


def test_nodes_that_join_and_are_of_no_use(buyer: Callable[..., Buyer]) -> None:
    b = buyer(ZONES)
    for _ in range(300):
        b.ask()
        for each in b.cloud.instances():
            if each.joined_at is None:
                b.cloud.join(each.id)
        b.clock.forward(minutes=3)
        if len(b.told()) > len(b.cloud.asked):
            break
    assert len(b.cloud.asked) == 2


def test_an_undersized_type_is_not_bought_again(buyer: Callable[..., Buyer]) -> None:
    small, right = offer("a", "0.05", instance_type="liar"), offer("b", "0.10")
    b = buyer([small, offer("b", "0.06", instance_type="liar"), right])
    b.ask()
    b.cloud.terminate(b.newest, "undersized: it has 2 CPUs of 4")
    b.clock.forward(seconds=15)
    assert b.ask() == "b spot"
    assert [each.instance_type for each in b.cloud.asked] == ["liar", "c4"]
    b.clock.forward(hours=2)
    b.cloud.serve(b.newest)
    b.ask()
    assert b.cloud.asked[-1].instance_type == "c4"


def test_what_cools_down_outlives_the_process(buyer: Callable[..., Buyer]) -> None:
    b = buyer(ZONES)
    b.cloud.refusals[("a", "spot")] = NoCapacity("none left")
    assert b.ask() == "b spot"
    b.start()
    assert b.ask() == "b spot"
    assert [each.zone for each in b.cloud.asked] == ["a", "b", "b"]


def test_preempted_and_idle_nodes_open_nothing(buyer: Callable[..., Buyer]) -> None:
    b = buyer(ZONES)
    for number in range(6):
        b.ask()
        b.clock.forward(minutes=1)
        if number % 2:
            b.cloud.take_back(b.newest)
        else:
            b.provider.terminate_node(b.newest)
        b.clock.forward(minutes=1)
    assert len(b.cloud.asked) == 6


def test_a_hundred_up_and_down_again(buyer: Callable[..., Buyer]) -> None:
    """Billed from launch to end, to the microdollar, and nothing is left."""
    b = buyer(ZONES)
    b.ask(count=100)
    assert len(b.provider.non_terminated_nodes({})) == 100
    b.clock.forward(minutes=90)
    b.provider.terminate_nodes(b.provider.non_terminated_nodes({}))
    for _ in range(3):
        left = b.provider.non_terminated_nodes({})
    assert left == []
    ledger = Ledger()
    for each in b.cloud.instances():
        ledger.append(NodeSpan(each.id, each.offer, each.launched_at, each.ended_at, None))
    b.clock.forward(hours=5)
    assert cluster_cost(ledger, b.clock()).usd == 100 * ZONES[0].usd_per_hour * 90 / 60


def test_nothing_is_bought_for_more_than_the_budget_leaves(tmp_path: Path) -> None:
    """What was bought since it was written down is taken off, and no dearer offer is a way out."""
    buyer = Buyer(tmp_path, [offer("a", "0.60"), offer("b", "0.90")])

    def leave(usd: str) -> None:
        ceiling.write(tmp_path, Ceiling(Decimal(usd), buyer.clock(), {}, 60.0, "too little left"))
        buyer.clock.forward(seconds=0.1)

    leave("0.015")  # a minute costs a cent at least
    assert buyer.ask() == "a spot"
    assert buyer.ask().startswith("too little left for c4 spot a")
    assert buyer.told()[-1][0] == "waiting"
    leave("0.03")
    assert buyer.ask() == "a spot"
    assert buyer.ask() == "a spot"
    assert buyer.ask().startswith("too little left")
    ceiling.write(tmp_path, None)
    assert buyer.ask() == "a spot"
