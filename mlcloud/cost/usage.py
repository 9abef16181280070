"""What an execution used of the node it ran on: measured beside its kernel (`kernel/use.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from mlcloud.cluster.offers import Offer


@dataclass(frozen=True)
class GpuUse:
    """Shares are of 1. `mean` and `most`: of the time, in which some kernel ran on a GPU, over all
    of the session's GPUs and over the busiest look; bytes are of the fullest one; `busy` so many
    did anything."""

    mean: float
    most: float
    memory_peak: int
    memory_there: int
    gpus: int
    busy: int


@dataclass(frozen=True)
class Usage:
    """One execution's. `share` is the part of the node that its session holds and pays for; bytes
    are resident; `ended_at` is UTC. `gpu` None: not measured, or there is none. `cpus_peak`: the
    most that were busy in the seconds between two looks, 0 where there were none."""

    execution_id: str
    session_id: str
    ended_at: datetime
    seconds: float
    cpu_seconds: float
    memory_mean: int
    memory_peak: int
    offer: Offer
    share: Decimal = Decimal(1)
    gpu: GpuUse | None = None
    cpus_peak: float = 0.0

    @property
    def cpus(self) -> float:
        """How many CPUs were busy, on average."""
        return self.cpu_seconds / self.seconds if self.seconds > 0 else 0.0


def gpu_use(wire: Mapping[str, Any] | None) -> GpuUse | None:
    """As the host sends it."""
    if not wire:
        return None
    return GpuUse(
        mean=float(wire["mean"]),
        most=float(wire["max"]),
        memory_peak=int(wire["memory_peak"]),
        memory_there=int(wire["memory_there"]),
        gpus=int(wire["gpus"]),
        busy=int(wire["busy"]),
    )
