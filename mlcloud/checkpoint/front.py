"""What the front doors of training frameworks share: when to save, and saving in several processes.

    framework's loop ── between two steps ──► Front.reason(step): notice? due?
                                                └─► Front.save(state, step, reason) ─► Checkpoints

The framework runs the loop, so these doors save and restore from its hooks. In a job of several
processes (torch.distributed) rank 0 decides and writes, and the state is what each rank holds
whole, as in data parallel training; what differs between the ranks, their random states and
positions, is gathered beside it.

A save that fails is reported and tried again when the next is due: training is worth more than
the save.
"""

from __future__ import annotations

import sys
import time
import warnings
from datetime import datetime, timezone
from typing import Any, TypeVar

from mlcloud import errors
from mlcloud.checkpoint import context
from mlcloud.checkpoint.checkpoints import Checkpoints, Loaded
from mlcloud.checkpoint.codec import Encoder
from mlcloud.checkpoint.context import DEFAULT_MEAN_TIME_TO_PREEMPTION_S
from mlcloud.checkpoint.schedule import Every, Schedule

T = TypeVar("T")
#: The state's entry with what differs between the ranks: a list, by rank.
RANKS = "ranks"


class Front:
    """Saves one training into `checkpoints`, as often as `every` says. `who` begins warnings.

    Only one is in use at a time in a process; all ranks call its methods at the same steps.
    """

    def __init__(self, checkpoints: Checkpoints, every: Every, who: str) -> None:
        if not isinstance(checkpoints, Checkpoints):
            raise errors.UsageError(
                f"{who}: checkpoints is a {type(checkpoints).__name__}; give it "
                'mlcloud.Checkpoints("a folder or s3://bucket/path", "name")'
            )
        self.checkpoints, self._every, self._who = checkpoints, every, who
        self.saved: int | None = None
        self._notice = 0
        self.begin()

    def begin(self) -> None:
        """Start the clock: a training begins now."""
        run = context.current()
        mean = run.mean_time_to_preemption_s if run else DEFAULT_MEAN_TIME_TO_PREEMPTION_S
        self._schedule = Schedule(self._every, mean, time.monotonic())

    # --- resuming ---------------------------------------------------------------------------------

    def newest(self) -> Loaded | None:
        """The newest step that loads, the same one on all ranks; None when there is none."""
        found = self.find() if rank() == 0 else None
        step = share(None if found is None else found.info.step)
        if step is None:
            return None
        if found is None:
            found = self.checkpoints.read(step)
        self.saved = step
        return found

    def find(self) -> Loaded | None:
        """The newest step that loads, as this process sees it."""
        try:
            return self.checkpoints.read()
        except errors.NoCheckpoint:
            return None
        except errors.Damaged as error:
            warnings.warn(f"{self._who}: starting from the beginning: {error}", stacklevel=2)
            newest = self.checkpoints.steps()[-1]
            context.report({"type": "fell_back", "from": newest, "to": 0, "why": str(error)})
            return None

    def resumed(self, loaded: Loaded) -> None:
        """Tell that the training goes on from this step."""
        if rank() == 0:
            context.report(
                {"type": "resumed", "step": loaded.info.step, "bytes": loaded.info.bytes}
            )

    # --- saving -----------------------------------------------------------------------------------

    def reason(self, step: int) -> str | None:
        """Why to save now that `step` steps are done, or None; the same on all ranks."""
        return share(self._reason(step) if rank() == 0 and step and step != self.saved else None)

    def _reason(self, step: int) -> str | None:
        run = context.current()
        deadline = run.notice.deadline if run is not None else None
        if run is not None and deadline is not None and run.notice.number != self._notice:
            self._notice = run.notice.number
            left = (deadline - datetime.now(timezone.utc)).total_seconds()
            cost = self._schedule.cost_s
            if cost is None or cost <= left:
                return "notice"
            self._failed(
                f"step {step} is not saved on the notice: a save takes {cost:.1f} s and the node "
                f"goes away in {max(left, 0):.1f} s; the last committed step is {self.saved}"
            )
            return None
        return "interval" if self._schedule.due(step, time.monotonic()) else None

    def save(
        self,
        state: dict[Any, Any],
        step: int,
        reason: str,
        *,
        own: Any = None,
        metric: float | None = None,
    ) -> bool:
        """Commit rank 0's `state` and every rank's `own`; whether that worked, on rank 0.

        With the reason `"end"`, the step is marked complete, and a failure is raised.
        """
        state = {**state, RANKS: gather(own)}
        if rank() != 0:
            self.saved = step
            return True
        began = time.monotonic()
        try:
            info = self.checkpoints.save_loop(state, step, metric=metric, complete=reason == "end")
        except errors.StepExists as error:
            # Another process of this training was here, such as one on a node that was given up
            # for dead. What it committed is as good a place to resume from as ours.
            self._failed(str(error))
            return False
        except errors.MLCloudError as error:
            if reason == "end":
                raise
            self._failed(f"step {step} could not be saved: {error}; training goes on")
            return False
        finally:
            # A failed attempt costs time as well: it must not be repeated every second.
            now = time.monotonic()
            self._schedule.saved(now - began, now)
        self.saved = step
        context.report(
            {
                "type": "checkpoint",
                "step": step,
                "bytes": info.bytes,
                "new_bytes": info.new_bytes,
                "seconds": info.seconds,
                "reason": reason,
            }
        )
        return True

    def _failed(self, message: str) -> None:
        warnings.warn(f"{self._who}: {message}", stacklevel=2)
        context.report({"type": "checkpoint_failed", "message": message})


def check(state: dict[Any, Any]) -> None:
    """Raise NotCheckpointable, naming the place, for a state that could not be saved."""
    Encoder().encode(state, "state")


def fits(value: Any) -> bool:
    """Whether the value could be saved."""
    try:
        Encoder().encode(value, "")
    except errors.NotCheckpointable:
        return False
    return True


# --- several processes ----------------------------------------------------------------------------


def _distributed() -> Any:
    """torch.distributed where a process group of more than one runs, else None."""
    torch = sys.modules.get("torch")
    dist = getattr(torch, "distributed", None)
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return None
    return dist if dist.get_world_size() > 1 else None


def distributed() -> bool:
    """Whether this is one of several processes that can agree on something."""
    return _distributed() is not None


def rank() -> int:
    dist = _distributed()
    return 0 if dist is None else int(dist.get_rank())


def share(value: T) -> T:
    """Rank 0's value, on all ranks."""
    dist = _distributed()
    if dist is None:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: T) -> list[T]:
    """Every rank's value, by rank."""
    dist = _distributed()
    if dist is None:
        return [value]
    box: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(box, value)
    return box


def own_of(ranks: Any) -> Any:
    """This rank's part of what was gathered; None when as many ranks did not save it."""
    dist = _distributed()
    count = 1 if dist is None else dist.get_world_size()
    if not isinstance(ranks, list) or len(ranks) != count:
        warnings.warn(
            f"mlcloud: the checkpoint was saved by {len(ranks) if isinstance(ranks, list) else 0} "
            f"processes, now there are {count}: random states and the order of data start anew",
            stacklevel=2,
        )
        return None
    return ranks[rank()]
