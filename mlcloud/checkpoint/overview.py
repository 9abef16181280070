"""Which steps a series has: what `widgets.series` shows, read from few manifests.

The newest steps are read, and for the metric's curve as many of the others, evenly spread, as make
`CURVE` together: a series of 10,000 steps takes the time of one of 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from mlcloud import errors
from mlcloud.store.manifest import Manifest
from mlcloud.widgets.series import Line, Series

if TYPE_CHECKING:
    from mlcloud.checkpoint.checkpoints import Checkpoints
    from mlcloud.store import Store

CURVE = 100


def overview(checkpoints: Checkpoints, last: int | None) -> Series:
    """The series, with its newest `last` steps."""
    if last is not None and last < 1:
        raise errors.UsageError(f"last={last}: how many of the newest steps are wanted?")
    store, name = checkpoints.store, checkpoints.name
    steps = checkpoints.steps()
    shown = steps if last is None else steps[-last:]
    others = _spread(steps[: len(steps) - len(shown)], CURVE - len(shown))
    lines = lines_of(store, name, [*others, *shown])
    if lines and all(line.fault == "sealed" for line in lines):
        raise errors.Sealed(lines[-1].problem)
    first = shown[0] if shown else 0
    curve = [(each.step, each.metric) for each in lines if each.metric is not None]
    now = datetime.now(timezone.utc)
    newest = [each for each in lines if each.step >= first]
    return Series(name, store.url, len(steps), newest, curve, now)


def lines_of(store: Store, name: str, steps: Sequence[int]) -> list[Line]:
    """These steps of a series, each from its manifest; one that cannot be read says why, one that
    was removed meanwhile is left out."""
    from mlcloud.checkpoint.step import KIND, info_of

    def read(step: int) -> Manifest | errors.StoreError:
        try:
            return store.manifest(KIND, name, step)
        except errors.StoreError as error:
            return error

    lines = []
    for step, made in zip(steps, store.each(read, steps), strict=True):
        if isinstance(made, errors.NoCheckpoint):
            continue
        try:
            if isinstance(made, errors.StoreError):
                raise made
            info = info_of(made)
        except errors.StoreError as error:
            fault = _FAULTS.get(type(error), "unreadable")
            lines.append(Line(step, fault=fault, problem=str(error)))
            continue
        lines.append(
            Line(step, info.bytes, info.new_bytes, info.created, info.metric, info.complete)
        )
    return lines


_FAULTS = {errors.Damaged: "damaged", errors.Sealed: "sealed"}


def _spread(steps: Sequence[int], count: int) -> list[int]:
    """`count` of them at even distances, the first included; all where there are fewer."""
    if len(steps) <= max(0, count):
        return list(steps)
    return [steps[index * len(steps) // count] for index in range(max(0, count))]
