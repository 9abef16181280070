"""When a session's state is saved: after each cell, or, where that takes long, when there is time.

What takes no time is saved at each boundary. Finding out what a large, changed state looks like
takes this process seconds, in which no cell can run; so it waits

    until nothing runs        and is stopped when a cell comes after all
    for a cell that comes     only where the cells since the last time have paid for it: saving may
                              take `share` of the time that they ran, and no more

Cells that are not saved one by one are saved together: they are finished, and not safe before. So
no more than 1/`share` times the saving's own time can be lost, and is computed again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mlcloud.kernel.recipes import CellRun

SHARE = 0.05  # of the run time of cells
FREE_S = 0.02  # what takes less is saved at each boundary
SOON_S = 0.02  # after a cell's end, which is on its way to the notebook over the same cores
IDLE_S = 0.2  # without a cell after which something longer is begun


class Pace:
    """The account of one kernel. `share` of 1 or more: save at each boundary."""

    def __init__(self, share: float = SHARE) -> None:
        self._share = share
        self._earned = 0.0
        self.hurry = False  # the node goes away: every boundary counts

    def ran(self, seconds: float) -> None:
        """A cell took so long."""
        self._earned += self._share * seconds

    def delayed(self, seconds: float) -> None:
        """A cell waited so long for saving."""
        if seconds > FREE_S:
            self._earned -= seconds

    def affords(self, seconds: float) -> bool:
        """Whether the next cell may wait so long."""
        return seconds <= self.most

    @property
    def most(self) -> float:
        """Seconds that the next cell may wait."""
        if self.hurry or self._share >= 1:
            return float("inf")
        return max(FREE_S, self._earned)

    @staticmethod
    def wait(seconds: float) -> float:
        """How long to wait for a cell before saving that will take so long is begun."""
        return SOON_S if seconds <= FREE_S else IDLE_S


def together(runs: Iterable[CellRun]) -> CellRun | None:
    """Several runs, saved together, as one. None brought values with it but the first."""
    one: CellRun | None = None
    for run in runs:
        if one is None:
            one = run
            continue
        one = replace(
            run,
            code=f"{one.code}\n{run.code}",
            transformed=f"{one.transformed}\n{run.transformed}",
            shipment=one.shipment,
            seconds=one.seconds + run.seconds,
            effects=[*one.effects, *run.effects],
            failed=one.failed or run.failed,
        )
    return one
