"""A machine of one's own: power and depreciation, with the arithmetic."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest

from mlcloud.cluster.offers import Shape
from mlcloud.cost.own_machine import own_machine
from mlcloud.errors import UsageError


def test_power_and_depreciation_by_hand() -> None:
    # 0.65 kW × 0.30 = 0.195; 4,000 / (4 × 8,766 × 0.5) = 0.228154
    box = own_machine("box", 650, "0.30", 4000, 4, 0.5)
    assert box.power_usd_per_hour == Decimal("0.195")
    assert box.depreciation_usd_per_hour == Decimal("0.228154")
    assert box.usd_per_hour == Decimal("0.423154")
    assert str(box) == (
        "box: 650 W × $0.30/kWh = $0.195/h; $4,000 over 4 years × 8,766 h × 50 % in use = "
        "$0.2282/h; together $0.4232/h"
    )


def test_twice_the_use_halves_the_depreciation_and_a_resale_lowers_it() -> None:
    seldom = own_machine("box", 0, 0, 8766, 1, "0.25")
    assert seldom.usd_per_hour == 4
    assert own_machine("box", 0, 0, 8766, 1, "0.5").usd_per_hour == 2
    resold = own_machine("box", 0, 0, 8766, 1, resale="4383")
    assert resold.usd_per_hour == Decimal("0.5")
    assert "$8,766 - $4,383" in resold.arithmetic


def test_a_machine_that_is_paid_for_costs_its_power() -> None:
    assert own_machine("old", 1000, "0.2", 0, 3).usd_per_hour == Decimal("0.2")


def test_it_is_an_offer_like_the_others() -> None:
    box = own_machine("box", 650, "0.30", 4000, 4, 0.5)
    offer = box.offer(
        cpus=16,
        memory_bytes=64 * 2**30,
        accelerator="RTX4090",
        accelerator_count=1,
        as_of=date(2026, 1, 1),
    )
    assert offer.dominates(Shape.parse(8, "32GB", "RTX4090:1"))
    assert offer.usd_per_hour == box.usd_per_hour
    assert offer.estimated
    assert box.arithmetic in offer.source


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((-1, 1, 1, 1), "watts is a number from 0, not -1"),
        (("x", 1, 1, 1), "watts is a number, not 'x'"),
        ((1, float("nan"), 1, 1), "price_per_kwh is a number from 0"),
        ((1, 1, 1, 0), "years and utilisation must be above 0"),
        ((1, 1, 1, 1, 0), "years and utilisation must be above 0"),
        ((1, 1, 1, 1, 50), "above 0 and up to 1, not 50"),
    ],
)
def test_numbers_out_of_range(numbers: tuple, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        own_machine("box", *numbers)


def test_no_resale_above_the_purchase() -> None:
    with pytest.raises(UsageError, match="cannot be sold for more than it cost"):
        own_machine("box", 1, 1, 10, 1, resale=11)
