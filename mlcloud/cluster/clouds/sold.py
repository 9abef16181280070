"""What of an offer every real cloud checks before it sends anything, and how it is known again.

A cloud refuses an offer that is not its own, that it does not sell, or that lies outside the
cluster's regions, before a request leaves this machine. A machine that was found by its tags gets
its offer back: from the cloud's list by type, zone and market, with the price that it was bought
at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal

from mlcloud.cluster.clouds import tags
from mlcloud.cluster.clouds.base import CloudSettings
from mlcloud.cluster.offers import Market, Offer
from mlcloud.errors import CloudRefused, NoSuchResources, UsageError
from mlcloud.units import suggest


def require(cloud: str, settings: CloudSettings, offers: Iterable[Offer], offer: Offer) -> None:
    """Raises unless `offer` may be launched at all.

    `CloudRefused` outside the cluster's regions, `NoSuchResources` for a type, a region or a zone
    that this cloud does not sell, with the nearest; `UsageError` for another cloud's.
    """
    if offer.cloud != cloud:
        raise UsageError(f"{offer} is an offer of {offer.cloud}, not of {cloud}")
    require_region(settings, offer.region)
    sold = list(offers)
    types = {each.instance_type for each in sold}
    if offer.instance_type not in types:
        near = suggest(offer.instance_type, types)
        raise NoSuchResources(f"{cloud} sells no {offer.instance_type!r} to this cluster{near}")
    zones = {each.zone for each in sold if each.instance_type == offer.instance_type}
    if offer.zone not in zones:
        raise NoSuchResources(
            f"{cloud} sells no {offer.instance_type} in {offer.zone!r}"
            f"{suggest(offer.zone, zones)}; it does in {', '.join(sorted(zones))}"
        )


def require_region(settings: CloudSettings, region: str) -> None:
    """Raises `CloudRefused` unless `region` is in the cluster's residency list."""
    if region not in settings.regions:
        raise CloudRefused(
            f"{region!r} is outside the regions of cluster {settings.cluster!r} "
            f"({', '.join(settings.regions) or 'none'}): nothing is launched there"
            f"{suggest(region, settings.regions)}"
        )


def require_names(given: Mapping[str, str], known: Iterable[str], of: str) -> None:
    """Raises `UsageError` for a `network` setting that the cloud does not know."""
    names = sorted(known)
    for name in given:
        if name not in names:
            raise UsageError(
                f"network: {of} knows no {name!r}{suggest(name, names)}; it has {', '.join(names)}"
            )


def rebuilt(
    offers: Iterable[Offer],
    *,
    cloud: str,
    region: str,
    zone: str,
    instance_type: str,
    market: Market,
    labels: Mapping[str, str],
    launched_at: datetime,
) -> Offer:
    """The offer that a machine was bought under.

    A machine of a type that is on no list any more has no known size; its price is the tag's, or 0
    where somebody removed the tag.
    """
    paid = tags.read_price(labels.get(tags.PRICE))
    alike = [each for each in offers if each.instance_type == instance_type]
    same = [each for each in alike if (each.zone, each.market) == (zone, market)]
    model = next(iter(same or alike), None)
    known = same[0].usd_per_hour if same else Decimal(0)
    return Offer(
        cloud=cloud,
        region=region,
        zone=zone,
        instance_type=instance_type,
        cpus=model.cpus if model else 0,
        memory_bytes=model.memory_bytes if model else 0,
        accelerator=model.accelerator if model else None,
        accelerator_count=model.accelerator_count if model else 0,
        market=market,
        usd_per_hour=known if paid is None else paid,
        simulated=model.simulated if model else False,
        source=model.source if model else f"tag {tags.PRICE}",
        as_of=model.as_of if model else launched_at.date(),
    )
