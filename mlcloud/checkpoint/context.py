"""What a training loop needs to know about the remote cell it runs in.

The remote kernel sets a `RunContext` for each execution; `resumable` reads it. So a loop written
for a laptop saves to the session's store, hears of a notice and reports its checkpoints without a
line changed. Outside a remote cell there is none, and `current()` is None.

    kernel ── use(RunContext) ─► resumable ── saves to ─► store_url, under series/0, series/1, …
    watcher ── notice.set() ───►     │
    cell output ◄──── report() ──────┘

`series` is `<session>/<execution id>`: the same execution that runs again after a preemption finds
its checkpoints, and the cell that the user runs anew starts anew. Loops in one execution are told
apart by their order; a loop inside another one's body also by the step that the outer one is at, so
that a rerun which starts at epoch 7 does not take epoch 0's batches for its own.

The context is a global of the process, not of a thread or task: a kernel runs one execution at a
time, and the loop may run in a thread that the cell started.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

Report = Callable[[dict[str, Any]], None]

#: Until a cloud's own figures are known.
DEFAULT_MEAN_TIME_TO_PREEMPTION_S = 2 * 3600.0


class Notice:
    """A cloud's warning that the node goes away, with a deadline (UTC). Safe in threads.

    `number` counts the warnings: a watcher that repeats the same one does not count. `saves` counts
    how often a loop was asked to save without a deadline, because the node may go away one day.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deadline: datetime | None = None
        self._number = 0
        self._saves = 0

    @property
    def deadline(self) -> datetime | None:
        """When the node goes; None: nobody says so."""
        with self._lock:
            return self._deadline

    @property
    def number(self) -> int:
        with self._lock:
            return self._number

    def set(self, deadline: datetime) -> None:
        """The node goes then. Raises `ValueError` for a time without a zone."""
        if deadline.tzinfo is None:
            raise ValueError("a notice's deadline needs a time zone (UTC)")
        with self._lock:
            if self._deadline != deadline:
                self._deadline = deadline
                self._number += 1

    def clear(self) -> None:
        """It stays after all."""
        with self._lock:
            self._deadline = None

    @property
    def saves(self) -> int:
        with self._lock:
            return self._saves

    def save(self) -> None:
        """It may go one day: loops save at their next step."""
        with self._lock:
            self._saves += 1


@dataclass(eq=False)
class Loop:
    """A loop that runs: the series it saves under, the step it is at, and the loops inside."""

    series: str
    step: int = 0
    inner: int = 0


@dataclass
class RunContext:
    """One execution's context. `report` takes events, dicts with a `type`:

    `checkpoint` (step, bytes, new_bytes, seconds, reason `interval` | `notice` | `end`), `resumed`
    (step, bytes), `checkpoint_failed` (message), `fell_back` (from, to, why).
    """

    store_url: str
    series: str
    report: Report
    notice: Notice = field(default_factory=Notice)
    mean_time_to_preemption_s: float = DEFAULT_MEAN_TIME_TO_PREEMPTION_S
    usd_per_hour: Decimal = Decimal(0)  # what this execution's session bills as it begins
    simulated: bool = False
    begins_with: str | None = None  # the series of an execution whose state this one begins with
    reports: int = field(default=0, repr=False)  # that the function made of itself
    _count: int = field(default=0, repr=False)
    _running: list[Loop] = field(default_factory=list, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def next_series(self) -> str:
        """The series of the next loop: by order, inside the loop whose body runs."""
        with self._lock:
            if self._running:
                outer = self._running[-1]
                outer.inner += 1
                return f"{outer.series}/{outer.step}/{outer.inner - 1}"
            self._count += 1
            return f"{self.series}/{self._count - 1}"

    @property
    def step(self) -> int | None:
        """Of the loop whose body runs: how many of its items are done."""
        with self._lock:
            return self._running[-1].step if self._running else None

    def enter(self, loop: Loop) -> None:
        with self._lock:
            self._running.append(loop)

    def leave(self, loop: Loop) -> None:
        with self._lock:
            if loop in self._running:
                self._running.remove(loop)


_current: RunContext | None = None


def current() -> RunContext | None:
    """The context of the execution that runs here, or None outside a remote cell."""
    return _current


def set_current(context: RunContext | None) -> None:
    global _current
    _current = context


@contextmanager
def use(context: RunContext) -> Iterator[RunContext]:
    """Set the context for a block, and put the previous one back."""
    before = _current
    set_current(context)
    try:
        yield context
    finally:
        set_current(before)


def report(event: dict[str, Any], to: Report | None = None) -> None:
    """Send an event to `to` or to the current context. A broken hook does not stop a training;
    what is no `Exception` passes through (a sweep ends a trial so)."""
    hook = to or (_current.report if _current is not None else None)
    if hook is None:
        return
    try:
        hook(event)
    except Exception as error:
        warnings.warn(f"mlcloud: the report of {event!r} failed: {error!r}", stacklevel=2)
