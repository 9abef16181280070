"""What a cloud is to mlcloud: a place that turns an offer into a machine and takes it back.

    offer ── launch ──► Instance (starting … running) ── terminate ──► Instance (ended, reason)
                              │
                              └── the cloud may take a spot instance itself, after a notice

An `Instance` is a fact sheet: what was bought, where, at what price, from when to when. The meter
bills from these facts alone, so they are kept after the machine is gone.

Powers that not every cloud has are separate classes (`CloudWithPreemption`): what a cloud can do is
what it implements.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from datetime import datetime

from mlcloud.cluster.offers import Offer


@dataclass(frozen=True)
class Notice:
    """A cloud's warning that it takes an instance back. Times are UTC."""

    given_at: datetime
    deadline: datetime
    kind: str = "terminate"


@dataclass(frozen=True)
class Instance:
    """One machine, alive or gone.

    `ended_at` is None while it bills. `node_type` is the name under which Ray's autoscaler asked
    for it (`"head"` for the head node), `tags` are Ray's node tags.
    """

    id: str
    node_type: str
    offer: Offer
    launched_at: datetime
    ended_at: datetime | None = None
    reason: str = ""
    notice: Notice | None = None
    tags: dict[str, str] = field(default_factory=dict)
    pid: int | None = None

    @property
    def alive(self) -> bool:
        return self.ended_at is None


@dataclass(frozen=True)
class LaunchRequest:
    """What an instance must run once it is up: a Ray node that joins (or is) the head."""

    node_type: str
    resources: dict[str, float]
    labels: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    instance_id: str | None = None


class Cloud(ABC):
    """Launch, list, terminate.

    Every method may block on the cloud's API (call it off the event loop) and raises
    `mlcloud.errors.NoCapacity` where the cloud has none of the offer, `MLCloudError` otherwise.
    """

    name: str

    @abstractmethod
    def offers(self) -> list[Offer]:
        """Everything that could be launched, with its price in force."""

    @abstractmethod
    def launch(self, offer: Offer, request: LaunchRequest) -> Instance:
        """Start one instance of `offer`. Returns as soon as the cloud has accepted."""

    @abstractmethod
    def instances(self) -> list[Instance]:
        """Every instance this cluster ever launched, the ended ones too."""

    @abstractmethod
    def terminate(self, instance_id: str, reason: str) -> None:
        """End an instance. Idempotent: an ended or unknown instance is left as it is."""


class CloudWithPreemption(ABC):
    """A cloud on which a preemption can be drilled."""

    @abstractmethod
    def preempt(self, instance_id: str, seconds: float) -> Notice:
        """Give `instance_id` a notice now and take it back `seconds` later."""
