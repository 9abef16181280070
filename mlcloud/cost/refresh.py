"""Ask the clouds for their prices, and keep what they say beside the shipped table.

    refresh("aws", ["eu-central-1"]) ──► [Outcome(region, how many, what was wrong), …]

Nothing is lost by a failure: a region (or one market of it) that could not be read keeps the prices
it had, and its outcome says why.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from mlcloud.cluster.offers import MARKETS, Market, Offer, OfferKey, key_of
from mlcloud.cost import catalogue
from mlcloud.cost.quotes import Part, Quote, write_quotes
from mlcloud.cost.web import Web


@dataclass(frozen=True)
class Outcome:
    """What a refresh made of one region. `errors` by market; `skipped` rows by reason."""

    cloud: str
    region: str
    on_demand: int
    spot: int
    skipped: Mapping[str, int]
    errors: Mapping[str, str]

    def __str__(self) -> str:
        parts = []
        if "on-demand" not in self.errors:
            parts.append(f"{self.on_demand} on-demand")
        if "spot" not in self.errors:
            parts.append(f"{self.spot} spot")
        line = f"{self.cloud} {self.region}: {' and '.join(parts) or 'no'} prices"
        if self.skipped:
            reasons = ", ".join(f"{count} × {why}" for why, count in sorted(self.skipped.items()))
            line += f"; left out: {reasons}"
        for why in dict.fromkeys(self.errors.values()):
            markets = " and ".join(market for market, each in self.errors.items() if each == why)
            line += f"; {markets}: the old prices are kept: {why}"
        return line


def refresh(
    cloud: str,
    regions: Iterable[str] | None = None,
    *,
    home: Path | None = None,
    endpoints: Mapping[str, str] | None = None,
    web: Web | None = None,
    now: datetime | None = None,
) -> list[Outcome]:
    """Read the prices of `regions` (default: all that the catalogue has) from the cloud's own API.

    `endpoints` replaces a service's URL: `"pricing"` and `"ec2"` (AWS), `"azure"`, `"gcp"`. Raises
    `UsageError` for an unknown cloud or region, `CredentialsMissing` where there are none, and
    `CloudCredentialsExpired` where the cloud does not take them; every other failure is an
    outcome's error.
    """
    known = catalogue.regions(cloud)
    wanted = known if regions is None else list(dict.fromkeys(regions))
    for region in wanted:
        catalogue.zones(cloud, region)  # an unknown region is refused before anything is asked
    moment = now or datetime.now(timezone.utc)
    place = catalogue.home_or_default(home)
    by_region: dict[str, list[Part]] = defaultdict(list)
    own = web or Web()
    outcomes = []
    try:
        for part in _parts(cloud, wanted, moment, own, endpoints or {}):
            by_region[part.region].append(part)
            if len(by_region[part.region]) == 2:  # both markets
                outcomes.append(_keep(cloud, part.region, by_region[part.region], place, moment))
    finally:
        if web is None:
            own.close()
    return outcomes


def current(
    offers: Iterable[Offer],
    *,
    endpoints: Mapping[str, str] | None = None,
    web: Web | None = None,
    now: datetime | None = None,
) -> tuple[dict[OfferKey, Quote], list[str]]:
    """What these offers of one cloud cost now, in the cloud's own words, and why not what is left
    out. Asks for no more than these; nothing is kept. Raises what `refresh` raises.
    """
    wanted = list(offers)
    if not wanted or wanted[0].cloud not in catalogue.CLOUDS:
        return {}, []
    moment = now or datetime.now(timezone.utc)
    regions = list(dict.fromkeys(each.region for each in wanted))
    types = {each.instance_type for each in wanted}
    markets = {each.market for each in wanted}
    own = web or Web()
    by_place: dict[tuple[str, str | None, str, Market], Quote] = {}
    wrong: list[str] = []
    try:
        for part in _parts(
            wanted[0].cloud, regions, moment, own, endpoints or {}, types=types, markets=markets
        ):
            if part.found is None and part.market in markets:
                wrong.append(f"{wanted[0].cloud} {part.region} {part.market}: {part.error}")
            for quote in part.found.quotes if part.found else ():
                place = quote.region, quote.zone, quote.instance_type, quote.market
                by_place[place] = quote
    finally:
        if web is None:
            own.close()
    found = {}
    for each in wanted:
        for zone in (each.zone, None):
            at = each.region, zone, each.instance_type, each.market
            if at in by_place:
                found[key_of(each)] = by_place[at]
                break
    return found, wrong


def _parts(
    cloud: str,
    regions: list[str],
    now: datetime,
    web: Web,
    endpoints: Mapping[str, str],
    *,
    types: set[str] | None = None,
    markets: Collection[Market] = MARKETS,
) -> Iterator[Part]:
    machines = [m for m in catalogue.machines(cloud) if types is None or m.instance_type in types]
    types = {machine.instance_type for machine in machines}
    if cloud == "aws":
        from mlcloud.cost import refresh_aws

        return refresh_aws.fetch(regions, types, now, endpoints, markets)
    if cloud == "azure":
        from mlcloud.cost import refresh_azure

        return refresh_azure.fetch(
            regions, types, now, web, endpoints.get("azure", refresh_azure.URL)
        )
    from mlcloud.cost import refresh_gcp

    url = endpoints.get("gcp", refresh_gcp.URL)
    return refresh_gcp.fetch(regions, machines, now, web, url)


def _keep(cloud: str, region: str, parts: list[Part], home: Path, now: datetime) -> Outcome:
    errors: dict[str, str] = {part.market: part.error for part in parts if part.found is None}
    counts = {part.market: len(part.found.quotes) for part in parts if part.found}
    for part in parts:  # an empty answer is no reason to forget what was known
        if part.found is not None and not part.found.quotes:
            errors[part.market] = "the cloud's list has none of the machines of the catalogue"
    good = [part for part in parts if part.market not in errors]
    if good:
        write_quotes(home, cloud, region, good, now)
    skipped: dict[str, int] = {}
    for part in parts:
        if part.found:
            for why, count in part.found.skipped.items():
                if cloud == "gcp":  # its parts are counted once, for all regions and markets
                    skipped[why] = count
                else:
                    skipped[why] = skipped.get(why, 0) + count
    return Outcome(
        cloud=cloud,
        region=region,
        on_demand=counts.get("on-demand", 0),
        spot=counts.get("spot", 0),
        skipped=skipped,
        errors=errors,
    )
