"""stdout and stderr of the remote kernel: sent at once when quiet, batched under load, never
unbounded.

ipykernel holds text back for 0.2 s, so that a loop of prints becomes few messages. Here the wait
adapts: 2 ms after a quiet time (a progress line appears at once), up to 50 ms while text keeps
coming.

Back-pressure: when more than `LIMIT` characters wait to be sent, because the network or the
notebook is slower than the cell, `write` waits for room. The wait is interruptible and the memory
bounded.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from ipykernel.iostream import OutStream

QUIET_S = 0.002
BUSY_S = 0.05
LIMIT = 4 * 2**20


class AdaptiveOutStream(OutStream):  # type: ignore[misc]  # ipykernel ships no complete types
    """ipykernel's stream with an adaptive `flush_interval` and a bound on what waits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._last_flush = 0.0
        self._waiting = 0
        self._room = threading.Event()
        super().__init__(*args, **kwargs)

    @property
    def flush_interval(self) -> float:
        return QUIET_S if time.monotonic() - self._last_flush > BUSY_S else BUSY_S

    def write(self, string: str) -> int | None:
        # The IO thread must never wait for itself, and a forked child has none to wait for.
        if (
            self._waiting > LIMIT
            and threading.current_thread() is not self.pub_thread.thread
            and self._is_master_process()
        ):
            self._room.clear()
            self._schedule_flush()
            while self._waiting > LIMIT and not self._room.wait(0.1):
                continue
        written: int | None = super().write(string)
        self._waiting += len(string)
        return written

    def _flush(self) -> None:
        self._last_flush = time.monotonic()
        super()._flush()
        self._waiting = 0
        self._room.set()
