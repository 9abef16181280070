"""Costs as a FOCUS 1.1 data set, the FinOps Foundation's common form of a bill.

    rows by (day, node, session, price) ─► one charge each ─► CSV

A charge is a session's part of a node on a day, at one price; what no session used is a charge
without the session's tags. Columns, their order of meaning and their allowed values:
https://focus.finops.org/focus-specification/v1-1/ . What mlcloud does not know (account numbers,
commitment discounts) is null: the file is mlcloud's own account of the compute that it launched,
not the cloud's invoice. Costs are unit price × quantity, as FOCUS demands, with 15 decimals.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import IO, NamedTuple

#: Of FOCUS 1.1; those that it calls mandatory first, each with its name in the specification.
COLUMNS = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd",
    "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency",
    "ChargePeriodEnd", "ChargePeriodStart", "ContractedCost", "EffectiveCost", "InvoiceIssuerName",
    "ListCost", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName",
    "ServiceCategory", "ServiceName", "ServiceSubcategory",
    "AvailabilityZone", "CommitmentDiscountId", "ConsumedQuantity", "ConsumedUnit",
    "ContractedUnitPrice", "ListUnitPrice", "PricingCategory", "RegionId", "RegionName",
    "ResourceId", "ResourceName", "ResourceType", "SkuId", "SkuMeter", "SkuPriceId",
    "SubAccountId", "SubAccountName", "Tags",
    "x_OnDemandCost", "x_Simulated",
)  # fmt: skip

PROVIDERS = {
    "aws": ("Amazon Web Services", "Amazon Elastic Compute Cloud"),
    "gcp": ("Google Cloud", "Compute Engine"),
    "azure": ("Microsoft", "Virtual Machines"),
    "local": ("mlcloud (simulated)", "Local nodes"),
}
_PLACES = Decimal("1E-15")


class Machine(NamedTuple):
    """The node of a charge."""

    node: str
    cloud: str
    region: str
    zone: str
    instance_type: str
    market: str
    simulated: bool


class Usage(NamedTuple):
    """A session's part (None: nobody's) of a node on a day, at a price in dollars an hour."""

    day: date
    machine: Machine
    session: str | None
    tags: Mapping[str, str]
    usd_per_hour: Decimal
    on_demand_usd: Decimal
    hours: Decimal


def charge(usage: Usage, cluster: str) -> dict[str, str]:
    """One row; what is null is an empty string."""
    machine = usage.machine
    provider, service = PROVIDERS.get(machine.cloud, (machine.cloud, "Machines"))
    begin = datetime(usage.day.year, usage.day.month, usage.day.day, tzinfo=timezone.utc)
    month = begin.replace(day=1)
    cost = _number(usage.usd_per_hour * usage.hours)
    price, hours = _number(usage.usd_per_hour), _number(usage.hours)
    spot = machine.market == "spot"
    what = f"{machine.instance_type} {machine.market} in {machine.zone}"
    whose = f"session {usage.session}" if usage.session else "no session"
    sku = f"{machine.cloud}/{machine.region}/{machine.instance_type}"
    tags = {**usage.tags, "mlcloud-cluster": cluster}
    if usage.session:
        tags["mlcloud-session"] = usage.session
    known = {
        "BilledCost": cost,
        "BillingAccountId": cluster,
        "BillingCurrency": "USD",
        "BillingPeriodStart": _time(month),
        "BillingPeriodEnd": _time((month + timedelta(days=32)).replace(day=1)),
        "ChargeCategory": "Usage",
        "ChargeDescription": f"{what}, {whose}",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": _time(begin),
        "ChargePeriodEnd": _time(begin + timedelta(days=1)),
        "ContractedCost": cost,
        "EffectiveCost": cost,
        "InvoiceIssuerName": provider,
        "ListCost": cost,
        "PricingQuantity": hours,
        "PricingUnit": "Hours",
        "ProviderName": provider,
        "PublisherName": provider,
        "ServiceCategory": "Compute",
        "ServiceName": service,
        "ServiceSubcategory": "Virtual Machines",
        "AvailabilityZone": machine.zone,
        "ConsumedQuantity": hours,
        "ConsumedUnit": "Hours",
        "ContractedUnitPrice": price,
        "ListUnitPrice": price,
        "PricingCategory": "Dynamic" if spot else "Standard",
        "RegionId": machine.region,
        "RegionName": machine.region,
        "ResourceId": machine.node,
        "ResourceName": machine.node,
        "ResourceType": "Virtual machine",
        "SkuId": sku,
        "SkuMeter": "Compute Usage",
        "SkuPriceId": f"{sku}/{machine.market}",
        "Tags": json.dumps(tags, sort_keys=True),
        "x_OnDemandCost": _number(usage.on_demand_usd),
        "x_Simulated": "true" if machine.simulated else "false",
    }
    return {column: known.get(column, "") for column in COLUMNS}


def write(usages: Iterable[Usage], cluster: str, file: IO[str]) -> int:
    """The CSV; how many charges it has. `file` is open for text, with `newline=""`."""
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\r\n")
    writer.writeheader()
    count = 0
    for row in _rows(usages, cluster):
        writer.writerow(row)
        count += 1
    return count


def _rows(usages: Iterable[Usage], cluster: str) -> Iterator[dict[str, str]]:
    return (charge(usage, cluster) for usage in usages)


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _number(value: Decimal) -> str:
    text = f"{value.quantize(_PLACES):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
