"""`mlcloud prices` in a shell: the catalogue as a table or as JSON, and its refresh.

The table has a line for each machine, region and market: its cheapest zone. JSON has every zone, so
that a program can choose.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import Any

import click

from mlcloud.cluster.offers import MARKETS, Market, Offer, Shape, walk
from mlcloud.cost import catalogue
from mlcloud.errors import CloudRefused, UsageError
from mlcloud.units import format_bytes, format_usd_per_hour, suggest

_HEADS = ("$/h", "market", "cloud", "region", "machine", "accelerator", "vCPUs", "memory", "as of")


def show(
    clouds: Sequence[str] = (),
    regions: Sequence[str] = (),
    gpu: str | None = None,
    cpus: str | None = None,
    memory: str | None = None,
    spot: bool = False,
    on_demand: bool = False,
    limit: int = 20,
    as_json: bool = False,
) -> None:
    """Print the offers that fit, cheapest first, and how old their prices are."""
    shape = Shape.parse(cpus, memory, gpu)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sold = [
            o for cloud, where in _places(clouds, regions) for o in catalogue.offers(cloud, where)
        ]
    for each in caught:
        click.echo(f"warning: {each.message}", err=True)
    markets = _markets(spot, on_demand)
    now = datetime.now(timezone.utc)
    fitting = [o for o in walk(sold, shape, None, {}, now) if o.market in markets]
    if as_json:
        click.echo(json.dumps([_plain(o) for o in fitting], indent=2))
        return
    if not fitting:
        names = {o.accelerator for o in sold if o.accelerator}
        wanted = shape.accelerator
        hint = suggest(wanted, names) if wanted and wanted not in names else ""
        if not hint and (clouds or regions):
            places = "".join(f" --cloud {each}" for each in clouds)
            places += "".join(f" --region {each}" for each in regions)
            hint = f"; to ask what is sold there: mlcloud prices refresh{places}"
        raise UsageError(f"the catalogue has nothing with {shape} there{hint}")
    lines = list(_cheapest_zones(fitting))
    shown = lines[:limit]
    from mlcloud.widgets.tables import table

    rows = [_line(offer) for offer in shown]
    click.echo(table(_HEADS, rows, numbers={"$/h", "vCPUs", "memory"})["text/plain"])
    if len(lines) > len(shown):
        click.echo(f"… and {len(lines) - len(shown):,} more (--limit)")
    click.echo(catalogue.age(shown))
    if any(offer.estimated for offer in shown):
        click.echo("~ estimated: no source states this price, see `source` in --json")
    if warning := catalogue.warning(shown):
        click.echo(f"warning: {warning}", err=True)


def refreshed(clouds: Sequence[str] = (), regions: Sequence[str] = ()) -> bool:
    """Refresh and say what came of it; whether anything was read."""
    from mlcloud.cost.refresh import refresh

    read = False
    for cloud, where in _places(clouds, regions):
        try:
            outcomes = refresh(cloud, where)
        except CloudRefused as error:  # no credentials, or they are not taken
            click.echo(f"{cloud}: {error}", err=True)
            continue
        for outcome in outcomes:
            click.echo(str(outcome), err=bool(outcome.errors))
            read = read or len(outcome.errors) < len(MARKETS)
    return read


def _places(clouds: Sequence[str], regions: Sequence[str]) -> list[tuple[str, list[str] | None]]:
    """The clouds that are meant, each with its own of `regions` (None: all it has).

    Raises `UsageError` for a region that none of them has.
    """
    of = {cloud: catalogue.regions(cloud) for cloud in clouds or catalogue.CLOUDS}
    known = {region for names in of.values() for region in names}
    for region in regions:
        if region not in known:
            raise UsageError(
                f"none of {', '.join(of)} has prices for a region {region!r}"
                f"{suggest(region, known)}"
            )
    if not regions:
        return [(cloud, None) for cloud in of]
    places = {cloud: [r for r in regions if r in names] for cloud, names in of.items()}
    return [(cloud, where) for cloud, where in places.items() if where]


def _markets(spot: bool, on_demand: bool) -> tuple[Market, ...]:
    if spot == on_demand:
        return MARKETS
    return ("spot",) if spot else ("on-demand",)


def _cheapest_zones(offers: Iterable[Offer]) -> Iterable[Offer]:
    """The first of each machine, region and market; `offers` come cheapest first."""
    seen = set()
    for offer in offers:
        key = (offer.cloud, offer.region, offer.instance_type, offer.market)
        if key not in seen:
            seen.add(key)
            yield offer


def _line(offer: Offer) -> tuple[str, ...]:
    return (
        ("~" if offer.estimated else "") + format_usd_per_hour(offer.usd_per_hour)[1:-2],
        offer.market,
        offer.cloud,
        offer.region,
        offer.instance_type,
        offer.gpu or "",
        f"{offer.cpus:g}",
        format_bytes(offer.memory_bytes, binary=True),
        offer.as_of.isoformat(),
    )


def _plain(offer: Offer) -> dict[str, Any]:
    return {
        **dataclasses.asdict(offer),
        "usd_per_hour": str(offer.usd_per_hour),
        "as_of": offer.as_of.isoformat(),
    }
