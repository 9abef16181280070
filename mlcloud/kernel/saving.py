"""The snapshot that is on its way into the store, in a thread, while the kernel goes on.

begin of the next cell ─► detach()  it may change everything: what is not written yet is copied
end of the next cell   ─► wait()    one snapshot follows the other
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from mlcloud.errors import Collected
from mlcloud.kernel.snapshot import Taking


class Saving:
    """`memory`: bytes that copies may take."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._taking: Taking | None = None
        self._thread: threading.Thread | None = None

    def start(
        self,
        taking: Taking,
        tell: Callable[[dict[str, Any]], None],
        again: Callable[[], bool] = lambda: False,
    ) -> None:
        """Write it; `tell` hears how that ended.

        `again`: asked where chunks of it were removed meanwhile. If it says so, another one is
        taken, and `tell` hears nothing of this one.
        """
        self._taking = taking
        self._thread = threading.Thread(
            target=self._write, args=(taking, tell, again), name="mlcloud-snapshot", daemon=True
        )
        self._thread.start()

    @staticmethod
    def _write(
        taking: Taking, tell: Callable[[dict[str, Any]], None], again: Callable[[], bool]
    ) -> None:
        try:
            content = {"status": "ok", "body": taking.body()}
        except Collected as error:
            if again():
                return
            content = failure(error)
        except Exception as error:
            content = failure(error)
        tell(content)

    def detach(self) -> None:
        """From here on the state may change."""
        if self._taking is not None:
            self._taking.detach(self._memory)

    def wait(self, seconds: float | None = None) -> bool:
        """Until it is in the store, or could not be put there; for so long at most."""
        if self._thread is not None and self._taking is not None:
            if seconds is None or seconds == float("inf"):
                self._taking.hurry()
                self._thread.join()
            else:
                self._thread.join(max(seconds, 0))
                if self._thread.is_alive():
                    return False
        self._thread = self._taking = None
        return True


def failure(error: Exception) -> dict[str, Any]:
    """What the gateway is told of a snapshot that could not be taken."""
    return {"status": "error", "ename": type(error).__name__, "evalue": str(error)}
