"""The wire of what the store has: states of sessions, the way back to them, training checkpoints.

GET  …/state       what would be there if the node went now
GET  …/history     the state after each cell ── POST …/restore, …/fork ─► back to it, or beside
GET  /v1/checkpoints   series of training states, and the steps of one
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from mlcloud.models import Model, SessionName


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
