"""What every resource that mlcloud makes in a cloud carries: whose it is, what for, until when.

    mlcloud-cluster  mlcloud-owner  mlcloud-session  mlcloud-node-type  mlcloud-expires
    mlcloud-market   mlcloud-price  mlcloud-launched

From these alone `mlcloud gc` finds what a crashed laptop left, a bill can be told by cluster, and a
new head knows what a machine costs. Values are made of `[a-z0-9_-]` and at most 63 characters long,
which every cloud takes (GCP's labels are the strictest), so a price is written `1-006` and a time
as seconds since 1970.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation

from mlcloud.cluster.clouds.base import CloudSettings, LaunchRequest
from mlcloud.cluster.offers import Offer

PREFIX = "mlcloud-"
CLUSTER, OWNER, SESSION = f"{PREFIX}cluster", f"{PREFIX}owner", f"{PREFIX}session"
NODE_TYPE, MARKET, PRICE = f"{PREFIX}node-type", f"{PREFIX}market", f"{PREFIX}price"
LAUNCHED, EXPIRES = f"{PREFIX}launched", f"{PREFIX}expires"
LONGEST = 63


def plain(text: str) -> str:
    """`text` as a value that every cloud takes."""
    return re.sub(r"[^a-z0-9_-]", "-", text.lower())[:LONGEST]


def of_node(
    settings: CloudSettings, offer: Offer, request: LaunchRequest, launched_at: datetime
) -> dict[str, str]:
    """The tags of a machine, the user's own included (ours win)."""
    expires = launched_at + timedelta(seconds=settings.lifetime_s)
    ours = {
        CLUSTER: plain(settings.cluster),
        OWNER: plain(settings.owner),
        NODE_TYPE: plain(request.node_type),
        MARKET: offer.market,
        PRICE: price(offer.usd_per_hour),
        LAUNCHED: seconds(launched_at),
        EXPIRES: seconds(expires),
    }
    if request.session:
        ours[SESSION] = plain(request.session)
    return {**settings.tags, **ours}


def of_resource(settings: CloudSettings, made_at: datetime) -> dict[str, str]:
    """The tags of anything else that is made: a network, a rule, a key, a disk."""
    expires = made_at + timedelta(seconds=settings.lifetime_s)
    ours = {CLUSTER: plain(settings.cluster), OWNER: plain(settings.owner)}
    return {**settings.tags, **ours, EXPIRES: seconds(expires)}


def price(usd_per_hour: Decimal) -> str:
    return format(usd_per_hour, "f").replace(".", "-")


def read_price(value: str | None) -> Decimal | None:
    """What `price` wrote; None for what it did not write."""
    try:
        return Decimal(value.replace("-", ".", 1)) if value else None
    except InvalidOperation:
        return None


def seconds(moment: datetime) -> str:
    return str(int(moment.timestamp()))


def read_time(value: str | None) -> datetime | None:
    return datetime.fromtimestamp(int(value), timezone.utc) if value and value.isdigit() else None


def expired(tags: Mapping[str, str], now: datetime) -> bool:
    """Whether a resource has outlived what it was made for."""
    until = read_time(tags.get(EXPIRES))
    return until is not None and now >= until
