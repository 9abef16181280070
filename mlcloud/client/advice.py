"""What could be saved, as a notebook or a terminal shows it: a table, and each one's arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from mlcloud.cost_models import AdviceInfo, AdviceReport
from mlcloud.units import format_usd
from mlcloud.widgets.tables import CELL, TABLE, table

HEADS = ("#", "saves", "kind", "about", "advice", "do", "sure")
NUMBERS = ("#", "saves")


class AdviceList:
    """The advice of an `AdviceReport`, the biggest saving first; shows itself as a table."""

    def __init__(self, report: AdviceReport) -> None:
        self.report = report

    def __iter__(self) -> Iterator[AdviceInfo]:
        return iter(self.report.advice)

    def __len__(self) -> int:
        return len(self.report.advice)

    def __getitem__(self, index: int) -> AdviceInfo:
        return self.report.advice[index]

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                str(number),
                f"{format_usd(each.saves_usd)}{' a month' if each.per == 'month' else ' once'}",
                each.kind,
                each.about,
                each.text,
                each.action,
                each.confidence,
            )
            for number, each in enumerate(self.report.advice, 1)
        ]

    def _foot(self) -> list[str]:
        """Since when, and what else there is to know."""
        report = self.report
        lines = [] if report.advice else ["no advice: nothing was found that would cost less"]
        if report.since is None:
            lines.append("no cell has been measured yet: advice on sizes comes with the first ones")
        else:
            count = f"{report.executions} execution{'s' if report.executions != 1 else ''}"
            lines.append(f"measured since {report.since:%Y-%m-%d %H:%M} UTC: {count}")
        if any(each.simulated for each in report.advice):
            lines.append("simulated prices: nobody is charged")
        if len(report.advice) > 1:
            lines.append("savings may be of the same hours: they do not add up")
        return [*lines, *report.notes]

    def __repr__(self) -> str:
        parts = []
        if self.report.advice:
            parts = [table(HEADS, self._rows(), numbers=NUMBERS)["text/plain"], ""]
        for number, each in enumerate(self.report.advice, 1):
            parts += [f"{number}. {each.about}", *(f"   {line}" for line in each.arithmetic), ""]
        return "\n".join([*parts, *self._foot()])

    def _repr_html_(self) -> str:
        foot = "".join(f"<div>{escape(line)}</div>" for line in self._foot())
        quiet = f'<div style="{TABLE};color:var(--jp-ui-font-color2,inherit)">{foot}</div>'
        if not self.report.advice:
            return quiet
        working = "".join(
            f'<details style="{TABLE};padding:2px 0"><summary>{number}. {escape(each.about)}: '
            f"how {escape(format_usd(each.saves_usd))} comes about</summary>"
            f'<ul style="{CELL};margin:2px 0">'
            + "".join(f"<li>{escape(line)}</li>" for line in each.arithmetic)
            + "</ul></details>"
            for number, each in enumerate(self.report.advice, 1)
        )
        shown = table(HEADS, self._rows(), numbers=NUMBERS)["text/html"]
        return f'<div style="overflow-x:auto">{shown}</div>{working}{quiet}'
