"""The wire between client and gateway: pydantic models, no behaviour. Sessions, and what all share.

    models           sessions and their cells, environments, secrets; `Model`, errors, the frames
    cluster_models   the cluster: its nodes, what it runs with, what agents tell
    cost_models      what was spent, budgets, advice
    saved_models     states of sessions in the store, and training checkpoints
    job_models       jobs

Requests and answers of the `/v1` routes are JSON. Events and executions travel over the session's
WebSocket as msgpack (they carry bytes); `Frame` names the keys of those maps. What a cell ships and
returns (`shipment`, `names`) is defined in `values/messages.py`, and opaque here.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

API_VERSION = "1"

Market = Literal["spot", "on-demand"]

TagKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/+@-]{1,128}$")]
TagValue = Annotated[str, Field(max_length=256, pattern=r"^[^\x00-\x1f]*$")]


class SessionState(str, Enum):
    """The life of a session; drawn in `gateway/session.py`."""

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


class LogPage(Model):
    """`GET /v1/sessions/{name}/log`: a part of what an execution printed."""

    execution_id: str
    text: str
    next: str | None = Field(description="The next page's `cursor`; None: this was the last.")


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
