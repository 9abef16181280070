"""The most that a new node may cost: what the cluster's budget leaves, for who buys nodes.

    budgets (gateway) ── every second ──► ceiling.json {usd, at} ──► provider (Ray's autoscaler)

A launch owes what the cloud bills at least from that moment on, and Ray asks for nodes also when
nobody asked the gateway (spares, a node that died): so the offers that are too dear for what is
left are passed over where they are bought. What was launched since the file was written is taken
off by who reads it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from mlcloud.cluster.clouds.base import Instance
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.records import write_json

_FILE = "ceiling.json"


class Ceiling(NamedTuple):
    """`usd` was left at `at`. A node of a cloud costs at least so many seconds: `least_s`, of one
    that the map does not name `else_s`."""

    usd: Decimal
    at: datetime
    least_s: dict[str, float]
    else_s: float
    why: str

    def least(self, offer: Offer) -> Decimal:
        """What a launch of it costs in any case."""
        seconds = self.least_s.get(offer.cloud, self.else_s)
        return offer.usd_per_hour * Decimal(str(seconds)) / 3600

    def left(self, instances: Iterable[Instance]) -> Decimal:
        """Without what was launched since."""
        later = (self.least(each.offer) for each in instances if each.launched_at > self.at)
        return self.usd - sum(later, Decimal(0))


def write(root: Path, ceiling: Ceiling | None) -> None:
    """None: there is no limit any more."""
    if ceiling is None:
        (root / _FILE).unlink(missing_ok=True)
        return
    plain = ceiling._asdict() | {"usd": str(ceiling.usd), "at": ceiling.at.isoformat()}
    write_json(root / _FILE, plain)


def read(root: Path) -> Ceiling | None:
    """None where no budget limits what is bought."""
    with contextlib.suppress(FileNotFoundError):
        plain = json.loads((root / _FILE).read_text())
        at = datetime.fromisoformat(plain["at"])
        return Ceiling(**(plain | {"usd": Decimal(plain["usd"]), "at": at}))
    return None
