"""A save that goes on beside the training, and what became of it.

    save ─► state copied ─► Saving ──► training goes on
                              └─ thread: chunks ─► manifest ─► result() returns its CheckpointInfo

The thread works at low priority. A process that ends waits for it: the save before the last line
of a script is as good as any other.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from mlcloud.checkpoint.staging import low_priority

if TYPE_CHECKING:
    from mlcloud.checkpoint.step import CheckpointInfo


class Saving:
    """A save of `step`. `stall_s`: for how many seconds the training stood still for it.

    `series`: the store's URL and the name.
    """

    def __init__(
        self, series: tuple[str, str], step: int, write: Callable[[], CheckpointInfo]
    ) -> None:
        self.series, self.step = series, step
        self.stall_s = 0.0
        self.told = False  # somebody was told how it ended
        self.ended = 0.0  # by the monotonic clock
        self._write: Callable[[], CheckpointInfo] | None = write
        self._future: Future[CheckpointInfo] = Future()

    def __repr__(self) -> str:
        how = "writing"
        if self.done():
            how = "committed" if self._future.exception() is None else "failed"
        return f"<save of step {self.step}: {how}>"

    def start(self, *, here: bool) -> None:
        """Write it, in this thread or in one of its own."""
        if here:
            self._run()
            return
        _RUNNING.add(self)
        _at_exit()
        threading.Thread(target=self._run_beside, name="mlcloud-save", daemon=True).start()

    def done(self) -> bool:
        """Whether it is committed, or has failed."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> CheckpointInfo:
        """Wait until it is committed. Raises what went wrong; TimeoutError after `timeout` s."""
        try:
            return self._future.result(timeout)
        finally:
            self.told = self.told or self._future.done()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait until it has ended: what went wrong, or None."""
        return self._future.exception(timeout)

    def _run_beside(self) -> None:
        low_priority()
        self._run()

    def _run(self) -> None:
        write, self._write = self._write, None
        assert write is not None
        try:
            info = write()
        except BaseException as error:
            self.ended = time.monotonic()
            self._future.set_exception(error)
        else:
            self.ended = time.monotonic()
            self._future.set_result(info)


_RUNNING: weakref.WeakSet[Saving] = weakref.WeakSet()
_registered = False


def await_series(series: tuple[str, str]) -> None:
    """Until no save of this series goes on in this process, whoever began it."""
    for saving in list(_RUNNING):
        if saving.series == series:
            saving.exception()


def _at_exit() -> None:
    """Before the interpreter stops its thread pools, which a save needs."""
    global _registered
    if not _registered:
        _registered = True
        register = getattr(threading, "_register_atexit", atexit.register)
        register(_finish)


def _finish() -> None:
    for saving in list(_RUNNING):
        saving.exception()
