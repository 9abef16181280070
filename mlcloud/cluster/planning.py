"""What a cluster would cost, before anything does: its offers ranked, and what would be launched.

    Specification ─┐
    offers ────────┼─► plan() ─► Plan: each group's offers, the cheapest effective price first;
    startup, quota ┘             notes: what bills beside; configuration: what would be sent

The effective price is what an hour of *work* costs: a node bills from its launch, so the time to
the first cell is in it, and whoever knows of egress and lost work passes an `effective` of its own.
Nothing is launched or asked here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from mlcloud.cluster.clouds import tags
from mlcloud.cluster.clouds.base import CloudSettings, CloudThatPlans, LaunchRequest
from mlcloud.cluster.offers import Offer, require
from mlcloud.cluster.records import now
from mlcloud.cluster.shapes import NodeType
from mlcloud.cluster.specification import Head, NodeGroup, Specification
from mlcloud.cluster.specification.places import IN_REGIONS
from mlcloud.cluster.startup import Startup, measured, typical
from mlcloud.cost.prices import on_demand_usd_per_hour
from mlcloud.errors import MLCloudError
from mlcloud.units import format_seconds, format_usd_per_hour, parse_gpu

#: What an hour of work costs on an offer that starts like this.
Effective = Callable[[Offer, Startup], Decimal]
#: Makes the cloud that shows what it would send; None where it cannot be had.
Showing = Callable[[CloudSettings], object]
#: Why the account may not launch an offer (a quota of zero); None where it may, or nobody knows.
Lacking = Callable[[Offer], str | None]

STALE = timedelta(days=30)  # prices older than this are worth a word


@dataclass(frozen=True)
class Row:
    """An offer in the order in which it would be tried. Dollars are of one node."""

    group: str
    offer: Offer
    on_demand_usd_per_hour: Decimal | None
    effective_usd_per_hour: Decimal
    usd: Decimal  # for the hours asked, from the launch on
    startup: Startup
    age: timedelta  # of the price
    lacking: str = ""

    @property
    def saving(self) -> Decimal | None:
        """The part of the on-demand price that is saved: 0.68. None for on-demand itself."""
        if self.offer.market == "on-demand" or not self.on_demand_usd_per_hour:
            return None
        return 1 - self.offer.usd_per_hour / self.on_demand_usd_per_hour

    def record(self) -> dict[str, Any]:
        """As JSON has it; dollars as text, seconds as numbers."""
        offer, saving = self.offer, self.saving
        return {
            "group": self.group,
            "cloud": offer.cloud,
            "region": offer.region,
            "zone": offer.zone,
            "instance_type": offer.instance_type,
            "gpu": offer.gpu,
            "cpus": offer.cpus,
            "memory_bytes": offer.memory_bytes,
            "market": offer.market,
            "usd_per_hour": str(offer.usd_per_hour),
            "on_demand_usd_per_hour": _written(self.on_demand_usd_per_hour),
            "saving": None if saving is None else round(float(saving), 4),
            "effective_usd_per_hour": _written(self.effective_usd_per_hour),
            "usd": _written(self.usd),
            "first_cell_s": self.startup.total.total_seconds(),
            "price_as_of": offer.as_of.isoformat(),
            "price_source": offer.source,
            "estimated": offer.estimated,
            "simulated": offer.simulated,
            "lacking": self.lacking or None,
        }


@dataclass
class Plan:
    """What would be tried, in which order, at what price. Shows itself as a table.

    `offers` has every row, `notes` what else there is to know, `configuration` what the first
    launch of each group would be told. Nothing was launched to know this, and nothing is.
    """

    specification: Specification
    hours: float
    offers: list[Row]
    notes: list[str] = field(default_factory=list)
    showing: Showing | None = field(default=None, repr=False)
    limit: int = 12  # rows shown of each group

    @property
    def best(self) -> Row | None:
        """The first that would be tried."""
        return self.offers[0] if self.offers else None

    @property
    def simulated(self) -> bool:
        return any(row.offer.simulated for row in self.offers)

    @property
    def configuration(self) -> list[dict[str, Any]]:
        """What the first launch of each group would be told, and what the cloud would be sent."""
        first: dict[str, Row] = {}
        for row in self.offers:
            first.setdefault(row.group, row)
        return [self.configuration_of(row) for row in first.values()]

    def configuration_of(self, row: Row) -> dict[str, Any]:
        """What the launch of this offer would be told. `request` is the body that the cloud's API
        would get; None where the cloud does not show it."""
        group = self.specification.group(row.group)
        settings = self.specification.settings(group or NodeGroup())
        alike = [each for each in self.offers if each.group == row.group] if group else [row]
        on_demand = group is not None and group.market == "on-demand"
        request = _launch_request(alike, self.specification.setup, on_demand)
        body, unknown = self._request(settings, row.offer, request)
        return {
            "group": row.group,
            "offer": str(row.offer),
            "nodes": {"min": group.min, "max": group.max} if group else {"min": 0},
            "image": settings.image or "the cloud's own",
            "disk_gb": settings.disk_gb,
            "ray": {"node_type": request.node_type, "resources": request.resources},
            "tags": tags.of_node(settings, row.offer, request, now()),
            "max_lifetime_s": settings.lifetime_s,
            "request": body,
            **({"request_unknown": unknown} if unknown else {}),
        }

    def _request(
        self, settings: CloudSettings, offer: Offer, request: LaunchRequest
    ) -> tuple[dict[str, Any] | None, str]:
        """What would be sent, or why that is not known."""
        try:
            cloud = self.showing(settings) if self.showing else None
            if isinstance(cloud, CloudThatPlans):
                return cloud.configuration(offer, request), ""
        except MLCloudError as error:  # a project that only credentials tell, an SDK
            return None, str(error)
        return None, ""

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "cluster": self.specification.name,
            "cloud": self.specification.cloud,
            "hours": self.hours,
            "simulated": self.simulated,
            "offers": [row.record() for row in self.offers],
            "notes": self.notes,
        }

    def to_frame(self) -> Any:
        """All rows as a pandas DataFrame; dollars as floats, times as timedeltas."""
        import pandas

        frame = pandas.DataFrame([row.record() for row in self.offers])
        if self.offers:
            dollars = [name for name in frame.columns if name.startswith("usd") or "_usd_" in name]
            frame[dollars] = frame[dollars].astype(float)
            frame["first_cell"] = pandas.to_timedelta(frame.pop("first_cell_s"), unit="s")
        return frame

    def __repr__(self) -> str:
        from mlcloud.widgets.plan import text

        return text(self)

    def _repr_html_(self) -> str:
        from mlcloud.widgets.plan import html

        return html(self)


def plan(
    specification: Specification,
    offers: Iterable[Offer],
    *,
    hours: float = 2,
    today: date | None = None,
    effective: Effective | None = None,
    lacking: Lacking | None = None,
    history: Mapping[str, Sequence[timedelta]] | None = None,
    showing: Showing | None = None,
) -> Plan:
    """The offers of each group of `specification`, in the order in which they would be tried.

    `hours` of work are estimated. `history` has, by instance type, what this cluster's nodes took
    from asking to the first cell. Raises `NoSuchResources` where nothing fits a group.
    """
    today = today or now().date()
    may_be = [offer for offer in offers if specification.allows(offer)]
    same: dict[tuple[str, str], list[Offer]] = {}
    for offer in may_be:
        same.setdefault((offer.region, offer.instance_type), []).append(offer)
    groups: tuple[NodeGroup | None, ...] = specification.nodes or (None,)
    rows: list[Row] = []
    for group in groups:
        found = [
            _row(
                group,
                offer,
                same[offer.region, offer.instance_type],
                hours,
                today,
                effective,
                lacking,
                _startup(specification, offer, history or {}),
            )
            for offer in may_be
            if group is None or group.takes(offer)
        ]
        if not found and group is not None:
            require(may_be, group.shape, "on-demand" if group.market == "on-demand" else None)
        rows += sorted(found, key=_order)
    notes = list(_notes(specification, rows, may_be))
    return Plan(specification, hours, rows, notes, showing)


def machines(specification: Specification) -> list[Offer]:
    """The machines that you own as offers: each one at its own price, on demand."""
    found = []
    for each in specification.ssh.hosts:
        name, count = parse_gpu(each.gpu) if each.gpu else (None, 0)
        offer = Offer(
            cloud="ssh",
            region=each.region or "owned",
            zone=each.host,
            instance_type=each.host,
            cpus=each.cpus,
            memory_bytes=each.memory,
            accelerator=name,
            accelerator_count=count,
            market="on-demand",
            usd_per_hour=each.usd_per_hour,
            simulated=False,
            source="the cluster's specification",
            as_of=now().date(),
        )
        found.append(offer)
    return found


# --- a row ----------------------------------------------------------------------------------------


def _row(
    group: NodeGroup | None,
    offer: Offer,
    offers: Sequence[Offer],
    hours: float,
    today: date,
    effective: Effective | None,
    lacking: Lacking | None,
    startup: Startup,
) -> Row:
    billed = Decimal(str(hours)) + Decimal(str(startup.hours))
    usd = offer.usd_per_hour * billed
    return Row(
        group=group.key if group else "any",
        offer=offer,
        on_demand_usd_per_hour=on_demand_usd_per_hour(offer, offers),
        effective_usd_per_hour=effective(offer, startup)
        if effective
        else usd / Decimal(str(hours)),
        usd=usd,
        startup=startup,
        age=max(today - offer.as_of, timedelta(0)),
        lacking=(lacking(offer) if lacking else None) or "",
    )


def _order(row: Row) -> tuple[Any, ...]:
    """What may not be launched comes last; at equal prices, what is not taken away first."""
    offer = row.offer
    return (
        bool(row.lacking),
        row.effective_usd_per_hour,
        offer.market != "on-demand",
        *(offer.zone, offer.instance_type),
    )


def _startup(
    specification: Specification, offer: Offer, history: Mapping[str, Sequence[timedelta]]
) -> Startup:
    samples = history.get(offer.instance_type)
    return measured(samples) if samples else typical(offer, own_image=bool(specification.image))


def _launch_request(rows: Sequence[Row], setup: Sequence[str], on_demand: bool) -> LaunchRequest:
    """What a node of these offers runs: the least that all of them have, as Ray is told."""
    offers = [row.offer for row in rows]
    node = NodeType(
        name=rows[0].group,
        cpus=int(min(offer.cpus for offer in offers)) or 1,
        memory_bytes=min(offer.memory_bytes for offer in offers),
        accelerator=offers[0].accelerator,
        accelerator_count=min(offer.accelerator_count for offer in offers),
        market="on-demand" if on_demand else "spot",
    )
    return LaunchRequest(node.name, node.resources, bootstrap="\n".join(["#!/bin/sh", *setup]))


# --- what else there is to know -------------------------------------------------------------------


def _notes(
    specification: Specification,
    rows: Sequence[Row],
    offers: Sequence[Offer],
) -> Iterable[str]:
    if not rows:
        return
    first = rows[0]
    yield _first_cell(first.startup, bool(specification.setup))
    kept = list(_kept(specification, rows, offers))
    if kept:
        yield "bills while the cluster is up: " + ", ".join(kept)
    yield _spare(specification, rows)
    none = [row for row in rows if row.lacking]
    if none:
        yield f"quota: {len(none)} of {len(rows)} offers may not be launched: {none[0].lacking}"
    if specification.store and specification.regions and not specification.known_store_region:
        yield (
            "the store's region is not known here: say store_region, or it is asked for at `up`, "
            f"which refuses one outside {', '.join(specification.regions)}"
        )
    oldest = max(row.age for row in rows)
    if oldest > STALE and not first.offer.simulated:
        yield f"prices are up to {oldest.days} days old: `mlcloud prices refresh` asks the clouds"


def _first_cell(startup: Startup, setup: bool) -> str:
    parts = (
        ""
        if startup.measured
        else (
            f" (boot {_seconds(startup.boot)}, image {_seconds(startup.image)}, "
            f"environment {_seconds(startup.environment)})"
        )
    )
    own = ", and your setup commands beside it" if setup else ""
    return f"time to the first cell: {_seconds(startup.total)}{parts}{own}. {startup.source}"


def _kept(
    specification: Specification, rows: Sequence[Row], offers: Sequence[Offer]
) -> Iterable[str]:
    if specification.cloud in IN_REGIONS:
        head = _head(specification.head, offers)
        if head is not None:
            yield f"the head {format_usd_per_hour(head.usd_per_hour)} ({head.instance_type})"
    for group in specification.nodes:
        cheapest = next((row.offer for row in rows if row.group == group.key), None)
        if group.min and cheapest is not None:
            price = format_usd_per_hour(cheapest.usd_per_hour * group.min)
            yield f"{group.min} of {group.key} {price}"


def _head(head: Head, offers: Sequence[Offer]) -> Offer | None:
    return min(
        (offer for offer in offers if head.takes(offer)),
        key=lambda offer: offer.usd_per_hour,
        default=None,
    )


def _spare(specification: Specification, rows: Sequence[Row]) -> str:
    cheapest = min(rows, key=lambda row: row.offer.usd_per_hour).offer
    price = cheapest.usd_per_hour
    if specification.spares:
        count = specification.spares
        spares = "spare" if count == 1 else "spares"
        return (
            f"{count} warm {spares}: {format_usd_per_hour(price * count)} in all, used or not; a "
            "cell on one starts at once"
        )
    return (
        f"warm spares: none. One ({cheapest.instance_type}) would cost "
        f"{format_usd_per_hour(price)}, used or not, and a cell on it would start at once"
    )


def _seconds(value: timedelta) -> str:
    return format_seconds(value).replace(".0 s", " s")


def _written(value: Decimal | None) -> str | None:
    return None if value is None else f"{value.quantize(Decimal('0.000001')).normalize():f}"
