"""What bills beside the nodes: storage, requests, egress. Estimates, and marked as such.

    bytes and objects in the store, now ─► × list price ─► $ a month, $ in the report's time

No cloud is asked for these: the store is taken as it is now for the whole time; requests and bytes
are those that the gateway saw (`gateway.traffic`), which are not all. Prices are list prices of one
common region for the first tier; yours may differ, and within a region bytes are free.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import NamedTuple

from mlcloud.units import format_bytes

MONTH = timedelta(hours=730)  # as the clouds' calculators have it
_GB = Decimal(10**9)


@dataclass(frozen=True)
class StorePrices:
    """Dollars: for a GB (1e9 bytes) in a month, for 1,000 writes and reads, for a GB that leaves
    for the internet, for another region."""

    name: str
    usd_per_gb_month: Decimal
    usd_per_1000_puts: Decimal
    usd_per_1000_gets: Decimal
    usd_per_gb_out: Decimal
    usd_per_gb_across: Decimal
    source: str
    as_of: date


_GIB = Decimal(2**30) / _GB

PRICES = {
    "s3": StorePrices(
        name="S3 Standard, us-east-1",
        usd_per_gb_month=Decimal("0.023") / _GIB,  # AWS's GB are GiB
        usd_per_1000_puts=Decimal("0.005"),
        usd_per_1000_gets=Decimal("0.0004"),
        usd_per_gb_out=Decimal("0.09") / _GIB,
        usd_per_gb_across=Decimal("0.02") / _GIB,
        source="https://aws.amazon.com/s3/pricing/",
        as_of=date(2025, 1, 1),
    ),
    "gs": StorePrices(
        name="Cloud Storage Standard, us-central1",
        usd_per_gb_month=Decimal("0.020") / _GIB,
        usd_per_1000_puts=Decimal("0.005"),
        usd_per_1000_gets=Decimal("0.0004"),
        usd_per_gb_out=Decimal("0.12") / _GIB,
        usd_per_gb_across=Decimal("0.02") / _GIB,
        source="https://cloud.google.com/storage/pricing",
        as_of=date(2025, 1, 1),
    ),
    "az": StorePrices(
        name="Blob Storage hot LRS, East US",
        usd_per_gb_month=Decimal("0.0184") / _GIB,
        usd_per_1000_puts=Decimal("0.005"),
        usd_per_1000_gets=Decimal("0.0004"),
        usd_per_gb_out=Decimal("0.087") / _GIB,
        usd_per_gb_across=Decimal("0.02") / _GIB,
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


class DataSeen(NamedTuple):
    """What was seen of sessions' data: bytes to notebooks and between regions, requests."""

    out: int = 0
    across: int = 0
    puts: int = 0
    gets: int = 0


def prices_of(url: str) -> StorePrices | None:
    """Of the store at `url`; None on this computer."""
    scheme = url.partition("://")[0] if "://" in url else "file"
    return PRICES.get(_SCHEMES.get(scheme, scheme))


def requests_usd(prices: StorePrices | None, seen: DataSeen) -> Decimal:
    if prices is None:
        return Decimal(0)
    puts, gets = seen.puts * prices.usd_per_1000_puts, seen.gets * prices.usd_per_1000_gets
    return _rounded((puts + gets) / 1000)


def egress_usd(prices: StorePrices | None, seen: DataSeen) -> Decimal:
    if prices is None:
        return Decimal(0)
    out, across = seen.out * prices.usd_per_gb_out, seen.across * prices.usd_per_gb_across
    return _rounded((out + across) / _GB)


def estimates(
    url: str, size: int, objects: int, time: timedelta, seen: DataSeen | None = None
) -> list[Estimate]:
    """For a store at `url` that holds `size` bytes in so many objects, over `time`.

    `seen` is what was counted in that time; without it each object is taken as put once.
    """
    prices = prices_of(url)
    moved = seen or DataSeen(puts=objects)
    out = f"{format_bytes(moved.out)} to notebooks, {format_bytes(moved.across)} between regions"
    asked = f"{moved.puts:,} writes and {moved.gets:,} reads that were seen"
    if prices is None:
        here = f"the store is on this computer ({format_bytes(size)}): nobody charges it"
        basis = {"storage": here, "requests": f"{here}; {asked}", "egress": f"{here}; {out}"}
        zero = Decimal(0)
        return [
            Estimate(what, zero, zero, text, "simulated", date(2025, 1, 1), True)
            for what, text in basis.items()
        ]
    monthly = size / _GB * prices.usd_per_gb_month
    rest = prices.source, prices.as_of, False
    counted = asked if seen is not None else f"{objects:,} objects, each put once"
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
            requests_usd(prices, moved),
            None,
            f"{counted}, at ${prices.usd_per_1000_puts} and ${prices.usd_per_1000_gets}/1,000",
            *rest,
        ),
        Estimate(
            "egress",
            None if seen is None else egress_usd(prices, moved),
            None,
            f"{'not measured' if seen is None else out}: ${prices.usd_per_gb_out:.4f}/GB that "
            f"leaves the cloud, ${prices.usd_per_gb_across:.4f}/GB to another region; within the "
            "region it is free",
            *rest,
        ),
    ]


def _rounded(usd: Decimal) -> Decimal:
    return usd.quantize(Decimal("0.000001"))
