"""What bills beside the nodes is told as an estimate, with its price, source and date."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from mlcloud.cost.estimates import MONTH, estimates


def test_on_this_computer_nothing_is_charged_and_it_says_so() -> None:
    for each in estimates("file:///tmp/store", 10**12, 10, MONTH):
        assert (each.usd, each.usd_per_month, each.simulated) == (0, 0, True)


@pytest.mark.parametrize(
    ("url", "usd"), [("s3://b/x", "0.023"), ("gs://b", "0.020"), ("az://c", "0.0184")]
)
def test_a_store_in_a_cloud(url: str, usd: str) -> None:
    storage, requests, egress = estimates(url, 2**30 * 1000, 4000, MONTH / 2)
    assert storage.usd_per_month == Decimal(usd) * 1000
    assert storage.usd == Decimal(usd) * 500
    assert requests.usd == Decimal("0.02")
    assert egress.usd is None
    assert "not measured" in egress.basis
    for each in (storage, requests, egress):
        assert each.source.startswith("https://")
        assert not each.simulated


def test_no_time_costs_nothing() -> None:
    assert estimates("s3://b", 10**9, 0, timedelta(0))[0].usd == 0
