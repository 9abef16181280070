"""What `Session.history()` shows: a session's past states, as a table."""

from __future__ import annotations

from typing import Any

from mlcloud.saved_models import Boundary
from mlcloud.units import format_bytes
from mlcloud.widgets.tables import table

LONG = 60


class History(list[Boundary]):
    """A list of states, oldest first, that shows itself as a table."""

    HEADS = ("step", "cell", "names", "bytes", "written", "not saved")
    NUMBERS = ("step", "names", "bytes", "written")

    def _bundle(self) -> dict[str, str]:
        return table(self.HEADS, map(_row, self), numbers=self.NUMBERS)

    def __repr__(self) -> str:
        return self._bundle()["text/plain"]

    def _repr_html_(self) -> str:
        return self._bundle()["text/html"]


def _row(state: Boundary) -> tuple[Any, ...]:
    first, *more = state.code.strip().splitlines() or [""]
    code = f"{first} …" if more else first
    if state.restored_from is not None:
        code = f"(restored from {state.restored_from})"
    elif len(code) > LONG:
        code = code[: LONG - 1] + "…"
    written = format_bytes(state.new_bytes)
    left_out = ", ".join(state.left_out)
    return state.step, code, len(state.names), format_bytes(state.bytes), written, left_out
