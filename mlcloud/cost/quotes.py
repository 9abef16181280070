"""Quotes: prices that a cloud's own price list gave, kept until the next time it is asked.

    refresh_aws, _azure, _gcp ──► Found (quotes, and what was wrong with the rest)
                                    │
                          write_quotes() ──► HOME/prices/<cloud>.<region>.json ──► catalogue

A file holds one region and is replaced as a whole. Where only one market could be read, the other's
quotes stay as they were.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from mlcloud.cluster.offers import Market

_VERSION = 1
#: No machine costs more in an hour; a larger number is a placeholder or another unit.
_DEAREST = Decimal(2000)


@dataclass(frozen=True)
class Quote:
    """A price in force on `as_of`, in `zone` or (None) in all zones of `region`.

    `since` is when it came into force, as far as the cloud says so; it is not kept in the files.
    """

    instance_type: str
    region: str
    zone: str | None
    market: Market
    usd_per_hour: Decimal
    source: str
    as_of: date
    since: datetime | None = None


@dataclass
class Found:
    """What was read of a price list, and how many of its rows were left out, by reason."""

    quotes: list[Quote] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Part:
    """One market of one region: what was found, or why nothing was."""

    region: str
    market: Market
    found: Found | None
    error: str = ""


def moment(text: Any) -> datetime | None:
    """A time as the price lists write it (ISO 8601, UTC); None where there is none."""
    try:
        found = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def usd(value: Any) -> Decimal:
    """A price as a price list states it. Raises `ValueError` for what cannot be one.

    0 means "missing" in every list, and NaN or a negative number has no meaning.
    """
    try:
        price = Decimal(str(value))
    except InvalidOperation:
        raise ValueError(f"no number: {value!r}") from None
    if not price.is_finite() or price < 0:
        raise ValueError(f"no price: {value!r}")
    if price == 0:
        raise ValueError("a price of 0")
    if price > _DEAREST:
        raise ValueError("a price that is too high")
    return price


def quotes_path(home: Path, cloud: str, region: str) -> Path:
    """Where a region's quotes are kept."""
    return home / "prices" / f"{cloud}.{region}.json"


def read_quotes(home: Path, cloud: str, region: str) -> list[Quote]:
    """The quotes of a region; none where it was never refreshed. A damaged file is warned of."""
    path = quotes_path(home, cloud, region)
    try:
        stored = json.loads(path.read_text("utf-8"))
        if stored["version"] != _VERSION:
            raise ValueError(f"version {stored['version']}")
        return [
            Quote(name, region, zone, market, usd(price), source, date.fromisoformat(day))
            for name, zone, market, price, source, day in stored["quotes"]
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(
            f"{path} cannot be read ({error}): the shipped prices are used; "
            f"`mlcloud prices refresh --cloud {cloud} --region {region}` makes it anew",
            stacklevel=2,
        )
        return []


def write_quotes(
    home: Path, cloud: str, region: str, parts: Iterable[Part], now: datetime
) -> list[Quote]:
    """Keep what was found for the markets that were read, and what there was for the others."""
    read = [part for part in parts if part.found is not None]
    markets = {part.market for part in read}
    quotes = [q for part in read if part.found for q in part.found.quotes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged file is what is being replaced
        quotes += [q for q in read_quotes(home, cloud, region) if q.market not in markets]
    plain = {
        "version": _VERSION,
        "cloud": cloud,
        "region": region,
        "read_at": now.isoformat(),
        "quotes": [
            [q.instance_type, q.zone, q.market, str(q.usd_per_hour), q.source, q.as_of.isoformat()]
            for q in quotes
        ],
    }
    path = quotes_path(home, cloud, region)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(plain, indent=0), "utf-8")
    os.replace(beside, path)
    return quotes
