"""Which of an open session's states stay: the newest, the last of each hour of a day, of each day.

A state is whole by itself, so any other may go. The rule is nested: what is the last of its day was
the last of its hour, so nothing that is to stay later has gone before.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

HOURS = timedelta(days=1)  # for so long each hour has one


def kept(states: Iterable[tuple[int, datetime]], now: datetime, newest: int) -> set[int]:
    """The steps that stay, of `(step, when it was committed)` in order. Hours and days are UTC."""
    found = list(states)
    last: dict[str, int] = {}
    for step, at in found:
        last[at.strftime("%Y-%m-%d %H" if now - at < HOURS else "%Y-%m-%d")] = step
    return {step for step, _ in found[len(found) - newest :]} | set(last.values())
