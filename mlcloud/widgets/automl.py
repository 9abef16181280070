"""A search for a table's model, as it is seen under its cell: how far, and the leaderboard.

◌ survived: classification by 1 - roc_auc · 40 s of 2 min · best 0.123 (lgbm) ╲__
learner     loss    tried  seconds
lgbm        0.123      41       12
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from mlcloud.units import format_whole_seconds
from mlcloud.widgets.loop import curve_svg
from mlcloud.widgets.tables import escaped, table

HEADS = ("learner", "loss", "tried", "seconds")
_STYLE = (
    "font-family:var(--jp-ui-font-family,system-ui,sans-serif);"
    "font-size:var(--jp-ui-font-size1,13px);color:var(--jp-ui-font-color1,inherit)"
)


def bundle(
    asked: Any,
    lines: Sequence[Any],
    spent: float,
    curve: Sequence[tuple[float, float]],
    *,
    done: bool = False,
) -> dict[str, str]:
    """Text and HTML. Losses: less is better, of data that was held out."""
    rows = [
        (each.learner, f"{each.loss:.4g}", each.trials, f"{each.seconds:.1f}") for each in lines
    ]
    both = table(HEADS, rows, numbers=HEADS[1:])
    facts = [f"{asked.target}: {asked.task}"]
    whole, past = map(format_whole_seconds, (asked.seconds, min(spent, asked.seconds)))
    facts.append(format_whole_seconds(spent) if done else f"{past} of {whole}")
    if lines:
        facts.append(f"best loss {lines[0].loss:.4g} ({lines[0].learner})")
    head = f"{'●' if done else '◌'} {' · '.join(facts)}"
    picture = curve_svg([*curve, (spent, curve[-1][1])] if curve else [], "loss")
    return {
        "text/plain": "\n".join([head, *([both["text/plain"]] if lines else [])]),
        "text/html": (
            f'<div style="{_STYLE}"><div style="padding:2px 0">{escaped(head)} {picture}</div>'
            f"{both['text/html'] if lines else ''}</div>"
        ),
    }


class Display:
    """One display of a notebook, updated in place; in a terminal only what came of it."""

    def __init__(self, asked: Any) -> None:
        self._asked = asked
        self._id, self._shown = f"mlcloud-{uuid4().hex[:12]}", False

    def draw(
        self,
        lines: Sequence[Any],
        spent: float,
        curve: Sequence[tuple[float, float]],
        *,
        done: bool = False,
    ) -> None:
        made = bundle(self._asked, lines, spent, curve, done=done)
        ipython = sys.modules.get("IPython")
        shell: Any = ipython.get_ipython() if ipython is not None else None
        if getattr(shell, "kernel", None) is not None:
            shell.display_pub.publish(made, transient={"display_id": self._id}, update=self._shown)
            self._shown = True
        elif done:
            print(made["text/plain"], file=sys.stderr, flush=True)


def show(asked: Any) -> Display:
    """Show that it has begun."""
    display = Display(asked)
    display.draw([], 0.0, [])
    return display
