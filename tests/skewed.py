"""A process whose clock is wrong: `set_clock(3600)` before anything else is imported.

Only what Python asks the clock is shifted. The machine's own clock, and so the times of files, and
a server's, stay as they are.
"""

from __future__ import annotations

import datetime
import time
from typing import Any


def set_clock(shift_s: float) -> None:
    """From now on this process is `shift_s` seconds ahead."""
    real_time, real = time.time, datetime.datetime
    shift = datetime.timedelta(seconds=shift_s)

    class _Any(type):
        def __instancecheck__(cls, thing: Any) -> bool:
            return isinstance(thing, real)

        def __subclasscheck__(cls, kind: type) -> bool:
            return issubclass(kind, real)

    class Shifted(real, metaclass=_Any):  # type: ignore[misc, valid-type]
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return real.now(tz) + shift

        @classmethod
        def utcnow(cls) -> datetime.datetime:
            return real.now(datetime.timezone.utc).replace(tzinfo=None) + shift

    time.time = lambda: real_time() + shift_s
    datetime.datetime = Shifted  # type: ignore[misc]
