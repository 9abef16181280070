"""What the clouds sell, as a table and a plot that the page filters and sorts by itself.

The page gets one row a machine, region and market (its cheapest zone), all of them at once: 6,000
rows are some 400 kB. An exported notebook has the cheapest as a table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import anywidget
import traitlets

from mlcloud.cluster.offers import MARKETS, Offer
from mlcloud.cost import catalogue
from mlcloud.errors import UsageError
from mlcloud.units import format_bytes, format_usd_per_hour, suggest
from mlcloud.widgets.page import source
from mlcloud.widgets.plan import ESTIMATED
from mlcloud.widgets.tables import TABLE, escaped, table

HEADS = ("$/h", "machine", "GPU", "vCPUs", "memory", "market", "cloud", "region")
STATIC = 15  # rows in an exported notebook


class Prices(anywidget.AnyWidget):
    """Made by `mlcloud.show("prices")`."""

    _esm = source("common.js", "prices.js")
    _css = source("common.css", "prices.css")

    rows = traitlets.Unicode("[]").tag(sync=True)  # of `_row`
    age = traitlets.Unicode("").tag(sync=True)
    filters = traitlets.Dict({}).tag(sync=True)  # gpu, cloud, region, market: as in the page now

    def __init__(self, offers: Iterable[Offer], filters: Mapping[str, str]) -> None:
        self._offers = cheapest_zones(offers)
        warning = catalogue.warning(self._offers)
        super().__init__(
            rows=json.dumps([_row(each) for each in self._offers], separators=(",", ":")),
            age=warning or catalogue.age(self._offers),
            filters=dict(filters),
        )

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        bundle = super()._repr_mimebundle_(**options)
        if bundle is None:
            return None
        data, metadata = bundle
        shown = self._table()
        words = self._words()
        lines = "<br>".join(map(escaped, words))
        below = f'<div style="{TABLE};margin-top:4px">{lines}</div>'
        data["text/plain"] = "\n".join([shown["text/plain"], *words])
        data["text/html"] = f"<div>{shown['text/html']}{below}</div>"
        return data, metadata

    def __repr__(self) -> str:
        return "\n".join([self._table()["text/plain"], *self._words()])

    @property
    def shown(self) -> list[Offer]:
        """The offers that the filters leave, cheapest first."""
        wanted = self.filters
        return [
            each
            for each in self._offers
            if _fits(wanted.get("gpu"), each.accelerator or "none")
            and _fits(wanted.get("cloud"), each.cloud)
            and _fits(wanted.get("region"), each.region)
            and _fits(wanted.get("market"), each.market)
        ]

    def _table(self) -> dict[str, str]:
        rows = [_line(each) for each in self.shown[:STATIC]]
        return table(HEADS, rows, numbers=("$/h", "vCPUs", "memory"))

    def _words(self) -> list[str]:
        shown = self.shown
        rest = len(shown) - STATIC
        words = [f"… and {rest:,} more"] if rest > 0 else []
        words.append(self.age)
        if any(each.estimated for each in shown[:STATIC]):
            words.append(ESTIMATED)
        return words


def explorer(filters: Mapping[str, str]) -> Prices:
    """Of the whole catalogue. Raises `UsageError` for a filter that leaves nothing."""
    sold = [each for cloud in catalogue.CLOUDS for each in catalogue.offers(cloud)]
    found = {}
    for name, value in filters.items():
        known = sorted({_facet(each, name) for each in sold} if name != "market" else MARKETS)
        same = next((each for each in known if each.casefold() == value.casefold()), None)
        if same is None:
            raise UsageError(f"no price has the {name} {value!r}{suggest(value, known)}")
        found[name] = same
    return Prices(sold, found)


def cheapest_zones(offers: Iterable[Offer]) -> list[Offer]:
    """One offer a machine, region and market, cheapest first."""
    best: dict[tuple[str, str, str, str], Offer] = {}
    for each in offers:
        key = (each.cloud, each.region, each.instance_type, each.market)
        if key not in best or each.usd_per_hour < best[key].usd_per_hour:
            best[key] = each
    return sorted(best.values(), key=lambda each: (each.usd_per_hour, each.instance_type))


def _row(offer: Offer) -> list[Any]:
    """As the page reads it, by place: shorter than by name, 6,000 times."""
    return [
        f"{offer.usd_per_hour:f}",
        offer.instance_type,
        offer.accelerator or "none",
        offer.accelerator_count,
        offer.cpus,
        round(offer.memory_bytes / 2**30, 1),
        offer.market,
        offer.cloud,
        offer.region,
        f"{offer.as_of}",
        int(offer.estimated) + 2 * int(offer.simulated),
    ]


def _line(offer: Offer) -> tuple[str, ...]:
    guess = "~" if offer.estimated else ""
    simulated = " (simulated)" if offer.simulated else ""
    return (
        f"{guess}{format_usd_per_hour(offer.usd_per_hour).removesuffix('/h')}{simulated}",
        offer.instance_type,
        f"{offer.accelerator_count} {offer.accelerator}" if offer.accelerator else "–",
        f"{offer.cpus:g}",
        format_bytes(offer.memory_bytes, binary=True),
        offer.market,
        offer.cloud,
        offer.region,
    )


def _facet(offer: Offer, name: str) -> str:
    return {
        "gpu": offer.accelerator or "none",
        "cloud": offer.cloud,
        "region": offer.region,
    }[name]


def _fits(wanted: str | None, value: str) -> bool:
    return not wanted or wanted.casefold() == value.casefold()
