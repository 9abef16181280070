"""The steps of a series: which there are, which of them is the newest to be read, which may go.

    manifests in the store ─► steps, info ─┬─► newest: the last one that reads, told if not the last
                                           ├─► verify: every chunk of them
                                           └─► prune, tidy: all but those of a `Keep` go

What a step holds is not known here; who asks for the newest brings how one is read.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

from mlcloud import errors
from mlcloud.checkpoint import context
from mlcloud.checkpoint.keep import Keep, rule
from mlcloud.checkpoint.step import KIND, CheckpointInfo, info_of
from mlcloud.store import Store

T = TypeVar("T")


class Steps:
    """The committed steps of a series in a store. `keep`, `report`: as `Checkpoints` has them."""

    def __init__(
        self, store: Store, name: str, keep: Keep | None, report: context.Report | None
    ) -> None:
        self.store, self.name, self.keep = store, name, keep
        self._report = report
        self._lock = threading.Lock()  # held by who writes or removes
        self.store.steps(KIND, name)  # a wrong name or URL is found here, not after hours

    # --- looking ----------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """The committed steps, in order."""
        return self.store.steps(KIND, self.name)

    def info(self) -> list[CheckpointInfo]:
        """The committed steps with sizes, times and metrics, in order, without damaged ones."""
        return list(self._infos())

    def _infos(self) -> Iterator[CheckpointInfo]:
        for step in self.steps():
            try:
                yield info_of(self.store.manifest(KIND, self.name, step))
            except (errors.Damaged, errors.NoCheckpoint) as error:
                warnings.warn(f"checkpoint {self.name!r}: {error}", stacklevel=3)

    def verify(self, step: int | None = None) -> list[str]:
        """Read every chunk of a step, or of all; returns what is wrong, in words."""
        steps = self.steps() if step is None else [step]
        return [
            f"step {number}: {problem}"
            for number in steps
            for problem in self.store.verify(KIND, self.name, number)
        ]

    # --- the newest -------------------------------------------------------------------------------

    def newest(self, steps: list[int], read: Callable[[int], T]) -> T:
        """What `read` gives of the newest of the steps that is undamaged."""
        if not steps:
            raise errors.NoCheckpoint(f"no step of {self.name!r} in the store at {self.store.url}")
        why: list[str] = []
        for candidate in reversed(steps):
            try:
                loaded = read(candidate)
            except (errors.Damaged, errors.NoCheckpoint) as error:
                why.append(str(error))
                continue
            if why:
                self.fell_back(steps[-1], candidate, why[0])
            return loaded
        raise errors.Damaged(
            f"none of the {len(steps)} steps of {self.name!r} in the store at {self.store.url} can "
            f"be loaded; the newest: {why[0]}"
        )

    def fell_back(self, newest: int, step: int, why: str) -> None:
        """Tell that the newest step was passed over."""
        warnings.warn(
            f"checkpoint {self.name!r}: step {newest} cannot be loaded ({why}); "
            f"going back to step {step}",
            stacklevel=4,
        )
        context.report({"type": "fell_back", "from": newest, "to": step, "why": why}, self._report)

    # --- tidying ----------------------------------------------------------------------------------

    def prune(self, keep: int | Keep = 5, *, sweep: bool = False) -> list[int]:
        """Remove all steps but those to `keep`, a number of the newest or a `Keep`; returns the
        removed ones. Steps whose manifests cannot be read stay, unless they are older than the
        newest `keep`.

        Refused unless one of the kept steps can be loaded (the newest is read and verified).

        This removes manifests; their chunks go with the store's next `prune`. `sweep=True` removes
        every chunk of the store at once that no manifest names: whoever is saving to it meanwhile
        may have to upload once more.
        """
        wanted = rule(keep)
        with self._lock:
            removed = self._remove(wanted, verify=True)
            if sweep:
                self.store.prune(grace_s=0)
        return removed

    def tidy(self) -> None:
        """Remove what `keep` does not want."""
        if self.keep is not None:
            self._remove(self.keep)

    def _remove(self, keep: Keep, *, verify: bool = False) -> list[int]:
        steps = self.steps()
        if keep.looks:
            infos = list(self._infos())
            kept = keep.of(infos)
            removed = [each.step for each in infos if each.step not in kept]
        else:  # no manifest need be read
            kept = set(steps[-keep.last :])
            removed = steps[: -keep.last]
        if verify and removed and all(self.verify(step) for step in sorted(kept, reverse=True)):
            raise errors.Damaged(
                f"no step of {self.name!r} that would be kept in the store at "
                f"{self.store.url} can be loaded, so the others are kept too"
            )
        for step in removed:
            self.store.discard(KIND, self.name, step)
        return removed
