"""The embedded cloud's catalogue: simulated, dated, the same every time, and worth walking."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from decimal import Decimal

import pytest

from mlcloud.cluster.offers import Shape, key_of, walk
from mlcloud.cost.prices import ZONES, local_offers, on_demand_usd_per_hour

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def test_every_machine_in_every_zone_and_market_once() -> None:
    offers = local_offers()
    assert len({key_of(o) for o in offers}) == len(offers) == 4 * len(ZONES) * 2


def test_every_price_says_that_it_is_simulated_and_what_it_is_modelled_on() -> None:
    for offer in local_offers():
        assert offer.simulated
        assert offer.source.startswith("simulated, modelled on the list price of AWS")
        assert offer.as_of.year >= 2025


def test_the_catalogue_is_the_same_every_time() -> None:
    assert local_offers() == local_offers()


@pytest.mark.parametrize(
    ("gpu", "kind"), [(None, "local.cpu2"), ("T4:1", "local.t4"), ("A10G:1", "local.a10g")]
)
def test_spot_is_a_third_of_on_demand_and_differs_by_zone(gpu: str | None, kind: str) -> None:
    walked = walk(local_offers(), Shape.parse(gpu=gpu), None, {}, NOW)
    mine = [o for o in walked if o.instance_type == kind]
    assert [o.market for o in mine] == ["spot"] * 3 + ["on-demand"] * 3
    assert len({o.usd_per_hour for o in mine[:3]}) == 3
    for offer in mine[:3]:
        on_demand = on_demand_usd_per_hour(offer, walked)
        assert on_demand is not None
        assert Decimal("0.3") <= offer.usd_per_hour / on_demand <= Decimal("0.4")


def test_on_demand_price_of_the_own_zone_then_of_the_region_then_unknown() -> None:
    offers = local_offers()
    spot = next(o for o in offers if o.market == "spot" and o.zone == "local-a")
    same = [o for o in offers if o.instance_type == spot.instance_type and o.market != "spot"]
    here, there = same[0], replace(same[1], usd_per_hour=Decimal("0.01"))
    assert on_demand_usd_per_hour(spot, [here, there]) == here.usd_per_hour
    assert on_demand_usd_per_hour(spot, [there]) == Decimal("0.01")
    assert on_demand_usd_per_hour(spot, [spot]) is None
    assert on_demand_usd_per_hour(here, []) == here.usd_per_hour
