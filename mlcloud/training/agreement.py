"""What all ranks must decide at the same step, and the means of what they report, in one message
now and then that nobody waits for.

    after step k     all_reduce of [rank 0's word, its pace, the names, the reports since], in the
                     background
    at the next one  the result is there: every rank has the same, and follows the word

A report's values have a column for each name, in the order in which a rank first reports them; the
names' checksums go along, so that nothing is added up under two names.

The next one comes after `EVERY_S`, in steps, as rank 0 has measured them: of steps that take longer
each has its message, of short ones few. A process group of its own, gloo, keeps it out of the way
of the model's collectives.
"""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass, field
from typing import Any

from mlcloud.errors import UsageError

GO_ON, SAVE, LEAVE = 0, 1, 2
MOST = 15  # names
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
        self._sent: tuple[Any, Any, list[int]] | None = None  # the work, its numbers, their steps
        self._rows: list[tuple[int, dict[str, float], float]] = []
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
        for name in report:
            if name not in self._columns:
                self._name(name)
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
        (work, numbers, steps), self._sent = self._sent, None
        work.wait()
        word, pace, *values = numbers.tolist()
        self._pace = max(1, min(int(pace), self._most))
        found = Agreed(int(word))
        self._compare(values[:WIDTH])
        for at, step in enumerate(steps, 1):
            row, means = values[at * WIDTH : (at + 1) * WIDTH], {}
            for name, column in self._columns.items():
                weight, weighted = row[column : column + 2]
                if weight:
                    means[name] = weighted / weight
            if means:
                found.reports.append((step, means))
        return found

    def _send(self, word: int) -> None:
        import torch

        rows, self._rows = self._rows, []
        values = [0.0, 0.0]
        if self.rank == 0:
            now = time.monotonic()
            per_step = (now - self._at) / len(rows)
            self._at = now
            values = [float(word), EVERY_S / max(per_step, 1e-9)]
        values += self._row({name: (1.0, float(_checksum(name))) for name in self._columns})
        for _, report, weight in rows:
            values += self._row({name: (weight, value * weight) for name, value in report.items()})
        numbers = torch.tensor(values, dtype=torch.float64)
        work = self._dist.all_reduce(numbers, group=self._group, async_op=True)
        self._sent = work, numbers, [step for step, _, _ in rows]

    def _row(self, pairs: dict[str, tuple[float, float]]) -> list[float]:
        row = [0.0] * WIDTH
        for name, pair in pairs.items():
            column = self._columns[name]
            row[column : column + 2] = pair
        return row

    def _name(self, name: str) -> None:
        if len(self._columns) == MOST:
            raise UsageError(
                f"context.report takes up to {MOST} names, and {name!r} is one more than "
                f"{', '.join(self._columns)}"
            )
        self._columns[name] = 2 * len(self._columns)

    def _compare(self, known: list[float]) -> None:
        """The number of ranks that have a name for a column, and their checksums' sum."""
        for name, column in self._columns.items():
            ranks, total = known[column : column + 2]
            if total != ranks * _checksum(name):
                raise UsageError(
                    f"context.report: what is {name!r} on rank {self.rank} has another name on "
                    "another rank; the ranks are to report their names in the same order"
                )


def _checksum(name: str) -> int:
    return zlib.crc32(name.encode())
