"""In which order places are tried, what is passed over, and what is said when nothing fits."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcloud.cluster.offers import Cooldown, Market, Offer, Shape, key_of, require, walk
from mlcloud.errors import NoSuchResources, UsageError

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def offer(
    kind: str = "m", zone: str = "z-a", market: Market = "spot", price: str = "1", **more: object
) -> Offer:
    plain = Offer(
        cloud="local",
        region="z",
        zone=zone,
        instance_type=kind,
        cpus=4,
        memory_bytes=16 * 2**30,
        accelerator=None,
        accelerator_count=0,
        market=market,
        usd_per_hour=Decimal(price),
        simulated=True,
        source="test",
        as_of=date(2026, 1, 1),
    )
    return replace(plain, **more)  # type: ignore[arg-type]


T4 = offer("t4", price="2", accelerator="T4", accelerator_count=1)
FOUR_T4 = offer("4t4", price="7", accelerator="T4", accelerator_count=4)
A10G = offer("a10g", price="3", accelerator="A10G", accelerator_count=1)
SMALL = offer("small", price="0.1", cpus=1, memory_bytes=2**30)


def test_cheapest_first_over_zones_and_markets() -> None:
    sold = [
        offer(zone="z-a", price="3"),
        offer(zone="z-b", price="1"),
        offer(zone="z-a", market="on-demand", price="5"),
        offer(zone="z-c", price="2"),
    ]
    assert [o.usd_per_hour for o in walk(sold, Shape(), None, {}, NOW)] == [1, 2, 3, 5]


def test_at_equal_prices_on_demand_goes_first() -> None:
    sold = [offer(market="spot"), offer(market="on-demand")]
    assert walk(sold, Shape(), None, {}, NOW)[0].market == "on-demand"


@pytest.mark.parametrize(
    ("market", "expected"),
    [
        (None, ["0.5 on-demand", "1 spot", "2 spot", "3 on-demand"]),
        ("spot", ["1 spot", "2 spot", "0.5 on-demand", "3 on-demand"]),
        ("on-demand", ["0.5 on-demand", "3 on-demand"]),
    ],
)
def test_spot_falls_back_to_on_demand_and_on_demand_is_kept_to(
    market: Market | None, expected: list[str]
) -> None:
    sold = [
        offer(zone=f"z-{price}", market=each, price=price)
        for price, each in [("3", "on-demand"), ("2", "spot"), ("0.5", "on-demand"), ("1", "spot")]
    ]
    walked = walk(sold, Shape(), market, {}, NOW)
    assert [f"{o.usd_per_hour} {o.market}" for o in walked] == expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (Shape.parse(gpu="T4:1"), ["t4", "4t4"]),
        (Shape.parse(gpu="t4:2"), ["4t4"]),
        (Shape.parse(gpu="A10G"), ["a10g"]),
        (Shape.parse(cpus=2), ["t4", "a10g", "4t4"]),
        (Shape.parse(memory="1GB"), ["small", "t4", "a10g", "4t4"]),
        (Shape.parse(), ["small", "t4", "a10g", "4t4"]),
        (Shape.parse(cpus=5), []),
        (Shape.parse(memory="16GiB"), ["t4", "a10g", "4t4"]),
        (Shape.parse(memory="17GiB"), []),
    ],
)
def test_only_what_dominates_the_shape(shape: Shape, expected: list[str]) -> None:
    sold = [FOUR_T4, SMALL, A10G, T4]
    assert [o.instance_type for o in walk(sold, shape, None, {}, NOW)] == expected


def test_what_had_no_capacity_is_passed_over_until_its_time_is_up() -> None:
    first, second = offer(zone="z-a", price="1"), offer(zone="z-b", price="2")
    minutes = timedelta(minutes=1)
    cooling = {key_of(first): Cooldown(NOW + 5 * minutes, "no capacity in z-a")}

    assert walk([first, second], Shape(), None, cooling, NOW) == [second]
    assert walk([first, second], Shape(), None, cooling, NOW + 4.9 * minutes) == [second]
    assert walk([first, second], Shape(), None, cooling, NOW + 5 * minutes) == [first, second]


def test_the_other_market_of_the_same_machine_does_not_cool_down() -> None:
    spot, on_demand = offer(market="spot"), offer(market="on-demand", price="3")
    cooling = {key_of(spot): Cooldown(NOW + timedelta(minutes=5), "no capacity")}
    assert walk([spot, on_demand], Shape(), None, cooling, NOW) == [on_demand]


def test_a_gpu_that_is_not_sold_names_those_that_are_and_a_close_one() -> None:
    with pytest.raises(NoSuchResources) as caught:
        require([T4, A10G, FOUR_T4], Shape.parse(gpu="A10:1"))
    assert str(caught.value) == (
        "no offer for A10:1, 1 CPU: this cluster has no A10; "
        "its GPUs are A10G:1, T4:1, T4:4; did you mean 'A10G'?"
    )


def test_too_large_a_shape_names_what_is_sold() -> None:
    with pytest.raises(NoSuchResources) as caught:
        require([T4, SMALL], Shape.parse(cpus=64, gpu="T4"))
    assert str(caught.value) == (
        "no offer for T4:1, 64 CPUs: this cluster has small (1 CPUs, 1 GiB), "
        "t4 (T4:1, 4 CPUs, 16 GiB)"
    )


def test_a_market_that_is_not_sold() -> None:
    with pytest.raises(NoSuchResources, match="1 CPU on demand: the cluster has no such offers"):
        require([T4], Shape(), "on-demand")


@pytest.mark.parametrize("cpus", [0, -1, "many", "nan", "inf", True])
def test_wrong_cpus(cpus: float | str) -> None:
    with pytest.raises(UsageError, match="as CPUs"):
        Shape.parse(cpus=cpus)


@pytest.mark.parametrize("price", ["NaN", "-1", "Infinity"])
def test_an_offer_has_a_price(price: str) -> None:
    with pytest.raises(UsageError, match="no price"):
        offer(price=price)


prices = st.decimals(min_value=0, max_value=100, places=4)


@given(
    st.lists(
        st.builds(
            offer,
            kind=st.sampled_from(["m", "n"]),
            zone=st.sampled_from(["z-a", "z-b", "z-c"]),
            market=st.sampled_from(["spot", "on-demand"]),
            price=prices.map(str),
        ),
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_the_order_depends_on_the_offers_alone(sold: list[Offer], random: object) -> None:
    unique = list({key_of(o): o for o in sold}.values())
    shuffled = list(unique)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    walked = walk(unique, Shape(), None, {}, NOW)
    assert walked == walk(shuffled, Shape(), None, {}, NOW)
    assert [o.usd_per_hour for o in walked] == sorted(o.usd_per_hour for o in unique)
