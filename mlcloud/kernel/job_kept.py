"""What items returned or yielded and no pickle can hold: kept in the worker's process, used there.

    item ─► value ─► NotPicklable ─► keep ─► {"kept": [job, item], "info": …}, the result's wire
                     what it yields  ─► keep ─► {"kept": [job#number, item], …}, that part's
    an item that has this result as an argument ─► comes to this worker ─► get ─► the object

The gateway says how long (`gateway/jobs/kept.py`): a value goes with its worker, or by `drop`.
"""

from __future__ import annotations

from typing import Any

from mlcloud.errors import NotPicklable, ResultLost
from mlcloud.values import refs
from mlcloud.values.preview import describe
from mlcloud.values.secrets import Secrets

Key = tuple[str, int]


class Kept:
    """Of one worker, by job (or `refs.part` of it) and item."""

    def __init__(self) -> None:
        self._values: dict[Key, Any] = {}

    def keep(
        self, job: str, item: int, value: Any, error: NotPicklable, secrets: Secrets
    ) -> dict[str, Any]:
        """The result's wire. Runs the value's own `__repr__`, for a second at most."""
        self._values[job, item] = value
        why = getattr(error, "holds", None) or str(error)
        info = describe("", value, binding=0, nbytes=None, why=why)
        wire: dict[str, Any] = secrets.masked({"kept": [job, item], "info": info.to_wire()})
        return wire

    def get(self, job: str, item: int) -> Any:
        """The object itself. Raises `ResultLost`."""
        try:
            return self._values[job, item]
        except KeyError:
            raise ResultLost(
                f"the result of item {item} of job {job} is not in this worker any more: run it "
                f"again, mlcloud.attach({refs.job_of(job)!r}).rerun()"
            ) from None

    def drop(self, keys: list[list[Any]]) -> None:
        for job, item in keys:
            self._values.pop((job, item), None)

    def listed(self) -> list[list[Any]]:
        return [[job, item] for job, item in self._values]
