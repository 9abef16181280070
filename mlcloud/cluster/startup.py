"""How long until the first cell runs on a node that is not there yet.

    boot          the cloud has accepted … the machine answers
    image         what an image of one's own, or one with a GPU's driver, takes beyond that
    environment   mlcloud and Ray are installed (or in the image), Ray has joined, a kernel is up

The figures are typical ones, each with its source; where there is none they are assumed, and say
so. What a cluster has measured itself takes their place (`measured`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from statistics import median

from mlcloud.cluster.offers import Offer


@dataclass(frozen=True)
class Startup:
    """From asking for a node to its first cell. `source` says where the figures are from."""

    boot: timedelta
    image: timedelta
    environment: timedelta
    source: str
    measured: bool = False

    @property
    def total(self) -> timedelta:
        return self.boot + self.image + self.environment

    @property
    def hours(self) -> float:
        return self.total.total_seconds() / 3600


@dataclass(frozen=True)
class _Boot:
    seconds: int
    source: str


_BOOT = {
    "local": _Boot(0, "this computer is up"),
    "ssh": _Boot(0, "your machines are up"),
    # An Ubuntu image on EC2, before the tricks that the article is about.
    "aws": _Boot(40, "https://depot.dev/blog/faster-ec2-boot-time, 2024-05-23"),
    # 5,000 VMs: 25 s up to 32 CPUs, below a minute up to 96.
    "gcp": _Boot(
        25, "https://medium.com/@robaboukhalil/move-fast-and-break-the-cloud-b55b899e3683, 2018"
    ),
    # The rule of thumb "1 to 2 minutes" that the same article starts from.
    "azure": _Boot(90, "assumed"),
    # A node that the Kubernetes cluster's own autoscaler must bring first.
    "kubernetes": _Boot(120, "assumed"),
}
# A root volume that is filled from its snapshot while it is read: reports speak of 80 s instead of
# tens (https://news.ycombinator.com/item?id=40455208). Assumed.
_IMAGE_S = 40
_INSTALL_S = 90  # mlcloud and Ray from an index, assumed
_JOIN_S = 10  # Ray joins and a kernel is up: measured on two cores


def typical(offer: Offer, *, own_image: bool = False) -> Startup:
    """What to expect of `offer`; with `own_image`, mlcloud and Ray are taken to be in it."""
    boot = _BOOT.get(offer.cloud, _Boot(90, "assumed"))
    machine = offer.cloud not in ("local", "ssh")
    image = _IMAGE_S if machine and (own_image or offer.accelerator) else 0
    install = 0 if own_image or offer.cloud == "local" else _INSTALL_S
    assumed = " and ".join(
        [*(["image"] if image else []), *(["installing packages"] if install else [])]
    )
    source = f"boot: {boot.source}" + (f"; {assumed}: assumed" if assumed else "")
    return Startup(
        timedelta(seconds=boot.seconds),
        timedelta(seconds=image),
        timedelta(seconds=install + _JOIN_S),
        source,
    )


def measured(samples: Sequence[timedelta]) -> Startup:
    """What this cluster's own nodes took, from asking to the first cell: their median."""
    total = timedelta(seconds=median(each.total_seconds() for each in samples))
    nothing, count = timedelta(0), len(samples)
    nodes = "node" if count == 1 else "nodes"
    return Startup(total, nothing, nothing, f"measured by this cluster, {count} {nodes}", True)
