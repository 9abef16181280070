"""When a scheduled job runs: `every` so often, or by a cron line of five fields (UTC).

What was due while the head was down runs once when it is back, and no run begins while the one
before it goes on.
"""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta

from mlcloud.cluster.records import now
from mlcloud.errors import UsageError
from mlcloud.job_models import JobRequest
from mlcloud.units import parse_duration

SHORTEST = timedelta(seconds=1)


def first(request: JobRequest) -> datetime | None:
    """When it is due first; None where it has no schedule: it is to run now.

    Raises `UsageError` for what cannot be read.
    """
    if request.every is not None and request.cron is not None:
        raise UsageError("a job runs `every` so often or by `cron`, not both")
    if request.every is not None:
        if parse_duration(request.every) < SHORTEST:
            raise UsageError(f"every={request.every!r} is too short: 1s at least")
        return now()
    return None if request.cron is None else _by_cron(request.cron, now())


def following(request: JobRequest, before: datetime) -> datetime:
    """When it is due next, later than now."""
    if request.cron is not None:
        return _by_cron(request.cron, now())
    assert request.every is not None
    step = parse_duration(request.every)
    missed = max(0, (now() - before) // step)
    return before + step * (missed + 1)


def _by_cron(line: str, after: datetime) -> datetime:
    from cronsim import CronSim, CronSimError

    try:
        found: datetime = next(CronSim(line, after))
    except (CronSimError, StopIteration) as error:
        raise UsageError(
            f"cron={line!r} cannot be read ({error}): it is `minute hour day month weekday`, such "
            "as `0 6 * * *`, in UTC"
        ) from None
    return found


def new_id() -> str:
    return f"j-{secrets.token_hex(8)}"
