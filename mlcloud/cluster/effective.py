"""What an hour of work on an offer really costs, which is what offers are compared by.

The price of an hour is not the price of an hour's work: a node bills while it boots, a spot node
that is taken back takes the work since the last snapshot with it, and each new node fetches the
session's state, from another region for money.

    H   hours that a node is wanted for          λ   preemptions an hour (0 on demand)
    c   hours from the order to the first cell   l   hours of work that a preemption costs
    e   dollars to bring the state there         p   the offer's price an hour

    nodes needed      n = 1 + λ·H                       (the first, and one for each preemption)
    effective price     = p · (H + n·c + λ·H·l) / H  +  n·e / H

λ is learnt from this cluster's own history (`preemptions`); the others are measured or assumed by
`Expectations`. Pure: nothing is asked of anybody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from mlcloud.cluster.offers import Offer

#: Dollars a GB that leaves a region for another of the same cloud, and for another cloud. List
#: prices of AWS's EU and US regions, https://aws.amazon.com/ec2/pricing/on-demand/#Data_Transfer
#: (0.02 and 0.09); GCP's and Azure's first tiers are near these (0.02 and 0.08 to 0.12).
WITHIN_CLOUD = Decimal("0.02")
ACROSS_CLOUDS = Decimal("0.09")


@dataclass(frozen=True)
class Expectations:
    """What is expected of a node beside its price. `home` is the (cloud, region) of the store."""

    hours: float = 1.0
    cold_start_s: float = 120.0
    lost_s: float = 60.0
    state_gb: float = 0.0
    home: tuple[str, str] | None = None


def egress_usd(offer: Offer, expected: Expectations) -> Decimal:
    """What it costs to bring the state to where `offer` is, once."""
    if expected.home is None or not expected.state_gb:
        return Decimal(0)
    cloud, region = expected.home
    if cloud == offer.cloud and region == offer.region:
        return Decimal(0)
    a_gb = WITHIN_CLOUD if cloud == offer.cloud else ACROSS_CLOUDS
    return a_gb * Decimal(str(expected.state_gb))


def effective_usd_per_hour(
    offer: Offer, expected: Expectations, preemptions_per_hour: float
) -> Decimal:
    """Dollars an hour of work costs on `offer`."""
    rate = preemptions_per_hour if offer.market == "spot" else 0.0
    nodes = 1 + rate * expected.hours
    moving = egress_usd(offer, expected) * Decimal(str(nodes / expected.hours))
    return offer.usd_per_hour * Decimal(str(_billed(expected, rate))) + moving


def pricing(
    expected: Expectations, preemptions_per_hour: Callable[[Offer], float]
) -> Callable[[Offer], float]:
    """`effective_usd_per_hour` to compare thousands of offers by, in floats, for `offers.walk`."""
    on_demand = _billed(expected, 0.0)
    moving: dict[tuple[str, str], float] = {}

    def price(offer: Offer) -> float:
        place = (offer.cloud, offer.region)
        egress = moving.get(place)
        if egress is None:
            egress = moving[place] = float(egress_usd(offer, expected))
        listed = float(offer.usd_per_hour)
        if offer.market != "spot":
            return listed * on_demand + egress / expected.hours
        rate = preemptions_per_hour(offer)
        nodes = 1 + rate * expected.hours
        return listed * _billed(expected, rate) + egress * nodes / expected.hours

    return price


def _billed(expected: Expectations, rate: float) -> float:
    """Hours that are billed for an hour of work."""
    nodes = 1 + rate * expected.hours
    idle = nodes * expected.cold_start_s + rate * expected.hours * expected.lost_s
    return 1 + idle / 3600 / expected.hours
