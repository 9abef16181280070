"""A training's state in the store, for any number of ranks.

What every rank holds whole (DDP) is rank 0's and written beside the training; shards (FSDP2) are
saved by all ranks together and read by as many as there are then. With the user's state goes what
was reported so far, and each rank's random state, which is used again where there are as many.
"""

from __future__ import annotations

import warnings
from typing import Any

from mlcloud import errors
from mlcloud.checkpoint import context, entries, randomness
from mlcloud.checkpoint.checkpoints import Checkpoints
from mlcloud.checkpoint.codec import plain
from mlcloud.checkpoint.front import RANKS, Front, check, share
from mlcloud.checkpoint.restore import apply
from mlcloud.checkpoint.saver import END, NOTICE
from mlcloud.checkpoint.schedule import Every
from mlcloud.training.result import History

OURS = "mlcloud_training"  # the state's entry with the history


class Keeping:
    """Saves and restores `state`. All ranks call its methods at the same steps."""

    def __init__(self, checkpoints: Checkpoints, every: Every, state: dict[Any, Any]) -> None:
        if OURS in state or RANKS in state:
            raise errors.UsageError(f"state has no entry named {OURS} or {RANKS}: they are ours")
        self._checkpoints, self._state = checkpoints, state
        self._front = Front(checkpoints, every, "mlcloud.train")
        self._sharded = any(map(entries.is_sharded, state.values()))
        if not self._sharded:
            check(dict(state))

    def restore(self) -> tuple[int, History]:
        """Put the newest step into the state; its number, 0 for none."""
        if self._sharded:
            return self._restore_shards()
        loaded = self._front.newest()
        if loaded is None:
            return 0, History()
        ours, ranks = plain(loaded.state[OURS]), plain(loaded.state.get(RANKS))
        before = randomness.capture()
        apply(loaded, self._state, self._checkpoints.name)
        self._randomness(ranks, before)
        self._front.resumed(loaded)
        return loaded.info.step, History.from_state(ours)

    def _restore_shards(self) -> tuple[int, History]:
        if not share(bool(self._checkpoints.steps())):
            return 0, History()
        state = {**self._state, OURS: {}}
        try:
            step = self._checkpoints.restore(state)
        except errors.Damaged as error:
            warnings.warn(f"mlcloud.train: starting from the beginning: {error}", stacklevel=2)
            return 0, History()
        self._state.update({key: state[key] for key in self._state})
        self._front.saved = step
        if _rank() == 0:
            context.report({"type": "resumed", "step": step, "bytes": 0})
        return step, History.from_state(plain(state[OURS]))

    @staticmethod
    def _randomness(ranks: Any, before: dict[str, Any]) -> None:
        import torch.distributed as dist

        known = isinstance(ranks, list) and len(ranks) == dist.get_world_size()
        randomness.put_back(ranks[dist.get_rank()] if known else before)

    def reason(self, step: int) -> str | None:
        """Why to save after this step, on rank 0; None: there is no need."""
        return self._front.wanted(step)

    def ran(self, seconds: float, steps: int) -> None:
        self._front.ran(seconds, steps)

    def save(self, step: int, reason: str, history: History) -> None:
        """At the end, and before the ranks leave, it is in the store when this returns."""
        if self._front.saved == step:
            return
        state = {**self._state, OURS: history.to_state()}
        if self._sharded:
            info = self._checkpoints.begin_save(state, step, complete=reason == END, wait=True)
            self._front.told(info, reason)
        else:
            wait = reason in (END, NOTICE)
            self._front.save(state, step, reason, own=randomness.capture(), wait=wait)

    def join(self) -> None:
        self._front.join()


def _rank() -> int:
    import torch.distributed as dist

    return int(dist.get_rank())
