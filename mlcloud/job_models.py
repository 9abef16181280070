"""The wire of jobs: what a client asks for, and what the gateway tells of a job.

`/v1/jobs` takes and gives JSON, but for items and results: these carry bytes, and are msgpack
(`values/packed.py` says what is in them).
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Literal

from pydantic import Field

from mlcloud.models import (
    DataMount,
    EnvironmentSpec,
    Market,
    Model,
    SecretName,
    SecretSource,
    TagKey,
    TagValue,
)

JobId = r"^j-[0-9a-f]{12,32}$"


class JobState(str, Enum):
    """`scheduled` ones make others; the last three are for good."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class SweepRequest(Model):
    """What a job's items are to be: configurations of a space, each when there is a worker for it.

    `sweeps` says what the words mean; a metric's mode is `min` or `max`.
    """

    space: dict[str, dict[str, Any]] = Field(min_length=1, max_length=200)
    metrics: dict[str, Literal["min", "max"]] = Field(min_length=1, max_length=10)
    algorithm: str = Field("tpe", max_length=20)
    trials: int | None = Field(None, ge=1, le=100_000)
    asha: dict[str, int] | None = None
    breeding: dict[str, Any] | None = None
    seed: int | None = Field(None, ge=0, lt=2**32)
    lasts: str | None = Field(None, description="A duration: it ends then, with what it has.")


class JobRequest(Model):
    """A function to be called once for each item that is sent after this."""

    id: str = Field(pattern=JobId, description="Made by the client: sent twice, it is one job.")
    name: str = Field(max_length=200, description="The function's.")
    single: bool = Field(False, description="One item: a `submit`, not a `map`.")
    generator: bool = Field(False, description="It yields; what it yields is sent as it comes.")
    source: str = Field("", max_length=200_000, description="The function's text, for people.")
    gpu: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]+(:[0-9]+)?$")
    cpus: float = Field(1, gt=0, le=1024)
    memory: str | None = None
    market: Market = "spot"
    max_workers: int = Field(8, ge=1, le=1000, description="Worker processes at once.")
    retries: int = Field(0, ge=0, le=100, description="Of an item that raised; not of preemptions.")
    deadline: str | None = Field(None, description="A duration from now; done in time by policy.")
    expect: str | None = Field(None, description="How long all of its work takes on one worker.")
    max_cost: str | None = Field(None, description="Dollars.")
    timeout: str | None = Field(None, description="An item that takes longer has failed.")
    keep: str | None = Field(
        None, description="How long a result that cannot be pickled stays unused in its worker."
    )
    every: str | None = Field(None, description="A duration: run it again and again, so far apart.")
    cron: str | None = Field(None, max_length=200, description="Five fields, UTC.")
    environment: EnvironmentSpec | None = None
    secrets: dict[SecretName, SecretSource] = Field(
        {},
        max_length=100,
        description="Environment variables of its workers, and where each value is kept.",
    )
    data: list[DataMount] = Field(
        [], max_length=50, description="There, in a worker, before its first item runs."
    )
    sweep: SweepRequest | None = Field(None, description="Its items are made here, not sent.")
    tags: dict[TagKey, TagValue] = Field({}, max_length=50)
    owner: str = Field("", max_length=100)
    rerun_of: str | None = Field(None, pattern=JobId)
    schedule: str | None = Field(None, pattern=JobId, description="Of which it is a run.")


class JobInfo(Model):
    """A job, as of now."""

    id: str
    name: str
    state: JobState
    detail: str = Field("", description="Why it failed, or what it waits for.")
    single: bool
    sweep: bool = False
    items: int = Field(description="That have come so far.")
    complete: bool = Field(description="Whether all items have come.")
    done: int
    failed: int
    running: int = Field(description="Items that are with workers.")
    preempted: int = Field(description="Items that run again since their node was taken.")
    retried: int = Field(description="Items that ran again since they had failed.")
    workers: int
    kept: int = Field(0, description="Results that cannot be pickled and are in their workers.")
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    usd: Decimal
    usd_per_hour: Decimal
    simulated: bool
    gpu: str | None = None
    cpus: float = 1
    market: Market = "spot"
    places: list[str] = Field([], description="Where its workers are, or were last.")
    owner: str = ""
    rerun_of: str | None = None
    schedule: str | None = None
    next_run: datetime | None = Field(None, description="Of a scheduled one.")
    last_result: int = Field(0, description="The number of its newest results.")
    last_log: int = 0
    secrets: dict[str, str] = Field({}, description="Their names, and where each is kept.")
    missing: list[str] = Field(
        [], description="Secrets that it waits for: a notebook has them, and the gateway does not."
    )
    data: dict[str, str] = Field({}, description="Path and URL.")
    remembered: dict[str, Any] = Field(
        {}, description="What it ran with: Python, packages, mlcloud's version, the node's image."
    )


class Hold(Model):
    """A notebook has handles of results that are kept in workers, or has none any more."""

    holder: str = Field(pattern=r"^[0-9a-f]{16}$")
    held: bool


class Rerun(Model):
    """Run a job again, as it was."""

    id: str = Field(pattern=JobId, description="Of the new one.")
    failed_only: bool = Field(False, description="Only the items that failed.")
    packages: Literal["then", "now"] = Field(
        "then", description="`then`: those that it ran with; `now`: those that the nodes have."
    )


class PruneJobs(Model):
    """Remove jobs that are over."""

    older: str = Field(description="A duration: those that ended so long ago.")
    dry: bool = Field(False, description="Only tell which.")


class LogPiece(Model):
    """What items printed."""

    number: int
    item: int
    stream: str
    text: str


class JobLog(Model):
    """A page of it, and whether more can come."""

    pieces: list[LogPiece]
    ended: bool


class ItemsTaken(Model):
    """The answer to a batch of items."""

    total: int = Field(description="How many have come.")
    waiting: int = Field(description="How many of them no worker has begun.")
