"""A cloud without machines: it records what it is asked for, and refuses what it is told to."""

from __future__ import annotations

import dataclasses
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

from mlcloud.cluster.clouds.base import Cloud, Instance, LaunchRequest, Notice
from mlcloud.cluster.offers import Market, Offer

START = datetime(2026, 11, 1, tzinfo=timezone.utc)
GIB = 2**30


def offer(
    zone: str = "a",
    price: str = "0.10",
    market: Market = "spot",
    instance_type: str = "c4",
    region: str = "r1",
    cpus: float = 4,
) -> Offer:
    return Offer(
        cloud="recording",
        region=region,
        zone=zone,
        instance_type=instance_type,
        cpus=cpus,
        memory_bytes=8 * GIB,
        accelerator=None,
        accelerator_count=0,
        market=market,
        usd_per_hour=Decimal(price),
        simulated=True,
        source="made up",
        as_of=date(2026, 11, 1),
    )


class Clock:
    """Time as a test moves it."""

    def __init__(self) -> None:
        self.at = START

    def __call__(self) -> datetime:
        return self.at

    def forward(self, **by: float) -> None:
        self.at += timedelta(**by)


class RecordingCloud(Cloud):
    name = "recording"

    def __init__(self, root: Path, clock: Clock, offers: list[Offer]) -> None:
        self.root = root
        self.clock = clock
        self.sold = offers
        self.there: dict[str, Instance] = {}
        self.asked: list[Offer] = []  # every call of `launch`, refused ones too
        self.refusals: dict[tuple[str, str], Exception] = {}  # by (zone, market)

    def offers(self) -> list[Offer]:
        return self.sold

    def launch(self, offer: Offer, request: LaunchRequest) -> Instance:
        self.asked.append(offer)
        refusal = self.refusals.get((offer.zone, offer.market))
        if refusal is not None:
            raise refusal
        name = f"i-{len(self.asked):04d}"
        self.there[name] = Instance(
            name, request.node_type, offer, self.clock(), tags=dict(request.tags)
        )
        return self.there[name]

    def instances(self) -> list[Instance]:
        return list(self.there.values())

    def get(self, instance_id: str) -> Instance:
        return self.there[instance_id]

    def terminate(self, instance_id: str, reason: str) -> None:
        each = self.there.get(instance_id)
        if each is not None and each.alive:
            self._change(instance_id, ended_at=self.clock(), reason=reason)

    # --- what a test makes happen -----------------------------------------------------------------

    def join(self, instance_id: str) -> None:
        self._change(instance_id, joined_at=self.clock())

    def serve(self, instance_id: str) -> None:
        self._change(instance_id, served_at=self.clock())

    def take_back(self, instance_id: str) -> None:
        self._change(
            instance_id,
            notice=Notice(self.clock(), self.clock()),
            ended_at=self.clock(),
            reason="preempted",
        )

    def _change(self, instance_id: str, **changes: object) -> None:
        there = self.there[instance_id]
        self.there[instance_id] = dataclasses.replace(there, **changes)  # type: ignore[arg-type]
