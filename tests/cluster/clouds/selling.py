"""Offers and settings for the tests of clouds."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timezone
from decimal import Decimal

from mlcloud.cluster.clouds.base import CloudSettings, LaunchRequest
from mlcloud.cluster.offers import Market, Offer

NOW = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFakeFakeFakeFakeFakeFakeFakeFakeFakeFake ada@laptop"


def offer(
    cloud: str,
    kind: str,
    zone: str,
    region: str,
    market: Market = "spot",
    price: str = "0.28",
    gpu: tuple[str, int] | None = None,
    cpus: float = 4,
) -> Offer:
    return Offer(
        cloud=cloud,
        region=region,
        zone=zone,
        instance_type=kind,
        cpus=cpus,
        memory_bytes=16 * 2**30,
        accelerator=gpu[0] if gpu else None,
        accelerator_count=gpu[1] if gpu else 0,
        market=market,
        usd_per_hour=Decimal(price),
        simulated=False,
        source="test",
        as_of=date(2026, 1, 1),
    )


def settings(*regions: str, **more: object) -> CloudSettings:
    plain = CloudSettings(
        cluster="Exp 7", owner="Ada@Example.com", regions=regions, ssh_public_key=KEY
    )
    return replace(plain, **more)  # type: ignore[arg-type]


def request(node_type: str = "l4-1x4cpu", **more: object) -> LaunchRequest:
    plain = LaunchRequest(
        node_type=node_type, resources={"CPU": 4}, bootstrap="#!/bin/sh\necho up\n", session="exp"
    )
    return replace(plain, **more)  # type: ignore[arg-type]
