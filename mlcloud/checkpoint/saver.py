"""When a training saves, and what came of it: what `resumable` and the callbacks share.

    between two steps ─► reason(step): notice? due? ─► save(state, step, reason)
                                                        ├─ notice, end: waits until it is committed
                                                        └─ interval: a thread writes it
                         look() ◄── committed, or what went wrong: reported, and tried again

A save that fails is reported and tried again when the next is due: training is worth more than the
save. At the end it is raised.
"""

from __future__ import annotations

import time
import warnings
from datetime import datetime, timezone
from typing import Any

from mlcloud import errors
from mlcloud.checkpoint import context
from mlcloud.checkpoint.checkpoints import Checkpoints
from mlcloud.checkpoint.context import DEFAULT_MEAN_TIME_TO_PREEMPTION_S, RunContext
from mlcloud.checkpoint.saving import Saving
from mlcloud.checkpoint.schedule import Every, Schedule

END, INTERVAL, NOTICE = "end", "interval", "notice"


class Saver:
    """Saves one training into `checkpoints`, as often as `every` says. `who` begins warnings.

    `saved` is the last step that was committed, `newest` one that is on its way counts for.
    """

    def __init__(
        self, checkpoints: Checkpoints, every: Every, who: str, run: RunContext | None
    ) -> None:
        self._checkpoints, self._who, self._run = checkpoints, who, run
        mean = run.mean_time_to_preemption_s if run else DEFAULT_MEAN_TIME_TO_PREEMPTION_S
        self._schedule = Schedule(every, mean, time.monotonic())
        self._notice = 0
        self._saves = run.notice.saves if run is not None else 0
        self._saving: Saving | None = None
        self._began, self._why = 0.0, ""
        self.saved: int | None = None

    @property
    def newest(self) -> int | None:
        return self.saved if self._saving is None else self._saving.step

    def ran(self, seconds: float, steps: int = 1) -> None:
        """So many steps took so long."""
        self._schedule.ran(seconds, steps, beside=self._saving is not None)

    def reason(self, step: int) -> str | None:
        """Why to save now that `step` steps are done, or None."""
        self.look()
        notice = self._run.notice if self._run is not None else None
        deadline = notice.deadline if notice is not None else None
        if notice is not None and deadline is not None and notice.number != self._notice:
            self._notice = notice.number
            self.join()  # what is on its way comes first
            left = (deadline - datetime.now(timezone.utc)).total_seconds()
            takes = self._schedule.takes_s
            if takes is None or takes <= left:
                return NOTICE
            self._failed(
                f"step {step} is not saved on the notice: a save takes {takes:.1f} s and the node "
                f"goes away in {max(left, 0):.1f} s; the last committed step is {self.saved}"
            )
            return None
        if notice is not None and notice.saves != self._saves:
            self._saves = notice.saves
            self.join()
            return NOTICE
        if not self._schedule.due(step, time.monotonic()):
            return None
        if self._saving is not None:
            if self._schedule.interval_s is not None:
                return None  # one after the other, as fast as the store takes them
            self.join()  # the user counts steps
        return INTERVAL

    def save(self, state: dict[Any, Any], step: int, why: str, **options: Any) -> bool:
        """Save, or begin to; whether it has not failed yet. `options` are `begin_save`'s.

        Raises what went wrong at the end, with `END`.
        """
        began = time.monotonic()
        self._schedule.began(began)
        options = {"wait": why != INTERVAL, "complete": why == END} | options
        try:
            saving = self._checkpoints.begin_save(state, step, **options)
        except errors.MLCloudError as error:
            # A failed attempt costs time as well: it must not be repeated every second.
            self._schedule.saved(time.monotonic() - began, time.monotonic() - began)
            if why == END:
                raise
            self._could_not(step, error)
            return False
        saving.told = True  # by us
        self._saving, self._began, self._why = saving, began, why
        return self.look()

    def took(self, saving: Saving, why: str) -> None:
        """Somebody else has saved, with all ranks, and waited for it."""
        self._schedule.began(time.monotonic() - saving.stall_s)
        saving.told = True
        self._saving, self._why, self._began = saving, why, saving.ended - saving.stall_s
        self.look()

    def look(self) -> bool:
        """Tell of the save that goes on beside the training, if it has ended; False: it failed."""
        saving = self._saving
        if saving is None or not saving.done():
            return True
        self._saving = None
        self._schedule.saved(saving.stall_s, saving.ended - self._began)
        try:
            info = saving.result()
        except errors.StepExists as error:
            # Another process of the same training was here, such as one on a node that was given
            # up for dead. What it committed is as good a place to resume from as ours.
            self._failed(str(error))
            return False
        except errors.MLCloudError as error:
            if self._why == END:
                raise
            self._could_not(saving.step, error)
            return False
        self.saved = saving.step
        self.report(
            {
                "type": "checkpoint",
                "step": saving.step,
                "bytes": info.bytes,
                "new_bytes": info.new_bytes,
                "seconds": info.seconds,
                "stall": saving.stall_s,
                "reason": self._why,
            }
        )
        return True

    def join(self) -> None:
        """Wait until nothing is on its way."""
        if self._saving is not None:
            self._saving.exception()
            self.look()

    def report(self, event: dict[str, Any]) -> None:
        context.report(event, self._run.report if self._run is not None else None)

    def _could_not(self, step: int, error: Exception) -> None:
        self._failed(f"step {step} could not be saved: {error}; training goes on")

    def _failed(self, message: str) -> None:
        warnings.warn(f"{self._who}: {message}", stacklevel=3)
        self.report({"type": "checkpoint_failed", "message": message})
