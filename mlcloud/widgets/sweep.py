"""A sweep as it is seen under its cell: how far, the best, a plot of all trials, and a table.

    ◌ 17 of 40 trials · 4 running · 2 min 10 s · $0.042 of $1 · best loss 0.231 (trial 9)
       lr      layers   loss
       │ ─ ─  │ ──── │              each line a trial, from what was tried to what came of it;
       │ ───  │ ─    │              the better, the stronger
    trial  state    lr      layers  loss    step
        9  done     0.0021  3       0.231   10

One display, updated in place, of HTML and text: it stays in the file, survives a reload and an
export, and needs no widget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from html import escape
from typing import Any

from mlcloud.units import format_usd, format_whole_seconds
from mlcloud.widgets.tables import escaped, table

ROWS = 12  # of the table: the best, and those that run
LINES = 300  # of the plot
_WIDTH, _HEIGHT, _TOP, _SIDE = 640, 180, 26, 46
_INK = "var(--jp-ui-font-color1,currentColor)"
_QUIET = "var(--jp-ui-font-color2,#767676)"
_LINE = "var(--jp-border-color2,#bbb)"
_ACCENT = "var(--jp-brand-color1,#1976d2)"
_FONT = "font-family:var(--jp-ui-font-family,system-ui,sans-serif)"
_STYLE = f"{_FONT};font-size:var(--jp-ui-font-size1,13px);color:{_INK}"
_HALO = "paint-order:stroke;stroke:var(--jp-layout-color0,#fff);stroke-width:3px"
MARKS = {"running": "◌", "done": "●", "stopped": "■", "failed": "✕"}


@dataclass
class SweepView:
    """What there is to see. `metrics`: name, and "min" or "max"; the first ranks."""

    metrics: Mapping[str, str]
    names: Sequence[str]  # of what varies
    trials: Sequence[Any]  # sweeps.trials.Trial
    wanted: int | None = None
    state: str = "running"
    seconds: float = 0.0
    usd: Decimal = Decimal(0)
    limit_usd: Decimal | None = None
    simulated: bool = False
    why: str = ""  # it ended before its end
    front: Sequence[int] = field(default_factory=tuple)

    @property
    def ranked(self) -> list[Any]:
        """Trials with a finite first metric, the best first."""
        name, mode = next(iter(self.metrics.items()))
        known = [each for each in self.trials if math.isfinite(each.values.get(name, math.nan))]
        known = [each for each in known if each.state != "failed"]
        return sorted(known, key=lambda each: each.values[name], reverse=mode == "max")

    def facts(self) -> list[str]:
        count = {state: sum(each.state == state for each in self.trials) for state in MARKS}
        ended = len(self.trials) - count["running"]
        of = f" of {self.wanted:,}" if self.wanted is not None else ""
        found = [f"{ended:,}{of} trials"]
        found += [
            f"{count[each]} {each}" for each in ("running", "stopped", "failed") if count[each]
        ]
        found.append(format_whole_seconds(self.seconds))
        cost = format_usd(self.usd)
        if self.limit_usd is not None:
            cost += f" of {format_usd(self.limit_usd)}"
        found.append(cost + (" (simulated)" if self.simulated else ""))
        if ranked := self.ranked:
            name = next(iter(self.metrics))
            best = next((each for each in ranked if each.state == "done"), ranked[0])
            found.append(f"best {name} {best.values[name]:.4g} (trial {best.number})")
        return [*found, *([self.why] if self.why else [])]

    def rows(self) -> list[Any]:
        """The best trials, those of the front, and those that run."""
        ranked = [each for each in self.ranked if each.state != "running"]
        first = [each for each in ranked if each.number in self.front]
        chosen = [*first, *(each for each in ranked if each not in first)][:ROWS]
        running = [each for each in self.trials if each.state == "running"]
        failed = [each for each in self.trials if each.state == "failed"]
        return [*chosen, *running[: ROWS // 2], *failed[-2:]]

    def bundle(self) -> dict[str, str]:
        """As a notebook shows it."""
        heads = ["trial", "state", *self.names, *self.metrics, "step"]
        shown = self.rows()
        lines = [
            [
                str(each.number),
                f"{MARKS[each.state]} {each.state}" + (f": {each.why[:60]}" if each.why else ""),
                *(_short(each.params.get(name)) for name in self.names),
                *(_short(each.values.get(name)) for name in self.metrics),
                "" if each.step is None else str(each.step),
            ]
            for each in shown
        ]
        numbers = {"trial", "step", *self.metrics, *self._numeric()}
        both = (
            table(heads, lines, numbers=numbers) if lines else {"text/plain": "", "text/html": ""}
        )
        words = " · ".join(self.facts())
        more = len(self.trials) - len(shown)
        note = f"and {more} more trials: sweep.table has all" if more > 0 else ""
        text = "\n".join(filter(None, [f"{MARKS[self.state]} {words}", both["text/plain"], note]))
        html = (
            f'<div style="{_STYLE}"><div style="padding:2px 0">{MARKS[self.state]} '
            f"{escaped(words)}</div>{self.plot()}{both['text/html']}"
            f'<div style="color:{_QUIET}">{escaped(note)}</div></div>'
        )
        return {"text/plain": text, "text/html": html}

    def _numeric(self) -> list[str]:
        return [
            name
            for name in self.names
            if all(_is_number(each.params.get(name)) for each in self.trials)
        ]

    # --- the plot ---------------------------------------------------------------------------------

    def plot(self) -> str:
        """Parallel coordinates as SVG; nothing until two trials have something to show."""
        ranked = self.ranked[:LINES]
        if len(ranked) < 2:
            return ""
        axes = [_axis(name, [each.params.get(name) for each in ranked]) for name in self.names]
        axes += [_axis(name, [each.values.get(name) for each in ranked]) for name in self.metrics]
        width = max(_WIDTH, 90 * len(axes))
        gap = (width - 2 * _SIDE) / max(1, len(axes) - 1)
        parts = []
        for place, trial in reversed(list(enumerate(ranked))):
            points, known = [], True
            for number, axis in enumerate(axes):
                source = trial.params if number < len(self.names) else trial.values
                at = axis.place(source.get(axis.name))
                known = known and at is not None
                points.append(f"{_SIDE + number * gap:.1f},{_y(at or 0.0):.1f}")
            if not known:
                continue
            part = 1 - place / max(1, len(ranked) - 1)
            color, weight = (_ACCENT, 2.5) if place == 0 else (_INK, 0.8 + part)
            opacity = 1.0 if place == 0 else 0.08 + 0.5 * part**2
            told = ", ".join(
                f"{name} {_short(value)}"
                for name, value in {**trial.params, **trial.values}.items()
            )
            parts.append(
                f'<polyline points="{" ".join(points)}" fill="none" style="stroke:{color}" '
                f'stroke-width="{weight:.1f}" stroke-opacity="{opacity:.2f}">'
                f"<title>{escape(f'trial {trial.number}: {told}')}</title></polyline>"
            )
        for number, axis in enumerate(axes):
            x = _SIDE + number * gap
            weight = "600" if number >= len(self.names) else "400"
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_y(0):.1f}" y2="{_y(1):.1f}" '
                f'style="stroke:{_LINE}"/>'
                f'<text x="{x:.1f}" y="12" text-anchor="middle" font-weight="{weight}" '
                f'style="fill:{_INK}">{escape(_cut(axis.name))}</text>'
            )
            parts += [
                f'<text x="{x + 5:.1f}" y="{_y(at) + 4:.1f}" style="fill:{_QUIET};{_HALO}">'
                f"{escape(_cut(label, 10))}</text>"
                for label, at in axis.labels
            ]
        words = f"{len(ranked)} trials, from what was tried to {', '.join(self.metrics)}"
        return (
            f'<svg role="img" aria-label="{escape(words)}" viewBox="0 0 {width} {_HEIGHT + _TOP}" '
            f'style="max-width:{width}px;width:100%;{_FONT};font-size:11px;display:block">'
            f"<title>{escape(words)}</title>{''.join(parts)}</svg>"
        )


@dataclass
class _Axis:
    """One value's scale. `places`: of texts and the like, each at its own height."""

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    places: dict[str, float] | None = None

    def place(self, value: Any) -> float | None:
        """From 0 (below) to 1; None where there is no value."""
        if self.places is not None:
            return self.places.get(_short(value))
        if not _is_number(value):
            return None
        low, high, at = self.low, self.high, float(value)
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return 0.5 if high <= low else (at - low) / (high - low)

    @property
    def labels(self) -> list[tuple[str, float]]:
        if self.places is not None:
            return list(self.places.items())
        if self.high <= self.low:
            return [(_short(self.low), 0.5)]
        return [(_short(self.low), 0.0), (_short(self.high), 1.0)]


def _axis(name: str, values: list[Any]) -> _Axis:
    known = [float(each) for each in values if _is_number(each)]
    if len(known) < len([each for each in values if each is not None]) or not known:
        words = sorted({_short(each) for each in values})[:12]
        step = 1 / max(1, len(words) - 1)
        places = {
            word: (number * step if len(words) > 1 else 0.5) for number, word in enumerate(words)
        }
        return _Axis(name, places=places)
    low, high = min(known), max(known)
    return _Axis(name, low, high, log=low > 0 and high / low > 50)


def _y(at: float) -> float:
    return _TOP + (1 - at) * (_HEIGHT - 12) + 4


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value)


def _short(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return _cut(str(value), 24)


def _cut(text: str, length: int = 14) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
