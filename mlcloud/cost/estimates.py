"""What bills beside the nodes: storage, requests, egress. Estimates, and marked as such.

    bytes and objects in the store, now ─► × list price ─► $ a month, $ in the report's time

Nobody measures these here: the store is taken as it is now for the whole time, each object as put
once, and what leaves the cloud is not counted at all, only its price is told. Prices are list
prices of one common region for the first tier; yours may differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal

from mlcloud.units import format_bytes

MONTH = timedelta(hours=730)  # as the clouds' calculators have it
_GB = Decimal(10**9)


@dataclass(frozen=True)
class StorePrices:
    """Dollars: for a GB (1e9 bytes) in a month, for 1,000 writes, for a GB that leaves."""

    name: str
    usd_per_gb_month: Decimal
    usd_per_1000_puts: Decimal
    usd_per_gb_out: Decimal
    source: str
    as_of: date


_GIB = Decimal(2**30) / _GB

PRICES = {
    "s3": StorePrices(
        name="S3 Standard, us-east-1",
        usd_per_gb_month=Decimal("0.023") / _GIB,  # AWS's GB are GiB
        usd_per_1000_puts=Decimal("0.005"),
        usd_per_gb_out=Decimal("0.09") / _GIB,
        source="https://aws.amazon.com/s3/pricing/",
        as_of=date(2025, 1, 1),
    ),
    "gs": StorePrices(
        name="Cloud Storage Standard, us-central1",
        usd_per_gb_month=Decimal("0.020") / _GIB,
        usd_per_1000_puts=Decimal("0.005"),
        usd_per_gb_out=Decimal("0.12") / _GIB,
        source="https://cloud.google.com/storage/pricing",
        as_of=date(2025, 1, 1),
    ),
    "az": StorePrices(
        name="Blob Storage hot LRS, East US",
        usd_per_gb_month=Decimal("0.0184") / _GIB,
        usd_per_1000_puts=Decimal("0.005"),
        usd_per_gb_out=Decimal("0.087") / _GIB,
        source="https://azure.microsoft.com/pricing/details/storage/blobs/",
        as_of=date(2023, 9, 1),
    ),
}
_SCHEMES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}


@dataclass(frozen=True)
class Estimate:
    """`usd` in the time asked for, `usd_per_month` from now on; None: not known."""

    what: str
    usd: Decimal | None
    usd_per_month: Decimal | None
    basis: str
    source: str
    as_of: date
    simulated: bool


def estimates(url: str, size: int, objects: int, time: timedelta) -> list[Estimate]:
    """For a store at `url` that holds `size` bytes in so many objects, over `time`."""
    scheme = url.partition("://")[0] if "://" in url else "file"
    prices = PRICES.get(_SCHEMES.get(scheme, scheme))
    if prices is None:
        basis = f"the store is on this computer ({format_bytes(size)}): nobody charges it"
        zero = Decimal(0)
        return [
            Estimate(what, zero, zero, basis, "simulated", date(2025, 1, 1), True)
            for what in ("storage", "requests", "egress")
        ]
    monthly = size / _GB * prices.usd_per_gb_month
    puts = objects * prices.usd_per_1000_puts / 1000
    rest = prices.source, prices.as_of, False
    return [
        Estimate(
            "storage",
            _rounded(monthly * Decimal(time / MONTH)),
            _rounded(monthly),
            f"{format_bytes(size)} now, {prices.name} at ${prices.usd_per_gb_month:.4f}/GB-month",
            *rest,
        ),
        Estimate(
            "requests",
            _rounded(puts),
            None,
            f"{objects:,} objects, each put once, at ${prices.usd_per_1000_puts}/1,000; reads are "
            "not counted",
            *rest,
        ),
        Estimate(
            "egress",
            None,
            None,
            f"not measured: ${prices.usd_per_gb_out:.4f}/GB that leaves the cloud; within the "
            "region it is free",
            *rest,
        ),
    ]


def _rounded(usd: Decimal) -> Decimal:
    return usd.quantize(Decimal("0.000001"))
