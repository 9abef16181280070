"""How calls name results of jobs, `[job, item]`, and what generators yield, `[job#number, item]`.

    a handle's `__mlcloud_ref__` ─► Pickled.refs ─► named ─► the gateway ─► the worker that needs it

A job's result is waited for. A part is named only where a worker keeps it, so it is there already.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def named(refs: Iterable[tuple[str, str, int]]) -> list[list[Any]]:
    """[job, item] of each."""
    return [[job, item] for _, job, item in refs]


def jobs_of(refs: list[list[Any]]) -> list[str]:
    """The jobs whose results are among these, each once. What one has yielded is there already."""
    return sorted({str(job) for job, _ in refs if not is_part(str(job))})


def part(job: str, number: int) -> str:
    """In the place of a job's id: what an item of it yielded as its value `number`."""
    return f"{job}#{number}"


def is_part(job: str) -> bool:
    return "#" in job


def job_of(named: str) -> str:
    """The job's id, of a result's or a part's."""
    return named.partition("#")[0]
