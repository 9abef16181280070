"""The most that a new node may cost: what budgets leave, for who buys nodes.

    budgets (gateway) ── every second ──► ceiling.json {usd, at} ──► provider (Ray's autoscaler)
                         and when a session with a budget asks for a node ──► of that type

A launch owes what the cloud bills at least from that moment on, and Ray asks for nodes also when
nobody asked the gateway (spares, a node that died): so the offers that are too dear for what is
left are passed over where they are bought. What was launched since the file was written is taken
off by who reads it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from mlcloud.cluster.clouds.base import Instance
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.records import write_json

_FILE = "ceiling.json"


class OfType(NamedTuple):
    """Of one node of a type, for those who ask for it."""

    usd: Decimal
    why: str


class Ceiling(NamedTuple):
    """`usd` was left at `at`, None: nothing limits the whole. A node of a cloud costs at least so
    many seconds: `least_s`, of one that the map does not name `else_s`."""

    usd: Decimal | None
    at: datetime
    least_s: dict[str, float]
    else_s: float
    why: str
    types: dict[str, OfType] = {}  # noqa: RUF012 - nobody changes it

    def least(self, offer: Offer, most_per_hour: Decimal | None = None) -> Decimal:
        """What a launch of it costs in any case, should its price rise to that meanwhile."""
        seconds = self.least_s.get(offer.cloud, self.else_s)
        price = max(offer.usd_per_hour, most_per_hour or offer.usd_per_hour)
        return price * Decimal(str(seconds)) / 3600

    def left(
        self,
        instances: Iterable[Instance],
        node_type: str = "",
        dearest: Callable[[Offer], Decimal | None] = lambda offer: None,
    ) -> tuple[Decimal | None, str]:
        """For a node of this type, without what was launched since; and why it is no more. None:
        nothing limits it. `dearest` is what an offer's price may rise to."""
        later = [each for each in instances if each.launched_at > self.at]

        def spent(nodes: Iterable[Instance]) -> Decimal:
            costs = (self.least(each.offer, dearest(each.offer)) for each in nodes)
            return sum(costs, Decimal(0))

        found: list[tuple[Decimal, str]] = []
        if self.usd is not None:
            found.append((self.usd - spent(later), self.why))
        if node_type in self.types:
            own = self.types[node_type]
            alike = [each for each in later if each.node_type == node_type]
            found.append((own.usd - spent(alike), own.why))
        return min(found, key=lambda each: each[0], default=(None, ""))


def write(root: Path, ceiling: Ceiling | None) -> None:
    """None: there is no limit any more."""
    if ceiling is None:
        (root / _FILE).unlink(missing_ok=True)
        return
    plain = ceiling._asdict() | {
        "usd": None if ceiling.usd is None else str(ceiling.usd),
        "at": ceiling.at.isoformat(),
        "types": {name: [str(each.usd), each.why] for name, each in ceiling.types.items()},
    }
    write_json(root / _FILE, plain)


def read(root: Path) -> Ceiling | None:
    """None where no budget limits what is bought."""
    with contextlib.suppress(FileNotFoundError):
        plain: dict[str, Any] = json.loads((root / _FILE).read_text())
        usd = None if plain["usd"] is None else Decimal(plain["usd"])
        types = {name: OfType(Decimal(most), why) for name, (most, why) in plain["types"].items()}
        at = datetime.fromisoformat(plain["at"])
        return Ceiling(**(plain | {"usd": usd, "at": at, "types": types}))
    return None
