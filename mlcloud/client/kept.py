"""Results of jobs that cannot be pickled: handles of objects that live in a job's worker.

    model = load.submit("large").result()      ─► KeptResult: a RemoteValue, in its worker
    scores = predict.map(repeat(model), rows)  ─► runs in that worker, where `model` is the object

While a notebook refers to such results (a handle, or the job it came from), `Hold` tells the
gateway; when none does, the worker is given back at once, else after `keep` without use.
"""

from __future__ import annotations

import secrets
import threading
import weakref
from typing import TYPE_CHECKING, Any

from mlcloud import errors
from mlcloud.client.remote_value import RemoteValue
from mlcloud.values import refs
from mlcloud.values.messages import RemoteInfo

if TYPE_CHECKING:
    from mlcloud.client.connection import Connection


class Hold:
    """This notebook's reference to what a job left in its workers; it ends when this is gone."""

    def __init__(self, connection: Connection, job: str) -> None:
        self.job = job
        body = {"holder": secrets.token_hex(8), "held": True}
        connection.post(f"/v1/jobs/{job}/hold", body)
        ended = weakref.finalize(self, _let_go, connection, job, {**body, "held": False})
        # A notebook that is closed may be opened again: `keep` bounds what is left then.
        ended.atexit = False


def _let_go(connection: Connection, job: str, body: dict[str, Any]) -> None:
    """Called wherever garbage is collected: what asks the gateway is a thread of its own."""

    def tell() -> None:
        if not connection.answers():
            return  # a cluster that is gone holds nothing, and is not to be started for that
        try:
            connection.post(f"/v1/jobs/{job}/hold", body)
        except errors.MLCloudError:
            return  # `keep` bounds it

    threading.Thread(target=tell, name="mlcloud-let-go", daemon=True).start()


class KeptResult(RemoteValue):
    """What an item returned or yielded and no pickle can hold. As an argument of `.submit` or
    `.map` it is the object itself: the call runs in the worker that has it."""

    __slots__ = ("_hold", "_item", "_job")
    _hold: Hold
    _item: int
    _job: str  # or `refs.part` of it

    def __init__(self, info: RemoteInfo, hold: Hold, job: str, item: int) -> None:
        super().__init__(info, hold.job, place=f"a worker of job {hold.job}")
        object.__setattr__(self, "_hold", hold)
        object.__setattr__(self, "_job", job)
        object.__setattr__(self, "_item", item)

    @property
    def __mlcloud_ref__(self) -> tuple[str, str, int]:
        """As that of the job's result."""
        return "job", self._job, self._item

    def get(self) -> Any:
        """Raises `NotPicklable`: it cannot come. The message says why, and what can be done."""
        raise errors.NotPicklable(f"{self._hint()}. Why it cannot come: {self._info.why}")

    def _where(self) -> str:
        return f"in {self.place}"

    def _hint(self) -> str:
        return (
            f"This {self.type} lives in {self.place} and cannot be pickled: call a remote function "
            "with it (`f.submit(value)`, `f.map(…)`), which runs there, and return what you need"
        )


def of_wire(wire: dict[str, Any], hold: Hold) -> KeptResult:
    """The handle of a result's wire (`kernel/job_kept.py`)."""
    job, item = wire["kept"]
    return KeptResult(RemoteInfo.from_wire(wire["info"]), hold, str(job), int(item))


def job_in(wire: dict[str, Any]) -> str:
    """The job that the result is of."""
    return refs.job_of(str(wire["kept"][0]))
