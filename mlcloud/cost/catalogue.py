"""The offer catalogue: what AWS, Google Cloud and Azure sell, at what price, as far as is known.

    data/*.csv  (shipped, dated)  ──┐
                                    ├─► offers(cloud, regions) ──► cluster.offers.walk()
    HOME/prices/*.json (refreshed) ─┘      the younger price of the two

Every row has its source and the day of its price. Prices change and this table does not: `age()` is
the line that whoever prints prices shows beside them, `warning()` the one where they are too old.
`mlcloud prices refresh` (`refresh.py`) asks the clouds.

On-demand prices are the same in all zones of a region, so their rows are expanded to the zones in
which the machine is sold; shipped spot prices are one for the region too (AWS names zones
differently in each account), refreshed ones of AWS are each zone's own. A zone is named as the
cloud does: `us-east-1a`, `us-central1-a`. Azure only numbers its zones: `eastus-1` is zone 1 of
`eastus`, and a region without zones is its own zone. `n1-standard-8+T4x1` is Google's n1-standard-8
with one T4 attached.
"""

from __future__ import annotations

import csv
import functools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from importlib.resources import files
from pathlib import Path

from mlcloud.cluster.offers import MARKETS, Market, Offer
from mlcloud.cost.quotes import Quote, read_quotes
from mlcloud.errors import UsageError
from mlcloud.units import suggest

CLOUDS = ("aws", "gcp", "azure")

#: Older prices are warned of.
STALE = timedelta(days=30)

_GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """What an instance type has. `accelerator_memory_bytes` is one accelerator's."""

    cloud: str
    instance_type: str
    cpus: float
    memory_bytes: int
    accelerator: str | None = None
    accelerator_count: int = 0
    accelerator_memory_bytes: int = 0


def offers(
    cloud: str,
    regions: Iterable[str] | None = None,
    *,
    accelerator: str | None = None,
    instance_types: Collection[str] | None = None,
    markets: Collection[Market] = MARKETS,
    home: Path | None = None,
    refreshed: bool = True,
) -> list[Offer]:
    """What `cloud` sells in `regions` (default: all that are known), every zone and market apart.

    Refreshed prices are looked for under `home` (default: the settings' home), and taken where they
    are not older than the shipped ones. `accelerator` is matched without regard to case. Raises
    `UsageError` for a cloud, a region or an instance type that the catalogue does not know.
    """
    wanted = [*regions] if regions is not None else [*_regions(_known(cloud))]
    for region in wanted:
        _known(cloud, region)
    for name in instance_types or ():
        machine(cloud, name)
    found: list[Offer] = []
    for region in wanted:
        found += (
            _current(cloud, region, home_or_default(home)) if refreshed else _shipped(cloud, region)
        )
    if accelerator is None and instance_types is None and set(markets) == set(MARKETS):
        return found
    gpu = None if accelerator is None else accelerator.casefold()
    return [
        offer
        for offer in found
        if offer.market in markets
        and (gpu is None or (offer.accelerator or "").casefold() == gpu)
        and (instance_types is None or offer.instance_type in instance_types)
    ]


def regions(cloud: str) -> list[str]:
    """The regions of `cloud` in which the catalogue has prices."""
    return sorted(_regions(_known(cloud)))


def zones(cloud: str, region: str) -> list[str]:
    """The zones of `region`, as the cloud names them (Azure's with their region before them)."""
    _known(cloud, region)
    return _zones(cloud, region, _regions(cloud)[region])


def machines(cloud: str) -> list[Machine]:
    """Every instance type of `cloud` that the catalogue knows."""
    return list(_machines()[_known(cloud)].values())


def machine(cloud: str, instance_type: str) -> Machine:
    """The facts of an instance type. Raises `UsageError`, with the nearest, for an unknown one."""
    known = _machines()[_known(cloud)]
    if instance_type not in known:
        raise UsageError(
            f"the catalogue has no {cloud} instance type {instance_type!r}"
            f"{suggest(instance_type, known)}"
        )
    return known[instance_type]


def age(of: Iterable[Offer], today: date | None = None) -> str:
    """`"prices of 2025-03-02, 634 days old"`: from when the prices of these offers are."""
    priced = [offer for offer in of if not offer.simulated]
    if not priced:
        return ""
    days = [offer.as_of for offer in priced]
    oldest, newest = min(days), max(days)
    passed = (_today(today) - oldest).days
    old = "of today" if passed <= 0 else f"{passed:,} day{'s' if passed != 1 else ''} old"
    if oldest == newest:
        line = f"prices of {oldest}" + (f", {old}" if passed > 0 else "")
    else:
        line = f"prices of {oldest} to {newest}, up to {old}"
    guesses = sum(offer.estimated for offer in priced)
    return line + (f"; {guesses:,} of {len(priced):,} estimated" if guesses else "")


def warning(of: Iterable[Offer], today: date | None = None) -> str | None:
    """What to say of prices older than `STALE`, and what to do; None where they are young."""
    priced = [offer for offer in of if not offer.simulated]
    old = [offer for offer in priced if _today(today) - offer.as_of > STALE]
    if not old:
        return None
    clouds = sorted({offer.cloud for offer in old})
    commands = " && ".join(f"mlcloud prices refresh --cloud {cloud}" for cloud in clouds)
    return f"{age(priced, today)}; they may have changed: {commands}"


# --- the tables -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    instance_type: str
    market: Market
    usd_per_hour: str
    source: str
    estimated: bool
    zones: str


def _rows(name: str) -> Iterator[list[str]]:
    text = files("mlcloud.cost").joinpath("data").joinpath(name).read_text("utf-8")
    rows = csv.reader(text.splitlines())
    next(rows)
    return rows


@functools.cache
def _sources() -> dict[str, tuple[date, str]]:
    return {key: (date.fromisoformat(day), text) for key, day, text in _rows("sources.csv")}


@functools.cache
def _machines() -> dict[str, dict[str, Machine]]:
    known: dict[str, dict[str, Machine]] = {cloud: {} for cloud in CLOUDS}
    for cloud, name, cpus, memory, accelerator, count, each in _rows("machines.csv"):
        known[cloud][name] = Machine(
            cloud=cloud,
            instance_type=name,
            cpus=int(cpus),
            memory_bytes=int(Decimal(memory) * _GIB),
            accelerator=accelerator or None,
            accelerator_count=int(count or 0),
            accelerator_memory_bytes=int(Decimal(each or 0) * _GIB),
        )
    return known


@functools.cache
def _regions(cloud: str) -> dict[str, str]:
    return {region: letters for of, region, letters in _rows("zones.csv") if of == cloud}


@functools.cache
def _prices() -> dict[tuple[str, str], list[_Row]]:
    table: dict[tuple[str, str], list[_Row]] = defaultdict(list)
    for cloud, name, region, market, usd, source, estimated, letters in _rows("prices.csv"):
        row = _Row(name, _market(market), usd, source, bool(estimated), letters)
        table[cloud, region].append(row)
    return dict(table)


@functools.cache
def _shipped(cloud: str, region: str) -> tuple[Offer, ...]:
    return tuple(
        _offer(
            _machines()[cloud][row.instance_type],
            region,
            zone,
            row.market,
            Decimal(row.usd_per_hour),
            _sources()[row.source][1],
            _sources()[row.source][0],
            row.estimated,
        )
        for row in _prices().get((cloud, region), ())
        for zone in _zones(cloud, region, row.zones or _regions(cloud)[region])
    )


# --- refreshed prices over the shipped ones -------------------------------------------------------


def _current(cloud: str, region: str, home: Path) -> Iterable[Offer]:
    shipped = _shipped(cloud, region)
    quotes = read_quotes(home, cloud, region)
    if not quotes:
        return shipped
    asked: dict[tuple[str, Market], dict[str | None, Quote]] = defaultdict(dict)
    for quote in quotes:
        asked[quote.instance_type, quote.market][quote.zone] = quote
    kept: list[Offer] = []
    places: dict[tuple[str, Market], list[str]] = defaultdict(list)
    for offer in shipped:
        key = (offer.instance_type, offer.market)
        places[key].append(offer.zone)
        if key in asked and max(q.as_of for q in asked[key].values()) < offer.as_of:
            del asked[key]  # an update of the package is younger
        if key not in asked:
            kept.append(offer)
    for (name, market), by_zone in asked.items():
        facts = _machines()[cloud].get(name)
        if facts is None:
            continue
        for zone in [z for z in by_zone if z] or places[name, market] or zones(cloud, region):
            quote = by_zone.get(zone) or by_zone[None]
            kept.append(
                _offer(
                    facts, region, zone, market, quote.usd_per_hour, quote.source,
                    quote.as_of,
                )
            )  # fmt: skip
    return kept


def _offer(
    facts: Machine,
    region: str,
    zone: str,
    market: Market,
    usd_per_hour: Decimal,
    source: str,
    as_of: date,
    estimated: bool = False,
) -> Offer:
    return Offer(
        cloud=facts.cloud,
        region=region,
        zone=zone,
        instance_type=facts.instance_type,
        cpus=facts.cpus,
        memory_bytes=facts.memory_bytes,
        accelerator=facts.accelerator,
        accelerator_count=facts.accelerator_count,
        market=market,
        usd_per_hour=usd_per_hour,
        simulated=False,
        source=source,
        as_of=as_of,
        estimated=estimated,
    )


def _zones(cloud: str, region: str, letters: str) -> list[str]:
    dash = "" if cloud == "aws" else "-"
    return [f"{region}{dash}{letter}" for letter in letters.split()] or [region]


def _known(cloud: str, region: str | None = None) -> str:
    if cloud not in CLOUDS:
        raise UsageError(
            f"there are no prices for the cloud {cloud!r}, only for {', '.join(CLOUDS)}"
            f"{suggest(cloud, CLOUDS)}"
        )
    if region is not None and region not in _regions(cloud):
        raise UsageError(
            f"the catalogue has no prices for the {cloud} region {region!r}"
            f"{suggest(region, _regions(cloud))}"
        )
    return cloud


def _market(text: str) -> Market:
    return "spot" if text == "spot" else "on-demand"


def home_or_default(home: Path | None) -> Path:
    if home is not None:
        return home
    from mlcloud.config import Settings

    return Settings().home


def _today(today: date | None) -> date:
    return today or datetime.now(timezone.utc).date()
