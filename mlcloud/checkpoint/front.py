"""What the front doors of training frameworks share: when to save, and saving in several processes.

    framework's loop ── between two steps ──► Front.reason(step): notice? due?
                                                └─► Front.save(state, step, reason) ─► Checkpoints

The framework runs the loop, so these doors save and restore from its hooks. In a job of several
processes (torch.distributed) rank 0 decides and writes, and the state is what each rank holds
whole, as in data parallel training; what differs between the ranks, their random states and
positions, is gathered beside it.

When it saves, and what becomes of it: `saver`.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any, TypeVar

from mlcloud import errors
from mlcloud.checkpoint import context
from mlcloud.checkpoint.checkpoints import Checkpoints
from mlcloud.checkpoint.codec import Encoder
from mlcloud.checkpoint.saver import Saver
from mlcloud.checkpoint.saving import Saving
from mlcloud.checkpoint.schedule import Every
from mlcloud.checkpoint.step import Loaded

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
        self._others: int | None = None  # what a rank that writes nothing knows
        self._saver = Saver(checkpoints, every, who, context.current())

    def begin(self) -> None:
        """Start the clock: a training begins now."""
        self._saver.join()
        saved = self._saver.saved
        self._saver = Saver(self.checkpoints, self._every, self._who, context.current())
        self._saver.saved = saved

    @property
    def saved(self) -> int | None:
        """The newest step that is committed, or on its way."""
        return self._saver.newest if rank() == 0 else self._others

    @saved.setter
    def saved(self, step: int | None) -> None:
        self._saver.saved = self._others = step

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
        wanted = rank() == 0 and step and step != self.saved
        return share(self._saver.reason(step) if wanted else None)

    def wanted(self, step: int) -> str | None:
        """As `reason`, for a rank 0 that tells the others by itself."""
        return self._saver.reason(step) if rank() == 0 and step and step != self.saved else None

    def ran(self, seconds: float, steps: int = 1) -> None:
        """So many steps took so long."""
        self._saver.ran(seconds, steps)

    def told(self, saving: Saving, reason: str) -> None:
        """All ranks have saved together."""
        self._others = saving.step
        self._saver.took(saving, reason)

    def save(
        self,
        state: dict[Any, Any],
        step: int,
        reason: str,
        *,
        own: Any = None,
        metric: float | None = None,
        wait: bool = False,
    ) -> bool:
        """Save rank 0's `state` and every rank's `own`, or begin to; whether it has not failed yet,
        on rank 0. `wait`: until it is committed.

        With the reason `"end"`, the step is marked complete, and a failure is raised.
        """
        state = {**state, RANKS: gather(own)}
        if rank() != 0:
            self._others = step
            return True
        options = {"wait": True} if wait else {}
        return self._saver.save(state, step, reason, metric=metric, **options)

    def join(self) -> None:
        """Wait until nothing is on its way."""
        self._saver.join()


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
