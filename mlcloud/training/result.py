"""What a training returns: what `fn` returned on rank 0, and the curve of what it reported."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

MOST_PARTS, MOST_TEXT = 100, 10_000


@dataclass
class History:
    """Means over the ranks that reported, by step (the number of steps done); NaN for what was not
    reported at a step. `worlds`: from which step on it ran with how many ranks."""

    steps: list[int] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    worlds: list[list[int]] = field(default_factory=list)
    #: What was reported last, by name.
    latest: dict[str, float] = field(default_factory=dict)

    def add(self, step: int, report: dict[str, float]) -> None:
        if not report:
            return
        for name in report:
            self.values.setdefault(name, [math.nan] * len(self.steps))
        for name, each in self.values.items():
            each.append(report.get(name, math.nan))
        self.steps.append(step)
        self.latest.update(report)

    def begins(self, step: int, world: int) -> None:
        if not self.worlds or self.worlds[-1][1] != world:
            self.worlds.append([step, world])

    def to_state(self) -> dict[str, Any]:
        """Plain arrays, as a checkpoint has them."""
        import numpy as np

        return {
            "steps": np.array(self.steps, dtype=np.int64),
            "values": {name: np.array(each) for name, each in self.values.items()},
            "worlds": np.array(self.worlds, dtype=np.int64).reshape(-1, 2),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> History:
        values = {name: each.tolist() for name, each in state["values"].items()}
        known = {name: [v for v in each if not math.isnan(v)] for name, each in values.items()}
        latest = {name: each[-1] for name, each in known.items() if each}
        return cls(state["steps"].tolist(), values, state["worlds"].tolist(), latest)


@dataclass
class TrainResult:
    """`value` is what the function returned on rank 0, `steps` how many were done in all."""

    value: Any
    steps: int
    history: History
    left: bool = field(default=False, repr=False)

    def __repr__(self) -> str:
        last = self.history.latest.items()
        shown = "".join(f", {name} {value:.6g}" for name, value in last)
        sizes = " → ".join(str(world) for _, world in self.history.worlds) or "no"
        plural = "" if sizes == "1" else "s"
        return f"<training: {self.steps} steps on {sizes} worker{plural}{shown}>"

    def leave(self, namespace: dict[str, Any], name: str) -> None:
        """Put the value there, where it is more than a few numbers and words: it may be too large
        for the notebook, or have no pickle, and the rest is not to stay behind for that."""
        if not _is_small(self.value):
            namespace[name], self.value, self.left = self.value, None, True


def _is_small(value: Any, depth: int = 2) -> bool:
    if value is None or isinstance(value, (bool, int, float)):
        return True
    if type(value) is str:
        return len(value) <= MOST_TEXT
    if depth == 0 or type(value) not in (list, tuple, dict) or len(value) > MOST_PARTS:
        return False
    parts = [*value, *value.values()] if isinstance(value, dict) else value
    return all(_is_small(each, depth - 1) for each in parts)
