"""What an hour of work costs on an offer."""

from __future__ import annotations

from decimal import Decimal

import pytest

from mlcloud.cluster.effective import Expectations, effective_usd_per_hour, egress_usd, pricing
from tests.cluster.recording import offer


def test_a_spot_hour_with_its_preemptions() -> None:
    """One preemption an hour: two boots of 6 minutes and 3 minutes of work again, by hand."""
    expected = Expectations(hours=1, cold_start_s=360, lost_s=180)
    assert effective_usd_per_hour(offer(price="1.00"), expected, 1.0) == Decimal("1.25")
    # On demand there is one boot, whatever the rate.
    steady = offer(price="1.00", market="on-demand")
    assert effective_usd_per_hour(steady, expected, 1.0) == Decimal("1.1")
    # Held for ten hours, a boot is a tenth of that.
    long = Expectations(hours=10, cold_start_s=360, lost_s=0)
    assert effective_usd_per_hour(steady, long, 0.0) == Decimal("1.01")


def test_a_state_elsewhere_costs_its_way() -> None:
    there = Expectations(state_gb=50, home=("recording", "r2"), cold_start_s=0, lost_s=0)
    assert egress_usd(offer(region="r2"), there) == 0
    assert egress_usd(offer(region="r1"), there) == Decimal("1.00")
    abroad = Expectations(state_gb=50, home=("another", "r1"))
    assert egress_usd(offer(), abroad) == Decimal("4.50")
    assert effective_usd_per_hour(offer(price="0.10"), there, 1.0) == Decimal("2.10")


@pytest.mark.parametrize("rate", [0.0, 0.3, 4.0])
def test_the_quick_comparison_is_the_same(rate: float) -> None:
    expected = Expectations(state_gb=5, home=("recording", "r2"))
    for each in (offer(), offer("b", "7.3", "on-demand"), offer("c", "0.001", region="r2")):
        exact = effective_usd_per_hour(each, expected, rate)
        assert pricing(expected, lambda _: rate)(each) == pytest.approx(float(exact), rel=1e-9)
