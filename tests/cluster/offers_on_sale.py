"""A small price list of a made-up AWS, as a catalogue gives one: two regions, three types."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

from mlcloud.cluster.offers import MARKETS, Offer

AS_OF = date(2026, 11, 1)
GIB = 2**30


def offer(
    type: str = "g5.xlarge",
    *,
    zone: str = "eu-central-1a",
    market: str = "spot",
    usd: str = "0.4",
    cpus: float = 4,
    gib: int = 16,
    gpu: str | None = "A10G",
    count: int = 1,
    cloud: str = "aws",
) -> Offer:
    return Offer(
        cloud=cloud,
        region=zone[:-1],
        zone=zone,
        instance_type=type,
        cpus=cpus,
        memory_bytes=gib * GIB,
        accelerator=gpu,
        accelerator_count=count if gpu else 0,
        market=market,  # type: ignore[arg-type]
        usd_per_hour=Decimal(usd),
        simulated=False,
        source="a test",
        as_of=AS_OF,
    )


def on_sale() -> list[Offer]:
    """eu-central-1 has A10G as spot and on demand, and CPUs; us-east-1 has H100 too, on demand."""
    found = []
    for zone in ("eu-central-1a", "eu-central-1b", "us-east-1a"):
        for market in MARKETS:
            part = Decimal(1) if market == "on-demand" else Decimal("0.4")
            part += Decimal("0.01") * ("b" in zone[-1])
            found += [
                offer("g5.xlarge", zone=zone, market=market, usd=str(Decimal("1.006") * part)),
                offer("g5.12xlarge", zone=zone, market=market, usd=str(5 * part), cpus=48, gib=192,
                      count=4),
                offer("c7i.large", zone=zone, market=market, usd=str(Decimal("0.1") * part),
                      cpus=2, gib=4, gpu=None),
                offer("m7i.large", zone=zone, market=market, usd=str(Decimal("0.12") * part),
                      cpus=2, gib=8, gpu=None),
            ]  # fmt: skip
    h100 = {"usd": "98.32", "cpus": 192, "gib": 2048, "gpu": "H100", "count": 8}
    found.append(offer("p5.48xlarge", zone="us-east-1a", market="on-demand", **h100))  # type: ignore[arg-type]
    return found
