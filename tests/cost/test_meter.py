"""The meter gives every microsecond of every node to exactly one cause, whatever the facts are."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcloud.cluster.offers import Offer
from mlcloud.cost.ledger import ExecutionSpan, Ledger, NodeSpan, Placement
from mlcloud.cost.meter import (
    charges,
    cluster_cost,
    execution_cost,
    node_cost,
    session_cost,
    to_usd,
    usd_per_hour_now,
)

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def offer(price: str = "3.6", zone: str = "local-a") -> Offer:
    return Offer(
        cloud="local",
        region="local",
        zone=zone,
        instance_type="local.cpu2",
        cpus=2,
        memory_bytes=2**32,
        accelerator=None,
        accelerator_count=0,
        market="spot",
        usd_per_hour=Decimal(price),
        simulated=True,
        source="test",
        as_of=date(2026, 1, 1),
    )


ONE = Fraction(1)


def test_a_cell_pays_for_its_seconds_the_session_for_its_idle_time_the_node_for_the_rest() -> None:
    # 3.6 $/h is a tenth of a cent a second.
    ledger = Ledger(
        [
            NodeSpan("n", offer("3.6"), at(0), at(100), Decimal("10.8")),
            Placement("s", "n", ONE, at(10), at(90)),
            ExecutionSpan("e", "s", at(20), at(50)),
        ]
    )
    cell, session = execution_cost(ledger, "e", at(500)), session_cost(ledger, "s", at(500))
    cluster = cluster_cost(ledger, at(500))
    assert (cell.usd, cell.saved_usd, cell.seconds) == (Decimal("0.03"), Decimal("0.06"), 30)
    assert (session.usd, session.seconds) == (Decimal("0.08"), 80)
    assert (cluster.usd, cluster.on_demand_usd) == (Decimal("0.1"), Decimal("0.3"))
    assert {(c.session_id, c.execution_id): to_usd(c.usd) for c in cluster.charges} == {
        ("s", "e"): Decimal("0.03"),
        ("s", None): Decimal("0.05"),
        (None, None): Decimal("0.02"),
    }


def test_what_still_goes_on_is_billed_up_to_now() -> None:
    ledger = Ledger(
        [
            NodeSpan("n", offer(), at(0)),
            Placement("s", "n", Decimal("0.5"), at(0)),
            ExecutionSpan("e", "s", at(0)),
        ]
    )
    assert execution_cost(ledger, "e", at(10)).usd == Decimal("0.005")
    assert execution_cost(ledger, "e", at(20)).usd == Decimal("0.01")
    assert usd_per_hour_now(ledger, at(10)) == Decimal("3.6")
    assert usd_per_hour_now(ledger, at(10), "s") == Decimal("1.8")

    ledger.append(NodeSpan("n", offer(), at(0), at(12)))
    assert cluster_cost(ledger, at(3600)).usd == Decimal("0.012")
    assert usd_per_hour_now(ledger, at(3600)) == 0
    assert len(ledger.entries) == 4


def test_an_execution_that_moved_pays_on_both_nodes_and_says_where_it_went() -> None:
    ledger = Ledger(
        [
            NodeSpan("a", offer("3.6"), at(0), at(10), Decimal("7.2")),
            NodeSpan("b", offer("7.2", "local-b"), at(15), None, Decimal("7.2")),
            Placement("s", "a", ONE, at(0), at(10)),
            Placement("s", "b", ONE, at(16)),
            ExecutionSpan("e", "s", at(5), at(26)),
        ]
    )
    bill = execution_cost(ledger, "e", at(100))
    assert bill.usd == Decimal("0.005") + Decimal("0.02")
    assert bill.saved_usd == Decimal("0.005")
    assert (bill.moves, bill.seconds) == (1, 21)
    assert [n.offer.zone for n in bill.nodes] == ["local-a", "local-b"]


@pytest.mark.parametrize(
    ("stays", "moves"),
    [
        ([("a", 0, 100)], 0),
        ([("a", 0, 40), ("b", 40, 100)], 1),
        ([("a", 0, 40), ("b", 30, 100)], 1),
        ([("a", 0, 30), ("b", 30, 60), ("a", 60, 100)], 2),
        ([("a", 0, 30), ("a", 35, 100)], 0),  # a new host on the same node
        ([("a", 0, 100), ("b", 0, 100)], 0),  # a gang
        ([("a", 0, 100), ("b", 0, 50), ("c", 50, 100)], 1),  # one rank of a gang moved
    ],
)
def test_moves(stays: list[tuple[str, int, int]], moves: int) -> None:
    ledger = Ledger(NodeSpan(node, offer(), at(0), at(100)) for node in "abc")
    for node, begin, end in stays:
        ledger.append(Placement("s", node, ONE, at(begin), at(end)))
    ledger.append(ExecutionSpan("e", "s", at(0), at(100)))
    assert execution_cost(ledger, "e", at(200)).moves == moves


def test_time_that_only_spot_makes_necessary_is_not_saved() -> None:
    lost = ExecutionSpan("e", "s", at(0), at(10), only_on_spot=True)
    again = ExecutionSpan("e", "s", at(10), at(20))
    ledger = Ledger(
        [
            NodeSpan("n", offer("3.6"), at(0), at(20), Decimal("5.4")),
            Placement("s", "n", ONE, at(0), at(20)),
            lost,
            again,
        ]
    )
    bill = execution_cost(ledger, "e", at(20))
    assert (bill.usd, bill.on_demand_usd) == (Decimal("0.02"), Decimal("0.015"))
    assert bill.saved_usd == Decimal("-0.005")


def test_without_an_on_demand_price_no_saving_is_claimed() -> None:
    ledger = Ledger(
        [
            NodeSpan("n", offer(), at(0), at(10)),
            Placement("s", "n", ONE, at(0), at(10)),
            ExecutionSpan("e", "s", at(0), at(10)),
        ]
    )
    assert execution_cost(ledger, "e", at(10)).saved_usd == 0


def test_shares_beyond_a_node_are_scaled_down_to_it() -> None:
    ledger = Ledger(
        [
            NodeSpan("n", offer(), at(0), at(10)),
            Placement("s", "n", ONE, at(0), at(10)),
            Placement("t", "n", ONE, at(0), at(10)),
        ]
    )
    assert session_cost(ledger, "s", at(10)).usd == Decimal("0.005")
    assert usd_per_hour_now(ledger, at(5), "t") == Decimal("1.8")


def test_a_day_of_spending_is_cut_at_midnight() -> None:
    ledger = Ledger([NodeSpan("n", offer("2.4"), START - timedelta(hours=3))])
    today = cluster_cost(ledger, START + timedelta(hours=2), since=START)
    assert (today.usd, today.seconds) == (Decimal("4.8"), 7200)


def test_an_execution_that_never_ran_cost_nothing() -> None:
    bill = execution_cost(Ledger(), "unknown", at(0))
    assert (bill.usd, bill.nodes, bill.moves) == (0, (), 0)


def test_a_clock_that_was_set_back_costs_nothing() -> None:
    ledger = Ledger([NodeSpan("n", offer(), at(10), at(5)), Placement("s", "n", ONE, at(9), at(4))])
    assert cluster_cost(ledger, at(20)).usd == 0
    assert session_cost(ledger, "s", at(20)).seconds == 0


def test_times_without_a_zone_and_impossible_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        NodeSpan("n", offer(), datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="between 0 and 1"):
        Placement("s", "n", Fraction(3, 2), at(0))


# --- the sum, whatever happened -------------------------------------------------------------------

moments = st.integers(min_value=0, max_value=60_000_000).map(lambda us: at(us / 1_000_000))
spans = st.tuples(moments, st.none() | moments)
prices = st.decimals(min_value="0.0001", max_value="98.3200", places=4)
shares = st.fractions(min_value=0, max_value=1, max_denominator=16) | st.decimals(
    min_value=0, max_value=1, places=3
)
names = st.sampled_from("abc")


@st.composite
def ledgers(draw: st.DrawFn) -> Ledger:
    """Any facts at all: sessions on several nodes at once, executions without a placement, spans
    that end before they start, shares that add up to more than a node."""
    ledger = Ledger()
    for node in draw(st.lists(names, unique=True, min_size=1)):
        price, on_demand = draw(prices), draw(st.none() | prices)
        begin, end = draw(spans)
        ledger.append(NodeSpan(node, offer(str(price)), begin, end, on_demand))
    flag = st.booleans()
    for session, node, share, (begin, end), spot_only in draw(
        st.lists(st.tuples(names, names, shares, spans, flag), max_size=6)
    ):
        ledger.append(Placement(session, node, share, begin, end, spot_only))
    for number, session, (begin, end), spot_only in draw(
        st.lists(st.tuples(st.integers(0, 2), names, spans, flag), max_size=8)
    ):
        ledger.append(ExecutionSpan(f"{session}{number}", session, begin, end, spot_only))
    return ledger


@settings(deadline=None)
@given(ledgers(), moments)
def test_executions_idle_time_and_overhead_add_up_to_the_nodes_bills(
    ledger: Ledger, now: datetime
) -> None:
    bills = sum((node_cost(node, now, ledger) for node in ledger.nodes), Fraction(0))
    every = list(charges(ledger, now))
    executions = {e.execution_id for s in "abc" for e in ledger.executions_of(s)}

    assert cluster_cost(ledger, now).exact == bills
    parts = sum((execution_cost(ledger, e, now).exact for e in executions), Fraction(0))
    idle = sum(
        (c.usd for c in every if c.session_id is not None and c.execution_id is None), Fraction(0)
    )
    overhead = sum((c.usd for c in every if c.session_id is None), Fraction(0))
    assert parts + idle + overhead == bills
    sessions = sum((session_cost(ledger, s, now).exact for s in "abc"), Fraction(0))
    assert sessions + overhead == bills
    assert all(c.usd >= 0 and c.on_demand_usd >= 0 for c in every)


@settings(deadline=None)
@given(ledgers(), moments, moments)
def test_two_halves_of_a_time_cost_what_the_whole_does(
    ledger: Ledger, cut: datetime, now: datetime
) -> None:
    before = cluster_cost(ledger, now, until=cut).exact
    after = cluster_cost(ledger, now, since=cut).exact
    assert before + after == cluster_cost(ledger, now).exact


@settings(deadline=None)
@given(ledgers(), moments)
def test_closing_what_was_open_at_the_moment_changes_no_bill(ledger: Ledger, now: datetime) -> None:
    closed = Ledger(replace(e, ended_at=e.ended_at or now) for e in ledger.entries)
    assert cluster_cost(closed, now).exact == cluster_cost(ledger, now).exact
    for session in "abc":
        assert session_cost(closed, session, now).exact == session_cost(ledger, session, now).exact
