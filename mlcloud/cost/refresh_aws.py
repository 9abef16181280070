"""AWS's prices: on demand from the Price List API, spot from EC2's spot price history.

    pricing.get_products(AmazonEC2, Linux, shared)  ──► one price a type and region
    ec2.describe_spot_price_history(Linux/UNIX)     ──► the newest price a type and zone

Both need credentials that may call them (`pricing:GetProducts`,
`ec2:DescribeSpotPriceHistory`). Documented at
https://docs.aws.amazon.com/aws-cost-management/latest/APIReference/API_pricing_GetProducts.html and
https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSpotPriceHistory.html
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from mlcloud.cluster.offers import MARKETS, Market
from mlcloud.cost.quotes import Found, Part, Quote, usd
from mlcloud.errors import CloudCredentialsExpired, CloudRefused, CredentialsMissing

# The Price List API is served from three regions only; each knows the prices of all.
_HOME = "us-east-1"
_FILTERS = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
    "marketoption": "OnDemand",
}
_LIST = "AWS Price List API, GetProducts AmazonEC2"
_HISTORY = "AWS EC2, DescribeSpotPriceHistory Linux/UNIX"
#: So few types are asked for one by one: a region's whole list has thousands of products.
_FEW = 20
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "InvalidClientTokenId",
            "UnrecognizedClientException", "AuthFailure")  # fmt: skip


def fetch(
    regions: Iterable[str],
    instance_types: Collection[str],
    now: datetime,
    endpoints: Mapping[str, str] | None = None,
    markets: Collection[Market] = MARKETS,
) -> Iterator[Part]:
    """The `markets` of each of `regions`, for these instance types.

    `endpoints` replaces the URL of `"pricing"` or `"ec2"`. Raises `CredentialsMissing` before
    anything is asked.
    """
    clients = _Clients(endpoints or {})
    for region in regions:
        if "on-demand" in markets:
            yield _part(region, "on-demand", _on_demand, clients, instance_types, now)
        if "spot" in markets:
            yield _part(region, "spot", _spot, clients, instance_types, now)


class _Clients:
    def __init__(self, endpoints: Mapping[str, str]) -> None:
        try:
            import boto3
        except ImportError:
            raise CredentialsMissing(
                "AWS's prices are read with boto3: pip install 'mlcloud[aws]'"
            ) from None
        self._session = boto3.Session()
        if self._session.get_credentials() is None:
            raise CredentialsMissing(
                "AWS's prices need credentials: `aws configure`, or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY"
            )
        self._endpoints = endpoints

    def __call__(self, service: str, region: str) -> Any:
        from botocore.config import Config

        return self._session.client(
            service,
            region_name=region,
            endpoint_url=self._endpoints.get(service),
            config=Config(
                retries={"mode": "standard", "max_attempts": 5}, connect_timeout=10, read_timeout=30
            ),
        )


def _part(
    region: str, market: Market, ask: Any, clients: _Clients, types: Collection[str], now: datetime
) -> Part:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return Part(region, market, ask(region, clients, types, now))
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in _EXPIRED:
            raise CloudCredentialsExpired(f"AWS does not take the credentials: {error}") from error
        return Part(region, market, None, str(error))
    except (BotoCoreError, CloudRefused) as error:
        return Part(region, market, None, str(error))


def _on_demand(region: str, clients: _Clients, types: Collection[str], now: datetime) -> Found:
    found = Found()
    pages = clients("pricing", _HOME).get_paginator("get_products")
    prices: dict[str, Quote] = {}
    one_by_one = [{"instanceType": name} for name in sorted(types)]
    for few in one_by_one if len(types) <= _FEW else [{}]:
        for text in _products(pages, {**_FILTERS, "regionCode": region, **few}):
            try:
                product = json.loads(text) if isinstance(text, str) else text
                name = product["product"]["attributes"]["instanceType"]
                if name not in types:
                    continue
                price = usd(_hourly(product, now))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                found.skipped[_reason(error)] += 1
                continue
            if name in prices and prices[name].usd_per_hour != price:
                found.skipped["a second price for the same machine"] += 1
                price = min(price, prices[name].usd_per_hour)
            prices[name] = Quote(name, region, None, "on-demand", price, _LIST, now.date())
    found.quotes = list(prices.values())
    return found


def _products(pages: Any, wanted: Mapping[str, str]) -> Iterator[Any]:
    filters = [{"Type": "TERM_MATCH", "Field": key, "Value": wanted[key]} for key in wanted]
    for page in pages.paginate(ServiceCode="AmazonEC2", Filters=filters):
        yield from page["PriceList"]


def _hourly(product: dict[str, Any], now: datetime) -> str:
    """The price in dollars of the term that is in force."""
    terms = [
        term
        for term in product["terms"]["OnDemand"].values()
        if term.get("effectiveDate", "")[:10] <= now.date().isoformat()
    ]
    if not terms:
        raise ValueError("not in force yet")
    term = max(terms, key=lambda each: str(each.get("effectiveDate", "")))
    (dimension,) = term["priceDimensions"].values()
    if dimension["unit"] != "Hrs":
        raise ValueError("not by the hour")
    if "USD" not in dimension["pricePerUnit"]:
        raise ValueError("not in US dollars")
    return str(dimension["pricePerUnit"]["USD"])


def _spot(region: str, clients: _Clients, types: Collection[str], now: datetime) -> Found:
    found = Found()
    # Asked from now on, the history holds the price in force of each type and zone.
    pages = clients("ec2", region).get_paginator("describe_spot_price_history")
    newest: dict[tuple[str, str], tuple[datetime, Quote]] = {}
    for page in pages.paginate(
        InstanceTypes=sorted(types), ProductDescriptions=["Linux/UNIX"], StartTime=now
    ):
        for row in page["SpotPriceHistory"]:
            name, zone, at = row.get("InstanceType"), row.get("AvailabilityZone"), row["Timestamp"]
            if name not in types or row.get("ProductDescription") != "Linux/UNIX" or not zone:
                continue
            try:
                price = usd(row.get("SpotPrice"))
            except ValueError as error:
                found.skipped[str(error)] += 1
                continue
            if at <= now and ((name, zone) not in newest or newest[name, zone][0] < at):
                quote = Quote(name, region, zone, "spot", price, _HISTORY, now.date(), at)
                newest[name, zone] = (at, quote)
    found.quotes = [quote for _, quote in newest.values()]
    return found


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else "a row of another form"
