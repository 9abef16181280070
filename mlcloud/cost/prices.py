"""Prices: what the embedded local cloud pretends to charge.

The local cloud runs on this computer and costs nothing. So that meter, budgets and footers have
something to show, its offers carry **simulated** prices: the on-demand price is the public list
price of a comparable machine (a fact, with its source and date), the spot price a fixed fraction of
it that differs a little from zone to zone. Nothing is random: the catalogue is the same on every
machine, so that a run can be repeated.

    _MACHINES × _SPOT_FRACTIONS ──► local_offers() ──► cluster.offers.walk()
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from typing import NamedTuple

from mlcloud.cluster.offers import MARKETS, Offer

REGION = "local"

_AS_OF = date(2025, 3, 2)
_GIB = 2**30
_ONE = Decimal(1)


class _Machine(NamedTuple):
    instance_type: str
    cpus: float
    memory_bytes: int
    accelerator: str | None
    usd_per_hour: str
    modelled_on: str


# On-demand list prices, Linux, us-east-1, in force on _AS_OF.
_MACHINES = (
    _Machine("local.cpu2", 2, 4 * _GIB, None, "0.085", "AWS c5.large"),
    _Machine("local.cpu4", 4, 8 * _GIB, None, "0.170", "AWS c5.xlarge"),
    _Machine("local.t4", 4, 16 * _GIB, "T4", "0.526", "AWS g4dn.xlarge"),
    _Machine("local.a10g", 4, 16 * _GIB, "A10G", "1.006", "AWS g5.xlarge"),
)

# Spot as a fraction of on-demand. The order of the zones differs between machines with and without
# a GPU, as it does in a real region, so that "the cheapest zone" is not always the same one.
_SPOT_FRACTIONS = {
    "local-a": {"cpu": Decimal("0.34"), "gpu": Decimal("0.36")},
    "local-b": {"cpu": Decimal("0.36"), "gpu": Decimal("0.32")},
    "local-c": {"cpu": Decimal("0.39"), "gpu": Decimal("0.38")},
}

ZONES = tuple(_SPOT_FRACTIONS)


def local_offers(moved: Mapping[str, Decimal] | None = None) -> list[Offer]:
    """The local cloud's catalogue: every machine in every zone, spot and on-demand, simulated.

    `moved` are factors on the spot prices of zones.
    """
    return [
        Offer(
            cloud="local",
            region=REGION,
            zone=zone,
            instance_type=machine.instance_type,
            cpus=machine.cpus,
            memory_bytes=machine.memory_bytes,
            accelerator=machine.accelerator,
            accelerator_count=1 if machine.accelerator else 0,
            market=market,
            usd_per_hour=_price(machine, zone, market == "spot", (moved or {}).get(zone, _ONE)),
            simulated=True,
            source=f"simulated, modelled on the list price of {machine.modelled_on} in us-east-1",
            as_of=_AS_OF,
        )
        for machine in _MACHINES
        for zone in ZONES
        for market in MARKETS
    ]


def on_demand_usd_per_hour(offer: Offer, offers: Iterable[Offer]) -> Decimal | None:
    """What the machine of `offer` costs on demand, None where `offers` does not say.

    Its own zone is asked first, then the cheapest of its region: what one would have paid instead.
    """
    if offer.market == "on-demand":
        return offer.usd_per_hour
    same = [
        other
        for other in offers
        if other.market == "on-demand"
        and (other.cloud, other.region) == (offer.cloud, offer.region)
        and other.instance_type == offer.instance_type
    ]
    in_zone = [other for other in same if other.zone == offer.zone]
    return min((other.usd_per_hour for other in in_zone or same), default=None)


class OnDemand:
    """`on_demand_usd_per_hour` for many of them."""

    def __init__(self, offers: Iterable[Offer]) -> None:
        self._lowest: dict[tuple[str, ...], Decimal] = {}
        for each in offers:
            if each.market == "on-demand":
                for key in _keys(each):
                    known = self._lowest.get(key, each.usd_per_hour)
                    self._lowest[key] = min(known, each.usd_per_hour)

    def of(self, offer: Offer) -> Decimal | None:
        if offer.market == "on-demand":
            return offer.usd_per_hour
        found = (self._lowest.get(key) for key in _keys(offer))
        return next((price for price in found if price is not None), None)


def _keys(offer: Offer) -> tuple[tuple[str, ...], tuple[str, ...]]:
    where = (offer.cloud, offer.region, offer.instance_type)
    return (*where, offer.zone), where


#: Of the spot prices of a zone, one after the other; each zone begins somewhere else.
_MOVES = tuple(map(Decimal, ("1", "1.1", "1.25", "1.15", "1", "0.9", "0.85", "0.95")))


def moves(step: int) -> dict[str, Decimal]:
    """The factors on each zone's spot prices in this step of a market that is simulated."""
    return {zone: _MOVES[(step + 3 * n) % len(_MOVES)] for n, zone in enumerate(ZONES)}


def _price(machine: _Machine, zone: str, spot: bool, factor: Decimal) -> Decimal:
    on_demand = Decimal(machine.usd_per_hour)
    if not spot:
        return on_demand
    fraction = _SPOT_FRACTIONS[zone]["gpu" if machine.accelerator else "cpu"]
    price = (on_demand * fraction).quantize(Decimal("0.0001"))
    return price if factor == 1 else min(on_demand, (price * factor).quantize(Decimal("0.0001")))
