"""Azure's prices, from the Retail Prices API. It asks for no credentials.

    GET https://prices.azure.com/api/retail/prices?$filter=… ──► Items, NextPageLink ──► Items, …

An item is a meter: Linux and Windows, spot (`skuName` ends in "Spot"), Batch's low priority and
reservations stand side by side, so most are passed over. Documented at
https://learn.microsoft.com/en-us/rest/api/cost-management/retail-prices/azure-retail-prices
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import datetime
from typing import Any

from mlcloud.cluster.offers import MARKETS, Market
from mlcloud.cost.quotes import Found, Part, Quote, moment, usd
from mlcloud.cost.web import Web
from mlcloud.errors import CloudRefused

URL = "https://prices.azure.com/api/retail/prices"
_VERSION = "2023-01-01-preview"
_SOURCE = f"Azure Retail Prices API, {URL}"
# A region's machines fill some 10 pages of 1,000.
_MOST_PAGES = 200


def fetch(
    regions: Iterable[str], instance_types: Collection[str], now: datetime, web: Web, url: str = URL
) -> Iterator[Part]:
    """Both markets of each of `regions`, for the instance types that the catalogue knows."""
    for region in regions:
        found: dict[Market, Found] = {market: Found() for market in MARKETS}
        newest: dict[tuple[str, Market], tuple[str, Quote]] = {}
        try:
            for item in _items(region, web, url):
                _take(item, region, instance_types, now, found, newest)
        except CloudRefused as error:
            for market in MARKETS:
                yield Part(region, market, None, str(error))
            continue
        for (_, market), (_, quote) in newest.items():
            found[market].quotes.append(quote)
        for market in MARKETS:
            yield Part(region, market, found[market])


def _items(region: str, web: Web, url: str) -> Iterator[dict[str, Any]]:
    params: dict[str, str] | None = {
        "api-version": _VERSION,
        "currencyCode": "USD",
        "$filter": f"serviceName eq 'Virtual Machines' and armRegionName eq '{region}' "
        "and priceType eq 'Consumption'",
    }
    page: str | None = url
    seen: set[str] = set()
    while page:
        if page in seen or len(seen) >= _MOST_PAGES:
            raise CloudRefused(f"{url} has no last page (after {len(seen)} of them)")
        seen.add(page)
        answer = web.get(page, params)
        yield from (item for item in answer.get("Items") or () if isinstance(item, dict))
        page, params = answer.get("NextPageLink"), None  # it holds the whole query


def _take(
    item: dict[str, Any],
    region: str,
    instance_types: Collection[str],
    now: datetime,
    found: dict[Market, Found],
    newest: dict[tuple[str, Market], tuple[str, Quote]],
) -> None:
    name = str(item.get("armSkuName") or "")
    sku = str(item.get("skuName") or "")
    product = str(item.get("productName") or "")
    if name not in instance_types or item.get("armRegionName") != region:
        return
    if "Windows" in product or "CloudServices" in product or "Cloud Services" in product:
        return
    if "Low Priority" in sku or item.get("type") != "Consumption":
        return
    market: Market = "spot" if sku.endswith("Spot") else "on-demand"
    skipped = found[market].skipped
    if item.get("currencyCode") != "USD":
        skipped["not in US dollars"] += 1
        return
    if item.get("unitOfMeasure") != "1 Hour":
        skipped["not by the hour"] += 1
        return
    since = str(item.get("effectiveStartDate") or "")
    if since[:10] > now.date().isoformat():
        skipped["not in force yet"] += 1
        return
    try:
        price = usd(item.get("retailPrice"))
    except ValueError as error:
        skipped[str(error)] += 1
        return
    key = (name, market)
    if key not in newest or newest[key][0] < since:
        quote = Quote(name, region, None, market, price, _SOURCE, now.date(), moment(since))
        newest[key] = (since, quote)
