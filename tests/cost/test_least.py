"""What clouds bill at least, and what of it is still owed when a node ends."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from mlcloud.cost.least import RULES, Least, dollars
from tests.cost.test_meter import at, offer

SOLD = replace(offer("3.6"), simulated=False)


@pytest.mark.parametrize(("cloud", "seconds"), [("aws", 60), ("gcp", 60), ("azure", 300)])
def test_a_node_is_billed_for_its_least_time(cloud: str, seconds: int) -> None:
    least, sold = Least(), replace(SOLD, cloud=cloud)
    assert least.billed_until(sold, at(0), at(7)) == at(seconds)
    assert least.billed_until(sold, at(0), at(seconds + 0.5)) == at(seconds + 0.5)
    assert least.billed_until(sold, at(0), None) is None
    # A dollar in 1,000 seconds.
    assert least.owed(sold, Decimal("3.6"), at(0), at(10)) == Decimal(seconds - 10) / 1000
    assert least.owed(sold, Decimal("3.6"), at(0), at(seconds)) == 0
    assert RULES[cloud].source.startswith("https://")


def test_ones_own_machines_and_simulated_nodes_owe_nothing_unless_told() -> None:
    assert Least().of(offer()) == Least().of(replace(SOLD, cloud="ssh")) == timedelta(0)
    assert Least(timedelta(seconds=60)).of(offer()) == timedelta(seconds=60)
    head = offer("0")
    assert Least(timedelta(seconds=60)).of(head) == timedelta(0)
    assert dollars(Decimal("3.6"), timedelta(seconds=1)) == Decimal("0.001")
