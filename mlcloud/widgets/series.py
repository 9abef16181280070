"""A series of checkpoints in a notebook: its steps as a table, with bars and the metric's curve.

    run   1,200 steps · 4.1 GB named · newest 12,000, 3 min ago              metric 2.31 → 0.41
    step    size                    new      age      metric
    12,000  1.1 GB  ▓▓▓░░░░░░░░░░   210 MB   3 min    0.41
    …

A bar's length is the step's size beside the largest shown, its filled part what was new of it.
Colours are the page's (JupyterLab's variables, else the text's own), and there is no script: it
looks the same when the notebook is opened again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape

from mlcloud.units import format_bytes, format_seconds
from mlcloud.widgets.tables import CELL, HEAD, NUMBER, TABLE, table

HEADS = ("step", "bytes", "new", "age", "metric", "state")
NUMBERS = ("step", "bytes", "new", "age", "metric")

_QUIET = "color:var(--jp-ui-font-color2,inherit)"
_BAD = "color:var(--jp-error-color0,var(--jp-error-color1,#d32f2f));font-weight:600"
_ACCENT = "var(--jp-brand-color1,#1976d2)"
_TRACK = "var(--jp-border-color1,rgba(128,128,128,.45))"
_BAR_PX = 120
_CURVE = (240, 44)  # pixels
_PAD = 4


@dataclass(frozen=True)
class Line:
    """A step. Where its manifest is no use, `fault` names that, `problem` says why, and the rest
    is unknown."""

    step: int
    bytes: int = 0
    new_bytes: int = 0
    created: datetime | None = None
    metric: float | None = None
    complete: bool = False
    fault: str = ""  # "damaged", "unreadable"
    problem: str = ""


@dataclass(frozen=True)
class Series:
    """The newest steps of a series, oldest first, of `count`; shows itself as a table.

    `curve`: steps with their metrics, over the whole series; where it is long, some of them.
    """

    name: str
    place: str
    count: int
    lines: Sequence[Line]
    curve: Sequence[tuple[int, float]]
    now: datetime

    def __repr__(self) -> str:
        rows = [_words(line, self.now) for line in self.lines]
        shown = table(HEADS, rows, numbers=NUMBERS)["text/plain"]
        before = f"\n… {_steps(self._earlier, ' earlier')}" if self._earlier else ""
        problems = [f"\nstep {each.step}: {each.problem}" for each in self.lines if each.fault]
        head = f"{self.name}: {_steps(self.count)} in {self.place}"
        return f"{head}{before}\n{shown}{''.join(problems)}" if self.lines else head

    def _repr_html_(self) -> str:
        if not self.lines:
            return f'<div style="{TABLE};padding:4px 0">{self._title()}</div>'
        most = max(max(line.bytes, 1) for line in self.lines)
        heads = "".join(
            f'<th style="{HEAD}{NUMBER if name in NUMBERS else ""}">{name}</th>'
            for name in (*HEADS[:2], "", *HEADS[2:])
        )
        body = "".join(_row(line, most, self.now) for line in reversed(self.lines))
        below = [f"… and {_steps(self._earlier, ' earlier')}"] if self._earlier else []
        below += [f"step {each.step:,}: {each.problem}" for each in self.lines if each.fault]
        more = "".join(
            f'<div style="{_QUIET};padding-top:4px;overflow-wrap:anywhere">{escape(text)}</div>'
            for text in below
        )
        return (
            f'<div style="{TABLE};max-width:100%;overflow-x:auto;padding:4px 0">'
            '<div style="display:flex;flex-wrap:wrap;gap:4px 28px;align-items:flex-end;'
            f'padding-bottom:6px"><div>{self._title()}</div>{self._figure()}</div>'
            f'<table style="{TABLE};margin:0;table-layout:auto"><thead><tr>{heads}</tr></thead>'
            f"<tbody>{body}</tbody></table>{more}</div>"
        )

    @property
    def _earlier(self) -> int:
        return self.count - len(self.lines)

    def _title(self) -> str:
        facts = [_steps(self.count)]
        if self.lines and (newest := self.lines[-1]).created is not None:
            facts.append(f"newest {newest.step:,}, {_age(newest.created, self.now)} ago")
        wrong = sum(bool(line.fault) for line in self.lines)
        bad = f' · <span style="{_BAD}">{wrong} cannot be loaded</span>' if wrong else ""
        return (
            f"<b>{escape(self.name)}</b> {escape(' · '.join(facts))}{bad}"
            f'<div style="{_QUIET};overflow-wrap:anywhere">{escape(self.place)}</div>'
        )

    def _figure(self) -> str:
        """The metric's curve and its words."""
        known = [(step, value) for step, value in self.curve if math.isfinite(value)]
        if len(known) < 2:
            return ""
        low, high = (pick(known, key=lambda each: each[1]) for pick in (min, max))
        words = f"metric {_short(known[0][1])} → {_short(known[-1][1])}"
        range_ = f"lowest {_short(low[1])} at {low[0]:,}, highest {_short(high[1])} at {high[0]:,}"
        return (
            '<div style="display:flex;flex-wrap:wrap;gap:4px 12px;align-items:center">'
            f"{_svg(self.curve, f'{words}; {range_}')}"
            f'<div>{escape(words)}<div style="{_QUIET}">{escape(range_)}</div></div></div>'
        )


# --- rows -----------------------------------------------------------------------------------------


def _words(line: Line, now: datetime) -> tuple[str, ...]:
    if line.fault:
        return str(line.step), "", "", "", "", line.fault
    return str(line.step), *_figures(line, now), "loop ended" if line.complete else ""


def _figures(line: Line, now: datetime) -> tuple[str, str, str, str]:
    return (
        format_bytes(line.bytes),
        format_bytes(line.new_bytes),
        "" if line.created is None else _age(line.created, now),
        "" if line.metric is None else _short(line.metric),
    )


def _row(line: Line, most: int, now: datetime) -> str:
    number = f"{CELL}{NUMBER}"
    step = f'<td style="{number}">{line.step:,}</td>'
    if line.fault:
        return (
            f'<tr>{step}<td colspan="5" style="{CELL}"></td>'
            f'<td style="{CELL};{_BAD};white-space:nowrap" title="{escape(line.problem)}">'
            f"✕ {line.fault}</td></tr>"
        )
    size, new, age, metric = _figures(line, now)
    state = "✓ loop ended" if line.complete else ""
    when = f"{line.created:%Y-%m-%d %H:%M:%S} UTC" if line.created else ""
    return (
        f'<tr>{step}<td style="{number}">{size}</td>'
        f'<td style="{CELL};vertical-align:middle">{_bar(line, most)}</td>'
        f'<td style="{number}">{new}</td><td style="{number}" title="{when}">{age}</td>'
        f'<td style="{number}">{metric}</td><td style="{CELL};white-space:nowrap">{state}</td></tr>'
    )


def _bar(line: Line, most: int) -> str:
    whole = max(2, round(_BAR_PX * line.bytes / most))
    part = min(1.0, line.new_bytes / line.bytes) if line.bytes else 0.0
    new = max(1, round(whole * part)) if line.new_bytes else 0
    words = f"{format_bytes(line.new_bytes)} new of {format_bytes(line.bytes)}"
    return (
        f'<div style="width:{_BAR_PX}px"><div role="img" aria-label="{words}" title="{words}" '
        f'style="width:{whole}px;height:8px;border-radius:2px;background:{_TRACK};overflow:hidden">'
        f'<div style="width:{new}px;height:8px;background:{_ACCENT}"></div></div></div>'
    )


# --- the curve ------------------------------------------------------------------------------------


def _svg(curve: Sequence[tuple[int, float]], words: str) -> str:
    width, height = _CURVE
    paths = " ".join(_paths(curve))
    *_, (x, y) = (each for each in _points(curve) if each is not None)
    return (
        f'<svg role="img" aria-label="{escape(words)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" style="flex:none"><title>{escape(words)}</title>'
        f'<path d="{paths}" fill="none" style="stroke:{_ACCENT}" stroke-width="1.5" '
        'stroke-linejoin="round" stroke-linecap="round"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" style="fill:{_ACCENT}"/></svg>'
    )


def _paths(curve: Sequence[tuple[int, float]]) -> Iterator[str]:
    """SVG commands; a value that is no number is a gap."""
    drawing = False
    for point in _points(curve):
        if point is not None:
            yield f"{'L' if drawing else 'M'}{point[0]:.1f} {point[1]:.1f}"
        drawing = point is not None


def _points(curve: Sequence[tuple[int, float]]) -> Iterator[tuple[float, float] | None]:
    values = [value for _, value in curve if math.isfinite(value)]
    low, high = min(values), max(values)
    first, last = curve[0][0], curve[-1][0]
    width, height = (side - 2 * _PAD for side in _CURVE)
    for step, value in curve:
        if not math.isfinite(value):
            yield None
            continue
        x = (step - first) / max(1, last - first)
        # divided first: their difference may be more than a float holds
        span = high / 2 - low / 2
        y = (value / 2 - low / 2) / span if span else 0.5
        yield _PAD + x * width, _PAD + (1 - y) * height


# --- words ----------------------------------------------------------------------------------------


def _steps(count: int, which: str = "") -> str:
    return f"{count:,}{which} step{'' if count == 1 else 's'}"


def _age(created: datetime, now: datetime) -> str:
    return format_seconds(max(0.0, (now - created).total_seconds()))


def _short(value: float) -> str:
    return f"{value:.4g}"
