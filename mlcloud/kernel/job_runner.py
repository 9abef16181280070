"""What runs items in a job's worker process: one thread, one item after the other.

    batches ─► queue ─► run: load the item ─► call ─► pack what it returned ─► Outgoing ─► events()
                              └ what it prints, by item ─────────────────────┘

Batches of short items are told of together (`TELL_S`), a long item at once. The thread knows
nothing of Ray: the actor (`job_actor.py`) puts batches in and takes events out.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from mlcloud.checkpoint import context
from mlcloud.errors import MLCloudError, NotPicklable
from mlcloud.kernel.job_kept import Kept
from mlcloud.kernel.job_output import Output
from mlcloud.kernel.tracebacks import frames, strip
from mlcloud.store import ChunkRef, Store
from mlcloud.sweeps.reporting import TrialStopped
from mlcloud.values import exceptions, packed, refs
from mlcloud.values.pickling import holds_secret
from mlcloud.values.reducers import Classes
from mlcloud.values.secrets import Secrets

TELL_S = 0.02

# Its number, the packed call, results of other jobs that it needs; and for a member of a population
# the item whose checkpoint it begins with.
Item = tuple[Any, ...]
Told = dict[str, Any]


@dataclass
class Task:
    """A job, as a worker has it."""

    job: str
    wire: Any
    needs: list[Any]
    generator: bool
    usd_per_hour: str = "0"
    simulated: bool = False
    mean_time_to_preemption_s: float = context.DEFAULT_MEAN_TIME_TO_PREEMPTION_S
    code: packed.Code | None = None


@dataclass
class Results:
    """Of other jobs, that items have as arguments: `[job, item, wire]` each."""

    rows: list[Any]
    get: packed.Get
    kept: Kept
    task: Task | None = None
    loaded: dict[tuple[str, int], Any] = field(default_factory=dict)

    def __call__(self, ref: Any) -> Any:
        _, job, item = ref[0], ref[1], ref[2]
        key = (str(job), int(item))
        if key not in self.loaded:
            for name, number, wire in self.rows:
                if (name, number) == key:
                    if isinstance(wire, dict):
                        self.loaded[key] = self.kept.get(*wire["kept"])
                        break
                    code = self.task.code if self.task else None
                    namespace = code.namespace if code else {}
                    classes = code.classes if code else Classes()
                    self.loaded[key] = packed.unpack(wire, namespace, classes, self.get)
                    break
            else:
                raise LookupError(f"the result of job {job} did not come with the item")
        return self.loaded[key]


class Runner:
    """`wake` is called, in any thread, when there is something to tell."""

    def __init__(self, store_url: str, wake: Callable[[], None]) -> None:
        self._store_url = store_url
        self._store: Store | None = None
        self._wake = wake
        self._lock = threading.Lock()
        self._more = threading.Condition(self._lock)
        self._queue: deque[tuple[Task, Item]] = deque()
        self._told: list[Told] = []
        self._told_at = 0.0
        self.output = Output()
        self._results: list[list[Any]] = []
        self.running: tuple[str, int, float] | None = None
        self._unwanted: set[tuple[str, int]] = set()  # trials that are to stop
        self.notice = context.Notice()
        self.kept = Kept()
        self.secrets = Secrets()
        self._task: Task | None = None
        self.output.redirect()
        threading.Thread(target=self._run, name="mlcloud-items", daemon=True).start()
        threading.Thread(target=self._tell_late, name="mlcloud-tell", daemon=True).start()

    # --- from the actor ---------------------------------------------------------------------------

    def put(self, task: Task, items: list[Item]) -> None:
        with self._more:
            self._queue.extend((task, item) for item in items)
            self._more.notify()

    def give_back(self, job: str | None = None) -> list[int]:
        """Items that were not begun; they are not run here any more."""
        with self._lock:
            mine = [item[0] for task, item in self._queue if job is None or task.job == job]
            self._queue = deque(
                each for each in self._queue if job is not None and each[0].job != job
            )
            return mine

    def held(self) -> list[list[Any]]:
        """What a gateway that comes back may count on: items that wait or run here."""
        with self._lock:
            found = [[task.job, item[0]] for task, item in self._queue]
            if self.running is not None:
                found.insert(0, [self.running[0], self.running[1]])
            return found

    def take(self) -> list[Told]:
        """What there is to tell, oldest first."""
        with self._lock:
            self._flush()
            told, self._told = self._told, []
            return told

    def give(self, values: dict[str, str]) -> None:
        """Secrets: environment variables from now on."""
        self.secrets = Secrets({**self.secrets.values, **values})
        self.output.secrets = self.secrets
        os.environ.update(values)

    def stop(self, job: str, item: int) -> None:
        """A trial is to stop at its next report."""
        with self._lock:
            self._unwanted.add((job, item))

    def noticed(self, in_s: float | None) -> None:
        if in_s is None:
            self.notice.clear()
        else:
            self.notice.set(datetime.now(timezone.utc) + timedelta(seconds=in_s))

    # --- telling ----------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Under the lock."""
        logs = self.output.take()
        if (self._results or logs) and self._task is not None:
            told = {"job": self._task.job, "results": self._results, "logs": logs}
            self._told.append(told)
            self._results = []

    def _add(self, *result: Any, now: bool = False) -> None:
        if result[1] in ("ok", "error"):
            self.output.end()
        with self._lock:
            self._results.append(list(result))
            due = now or not self._queue or time.monotonic() - self._told_at > TELL_S
            if due:
                self._told_at = time.monotonic()
                self._flush()
        if due:
            self._wake()

    def _tell_late(self) -> None:
        """What a short item said before a long one began."""
        while True:
            time.sleep(TELL_S * 5)
            with self._lock:
                before = len(self._told)
                self._flush()
                is_any = len(self._told) > before
            if is_any:
                self._wake()

    # --- running ----------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._more:
                while not self._queue:
                    self._more.wait()
                task, item = self._queue.popleft()
                if task is not self._task:
                    self._flush()
                    self._task = task
                self.running = (task.job, item[0], time.monotonic())
                self.output.begin(item[0])
            began = time.monotonic()
            try:
                self._one(task, item)
            except BaseException as error:  # a fault of ours, or SystemExit in somebody's thread
                self._add(item[0], "error", self._packed_error(task, error), [0.0], now=True)
            with self._lock:
                self.running = None
                self._unwanted.discard((task.job, item[0]))
            del began, item

    def _one(self, task: Task, item: Item) -> None:
        number, wire, needs, *parent = item
        began = time.perf_counter()
        try:
            code = self._code(task)
            code.classes.secrets = self.secrets  # no pickle of it may hold one
            resolve = Results(needs, self._get, self.kept, task)
            args, kwargs, names = packed.unpack(
                wire, code.namespace, code.classes, self._get, resolve
            )
            if names:
                code.namespace.update(names)
            run = context.RunContext(
                store_url=self._store_url,
                series=f"{task.job}/{number}",
                report=self._report,
                notice=self.notice,
                mean_time_to_preemption_s=task.mean_time_to_preemption_s,
                usd_per_hour=Decimal(task.usd_per_hour),
                simulated=task.simulated,
                begins_with=f"{task.job}/{parent[0]}" if parent else None,
            )
            context.set_current(run)
            try:
                value = code.function(*args, **kwargs)
                if inspect.iscoroutine(value):
                    value = asyncio.run(value)
                if task.generator:
                    self._yielded(task, number, value, began)
                    return
            finally:
                context.set_current(None)
            wire = self._result(task, task.job, number, value, "result")
        except BaseException as error:
            took = time.perf_counter() - began
            self._add(number, "error", self._packed_error(task, error), [took], now=True)
            return
        took = time.perf_counter() - began
        self._add(number, "ok", wire, [took], now=took > TELL_S)

    def _result(self, task: Task, job: str, number: int, value: Any, name: str) -> Any:
        """As it travels; what no pickle can hold stays here, and its address travels."""
        code = task.code
        assert code is not None
        try:
            return self._packed(value, code, name)
        except NotPicklable as error:
            return self.kept.keep(job, number, value, error, self.secrets)

    def _packed(self, value: Any, code: packed.Code, name: str) -> Any:
        """Raises `NotPicklable`, also for what holds the value of a secret."""
        wire = packed.pack(value, code.namespace, code.classes, self._put, name=name).wire
        if isinstance(wire, bytes) and (held := self.secrets.held_by(wire)) is not None:
            raise holds_secret(name, held)
        return wire

    def _yielded(self, task: Task, number: int, values: Any, began: float) -> None:
        count = 0
        if inspect.isasyncgen(values):
            values = _in_turn(values)
        for value in values:
            place = refs.part(task.job, count)
            wire = self._result(task, place, number, value, f"yielded[{count}]")
            self._add(number, "part", wire, [count], now=True)
            count += 1
        self._add(number, "ok", count, [time.perf_counter() - began], now=True)

    def _code(self, task: Task) -> packed.Code:
        if task.code is None:
            resolve = Results(task.needs, self._get, self.kept)
            task.code = packed.unpack_code(task.wire, self._get, resolve)
        return task.code

    def _report(self, event: dict[str, Any]) -> None:
        """A loop's checkpoints are in the log; what it measured is told. Raises `TrialStopped`."""
        kind = event.get("type")
        if kind == "metrics":
            assert self.running is not None
            job, number, _ = self.running
            told = {"values": event["values"], "final": event.get("final", False)}
            told = self.secrets.masked(told)
            self._add(number, "report", told, [event["step"]], now=True)
            if (job, number) in self._unwanted:
                raise TrialStopped("this trial lags behind the others, and makes room for one")
        if kind in ("checkpoint", "resumed", "checkpoint_failed", "fell_back"):
            rest = ", ".join(f"{key} {value}" for key, value in event.items() if key != "type")
            self.output.add("mlcloud", f"{kind}: {rest}\n")

    def _packed_error(self, task: Task, error: BaseException) -> dict[str, Any]:
        code = task.code or packed.Code(None, {}, Classes())
        code.classes.secrets = self.secrets
        own = isinstance(error, MLCloudError)

        def put(value: Any) -> Any:
            return self._packed(
                self.secrets.mask(value) if type(value) is str else value, code, "error"
            )

        with contextlib.suppress(Exception):
            strip(error)
        lines = _lines(error)
        try:
            records = exceptions.pack(error, put, frames)
        except Exception:  # nothing of it can be had but its words
            records = []
        told: dict[str, Any] = self.secrets.masked(
            {
                "name": type(error).__name__,
                "text": str(error)[:10_000],
                "own": own,
                "lines": lines,
                "records": records,
            }
        )
        return told

    # --- the store --------------------------------------------------------------------------------

    def _open(self) -> Store:
        if self._store is None:
            self._store = Store(self._store_url)
        return self._store

    def _put(self, data: Any) -> list[str]:
        return [ref.short for ref in self._open().put_buffers([data])]

    def _get(self, names: list[str]) -> Any:
        refs = [ChunkRef.of_short(name) for name in names]
        return self._open().get_buffer(refs)


def _lines(error: BaseException) -> list[str]:
    try:
        return [line[:2000] for line in traceback.format_exception(error)][-60:]
    except Exception:
        return [f"{type(error).__name__}: its traceback could not be shown"]


def _in_turn(values: Any) -> Any:
    """An async generator's values, one after the other."""
    loop = asyncio.new_event_loop()
    try:
        while True:
            try:
                yield loop.run_until_complete(anext(values))
            except StopAsyncIteration:
                return
    finally:
        loop.close()
