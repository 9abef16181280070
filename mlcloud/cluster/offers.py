"""Offers: the priced places where a node could run, and the order in which to try them.

    what was asked                     what the clouds sell
    Shape(cpus, memory, gpu)           Offer(zone, instance type, market, $/h …) …
             └──────────────┬───────────────┘
                    walk(): those that dominate the shape, cheapest first,
                            without the ones that are cooling down
                            │
              the cloud launches the first; "no capacity" ──► `attempts`: skip it for a while,
                                                              remember why, walk again

An offer *dominates* a shape when it has at least the CPUs and the memory, and at least as many of
the very accelerator that was named. Where only the price decides, on-demand goes first at equal
prices: it is not taken away.

All of it is pure: the time is passed in, and nothing is launched here.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Literal, NamedTuple

from mlcloud.errors import NoSuchResources, UsageError
from mlcloud.units import (
    format_bytes,
    format_usd_per_hour,
    parse_gpu,
    parse_size,
    suggest,
)

Market = Literal["spot", "on-demand"]
MARKETS: tuple[Market, ...] = ("spot", "on-demand")

_RANK = operator.attrgetter("rank")


@dataclass(frozen=True)
class Offer:
    """A priced place to run. `source` and `as_of` say where the price comes from and of what day
    it is; `simulated` that nobody is ever charged it; `estimated` that no source states the price
    and it was derived as `source` says."""

    cloud: str
    region: str
    zone: str
    instance_type: str
    cpus: float
    memory_bytes: int
    accelerator: str | None
    accelerator_count: int
    market: Market
    usd_per_hour: Decimal
    simulated: bool
    source: str
    as_of: date
    estimated: bool = False

    def __post_init__(self) -> None:
        if self.market not in MARKETS:
            raise UsageError(f"unknown market {self.market!r}: it is 'spot' or 'on-demand'")
        # 0 in a price list means "missing" far more often than "free" (and NaN sorts anywhere).
        if not self.usd_per_hour.is_finite() or self.usd_per_hour < 0:
            raise UsageError(f"{self.instance_type} in {self.zone}: no price {self.usd_per_hour}")

    def dominates(self, shape: Shape) -> bool:
        """Whether a node of this offer satisfies `shape`."""
        return (
            self.cpus >= shape.cpus
            and self.memory_bytes >= shape.memory_bytes
            and (
                shape.accelerator is None
                or (
                    self.accelerator is not None
                    and self.accelerator.casefold() == shape.accelerator.casefold()
                    and self.accelerator_count >= shape.accelerator_count
                )
            )
        )

    @functools.cached_property
    def rank(self) -> tuple[float, Decimal, bool, str, str, str]:
        """The order in which offers are tried: cheapest first, on-demand before spot at the same
        price, then by name.

        The float is the price once more: sorting compares floats ten times faster.
        """
        return (
            float(self.usd_per_hour),
            self.usd_per_hour,
            self.market != "on-demand",
            self.cloud,
            self.zone,
            self.instance_type,
        )

    @property
    def gpu(self) -> str | None:
        """The accelerator as `NAME:COUNT`, or None."""
        return f"{self.accelerator}:{self.accelerator_count}" if self.accelerator else None

    def __str__(self) -> str:
        price = format_usd_per_hour(self.usd_per_hour)
        return f"{self.instance_type} {self.market} {self.zone} ({price})"


@dataclass(frozen=True)
class Shape:
    """The least a node must have. `accelerator` None means that none is needed."""

    cpus: float = 1
    memory_bytes: int = 0
    accelerator: str | None = None
    accelerator_count: int = 0

    @classmethod
    def parse(
        cls, cpus: float | str | None = None, memory: str | None = None, gpu: str | None = None
    ) -> Shape:
        """A shape from what a user writes: `Shape.parse(cpus=4, memory="32GB", gpu="A10G:1")`.

        What is left out asks for one CPU, any memory and no GPU. Raises `UsageError`.
        """
        name, count = parse_gpu(gpu) if gpu is not None else (None, 0)
        return cls(
            cpus=1 if cpus is None else _parse_cpus(cpus),
            memory_bytes=0 if memory is None else parse_size(memory),
            accelerator=name,
            accelerator_count=count,
        )

    def __str__(self) -> str:
        parts = [f"{self.accelerator}:{self.accelerator_count}"] if self.accelerator else []
        parts.append(f"{self.cpus:g} {'CPU' if self.cpus == 1 else 'CPUs'}")
        if self.memory_bytes:
            parts.append(format_bytes(self.memory_bytes))
        return ", ".join(parts)


class OfferKey(NamedTuple):
    """What a cloud runs out of: this type, in this zone, in this market."""

    zone: str
    instance_type: str
    market: Market


class Cooldown(NamedTuple):
    """An offer is left alone until then, and why."""

    until: datetime
    reason: str


def key_of(offer: Offer) -> OfferKey:
    """The key under which `offer` cools down."""
    return OfferKey(offer.zone, offer.instance_type, offer.market)


def walk(
    offers: Iterable[Offer],
    shape: Shape,
    market: Market | None,
    cooldowns: Mapping[OfferKey, Cooldown],
    now: datetime,
    price: Callable[[Offer], float] | None = None,
) -> list[Offer]:
    """The offers to try for `shape`, cheapest first; none that is cooling down at `now`.

    `price` is what they are compared by (`effective`); the listed price by default.

    `"spot"` goes on to on-demand when every spot offer has been tried, `"on-demand"` is kept to
    (whoever asks for it does not want to be moved), and None takes the markets by price alone.
    """
    fitting = _fitting(offers, shape)
    if market == "on-demand":
        fitting = [o for o in fitting if o.market == "on-demand"]
    if cooldowns:
        cooling = {tuple(key) for key, cooldown in cooldowns.items() if now < cooldown.until}
        fitting = [o for o in fitting if (o.zone, o.instance_type, o.market) not in cooling]
    fitting.sort(key=_RANK)
    if price is not None:
        fitting.sort(key=price)
    if market == "spot":
        fitting = [o for o in fitting if o.market == "spot"] + [
            o for o in fitting if o.market != "spot"
        ]
    return fitting


def _fitting(offers: Iterable[Offer], shape: Shape) -> list[Offer]:
    """Those that dominate `shape`: `Offer.dominates`, for thousands of them."""
    cpus, memory = shape.cpus, shape.memory_bytes
    large = [o for o in offers if o.cpus >= cpus and o.memory_bytes >= memory]
    return large if shape.accelerator is None else [o for o in large if o.dominates(shape)]


def require(offers: Iterable[Offer], shape: Shape, market: Market | None = None) -> None:
    """Raises `NoSuchResources`, naming what can be had, unless some offer fits `shape`."""
    sold = sorted(offers, key=_RANK)
    if not any(o.dominates(shape) and _allows(market, o) for o in sold):
        raise NoSuchResources(_refusal(sold, shape, market))


def _refusal(offers: Iterable[Offer], shape: Shape, market: Market | None) -> str:
    sold = [o for o in offers if _allows(market, o)]
    gpus = sorted({o.gpu for o in sold if o.gpu})
    asked = f"{shape}{' on demand' if market == 'on-demand' else ''}"
    if not sold:
        return f"no offer for {asked}: the cluster has no such offers at all"
    if shape.accelerator:
        names = {o.accelerator for o in sold if o.accelerator}
        if shape.accelerator.casefold() not in {name.casefold() for name in names}:
            return (
                f"no offer for {asked}: this cluster has no {shape.accelerator}; "
                f"its GPUs are {', '.join(gpus) or 'none'}{suggest(shape.accelerator, names)}"
            )
    kinds = {
        o.instance_type: f"{o.instance_type} ({o.gpu + ', ' if o.gpu else ''}{o.cpus:g} CPUs, "
        f"{format_bytes(o.memory_bytes, binary=True)})"
        for o in sorted(sold, key=lambda o: o.usd_per_hour)
    }
    return f"no offer for {asked}: this cluster has {', '.join(kinds.values())}"


def _allows(market: Market | None, offer: Offer) -> bool:
    """Whether somebody who asked for `market` may be given `offer`."""
    return market != "on-demand" or offer.market == "on-demand"


def _parse_cpus(cpus: float | str) -> float:
    try:
        value = float(cpus)
    except (TypeError, ValueError):
        value = math.nan
    if isinstance(cpus, bool) or not (math.isfinite(value) and value > 0):
        raise UsageError(f"cannot read {cpus!r} as CPUs: a number above 0, such as 4 or 0.5")
    return int(value) if value.is_integer() else value
