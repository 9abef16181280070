"""What `Session.saved()` and `%mlcloud state` show: what would be left if the node went now."""

from __future__ import annotations

from html import escape

from mlcloud.models import SessionInfo
from mlcloud.saved_models import SavedState, Variable
from mlcloud.units import format_bytes, format_seconds
from mlcloud.widgets.tables import TABLE, table

MOST_SHARES = 3


class Saved:
    """`state` has the figures; shown, it is a line and a table."""

    HEADS = ("name", "after a move", "bytes", "why")

    def __init__(self, info: SessionInfo, state: SavedState) -> None:
        self.info, self.state = info, state

    def __getitem__(self, name: str) -> Variable:
        """One variable. Raises `KeyError`."""
        return next(each for each in self.state.variables if each.name == name)

    def __contains__(self, name: str) -> bool:
        return any(each.name == name for each in self.state.variables)

    def lines(self) -> list[str]:
        """The session in a few words: where it is, and how far the store is."""
        info, state = self.info, self.state
        where = f"on {info.instance_type} {info.zone}" if info.node else "on no node"
        found = [f"session {info.name}: {info.state.value} {where}"]
        if info.workers > 1:
            places = ", ".join(f"{each.rank} on {each.node}" for each in info.ranks) or "no node"
            found.append(f"{info.workers} ranks, each with a state of its own: {places}")
        if state.unsafe or state.pending_bytes:
            safe = f"safe to cell {state.safe_to}" if state.step else "no cell is safe yet"
            found.append(f"{safe}; {format_bytes(state.pending_bytes)} pending")
        elif state.step:
            found.append(f"safe to cell {state.safe_to}: all of it is in the store")
        found += [info.detail] if info.detail else []
        if state.files:
            found.append(f"{state.files} files of the working directory are saved with it")
        return found

    def _table(self) -> dict[str, str]:
        rows = [_row(each) for each in self.state.variables if each.how != "imported"]
        return table(self.HEADS, rows, numbers=["bytes"])

    def _rest(self) -> str:
        imports = [each.name for each in self.state.variables if each.how == "imported"]
        return f"imported again: {', '.join(imports)}" if imports else ""

    def __repr__(self) -> str:
        parts = [*self.lines(), self._table()["text/plain"], self._rest()]
        return "\n".join(filter(None, parts))

    def _repr_html_(self) -> str:
        head = "<br>".join(map(escape, self.lines()))
        rest = f"<div>{escape(self._rest())}</div>" if self._rest() else ""
        return f'<div style="{TABLE}">{head}{self._table()["text/html"]}{rest}</div>'


def _row(each: Variable) -> tuple[str, str, str, str]:
    size = "" if each.bytes is None else format_bytes(each.bytes)
    if each.how == "saved":
        shares = ", ".join(each.shares[:MOST_SHARES])
        more = len(each.shares) - MOST_SHARES
        shared = f"shares objects with {shares}{f' and {more} more' if more > 0 else ''}"
        return each.name, "saved", size, shared if shares else ""
    if each.how == "recomputed":
        cells = (
            f"cell {each.cells[0]}" if len(each.cells) == 1 else f"cells {', '.join(each.cells)}"
        )
        took = format_seconds(each.seconds or 0.0)
        return each.name, f"recomputed by {cells} ({took})", size, each.why
    return each.name, "cannot survive", size, each.why
