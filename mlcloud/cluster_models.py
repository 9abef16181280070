"""The wire of a cluster: what it is, what its nodes tell, and what it is to run with.

client ─ PUT /v1/specification ─► gateway ◄─ heartbeats, notices, failures ─ nodes' agents
client ◄──── GET /v1/cluster ──── gateway: nodes, sessions, budgets, tries to buy
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from pydantic import Field

from mlcloud.cost_models import BudgetInfo
from mlcloud.models import EnvironmentSpec, Market, Model, SessionInfo


class GpuLook(Model):
    """One GPU at one look."""

    busy: float = Field(ge=0, le=1, description="Of the time, in which something ran on it.")
    memory: int = Field(ge=0, description="Bytes in use.")
    memory_there: int = Field(ge=0)


class NodeUse(Model):
    """What a node did in the seconds before its last heartbeat."""

    cpus: float = Field(ge=0, description="So many were busy.")
    memory: int = Field(ge=0, description="Bytes that its processes held.")
    gpus: list[GpuLook] = Field([], max_length=64)


class NodeInfo(Model):
    """A machine of the cluster."""

    id: str
    node_type: str
    instance_type: str
    zone: str
    market: Market
    usd_per_hour: Decimal
    simulated: bool
    launched_at: datetime
    ended_at: datetime | None
    reason: str
    notice_deadline: datetime | None
    sessions: list[str]
    jobs: list[str] = Field(
        default_factory=list, description="Those whose workers are on it, by their names."
    )
    idle_since: datetime | None = Field(
        None, description="Since when no session and no job's worker is on it."
    )
    reserved: float = Field(0.0, description="The part of it that they hold, 0 to 1.")
    cpus: float = Field(0.0, description="That it has.")
    memory_bytes: int = 0
    gpu: str | None = Field(None, description="What it has, as `A10G:1`.")
    use: NodeUse | None = Field(None, description="None: it was not heard of late.")


class HeadRequest(Model):
    """Parts of a head's `head.json`."""

    settings: dict[str, Any]
    runtime: dict[str, Any]


class PackagesRequest(Model):
    """What a specification's `environment` came to where `up` ran."""

    pip_conf: str = Field(
        "", max_length=100_000, repr=False, description="Package indexes, with their passwords."
    )
    environment: EnvironmentSpec | None = Field(None, description="The packages of its lock.")


class SpecificationRequest(Model):
    """`PUT /v1/specification`: what the cluster is to run with from now on.

    `head` is what a head elsewhere is told anew: `settings` of its cloud and `runtime` of its
    nodes. Without `packages` these stay as they are.
    """

    specification: dict[str, Any] = Field(description="As in `cluster.yaml`; see `mlcloud schema`.")
    head: HeadRequest | None = None
    packages: PackagesRequest | None = None


class SpecificationInfo(Model):
    """What the cluster runs with, and what was applied just now. `named`: it was brought up by a
    specification, and not by settings alone."""

    specification: dict[str, Any]
    named: bool = True
    applied: list[str] = Field([])


class AttemptInfo(Model):
    """What came of the latest try to buy a node of an offer. `until`: when it is tried again."""

    at: datetime
    node_type: str
    what: str
    detail: str
    instance_type: str = ""
    zone: str = ""
    market: str = ""
    usd_per_hour: Decimal = Decimal(0)
    until: datetime | None = None


class ClusterInfo(Model):
    """`GET /v1/cluster`."""

    name: str
    state: Literal["starting", "running", "failed", "stopping"]
    detail: str
    cloud: str
    nodes: list[NodeInfo]
    sessions: list[SessionInfo]
    store: str
    usd: Decimal
    usd_per_hour: Decimal
    simulated: bool
    offers: list[str]
    budgets: list[BudgetInfo] = Field([])
    attempts: list[AttemptInfo] = Field([])
    standing_usd_per_hour: Decimal = Field(
        Decimal(0), description="What bills also while every session is parked: the head."
    )


class PreemptRequest(Model):
    """`POST /v1/nodes/{node}/preempt`: a drill. `node` may be a session's name."""

    notice_s: float = Field(120, ge=0, le=3600, description="Seconds between notice and the end.")


class Notice(Model):
    node: str
    deadline: datetime


class NoticeReport(Model):
    """What a node's agent saw in its metadata. The node's clock may be off, so no time of it."""

    key: str = Field(max_length=200, description="The same for the same event.")
    kind: str = Field(
        max_length=40,
        description="`terminate`, `stop`, `hibernate`, `preempt`, `reboot`, `redeploy`, "
        "`maintenance`, `lifetime`: the node goes away. `rebalance`, `freeze`, `migrate`: it is "
        "saved. `withdrawn`: the cloud took back what it said under this key.",
    )
    in_s: float | None = Field(
        None, ge=0, le=366 * 86400, description="Seconds that are left; None: not known."
    )


class FailureReport(Model):
    """Why a machine could not be made a node."""

    why: str = Field(max_length=1000)


class Heartbeat(Model):
    """`ends`: the node is about to end itself, and why."""

    pid: int
    ends: str = Field("", max_length=500)
    notices: list[NoticeReport] = Field([], max_length=50, description="Those in force.")
    use: NodeUse | None = None


class Warmth(Model):
    """What a node is to keep ready: a process with these modules, as of an actor of so many
    processors (`cluster/warmth.py`)."""

    modules: list[str]
    threads: int = Field(ge=1)


class HeartbeatAnswer(Model):
    warm: Warmth | None = None
