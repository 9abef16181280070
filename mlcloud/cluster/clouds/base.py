"""What a cloud is to mlcloud: a place that turns an offer into a machine and takes it back.

    offer ── launch ──► Instance (starting … running) ── terminate ──► Instance (ended, reason)
                              │
                              └── the cloud may take a spot instance itself, after a notice

An `Instance` is a fact sheet: what was bought, where, at what price, from when to when. The meter
bills from these facts alone, so they are kept after the machine is gone.

Powers that not every cloud has are separate classes (`CloudWithPreemption`, `CloudThatPlans`): what
a cloud can do is what it implements. The local cloud needs nothing to be told; the others are made
from `CloudSettings`, which a cluster's specification fills in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

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
    for it (`"head"` for the head node), `tags` are Ray's node tags. Addresses are None where the
    cloud has not given any (yet); a node that only its network can reach has no `public_ip`.
    `joined_at` is when its agent was first heard, `served_at` when it first held a session.
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
    private_ip: str | None = None
    public_ip: str | None = None
    joined_at: datetime | None = None
    served_at: datetime | None = None

    @property
    def alive(self) -> bool:
        return self.ended_at is None


@dataclass(frozen=True)
class LaunchRequest:
    """What an instance must run once it is up: a Ray node that joins (or is) the head.

    `bootstrap` is a shell script that the machine runs as root at its first boot (cloud-init's user
    data, a startup script, or over SSH); the local cloud has none. `session` is the session that it
    is launched for, where there is one: it becomes a tag.
    """

    node_type: str
    resources: dict[str, float]
    labels: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    instance_id: str | None = None
    bootstrap: str = ""
    session: str = ""


@dataclass(frozen=True)
class CloudSettings:
    """What a real cloud must know beside an offer, the same for every node of a cluster.

    `regions` is the residency list: a cloud refuses to launch, store or copy anything outside it.
    `image` None means the cloud's own choice (a current Ubuntu or deep learning image). `network`
    holds the cloud's own names (`subnet`, `security_group`, `vpc`, `resource_group`, `project` …),
    empty: the cloud makes or finds them. `endpoints` replaces a service's URL (tests, private
    endpoints). `lifetime_s` is the longest that a node may live from its launch. `store` is the URL
    of the cluster's store: its nodes get the rights to use it, where the cloud gives any.
    """

    cluster: str
    owner: str
    regions: tuple[str, ...]
    image: str | None = None
    disk_gb: int = 100
    ssh_user: str = "ubuntu"
    ssh_public_key: str | None = None
    network: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    endpoints: Mapping[str, str] = field(default_factory=dict)
    lifetime_s: float = 7 * 86400.0
    store: str = ""


@dataclass(frozen=True)
class Leftover:
    """Something in the cloud's account that a cluster made and that is still there.

    `kind` is the cloud's word (`instance`, `volume`, `security-group` …), `region` is empty for
    what belongs to none. `usd_per_hour` is what it costs to leave it, None where that is not known,
    0 where it is free. `why` says why it is listed, as a person reads it.
    """

    kind: str
    id: str
    region: str
    tags: Mapping[str, str]
    usd_per_hour: Decimal | None
    why: str


class Cloud(ABC):
    """Launch, list, terminate.

    Every method may block on the cloud's API (call it off the event loop) and raises
    `mlcloud.errors.NoCapacity` where the cloud has none of the offer, `QuotaExceeded` where the
    account may not have more, `CredentialsMissing` or `CloudCredentialsExpired`, and `CloudRefused`
    for everything else that the cloud says no to.
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


class CloudWithCredentials(ABC):
    """A cloud that must know who asks."""

    @abstractmethod
    def check(self) -> None:
        """Whether anything can be asked of the cloud at all, in one cheap call.

        Raises `CredentialsMissing` (no credentials, or no SDK: the message says what to install or
        set) before anything is started.
        """


class CloudThatPlans(ABC):
    """A cloud that can show what it would send, before anything costs money."""

    @abstractmethod
    def configuration(self, offer: Offer, request: LaunchRequest) -> dict[str, Any]:
        """The body of the launch request as the cloud's API takes it. Asks the cloud nothing."""


class CloudWithMachines(ABC):
    """A cloud whose offers are single machines: one that is in use is nothing to wait for."""

    @abstractmethod
    def free(self, offer: Offer) -> bool:
        """Whether no node of this cluster is on it."""


class CloudWithPreemption(ABC):
    """A cloud on which a preemption can be drilled."""

    @abstractmethod
    def preempt(self, instance_id: str, seconds: float) -> Notice:
        """Give `instance_id` a notice now and take it back `seconds` later."""


class CloudWithLeftovers(ABC):
    """A cloud in which things can be left behind: `mlcloud down` and `gc` sweep with it."""

    @abstractmethod
    def leftovers(self, now: datetime) -> list[Leftover]:
        """What this cluster has in the cloud, and what clusters left that have expired at `now`.

        In the order in which it can be removed. Only what carries mlcloud's tags is listed. A
        running cluster's own machines are among them: it is for the caller to say that it is over.
        """

    @abstractmethod
    def remove(self, leftover: Leftover) -> None:
        """Remove it and wait until it is gone, as far as the next in the list needs it.

        Idempotent: what is gone already is left as it is. Raises what `Cloud` raises.
        """
