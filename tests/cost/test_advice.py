"""Advice from facts alone: by examples worked out by hand, and that its arithmetic is its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcloud.cluster.clouds.base import Leftover
from mlcloud.cluster.effective import Expectations, effective_usd_per_hour
from mlcloud.cluster.offers import Offer
from mlcloud.cost.advice import Advice, Facts, SessionFacts, Working, advise, evaluate
from mlcloud.cost.advice.accelerators import ACCELERATORS
from mlcloud.cost.advice.facts import gaps
from mlcloud.cost.advice.own import read_own
from mlcloud.cost.advice.rightsizing import LONG_S
from mlcloud.cost.ledger import ExecutionSpan, Ledger, NodeSpan, Placement
from mlcloud.cost.usage import GpuUse, Usage
from mlcloud.errors import UsageError

NOW = datetime(2026, 11, 26, 12, tzinfo=timezone.utc)
GB, GIB = 10**9, 2**30
NUMBER = re.compile(r"\d+(?:\.\d+)?")
LINE = re.compile(r".+: ([-\d.+−×÷() ]+) = (-?\d+(?:\.\d+)?)(?: .*)?")


def offer(
    name: str,
    price: str,
    cpus: float = 4,
    memory_gib: float = 16,
    gpu: str | None = None,
    market: Any = "spot",
    cloud: str = "aws",
    gpus: int = 1,
) -> Offer:
    return Offer(
        cloud=cloud, region="r", zone="r-a", instance_type=name, cpus=cpus,
        memory_bytes=int(memory_gib * GIB), accelerator=gpu, accelerator_count=gpus if gpu else 0,
        market=market, usd_per_hour=Decimal(price), simulated=False, source="test",
        as_of=date(2026, 11, 1),
    )  # fmt: skip


def cell(
    on: Offer,
    *,
    seconds: float = 3600,
    cpus: float = 1.0,
    memory: float = 1 * GB,
    gpu: tuple[float, float] | None = None,
    share: str = "1",
    session: str = "s",
) -> Usage:
    """`gpu` is the share of the time, and GB held."""
    there = 80 * GB
    return Usage(
        "x", session, NOW, seconds, cpus * seconds, int(memory), int(memory), on, Decimal(share),
        None if gpu is None else GpuUse(gpu[0], gpu[0], int(gpu[1] * GB), there, 1, int(any(gpu))),
    )  # fmt: skip


def facts(hours: float = 48, **more: Any) -> Facts:
    values: dict[str, Any] = {
        "now": NOW,
        "since": NOW - timedelta(hours=hours),
        "usage": [],
        "offers": [],
        "ledger": Ledger(),
        "sessions": [SessionFacts("s", "exp", "spot", 900)],
    }
    return Facts(**{**values, **more})


def check(advice: Advice) -> None:
    """Every line is right, every number of the text comes from a line, and so does the saving."""
    results = []
    for line in advice.arithmetic:
        if " = " not in line:
            continue
        match = LINE.fullmatch(line)
        assert match, line
        expression, shown = match.groups()
        python = expression.translate(str.maketrans({"×": "*", "−": "-", "÷": "/"}))
        exact = eval(NUMBER.sub(lambda number: f"Fraction('{number[0]}')", python))
        places = len(shown.partition(".")[2])
        assert abs(exact - Fraction(shown)) <= Fraction(1, 2 * 10**places), line
        results.append(Decimal(shown))
    assert advice.saves_usd >= 0
    assert advice.saves_usd in {*results, Decimal(0)}
    lines = set(NUMBER.findall("\n".join(advice.arithmetic)))
    assert set(NUMBER.findall(advice.text)) <= lines, (advice.text, advice.arithmetic)


def only(found: Sequence[Advice], kind: str) -> Advice:
    [advice] = [each for each in found if each.kind == kind]
    check(advice)
    return advice


# --- the working ----------------------------------------------------------------------------------


def test_a_line_is_what_it_says() -> None:
    working = Working()
    assert working.line("saved an hour", "0.17 − 0.085 × 1.1", "$") == Decimal("0.0765")
    assert working.lines == ["saved an hour: 0.17 − 0.085 × 1.1 = 0.0765 $"]
    assert working.line("a third", "1 ÷ 3", digits=2) == Decimal("0.33")
    assert evaluate("2 × (3 − 5) ÷ -4") == 1
    with pytest.raises(ValueError, match="no arithmetic"):
        evaluate("__import__('os')")


# --- right-sizing ---------------------------------------------------------------------------------


def test_a_big_gpu_that_is_little_used() -> None:
    """H100 to L4: 989/121 = 8.17, 3350/300 = 11.2, so at most 0.86 + 0.14 × 11.2 = 2.43 times."""
    h100 = offer("p5", "6.88", 24, 200, "H100", "on-demand")
    offers = [
        h100,
        offer("g6", "0.28", 4, 16, "L4"),
        offer("g5", "0.30", 4, 16, "A10G"),
        offer("tiny", "0.01", 1, 2, "L4"),  # too little memory and CPUs
        offer("inf2", "0.02", 4, 16, "Inferentia2"),  # CUDA does not run there
        offer("cpu", "0.01", 8, 32),  # no GPU
        offer("unknown", "0.01", 8, 32, "RTX9999"),
    ]
    advice = only(
        advise(facts(usage=[cell(h100, memory=6 * GB, gpu=(0.14, 6))], offers=offers)), "right-size"
    )
    # A10G: 989/70 = 14.1, so 0.86 + 0.14 × 14.1 = 2.83: $0.849; L4: 0.28 × 2.43 = $0.6804.
    assert advice.text == (
        "used 6 of 80 GB and 14 % of the GPU: L4:1 g6 spot would cost 0.099× and take at most 2.43×"
    )
    assert advice.action == "%mlcloud resume exp --gpu L4:1 --cpus 4"
    # One hour of work in 48: (6.88 − 0.6804) × 730.5 / 48
    assert advice.saves_usd == Decimal("94.36")
    assert advice.confidence == "medium"


def test_what_is_held_by_nothing_smaller() -> None:
    h100 = offer("p5", "6.88", 24, 200, "H100")
    offers = [h100, offer("g6", "0.28", 4, 16, "L4")]
    for gpu in (
        (0.14, 20),
        (1.0, 6.0),
    ):  # 20 × 1.25 GB do not fit; all of the GPU: 11 times as long
        found = advise(facts(usage=[cell(h100, gpu=gpu)], offers=[*offers[:1], offers[1]]))
        expected = 0 if gpu[1] == 20 else 1
        assert len(found) == expected
    dear = offer("g6", "1.28", 4, 16, "L4")
    assert not advise(facts(usage=[cell(h100, gpu=(1.0, 6))], offers=[h100, dear]))
    # Nothing is known of a GPU that nobody looked at.
    assert not advise(facts(usage=[cell(h100)], offers=[h100, offer("cpu", "0.01", 64, 256)]))


def test_a_gpu_that_nobody_used() -> None:
    t4 = offer("g4", "0.2", 4, 16, "T4")
    small = offer("c", "0.03", 2, 4)
    advice = only(advise(facts(usage=[cell(t4, gpu=(0, 0))], offers=[t4, small])), "right-size")
    assert advice.text.startswith("used no GPU (0 % of the time)")
    assert advice.action == "%mlcloud resume exp --gpu none --cpus 2"


def test_fewer_cpus() -> None:
    """One of 4 CPUs busy: 1.25 with headroom fit into 2, at half the price and in the same time."""
    big, small = offer("c4", "0.0578", 4, 8), offer("c2", "0.0289", 2, 4)
    advice = only(advise(facts(usage=[cell(big)], offers=[big, small])), "right-size")
    assert "c2 spot would cost 0.5× and take the same time" in advice.text
    # 1 h × 0.0289 in 48 h, a month: 0.0289 × 730.5 / 48
    assert advice.saves_usd == Decimal("0.4398")
    # 1.7 × 1.25 do not fit, nor does a session that pays for half the node gain anything.
    assert not advise(facts(usage=[cell(big, cpus=1.7)], offers=[big, small]))
    assert not advise(facts(usage=[cell(big, share="0.5")], offers=[big, small]))
    # Of 4 GiB 3.65 GB are the cell's: 2.9 × 1.25 fit, 3 × 1.25 do not.
    assert advise(facts(usage=[cell(big, memory=2.9 * GB)], offers=[big, small]))
    assert not advise(facts(usage=[cell(big, memory=3.0 * GB)], offers=[big, small]))
    # What it asks for already, though no cell has run there yet.
    asked = [SessionFacts("s", "exp", "spot", 900, asks=(None, 2))]
    assert not advise(facts(usage=[cell(big)], offers=[big, small], sessions=asked))
    # An hour with one CPU, on average, and all four for some seconds of it.
    burst = Usage(**{**vars(cell(big)), "cpus_peak": 3.9})
    assert not advise(facts(usage=[burst], offers=[big, small]))


def test_on_demand_stays_on_demand() -> None:
    big = offer("c4", "0.17", 4, 8, market="on-demand")
    small = offer("c2", "0.0289", 2, 4)
    asked = [SessionFacts("s", "exp", "on-demand", 900)]
    assert not advise(facts(usage=[cell(big)], offers=[big, small], sessions=asked))


ACCELERATOR = st.sampled_from([None, *ACCELERATORS])


@st.composite
def machines(draw: Any, count: int = 6) -> list[Offer]:
    return [
        offer(
            f"m{number}",
            str(draw(st.decimals("0.001", "50", places=4))),
            draw(st.integers(1, 64)),
            draw(st.integers(1, 512)),
            draw(ACCELERATOR),
            draw(st.sampled_from(["spot", "on-demand"])),
            gpus=draw(st.sampled_from([1, 1, 4])),
        )
        for number in range(count)
    ]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_was_measured_what_is_advised_holds_it(data: Any) -> None:
    offers = data.draw(machines())
    present = offers[0]
    cells = [
        cell(
            present,
            seconds=data.draw(st.floats(0.1, 1e6)),
            cpus=data.draw(st.floats(0, present.cpus)),
            memory=data.draw(st.integers(1, present.memory_bytes)),
            gpu=data.draw(st.none() | st.tuples(st.floats(0, 1), st.floats(0, 80)))
            if present.accelerator
            else None,
            share=data.draw(st.sampled_from(["1", "0.5", "0.333333"])),
        )
        for _ in range(data.draw(st.integers(1, 4)))
    ]
    market = data.draw(st.sampled_from(["spot", "on-demand"]))
    asked = [SessionFacts("s", "exp", market, 900)]
    hours = data.draw(st.floats(0.01, 720))
    for advice in advise(facts(hours, usage=cells, offers=offers, sessions=asked)):
        check(advice)
        name = re.findall(r"(m\d) (?:spot|on-demand) would", advice.text)[0]
        advised = next(each for each in offers if each.instance_type == name)
        assert market == "spot" or advised.market == "on-demand"
        assert advised.memory_bytes * 0.85 >= max(each.memory_peak for each in cells)
        assert advised.cpus >= max([each.cpus for each in cells if each.seconds >= LONG_S] or [0])
        held = max((each.gpu.memory_peak for each in cells if each.gpu), default=0)
        used = any(each.gpu.busy for each in cells if each.gpu)
        assert (advised.accelerator is not None) == used
        if advised.accelerator:
            assert ACCELERATORS[advised.accelerator].memory_gib * GIB >= held
            assert present.accelerator
            family = ACCELERATORS[present.accelerator].family
            assert ACCELERATORS[advised.accelerator].family == family


# --- idleness -------------------------------------------------------------------------------------


def at(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


def test_gaps() -> None:
    held = [(at(100), at(50)), (at(20), at(0))]
    used = [(at(110), at(90)), (at(80), at(70)), (at(75), at(60)), (at(20), at(10))]
    assert gaps(held, used) == [(at(90), at(80)), (at(60), at(50)), (at(10), at(0))]
    assert gaps(held, []) == held


def one_session(price: str = "0.6", ended: float | None = None) -> Ledger:
    """A node for 100 minutes; cells in the first 10 and in the 10 before the last 30."""
    on = offer("c4", price, cloud="local")
    end = None if ended is None else at(ended)
    return Ledger(
        [
            NodeSpan("n", on, at(100), end),
            Placement("s", "n", Fraction(1), at(100), end),
            ExecutionSpan("a", "s", at(100), at(90)),
            ExecutionSpan("b", "s", at(40), at(30)),
        ]
    )


def test_an_idle_session() -> None:
    """30 minutes idle, timeout 8 h: 27,000 s at $0.6/h are $4.50. With a timeout of a minute it had
    been parked for 49 + 29 minutes, less a start of 2: 76 min × $0.6/h = $0.76."""
    session = SessionFacts("s", "exp", "spot", 8 * 3600, idle_since=at(30))
    now, history = advise(facts(ledger=one_session(), sessions=[session]))[::-1]
    if now.per != "once":
        now, history = history, now
    check(now)
    check(history)
    assert (now.kind, now.per, now.saves_usd) == ("park", "once", Decimal("4.5"))
    assert now.action == "%mlcloud park exp"
    assert "parked after 1m it would have saved $0.76" in history.text
    assert history.saves_usd == Decimal("11.57")  # 0.76 × 730.5 / 48
    # Where a start takes two hours, the wait for it costs more than the 78 minutes.
    found = advise(facts(ledger=one_session(), sessions=[session], cold_start_s=7200))
    assert [each.per for each in found] == ["once"]
    # It has just ended its cell, or its timeout is a minute already.
    fresh = SessionFacts("s", "exp", "spot", 60, idle_since=NOW - timedelta(seconds=5))
    assert not advise(facts(ledger=one_session(), sessions=[fresh]))


def test_a_session_that_is_kept_busy_says_by_what() -> None:
    why = "not parked: a thread of it runs (worker)"
    session = SessionFacts("s", "exp", "spot", 600, idle_since=at(30), busy_why=why)
    found = advise(facts(ledger=one_session(), sessions=[session]))
    advice = next(each for each in found if each.per == "once")
    check(advice)
    assert why in advice.text
    assert advice.saves_usd == Decimal("0.6")


def test_nodes_and_spares_that_nobody_uses() -> None:
    on = offer("c4", "0.1", cloud="local")
    ledger = Ledger([NodeSpan("n", on, at(60)), NodeSpan("head", on, at(60))])
    advice = only(advise(facts(ledger=ledger, heads=frozenset({"head"}))), "idle-node")
    assert advice.about == "node n"
    assert advice.saves_usd == Decimal("73.05")
    advice = only(advise(facts(ledger=ledger, heads=frozenset({"head"}), spares=1)), "idle-node")
    assert advice.action == "MLCLOUD_WARM_SPARES=0"
    assert not advise(facts(ledger=one_session(), sessions=[]))  # it holds a session


# --- spot against on-demand -----------------------------------------------------------------------


def test_spot_that_is_taken_back_all_the_time() -> None:
    """20 nodes of half an hour, each taken back: 2 an hour. With starts of 900 s and 900 s lost,
    1 + (3 × 900 + 2 × 900) / 3600 = 2.25 hours are billed for one."""
    spot, demand = offer("c4", "0.08"), offer("c4", "0.1", market="on-demand")
    nodes = [NodeSpan(f"n{i}", spot, at(30 * i + 30), at(30 * i)) for i in range(20)]
    known = facts(
        24, offers=[spot, demand], ledger=Ledger(nodes), cold_start_s=900, lost_s=900,
        preempted=frozenset(node.node_id for node in nodes),
    )  # fmt: skip
    advice = only(advise(known), "market")
    expected = Expectations(hours=1, cold_start_s=900, lost_s=900)
    assert Decimal("0.18") == effective_usd_per_hour(spot, expected, 2)
    assert Decimal("0.125") == effective_usd_per_hour(demand, expected, 2)
    assert "costs $0.18 on spot and $0.125 on demand" in advice.text
    # 10 h ÷ 2.25 of work × 0.055, in 24 h
    assert advice.saves_usd == Decimal("7.439")
    assert "on-demand" in advice.action


def test_on_demand_where_spot_would_do() -> None:
    spot, demand = offer("c4", "0.04"), offer("c4", "0.1", market="on-demand")
    ledger = Ledger([NodeSpan("n", demand, at(600), at(0))])
    advice = only(advise(facts(24, offers=[spot, demand], ledger=ledger)), "market")
    rate = effective_usd_per_hour(spot, Expectations(cold_start_s=120, lost_s=60), 0.5)
    assert f"${rate:.4f}".rstrip("0") in advice.text
    assert advice.action.startswith('market="spot"')


# --- commitments and machines of one's own --------------------------------------------------------


def test_a_node_that_runs_all_the_time() -> None:
    """Two weeks, one node all the time and another for a day: one pays, committed at 28 % off."""
    on = offer("c4", "0.1", market="on-demand")
    begin = NOW - timedelta(days=14)
    ledger = Ledger([NodeSpan("a", on, begin), NodeSpan("b", on, begin, begin + timedelta(days=1))])
    known = facts(14 * 24, ledger=ledger, heads=frozenset({"a", "b"}), offers=[on])
    advice = only(advise(known), "commitment")
    assert "730.5 h a month" in advice.text
    assert "for 1 of them" in advice.text
    assert advice.saves_usd == Decimal("20.45")  # 730.5 × 0.1 × 0.28
    half = Ledger([NodeSpan("a", on, begin, begin + timedelta(days=10))])  # 71 %: below 72 %
    assert not advise(facts(14 * 24, ledger=half, offers=[on]))


def test_a_machine_of_ones_own() -> None:
    on = offer("c4", "1.0", market="on-demand")
    ledger = Ledger([NodeSpan("a", on, NOW - timedelta(hours=48), at(24 * 60))])
    own = read_own(
        "name=box,watts=500,kwh=0.2,purchase=4000,years=4,cpus=16,memory=64GB", NOW.date()
    )
    advice = only(advise(facts(48, ledger=ledger, own=[own])), "own-machine")
    # half of all hours: (365.2 × 48 − 4000 − 0.1 × 365.2 × 48) / 48 = 365.2 × 0.9 − 83.33
    assert advice.saves_usd == Decimal("245.3")
    assert "pays from 92.59 h a month (0.13 of all hours)" in advice.text
    dear = read_own("watts=500,kwh=0.2,purchase=40000,years=4,cpus=16,memory=64GB", NOW.date())
    advice = only(advise(facts(48, ledger=ledger, own=[dear])), "own-machine")
    assert advice.saves_usd == 0
    assert advice.text.startswith("does not pay at 365.2 h a month")
    small = read_own("watts=500,kwh=0.2,purchase=40,years=4,cpus=2,memory=64GB", NOW.date())
    assert not advise(facts(48, ledger=ledger, own=[small]))  # it does not hold what ran
    with pytest.raises(UsageError, match="did you mean 'watts'"):
        read_own("wats=500", NOW.date())
    with pytest.raises(UsageError, match="missing: kwh"):
        read_own("watts=500", NOW.date())


# --- what was left behind -------------------------------------------------------------------------


def test_leftovers() -> None:
    left = [
        Leftover(
            "volume", "vol-1", "eu-central-1", {}, Decimal("0.011"), "orphaned: its node is gone"
        ),
        Leftover("address", "eip-1", "eu-central-1", {}, None, "no tag says whose it is"),
        Leftover("security-group", "sg-1", "eu-central-1", {}, Decimal(0), "free"),
        Leftover("instance", "n", "eu-central-1", {}, Decimal(1), "running"),
    ]
    found = advise(facts(ledger=one_session(), sessions=[], leftovers=left))
    assert [each.about for each in found] == ["volume vol-1", "address eip-1"]
    assert found[0].saves_usd == Decimal("8.036")
    assert all("eu-central-1" in each.text for each in found)


# --- all of it ------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_happened_the_arithmetic_is_right(data: Any) -> None:
    hours = data.draw(st.floats(0.1, 1000))
    begin = NOW - timedelta(hours=hours)

    def span() -> tuple[datetime, datetime | None]:
        first, second = sorted(data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
        end = begin + timedelta(hours=hours * second)
        return begin + timedelta(hours=hours * first), data.draw(st.sampled_from([end, None]))

    offers = data.draw(machines(3))
    ledger = Ledger()
    for number in range(data.draw(st.integers(1, 4))):
        on = data.draw(st.sampled_from(offers))
        first, end = span()
        ledger.append(NodeSpan(f"n{number}", on, first, end, Decimal(str(on.usd_per_hour * 2))))
        if data.draw(st.booleans()):
            ledger.append(Placement("s", f"n{number}", Decimal("0.5"), first, end))
            ledger.append(ExecutionSpan(f"x{number}", "s", *span()))
    session = SessionFacts(
        "s", "exp", "spot", data.draw(st.floats(60, 1e5)), data.draw(st.none() | st.just(begin))
    )
    own = read_own("watts=500,kwh=0.2,purchase=400,years=2,cpus=64,memory=600GB", NOW.date())
    known = facts(
        hours, ledger=ledger, offers=offers, sessions=[session], own=[own],
        preempted=frozenset(data.draw(st.sets(st.sampled_from(["n0", "n1", "n2"])))),
    )  # fmt: skip
    found = advise(known)
    for each in found:
        check(each)
    savings = [each.saves_usd for each in found]
    assert savings == sorted(savings, reverse=True)
