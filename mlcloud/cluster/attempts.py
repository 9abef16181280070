"""Every try to buy a node, as a line of JSON: what was asked, of whom, what came of it, and until
when that offer is left alone.

    provider (in Ray's autoscaler) ── append ──► attempts.jsonl ──┬─► gateway: lines under a cell,
                                                                  │   `%mlcloud status`
                                                                  └─► the provider itself, started
                                                                      anew: what still cools down

How long an offer is left alone follows from why it could not be had:

    no capacity   `offer_cooldown`, twice as long each time in a row, an hour at most
    quota         an hour: somebody must raise it; all zones of the region, for this type and market
    undersized    a day, in every zone: the type itself is not what its row says
    refused       an hour: the request itself is not taken
    failed        `offer_cooldown`: it started, and never joined
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from mlcloud.cluster.offers import Cooldown, Offer, OfferKey, key_of

What = Literal["launched", "no capacity", "quota", "undersized", "refused", "failed", "waiting"]

LONGEST = timedelta(hours=1)
A_DAY = timedelta(days=1)
TAIL_BYTES = 512 * 1024


@dataclass(frozen=True)
class Attempt:
    """One try. `until` is when this offer is tried again; None where it was had. Of a "waiting"
    (every offer is cooling down, or launches are stopped) there is no offer."""

    at: datetime
    node_type: str
    what: What
    detail: str
    cloud: str = ""
    region: str = ""
    zone: str = ""
    instance_type: str = ""
    market: str = ""
    usd_per_hour: Decimal = Decimal(0)
    simulated: bool = False
    until: datetime | None = None

    @classmethod
    def of(
        cls,
        offer: Offer,
        node_type: str,
        what: What,
        detail: str,
        at: datetime,
        until: datetime | None = None,
    ) -> Attempt:
        return cls(
            at,
            node_type,
            what,
            detail,
            offer.cloud,
            offer.region,
            offer.zone,
            offer.instance_type,
            offer.market,
            offer.usd_per_hour,
            offer.simulated,
            until,
        )


class AttemptLog:
    """The file. Written by one process, read by any."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, attempt: Attempt) -> None:
        line = {
            key: value.isoformat() if isinstance(value, datetime) else value
            for key, value in asdict(attempt).items()
        }
        with open(self.path, "a") as file:
            file.write(json.dumps(line, default=str) + "\n")

    def size(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def read(self, offset: int = 0) -> tuple[list[Attempt], int]:
        """The whole lines from byte `offset` on, and where the next read begins."""
        try:
            with open(self.path, "rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return [], 0
        end = data.rfind(b"\n") + 1
        return [each for line in data[:end].splitlines() if (each := _parse(line))], offset + end

    def recent(self) -> list[Attempt]:
        """The newest ones, oldest first."""
        size = self.size()
        return self.read(max(0, size - TAIL_BYTES))[0]


def lasts(what: What, in_a_row: int, cooldown: timedelta) -> timedelta:
    """How long an offer is left alone that failed so for the `in_a_row`th time."""
    if what == "undersized":
        return A_DAY
    if what in ("quota", "refused"):
        return max(LONGEST, cooldown) if cooldown >= timedelta(minutes=1) else cooldown * 12
    doubled: timedelta = cooldown * 2 ** min(in_a_row - 1, 10)
    return max(cooldown, min(doubled, LONGEST))


def also_cooled(what: What, offer: Offer, offers: Iterable[Offer]) -> list[Offer]:
    """The offers that fail for the same reason as `offer` did, itself included."""
    same: Callable[[Offer], bool]
    if what == "undersized":
        same = lambda o: o.instance_type == offer.instance_type  # noqa: E731
    elif what == "quota":
        same = lambda o: (  # noqa: E731
            (o.region, o.instance_type, o.market)
            == (offer.region, offer.instance_type, offer.market)
        )
    else:
        same = lambda o: key_of(o) == key_of(offer)  # noqa: E731
    return [o for o in offers if o.cloud == offer.cloud and same(o)]


def cooling(attempts: Iterable[Attempt], offers: Iterable[Offer]) -> dict[OfferKey, Cooldown]:
    """What the attempts leave alone: a later launch of the same offer ends its cool-down."""
    offers = list(offers)
    by_key = {key_of(offer): offer for offer in offers}
    found: dict[OfferKey, Cooldown] = {}
    for each in attempts:
        key = OfferKey(each.zone, each.instance_type, each.market)  # type: ignore[arg-type]
        offer = by_key.get(key)
        if offer is None:
            continue
        if each.what == "launched":
            found.pop(key, None)
        elif each.until is not None:
            for other in also_cooled(each.what, offer, offers):
                found[key_of(other)] = Cooldown(each.until, each.detail)
    return found


def _parse(line: bytes) -> Attempt | None:
    try:
        raw: dict[str, Any] = json.loads(line)
        raw["at"] = datetime.fromisoformat(raw["at"])
        raw["until"] = datetime.fromisoformat(raw["until"]) if raw.get("until") else None
        raw["usd_per_hour"] = Decimal(raw["usd_per_hour"])
        return Attempt(**raw)
    except (ValueError, TypeError, KeyError, ArithmeticError):
        return None  # of another version, or cut in the middle
