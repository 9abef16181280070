"""The wire between client and gateway: pydantic models, one place, no behaviour.

Requests and answers of the `/v1` routes are JSON. Events and executions travel over the session's
WebSocket as msgpack (they carry bytes); `Frame` names the keys of those maps. What a cell ships and
returns (`shipment`, `names`) is defined in `values/messages.py`, and opaque here.
"""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

API_VERSION = "1"

Market = Literal["spot", "on-demand"]

TagKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/+@-]{1,128}$")]
TagValue = Annotated[str, Field(max_length=256, pattern=r"^[^\x00-\x1f]*$")]


class SessionState(str, Enum):
    """The life of a session; drawn in `gateway/sessions.py`."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    WAITING = "waiting"
    MOVING = "moving"
    PARKED = "parked"
    CLOSED = "closed"
    FAILED = "failed"


class ExecutionState(str, Enum):
    """An execution is finished when its cell has ended, safe when its snapshot is committed."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    SAFE = "safe"
    FAILED = "failed"


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class WheelSpec(Model):
    """A wheel that the client has put into the store."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.+!-]{1,200}\.whl$", description="Its file name.")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="blake3 of its bytes.")
    objects: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}:[0-9]{1,9}$")]] = Field(
        description="Its chunks in order, `hash:size`, as put by `PUT /v1/objects/{hash}`."
    )


Requirement = Annotated[
    str, Field(max_length=2000, pattern=r"^[A-Za-z0-9][^\r\n]*$", description="One line of pip's.")
]


class EnvironmentSpec(Model):
    """The packages of a session beside, or instead of, those that the nodes have."""

    python: str = Field(pattern=r"^[0-9]+\.[0-9]+$", description="The Python it was made for.")
    pins: list[Requirement] = Field(
        [], description="A complete lock: installed as it is, nothing resolved.", max_length=5000
    )
    wheels: list[WheelSpec] = Field([], description="Installed with the pins.", max_length=500)
    requirements: list[Requirement] = Field(
        [], description="Resolved on the node, with what they need.", max_length=5000
    )
    summary: str = Field("", description="For people.", max_length=20_000)


class NodeFacts(Model):
    """`GET /v1/environment` and `…/sessions/{name}/environment`: what code runs with there."""

    python: str
    implementation: str
    platform: str
    mlcloud: str
    api: str
    packages: dict[str, str] = Field(
        description="Version by name (PEP 503); empty: named by the session, not resolved yet."
    )
    importable: dict[str, bool] = Field({}, description="Of the modules that were asked about.")
    source: Literal["nodes", "expected", "session"] = Field(
        "nodes",
        description="`nodes`: what every node has. `expected`: with the session's own packages, "
        "which is on no node yet. `session`: read beside its kernel just now.",
    )


SessionName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$",
        description="Letters, digits, `_`, `.` and `-`; at most 63.",
    ),
]


class DataMount(Model):
    """Files of a bucket that a session has under a path, read-only."""

    path: str = Field(
        max_length=1000,
        pattern=r"^[^\x00-\x1f]+$",
        description="Absolute, or in the session's working directory.",
    )
    url: str = Field(max_length=2000, description="`s3://…`, `gs://…`, `az://…`, `https://…`.")
    cache: str = Field(
        "20GB", description="What the data of all sessions may have on the disk of a node."
    )


SecretName = Annotated[
    str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$", description="An environment variable.")
]
SecretSource = Annotated[
    str,
    Field(
        max_length=2000,
        description="Where its value is kept, as in a specification (`keyring:SERVICE/USER`, "
        "`env:VARIABLE`, `aws:NAME`, …), never the value; empty: a notebook has it.",
    ),
]


class SecretsRequest(Model):
    """`PUT /v1/sessions/{name}/secrets`: more secrets, or values of those it has."""

    sources: dict[SecretName, SecretSource] = Field({}, max_length=100)
    values: dict[SecretName, SecretStr] = Field(
        {}, max_length=100, description="Held in the gateway's memory, and written nowhere."
    )


class SecretInfo(Model):
    """A session's secret, without its value."""

    name: str
    source: str
    held: bool = Field(description="Whether it can be had: the gateway has it, or a cloud does.")


class SessionRequest(Model):
    """`POST /v1/sessions`. Creating a name that exists returns it unchanged."""

    name: SessionName
    gpu: str | None = Field(None, description="`NAME:COUNT`, e.g. `A10G:1`; None: no GPU.")
    cpus: float = Field(1, gt=0, description="vCPUs the session reserves.")
    memory: str | None = Field(
        None, description="Memory limit such as `4GB`; None: the node's. Enforced on the kernel."
    )
    market: Market = Field(
        "spot", description="`spot` falls back to on-demand where there is none."
    )
    idle_timeout: str | None = Field(
        None, description="Parks the session after this long without a cell; None: the cluster's."
    )
    keep_files: str | None = Field(
        None,
        description="Files of its working directory, up to so many bytes (`50MB`), are saved with "
        "its state and come along to another node; None: none.",
    )
    environment: EnvironmentSpec | None = Field(
        None, description="Packages of its own; None: those that the nodes have."
    )
    budget: str | None = Field(
        None, description="`5`, `5/h`, `50/day`: dollars it may cost; None: no limit of its own."
    )
    data: list[DataMount] = Field(
        default_factory=list, max_length=50, description="There before its first cell runs."
    )
    secrets: dict[SecretName, SecretSource] = Field(
        default_factory=dict,
        max_length=100,
        description="Environment variables of its kernel, and where each value is kept.",
    )
    workers: int = Field(
        1,
        ge=1,
        le=1024,
        description="Kernels, each with these resources: more than 1 make a gang, whose cells run "
        "on all ranks.",
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        description="Of a gang that may shrink: it goes on with so many at least, and grows up to "
        "`workers` when there is room. Its state is rank 0's.",
    )
    ancestors: list[str] = Field(
        default_factory=list, description="Ids of the sessions from which it was forked."
    )
    owner: str | None = Field(
        None, max_length=100, description="For whom it spends; the client gives the OS user's name."
    )
    tags: dict[TagKey, TagValue] = Field(
        default_factory=dict, max_length=50, description="What costs are grouped by, `team: nlp`."
    )


class ShapeRequest(Model):
    """`POST /v1/sessions/{name}/resume`: the node shape to resume on.

    What is left out stays as the session has it; null, where it may be given, is what a new session
    has without it.
    """

    gpu: str | None = Field(None, description="`NAME:COUNT`; null: no GPU.")
    cpus: float = Field(1, gt=0, description="vCPUs the session reserves.")
    memory: str | None = Field(None, description="A limit such as `4GB`; null: the node's.")
    market: Market = Field("spot", description="`spot` or `on-demand`.")


class Bill(Model):
    """What an execution or session has cost. Money is Decimal dollars, sent as strings."""

    seconds: float
    usd: Decimal
    saved_usd: Decimal = Field(description="Against the same time at on-demand prices.")
    instance_type: str
    market: str
    zone: str
    moves: int
    simulated: bool


class RankInfo(Model):
    """Where a rank of a gang is."""

    rank: int
    node: str
    instance_type: str
    zone: str


class SessionInfo(Model):
    """A session as the gateway sees it."""

    id: str
    name: str
    state: SessionState
    gpu: str | None
    cpus: float
    memory: str | None
    market: Market
    created_at: datetime
    node: str | None = Field(description="The instance it is on; None while it has none.")
    instance_type: str | None
    zone: str | None
    usd_per_hour: Decimal = Field(description="What it bills right now; 0 while it has no node.")
    usd: Decimal = Field(description="Spent so far.")
    simulated: bool
    running: str | None = Field(description="The execution that runs now.")
    queued: int
    last_event: int
    finished_cells: int = Field(description="Cells that finished without an error.")
    safe_cells: int = Field(description="Cells whose state is in the store.")
    environment: str = Field("", description="Its own packages in words; empty: the nodes'.")
    ancestors: list[str] = Field(
        default_factory=list, description="Ids of the sessions from which it was forked."
    )
    detail: str = Field("", description="Why, for `failed`, and what it waits for, for `starting`.")
    secrets: dict[str, str] = Field(
        default_factory=dict, description="Their names and where each is kept; never a value."
    )
    idle_since: datetime | None = Field(
        None, description="Since when it holds a node and runs nothing."
    )
    data_usd_estimate: Decimal = Field(
        Decimal(0), description="Beside `usd`: egress and store requests, estimated; not billed."
    )
    workers: int = Field(1, description="Kernels; more than 1: a gang.")
    ranks: list[RankInfo] = Field([], description="Of a gang: where each is now.")


class UseInfo(Model):
    """What an execution used. Shares are of 1, bytes resident; the GPU's are None where it has none
    or was not looked at in that time."""

    seconds: float
    cpu_seconds: float
    memory_mean: int
    memory_peak: int
    gpu_mean: float | None = Field(None, description="Of the time, over all its GPUs.")
    gpu_max: float | None = None
    gpu_memory_peak: int | None = Field(None, description="Of its fullest GPU.")


class ExecutionInfo(Model):
    id: str
    session: str
    state: ExecutionState
    code: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    runs: int = Field(description="How often it was started: more than 1 after a preemption.")
    first_event: int = Field(
        description="Its events come after this number of the session's journal."
    )
    number: int | None = Field(None, description="The cell's, in its notebook.")
    use: UseInfo | None = Field(None, description="What it used; None: not measured.")


class Boundary(Model):
    """One state of `GET /v1/sessions/{name}/history`: as it was after a cell."""

    step: int = Field(description="What `restore` takes; it grows with each cell.")
    code: str = Field(description="The cell's; empty for a state that was restored.")
    finished_at: datetime | None
    restored_from: int | None = Field(description="The step of which this one is a copy.")
    names: list[str]
    bytes: int = Field(description="The state's size.")
    new_bytes: int = Field(description="What had to be written for it.")
    left_out: dict[str, str] = Field(description="Names that could not be saved, and why.")


class SeriesInfo(Model):
    """One series of training checkpoints in the cluster's store: `GET /v1/checkpoints`."""

    name: str = Field(description="As `mlcloud.Checkpoints(store, name)` takes it.")
    session: str | None = Field(
        description="Whose loop saved it; None: nobody's who is known here."
    )
    job: str | None = Field(description="The same of a job.")
    steps: int = Field(description="How many there are.")
    newest: int = Field(description="The newest step.")
    written_at: datetime = Field(description="When that was written, by the store's clock.")


class CheckpointStep(Model):
    """One step of `GET /v1/checkpoints/steps`. Where `fault` says why it is no use, the rest is
    unknown."""

    step: int
    bytes: int
    new_bytes: int = Field(description="What had to be uploaded for it.")
    created_at: datetime | None
    metric: float | None
    complete: bool = Field(description="The loop had come to its end.")
    fault: str = Field(description="Empty, `damaged`, `sealed` or `unreadable`.")
    problem: str


class Variable(Model):
    """One name of a session, and what a move would do to it."""

    name: str
    how: Literal["saved", "recomputed", "imported", "lost"]
    bytes: int | None = Field(None, description="With all it shares objects with.")
    shares: list[str] = Field(default_factory=list, description="Names that share objects with it.")
    cells: list[str] = Field(
        default_factory=list, description="Which run again to make it, in order."
    )
    seconds: float | None = Field(None, description="What these took.")
    why: str = Field("", description="Why it cannot be saved.")


class SavedState(Model):
    """`GET /v1/sessions/{name}/state`: what would be there if the node went at this moment."""

    step: int = Field(description="The newest state in the store; 0: none yet.")
    safe_to: str = Field(description="The last cell that is in it, by its notebook's number.")
    unsafe: int = Field(description="Cells that have finished and are not in the store yet.")
    pending_bytes: int = Field(description="What these may have changed, about.")
    bytes: int
    files: int = Field(description="Files of the working directory that are saved with it.")
    variables: list[Variable]
    ranks: int = Field(1, description="Kernels that have a state of their own in it.")


class ForkRequest(Model):
    """`POST /v1/sessions/{name}/fork`: another session, which begins with a state of this one."""

    name: SessionName
    step: int | None = Field(None, ge=0, description="Of which cell; None: the newest state.")


class RestoreRequest(Model):
    """`POST /v1/sessions/{name}/restore`: back to the state after an earlier cell."""

    step: int = Field(ge=0)


class Rewound(Model):
    step: int = Field(description="The copy's own step: the newest one from now on.")
    names: list[str] = Field(description="What the session has now.")


class LogPage(Model):
    """`GET /v1/sessions/{name}/log`: a part of what an execution printed."""

    execution_id: str
    text: str
    next: str | None = Field(description="The next page's `cursor`; None: this was the last.")


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
    applied: list[str] = []


class BudgetRequest(Model):
    """`PUT /v1/budgets`: of a session, a user, a job, or else of the cluster. A limit of null
    removes it."""

    session: str | None = None
    user: str | None = Field(None, max_length=100, description="All sessions of this owner.")
    job: str | None = Field(None, max_length=100, description="Its id.")
    limit: str | None = Field(description="`5`, `5/h`, `50/day`, `1000/month`: dollars.")
    alerts: list[Annotated[float, Field(gt=0, lt=1)]] = [0.5, 0.8, 0.95]


class BudgetInfo(Model):
    """A budget in force: of a session, a user or a job; none of them: the cluster's. `refuses`:
    why new work is refused now."""

    session: str | None
    user: str | None = None
    job: str | None = None
    limit: str
    limit_usd: Decimal
    spent_usd: Decimal
    period: str
    ends_at: datetime | None
    alerts: list[float]
    refuses: str
    reserve_usd: Decimal = Field(
        Decimal(0), description="Kept back: what stopping now would cost, minimum billing included."
    )


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


class CostRow(Model):
    """What one group has cost. `idle_usd` is that part of `usd` in which nothing ran."""

    key: dict[str, str] = Field(description="`day`, `session` …: what it is grouped by.")
    usd: Decimal
    on_demand_usd: Decimal
    idle_usd: Decimal
    node_hours: Decimal = Field(description="Of whole nodes.")


class CostEstimate(Model):
    """What bills beside the nodes. Nobody measured it: see `basis`."""

    what: str
    usd: Decimal | None = Field(None, description="In the report's time; None: not known.")
    usd_per_month: Decimal | None = None
    basis: str = Field(description="How it comes about, with the list price.")
    source: str
    as_of: date
    simulated: bool


class DataMoved(Model):
    """What a session moved, as far as the gateway saw it, and what that may cost: an estimate."""

    session: str
    to_notebook_bytes: int
    between_regions_bytes: int
    store_writes: int
    store_reads: int
    usd_estimate: Decimal


class CostNode(Model):
    """A node that rows name."""

    cloud: str
    region: str
    zone: str
    instance_type: str
    market: Market
    simulated: bool
    source: str


class Costs(Model):
    """`GET /v1/costs`: what nodes have cost, by who caused it."""

    by: list[str]
    since: datetime | None = Field(
        description="None: from the beginning. Days before yesterday are whole ones, UTC."
    )
    until: datetime = Field(description="Give it with `next`, for pages of one and the same time.")
    usd: Decimal
    on_demand_usd: Decimal
    idle_usd: Decimal
    node_hours: Decimal
    usd_per_hour: Decimal = Field(description="Of all nodes, now.")
    simulated: bool = Field(description="Whether prices that nobody is charged are in it.")
    rows: list[CostRow]
    next: str | None = Field(None, description="Where the next page begins; None: this is the end.")
    nodes: dict[str, CostNode] = {}
    tags: dict[str, dict[str, str]] = Field({}, description="Of the sessions that rows name.")
    estimates: list[CostEstimate] = []
    data: list[DataMoved] = Field([], description="The first 100 sessions that moved most.")


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
    budgets: list[BudgetInfo] = []
    attempts: list[AttemptInfo] = []
    standing_usd_per_hour: Decimal = Field(
        Decimal(0), description="What bills also while every session is parked: the head."
    )


class SpendOf(Model):
    """Of a session; None: of no session, which is nodes that start up or wait, and the head."""

    session: str | None
    usd: list[Decimal] = Field(description="For each step; the last one goes on.")


class Spend(Model):
    """`GET /v1/spend`: dollars by session over time."""

    begins_at: datetime
    step_s: int
    of: list[SpendOf]
    usd_before_today: Decimal = Field(
        description="All that was spent before this day (UTC): `usd` of the cluster less this is "
        "what today has cost."
    )


class AdviceInfo(Model):
    """One advice. Dollars are never below zero; every number of `text` comes from `arithmetic`."""

    kind: str = Field(description="`right-size`, `park`, `idle-node`, `market`, `commitment` …")
    about: str = Field(description="The session, node or resource.")
    text: str
    saves_usd: Decimal
    per: Literal["month", "once"]
    arithmetic: list[str] = Field(description="`what: expression = result`, or a fact.")
    action: str = Field(description="What does it.")
    confidence: Literal["low", "medium", "high"]
    simulated: bool = Field(description="Whether its prices are.")


class AdviceReport(Model):
    """`GET /v1/advice`, the biggest saving first."""

    since: datetime | None = Field(description="Since when it is measured; None: nothing was yet.")
    executions: int = Field(description="That were measured since then.")
    advice: list[AdviceInfo]
    notes: list[str] = []


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


class RunRequest(Model):
    """`POST /v1/sessions/{name}/executions`: run plain code, without names of the caller's."""

    id: str = Field(pattern=r"^[A-Za-z0-9_-]{8,64}$", description="Chosen by the client.")
    code: str
    allow_stdin: bool = Field(
        False, description="Whether `input()` asks whoever is attached, instead of failing."
    )
    max_cost: str | None = Field(
        None, description="Dollars after which it is interrupted, e.g. `0.50`."
    )
    job: str | None = Field(
        None, min_length=1, max_length=100, description="The job whose budget pays for it."
    )


class ObjectNames(Model):
    """`POST /v1/objects/missing`, question and answer: chunks as `blake3:size`."""

    names: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}:[0-9]{1,9}$")]] = Field(
        max_length=10_000, description="At most 10,000 at a time."
    )


class CompleteRequest(Model):
    """`POST /v1/sessions/{name}/complete`: what Tab asks of the names there."""

    code: str = Field(max_length=1_000_000, description="A cell's code.")
    cursor: int = Field(ge=0, description="Where the cursor is in it, in characters.")


class CompleteAnswer(Model):
    matches: list[tuple[int, str, str]] = Field(
        default_factory=list,
        description="Where what it replaces begins (it ends at the cursor), the text, its type.",
    )


class InspectRequest(Model):
    """`POST /v1/sessions/{name}/inspect`: what `?` asks of a name there."""

    name: str = Field(max_length=10_000, description="A name, or attributes of one: `model.fit`.")
    detail: int = Field(0, ge=0, le=1, description="1: with the source code (`??`).")


class InspectAnswer(Model):
    data: dict[str, str] = Field(
        default_factory=dict, description="By MIME type; empty where there is no such name."
    )


class Health(Model):
    status: Literal["ok"] = "ok"
    version: str
    api: str = API_VERSION
    pid: int
    python: str


class ErrorBody(Model):
    """Every error answer. `code` is the name of a class in `mlcloud.errors`."""

    code: str
    message: str


class Frame:
    """Keys of the WebSocket's msgpack maps.

    client → gateway: `{op: "execute", id, code, shipment, kind, options}`, `{op: "interrupt", id}`,
                      `{op: "kill", id}`, `{op: "input", id, request, value}`,
                      `{op: "comm", id, message: {type, content, metadata, buffers}}`
    gateway → client: `{events: [[seq, execution id, kind, blob], …]}`,
                      `{error: {code, message}, id}`, `{secrets: {name: source, …}}`
    """

    OP = "op"
    EVENTS = "events"
    ERROR = "error"
    SECRETS = "secrets"
