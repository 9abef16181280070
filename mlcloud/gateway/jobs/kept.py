"""Results, and what generators yield, that stay in their workers, since no pickle can hold them:
where, and for how long.

    told "ok", a wire {"kept": …} ─► note ─► its worker stays, and is the one that gets what uses it
    let go of by every notebook that held it, or not used for its job's `keep` ─► dropped
    its worker is gone (node, notice, crash, budget)                           ─► lost, and why

The worker goes on holding what it held, so it goes on costing: its job pays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlcloud.errors import ResultLost
from mlcloud.values.refs import is_part, job_of, part

if TYPE_CHECKING:
    from mlcloud.gateway.jobs.crew import Worker

KEEP = "15m"
WHYS = 1000  # of values that are gone

Key = tuple[str, int]  # a job, or `refs.part` of it, and its item


@dataclass
class Value:
    """One of them."""

    worker: Worker
    keep_s: float
    until: float


class KeptResults:
    """Of all workers. `drop` tells a worker to forget some."""

    def __init__(self, drop: Callable[[Worker, list[Key]], None]) -> None:
        self._drop = drop
        self._values: dict[Key, Value] = {}
        self._holders: dict[str, set[str]] = {}  # notebooks that have handles, by job
        self._why: dict[Key, str] = {}

    def __bool__(self) -> bool:
        return bool(self._values)

    def of(self, worker: Worker) -> list[Key]:
        return [key for key, value in self._values.items() if value.worker is worker]

    def of_job(self, job: str) -> list[Key]:
        return [key for key in self._values if job_of(key[0]) == job]

    def note(self, key: Key, worker: Worker, keep_s: float) -> None:
        """It is in this worker. One that yielded the same before it was retried has it no more."""
        old = self._values.get(key)
        if old is not None and old.worker is not worker and not old.worker.over:
            del self._values[key]
            self._drop(old.worker, [key])
        self._values[key] = Value(worker, keep_s, time.monotonic() + keep_s)

    def used(self, worker: Worker) -> None:
        """Something that needs a value of this worker runs there."""
        for key in self.of(worker):
            value = self._values[key]
            value.until = time.monotonic() + value.keep_s

    def worker(self, refs: Iterable[Any]) -> Worker | None:
        """The one that has these results; None where none of them is kept in a worker.

        `refs` are (job, item, wire). Raises `ResultLost` where one is gone, or two are in different
        workers.
        """
        found: dict[str, tuple[Key, Worker]] = {}
        for job, item, wire in refs:
            if not is_kept(wire):
                continue
            key = (str(job), int(item))
            if key not in self._values:
                raise ResultLost(self.lost(key))
            worker = self._values[key].worker
            found[worker.name] = (key, worker)
        if len(found) > 1:
            (one, _), (other, _), *_ = found.values()
            raise ResultLost(
                f"{_named(one)} and {_named(other)} cannot be pickled and are kept in two workers, "
                "so nothing can have both: make them in one call"
            )
        return next((worker for _, worker in found.values()), None)

    def lost(self, key: Key) -> str:
        """What happened to a value that is not there, and what to do."""
        why = self._why.get(key, "it is gone with its worker")
        return (
            f"{_named(key)} cannot be pickled, so it was in its worker alone, and {why}. Make it "
            f"again: mlcloud.attach({job_of(key[0])!r}).rerun()"
        )

    # --- going ------------------------------------------------------------------------------------

    def hold(self, job: str, holder: str, *, held: bool) -> None:
        """A notebook has handles of this job's values, or has none any more."""
        holders = self._holders.get(job, set())
        if held:
            holders.add(holder)
            self._holders[job] = holders
        elif holder in holders:
            holders.discard(holder)
            if not holders:
                del self._holders[job]
        else:
            return  # a gateway before this one was told of it: `keep` bounds what is left
        for key in self.of_job(job):
            value = self._values[key]
            if held:
                value.until = max(value.until, time.monotonic() + 1.0)
                self._why.pop(key, None)
            elif not holders:
                value.until = 0.0
                self._why[key] = "no notebook referred to it any more"

    def look(self, needed: Callable[[Worker], bool]) -> None:
        """Now and then: what nobody has used for long."""
        late = [
            key
            for key, value in self._values.items()
            if time.monotonic() > value.until and not needed(value.worker)
        ]
        for key in late:
            keep_s = self._values[key].keep_s
            self.forget([key], self._why.get(key, f"nobody used it for {keep_s:g} s (`keep`)"))

    def forget(self, keys: Iterable[Key], why: str) -> None:
        """Workers that go on are told to."""
        told: dict[str, tuple[Worker, list[Key]]] = {}
        for key in list(keys):
            value = self._values.pop(key, None)
            if value is None:
                continue
            self._why[key] = why
            if not value.worker.over:
                told.setdefault(value.worker.name, (value.worker, []))[1].append(key)
        for worker, gone in told.values():
            self._drop(worker, gone)
        while len(self._why) > WHYS:
            del self._why[next(iter(self._why))]


def is_kept(wire: Any) -> bool:
    """Whether a result is only an address."""
    return isinstance(wire, dict) and "kept" in wire


def kept_in(job: str, entries: list[list[Any]]) -> Iterator[Key]:
    """Which of the results that were told stay, and which of the parts."""
    for item, kind, value, more in entries:
        if kind in ("ok", "part") and is_kept(value):
            yield (job if kind == "ok" else part(job, more[0])), item


def _named(key: Key) -> str:
    if is_part(key[0]):
        job, _, number = key[0].partition("#")
        return f"value {number} that item {key[1]} of job {job} yielded"
    return f"the result of item {key[1]} of job {key[0]}"
