"""The training checkpoints in the cluster's store, for who looks on: which series, which steps.

A loop's series is named by its session or job (`checkpoint.context`), others as their user named
them. What lies in other stores is not known here.
"""

from __future__ import annotations

import asyncio
import math
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from mlcloud.checkpoint.step import KIND
from mlcloud.saved_models import CheckpointStep, SeriesInfo
from mlcloud.store import Store

if TYPE_CHECKING:
    from mlcloud.gateway.core import Gateway

MOST = 200  # series, the newest


async def series(gateway: Gateway) -> list[SeriesInfo]:
    """The newest first. Lists the store's files, and reads none."""
    sessions = {each.id: each.name for each in gateway.sessions.infos()}
    jobs = {each.id: each.name for each in gateway.jobs.infos()}
    counts: dict[str, int] = {}
    newest: dict[str, tuple[int, float]] = {}
    committed = await asyncio.to_thread(lambda: list(gateway.store.committed(KIND)))
    for name, step, at in committed:
        counts[name] = counts.get(name, 0) + 1
        newest[name] = max(newest.get(name, (-1, 0.0)), (step, at))
    ordered = sorted(newest, key=lambda name: newest[name][1], reverse=True)[:MOST]
    return [
        SeriesInfo(
            name=name,
            session=sessions.get(name.partition("/")[0]),
            job=jobs.get(name.partition("/")[0]),
            steps=counts[name],
            newest=newest[name][0],
            written_at=datetime.fromtimestamp(newest[name][1], timezone.utc),
        )
        for name in ordered
    ]


def steps(store: Store, name: str, last: int) -> list[CheckpointStep]:
    """The newest first; damaged ones are among them. Raises `UsageError` for no name. Blocks."""
    from mlcloud.checkpoint.overview import lines_of

    found = lines_of(store, name, store.steps(KIND, name)[-last:])
    return [
        CheckpointStep(
            step=each.step,
            bytes=each.bytes,
            new_bytes=each.new_bytes,
            created_at=each.created,
            # JSON has no other numbers.
            metric=each.metric if each.metric is not None and math.isfinite(each.metric) else None,
            complete=each.complete,
            fault=each.fault,
            problem=each.problem,
        )
        for each in reversed(found)
    ]
