"""Traces of spot availability: when a spot node could be had in a zone, and when not.

    {"metadata": {"gap_seconds": 600}, "data": [1, 1, 0, …]}      nodes that could be had, each gap

as in https://github.com/skypilot-org/spot-traces. `renewal` makes some.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlcloud.cluster.lifetimes import Bools
from mlcloud.errors import UsageError
from mlcloud.units import format_seconds


@dataclass(frozen=True)
class Trace:
    """`up[i]`: whether a spot node could be had from `i` to `i + 1` gaps after the beginning."""

    name: str
    gap_s: float
    up: Bools

    @property
    def span_s(self) -> float:
        return len(self.up) * self.gap_s


def read_trace(path: str | Path, nodes: int = 1) -> Trace:
    """A trace from its file; up where at least `nodes` could be had. Raises `UsageError`."""
    path = Path(path)
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read the trace {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"the trace {path} is not JSON: {error}") from None
    try:
        gap, data = float(found["metadata"]["gap_seconds"]), found["data"]
        counts = np.array([float(count) for count in data])
        if isinstance(data, str) or not (math.isfinite(gap) and gap > 0 and len(counts)):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UsageError(
            f"the trace {path} is not one of spot availability: it has "
            '{"metadata": {"gap_seconds": 600}, "data": [1, 0, …]}, data not empty'
        ) from None
    return Trace(path.stem, gap, counts >= nodes)


def same_span(traces: Sequence[Trace]) -> None:
    """Raises `UsageError` unless these cover one time span in the same steps."""
    first = traces[0]
    for other in traces[1:]:
        if (other.gap_s, len(other.up)) != (first.gap_s, len(first.up)):
            raise UsageError(
                f"{other.name} covers {format_seconds(other.span_s)} in steps of "
                f"{format_seconds(other.gap_s)}, {first.name} {format_seconds(first.span_s)} in "
                f"steps of {format_seconds(first.gap_s)}: traces of one market have one time span"
            )


def renewal(
    name: str,
    span_s: float,
    gap_s: float,
    draw_up_s: Callable[[], float],
    draw_down_s: Callable[[], float],
) -> Trace:
    """A trace of runs whose lengths are drawn, at least one gap each; up first."""
    up, length = np.zeros(int(span_s / gap_s), bool), 0
    there = True
    while length < len(up):
        run = max(1, round((draw_up_s if there else draw_down_s)() / gap_s))
        up[length : length + run] = there
        length, there = length + run, not there
    return Trace(name, gap_s, up)
