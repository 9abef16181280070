"""The line under a training's cell: how far it is, what it reported last, how fast it goes."""

from __future__ import annotations

import time
from typing import Any

from mlcloud.training.result import History

SHOW_S = 2.0  # each goes to the notebook, by processes that may share this machine


class Line:
    """Rank 0's. Shown where there is IPython."""

    def __init__(self, world: int, steps: int, *, global_batch: int) -> None:
        self._world, self._steps, self._batch = world, steps, global_batch
        self._shown = 0.0
        self._last: tuple[float, int] | None = None
        self._speed = 0.0
        self._handle: Any = None

    def show(self, step: int, history: History, *, last: bool = False) -> None:
        """At most every two seconds."""
        now = time.monotonic()
        if now - self._shown < SHOW_S and not last:
            return
        if self._last is not None and now > self._last[0]:
            self._speed = (step - self._last[1]) * self._batch / (now - self._last[0])
        self._last, self._shown = (now, step), now
        values = " · ".join(f"{name} {value:.6g}" for name, value in history.latest.items())
        world = "1 worker" if self._world == 1 else f"{self._world} workers"
        parts = [f"step {step} of {self._steps}", values, world]
        parts += [f"{self._speed:,.0f} samples/s"] if self._speed else []
        self._display(" · ".join(filter(None, parts)))

    def _display(self, text: str) -> None:
        from IPython.core.getipython import get_ipython

        if get_ipython() is None:
            return
        from IPython.display import display

        bundle = {"text/plain": text}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)
