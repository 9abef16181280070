"""What all ranks must decide at the same step, and the means of what they report, in one message
now and then that nobody waits for.

    after step k     all_reduce of [rank 0's word, its pace, the reports since], in the background
    at the next one  the result is there: every rank has the same, and follows the word

A report's values have a column for each name. Names that have none yet, on any rank, are told with
their values in a gathering of all ranks after that message, and have one from then on.

The next one comes after `EVERY_S`, in steps, as rank 0 has measured them: of steps that take longer
each has its message, of short ones few. A process group of its own, gloo, keeps it out of the way
of the model's collectives.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from mlcloud.errors import UsageError

GO_ON, SAVE, LEAVE = 0, 1, 2
MOST = 15  # names
Row = tuple[int, dict[str, float], float]  # a step, what was reported, and the rank's weight
WIDTH = 2 * MOST  # of a step: for each name, the reporting ranks' weight and the weighted value
MOST_STEPS = 64  # in one message
EVERY_S = 0.25


@dataclass
class Agreed:
    """Rank 0's word, and the means of what was reported, by step."""

    word: int = GO_ON
    reports: list[tuple[int, dict[str, float]]] = field(default_factory=list)


class Agreement:
    """Of one training. All ranks call `keep` after each step, then `exchange` if one is `due`.
    `most`: steps between two messages, at most."""

    def __init__(self, most: int = MOST_STEPS) -> None:
        import torch.distributed as dist

        self._dist: Any = dist
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._group = dist.new_group(backend="gloo")
        self._most = max(1, min(most, MOST_STEPS))
        self._sent: tuple[Any, Any, list[Row], list[Row]] | None = None
        self._rows: list[Row] = []
        self._pace = 1  # steps from one message to the next
        self._at = time.monotonic()
        self._columns: dict[str, int] = {}  # by names

    @property
    def due(self) -> bool:
        """Whether it is time for a message: after the same step on all ranks."""
        return len(self._rows) >= self._pace

    @property
    def kept(self) -> int:
        """Steps since the last message."""
        return len(self._rows)

    def keep(self, step: int, report: dict[str, float], weight: float) -> None:
        """Keep this step's report for the next message. `weight`: this rank's part of the batch, of
        1."""
        self._rows.append((step, report, weight))

    def exchange(self, word: int) -> Agreed:
        """Send what there is: the message before it."""
        before = self.settle()
        self._send(word)
        return before

    def flush(self) -> Agreed:
        """All that was reported, at the end of the loop."""
        found = self.settle()
        if self._rows:
            self._send(GO_ON)
            found.reports += self.settle().reports
        return found

    def meet(self) -> None:
        """Wait for all ranks."""
        self._dist.barrier(group=self._group)

    def settle(self) -> Agreed:
        """Wait for what was sent."""
        if self._sent is None:
            return Agreed()
        (work, numbers, rows, new), self._sent = self._sent, None
        work.wait()
        word, pace, names, *values = numbers.tolist()
        self._pace = max(1, min(int(pace), self._most))
        reports: dict[int, dict[str, float]] = {}
        for at, (step, _, _) in enumerate(rows):
            row, means = values[at * WIDTH : (at + 1) * WIDTH], {}
            for name, column in self._columns.items():
                weight, weighted = row[column : column + 2]
                if weight:
                    means[name] = weighted / weight
            if means:
                reports[step] = means
        if names:
            self._learn(new, reports)
        return Agreed(int(word), sorted(reports.items()))

    def _send(self, word: int) -> None:
        import torch

        rows, self._rows = self._rows, []
        values, new = [0.0, 0.0, 0.0], []
        if self.rank == 0:
            now = time.monotonic()
            per_step = (now - self._at) / len(rows)
            self._at = now
            values = [float(word), EVERY_S / max(per_step, 1e-9), 0.0]
        for step, report, weight in rows:
            row, rest = [0.0] * WIDTH, {}
            for name, value in report.items():
                column = self._columns.get(name)
                if column is None:
                    rest[name] = value
                else:
                    row[column : column + 2] = weight, value * weight
            values += row
            if rest:
                new.append((step, rest, weight))
        values[2] = float(len(new))
        numbers = torch.tensor(values, dtype=torch.float64)
        work = self._dist.all_reduce(numbers, group=self._group, async_op=True)
        self._sent = work, numbers, rows, new

    def _learn(self, new: list[Row], reports: dict[int, dict[str, float]]) -> None:
        """What some ranks reported by names that have no column yet."""
        every: list[list[Row]] = [[] for _ in range(self.world)]
        self._dist.all_gather_object(every, new, group=self._group)
        sums: dict[tuple[int, str], tuple[float, float]] = {}
        for rows in every:
            for step, rest, weight in rows:
                for name, value in rest.items():
                    self._name(name)
                    before = sums.get((step, name), (0.0, 0.0))
                    sums[step, name] = before[0] + weight, before[1] + value * weight
        for (step, name), (weight, weighted) in sums.items():
            reports.setdefault(step, {})[name] = weighted / weight

    def _name(self, name: str) -> None:
        if name in self._columns:
            return
        if len(self._columns) == MOST:
            raise UsageError(
                f"context.report takes up to {MOST} names, and {name!r} is one more than "
                f"{', '.join(self._columns)}"
            )
        self._columns[name] = 2 * len(self._columns)
