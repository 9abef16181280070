"""The budgets in force, as a notebook or a terminal shows them."""

from __future__ import annotations

from collections.abc import Iterator

from mlcloud.cost.budgets import whose
from mlcloud.cost_models import BudgetInfo
from mlcloud.units import format_usd
from mlcloud.widgets.tables import table

HEADS = ("for", "limit", "spent", "left", "period ends", "state")


class Budgets:
    """A list of `BudgetInfo`, shown as a table."""

    def __init__(self, infos: list[BudgetInfo]) -> None:
        self.infos = infos

    def __iter__(self) -> Iterator[BudgetInfo]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                whose(each.session, each.user, each.job),
                f"${each.limit}",
                f"{format_usd(each.spent_usd)} ({each.spent_usd / each.limit_usd:.0%})",
                format_usd(max(each.limit_usd - each.spent_usd, each.limit_usd * 0)),
                f"{each.ends_at:%Y-%m-%d %H:%M} UTC" if each.ends_at else "",
                "spent: new work is refused" if each.refuses else "in force",
            )
            for each in self.infos
        ]

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        if not self.infos:
            return {"text/plain": repr(self)}
        return table(HEADS, self._rows(), numbers=["limit", "spent", "left"])

    def __repr__(self) -> str:
        if not self.infos:
            return 'no budget is set: %mlcloud budget 50/day, or mlcloud.session(budget="5")'
        return table(HEADS, self._rows(), numbers=["limit", "spent", "left"])["text/plain"]
