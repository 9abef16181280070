"""What all ranks must decide at the same step, and the means of what they report, for one message a
step that nobody waits for.

    after step k    all_reduce of [rank 0's word, report …], in the background, on the CPU
    after step k+1  the result of step k is there: every rank has the same

So a word of rank 0's is followed one step later, by all at once. A process group of its own, gloo,
keeps it out of the way of the model's collectives.
"""

from __future__ import annotations

from typing import Any

from mlcloud.errors import UsageError

GO_ON, SAVE, LEAVE = 0, 1, 2
MOST = 15  # values of one report


class Agreement:
    """Of one training. All ranks call `exchange` after each step."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self._dist: Any = dist
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._group = dist.new_group(backend="gloo")
        self._sent: tuple[Any, Any, int] | None = None  # the work, its numbers, the step
        self.names: list[str] | None = None

    def exchange(
        self, step: int, word: int, report: dict[str, float], weight: float
    ) -> tuple[int, int, dict[str, float]] | None:
        """Send this step's; the step before's: (step, word, means). None at the first.

        `weight`: this rank's part of the batch, of 1. Each rank reports the same names, always.
        """
        import torch

        if self.names is None and report:
            if len(report) > MOST:
                raise UsageError(f"context.report takes up to {MOST} values, not {len(report)}")
            self.names = sorted(report)
        if report and sorted(report) != self.names:
            raise UsageError(
                f"context.report is to have the same names each time: {', '.join(self.names or [])}"
            )
        numbers = torch.zeros(2 + MOST, dtype=torch.float64)
        numbers[0] = word if self.rank == 0 else 0
        if report:
            numbers[1] = weight
            for at, name in enumerate(self.names or ()):
                numbers[2 + at] = report[name] * weight
        before = self.settle()
        work = self._dist.all_reduce(numbers, group=self._group, async_op=True)
        self._sent = work, numbers, step
        return before

    def meet(self) -> None:
        """Wait for all ranks."""
        self._dist.barrier(group=self._group)

    def settle(self) -> tuple[int, int, dict[str, float]] | None:
        """Wait for what was sent."""
        if self._sent is None:
            return None
        (work, numbers, step), self._sent = self._sent, None
        work.wait()
        found = numbers.tolist()
        weight = found[1]
        means = {name: found[2 + at] / weight for at, name in enumerate(self.names or ()) if weight}
        return step, int(found[0]), means
