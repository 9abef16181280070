"""What a cloud bills at least for a machine, however soon it is given back.

    launched ── least ──►│
       │   ended ──► billed as if it had ended there
       └─────────────── ended ──► billed to the second

A node that runs for less owes the rest from the moment of its launch on: budgets keep it back
(`owed`), and the ledger bills it (`billed_until`), to nobody's session. Only Linux's rules: that is
what nodes run.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from mlcloud.cluster.offers import Offer


class Rule(NamedTuple):
    """`least` is billed of each launch; `source` says so, and was read on `as_of`."""

    least: timedelta
    source: str
    as_of: date


RULES = {
    # "billed on one second increments, with a minimum of 60 seconds", spot too
    "aws": Rule(
        timedelta(seconds=60),
        "https://aws.amazon.com/about-aws/whats-new/2017/10/announcing-amazon-ec2-per-second-billing/",
        date(2026, 11, 27),
    ),
    # "All vCPUs, GPUs, and GB of memory are charged a minimum of 1 minute", then by the second
    "gcp": Rule(
        timedelta(minutes=1),
        "https://cloud.google.com/compute/vm-instance-pricing",
        date(2026, 11, 27),
    ),
    # Since 2025-06-01 also what is deallocated within 300 seconds of its start, spot too
    "azure": Rule(
        timedelta(minutes=5),
        "https://learn.microsoft.com/en-us/answers/questions/2259765/",
        date(2026, 11, 27),
    ),
}
NOTHING = timedelta(0)


class Least:
    """The rules in force. `simulated` is that of the local cloud, which bills nobody."""

    def __init__(self, simulated: timedelta = NOTHING) -> None:
        self.simulated = simulated

    def of(self, offer: Offer) -> timedelta:
        if offer.cloud in RULES:
            return RULES[offer.cloud].least
        return self.simulated if offer.simulated and offer.usd_per_hour > 0 else NOTHING

    def billed_until(
        self, offer: Offer, started_at: datetime, ended_at: datetime | None
    ) -> datetime | None:
        """The end for which a node is billed that ended then; None where it goes on."""
        return None if ended_at is None else max(ended_at, started_at + self.of(offer))

    def owed(
        self, offer: Offer, usd_per_hour: Decimal, started_at: datetime, ends_at: datetime
    ) -> Decimal:
        """Dollars that a node which ends then is billed for time after its end."""
        rest = started_at + self.of(offer) - ends_at
        return dollars(usd_per_hour, rest) if rest > NOTHING else Decimal(0)


def dollars(usd_per_hour: Decimal, time: timedelta) -> Decimal:
    """What so much time costs."""
    return usd_per_hour * Decimal(time // timedelta(microseconds=1)) / Decimal(3_600_000_000)
