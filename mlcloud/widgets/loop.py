"""A loop's progress under its cell, with what it has cost and is going to cost.

    for epoch in mlcloud.progress(range(10), metric="loss"):
        loss = train()

    ◌ epoch 3 of 10 ▓▓▓▓░░░░░░ · 1 min 12 s, 2 min 48 s left · $0.031 of about $0.10 · loss 0.4 ▇▅▃

In a notebook it is one display, updated in place: HTML and text, which stay in the file, survive a
reload and an export, and need no widget. In a terminal it is one line. What a session bills is
known in a remote cell only; elsewhere no dollars are shown. Expected: the rate times the time that
the items done took, each, for all of them.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from html import escape
from typing import Any, Generic, TypeVar
from uuid import uuid4

from mlcloud.checkpoint import context
from mlcloud.units import format_usd, format_whole_seconds
from mlcloud.widgets.tables import escaped

T = TypeVar("T")

EVERY_S = 0.5
WIDTH = 16
POINTS = 60
BLOCKS = "▁▂▃▄▅▆▇█"
_CURVE = (120, 22)  # pixels
_STYLE = (
    "font-family:var(--jp-ui-font-family,system-ui,sans-serif);"
    "font-size:var(--jp-ui-font-size1,13px);color:var(--jp-ui-font-color1,inherit);"
    "font-variant-numeric:tabular-nums;display:flex;flex-wrap:wrap;gap:2px 12px;"
    "align-items:center;padding:2px 0"
)
_QUIET = "color:var(--jp-ui-font-color2,inherit)"
_TOGETHER = "display:inline-flex;gap:8px;align-items:center"
_ACCENT = "var(--jp-brand-color1,#1976d2)"


def progress(
    iterable: Iterable[T],
    *,
    metric: str | Callable[[], float] | None = None,
    name: str = "step",
    total: int | None = None,
) -> Progress[T]:
    """Iterate over `iterable`, and show how far it is, how long it takes and what it costs.

    Args:
        iterable: anything; `mlcloud.resumable(…)` too: what it skips counts as done, and neither
            its time nor its cost is in the estimate.
        metric: the name of a variable of the loop, such as `"loss"`, or a function that returns a
            number; looked at after each item, shown with its curve.
        name: what an item is called.
        total: how many items there are, where `iterable` has no length.
    """
    frame = sys._getframe(1)

    def look() -> float | None:
        if metric is None:
            return None
        if callable(metric):
            return _number(metric())
        found = frame.f_locals.get(metric, frame.f_globals.get(metric))
        return _number(found)

    label = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
    return Progress(iterable, look, name, total, "" if metric is None else label)


class Progress(Generic[T]):
    """What `progress` returns: an iterable, with a length where that is known."""

    def __init__(
        self,
        iterable: Iterable[T],
        look: Callable[[], float | None],
        name: str,
        total: int | None,
        label: str,
    ) -> None:
        self._iterable, self._look = iterable, look
        self.name, self.label = name, label
        if total is None:
            try:
                total = len(iterable)  # type: ignore[arg-type]
            except TypeError:
                total = None
        self.total = total

    def __len__(self) -> int:
        if self.total is None:
            raise TypeError("this loop has no length")
        return self.total

    def __iter__(self) -> Iterator[T]:
        run = context.current()
        seen = Seen(self.name, self.total, self.label, run)
        surface = _surface()
        drawn = 0.0
        try:
            for number, item in enumerate(self._iterable):
                if number == 0:
                    # A loop that goes on from a checkpoint has done these before.
                    seen.begin(
                        (run.step or 0) if run is not None and _resumes(self._iterable) else 0
                    )
                    surface.draw(seen)
                yield item
                seen.did(self._look())
                now = time.monotonic()
                if now - drawn >= EVERY_S:
                    drawn = now
                    surface.draw(seen)
        except GeneratorExit:
            seen.state = "left"
            raise
        except BaseException:
            seen.state = "failed"
            raise
        else:
            seen.state = "done"
        finally:
            surface.end(seen)


class Seen:
    """How far a loop is. `run` tells what its session bills."""

    def __init__(
        self,
        name: str,
        total: int | None,
        label: str,
        run: context.RunContext | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.total, self.label = name, total, label
        self.usd_per_hour = run.usd_per_hour if run is not None else Decimal(0)
        self.simulated = run is not None and run.simulated
        self._clock = clock
        self._began = self._works_since = clock()
        self.skipped = self.done = 0
        self.curve: list[tuple[int, float]] = []
        self.last: float | None = None
        self.state = "running"
        self._each = 1

    def begin(self, skipped: int) -> None:
        self.skipped = self.done = skipped
        self._works_since = self._clock()

    def did(self, metric: float | None) -> None:
        self.done += 1
        if metric is None:
            return
        self.last = metric
        if self.done % self._each == 0:
            self.curve.append((self.done, metric))
        if len(self.curve) > POINTS:
            self.curve = self.curve[1::2]
            self._each *= 2

    @property
    def seconds(self) -> float:
        return self._clock() - self._began

    @property
    def left_s(self) -> float | None:
        """None: not known."""
        worked = self.done - self.skipped
        if self.total is None or not worked:
            return None
        each = (self._clock() - self._works_since) / worked
        return each * max(0, self.total - self.done)

    def cost(self, seconds: float) -> Decimal:
        return self.usd_per_hour * Decimal(str(seconds)) / 3600

    @property
    def mark(self) -> str:
        return {"running": "◌", "done": "●", "left": "■", "failed": "✕"}[self.state]

    def facts(self) -> list[str]:
        """How far, how long, for how much; without the bar and the metric."""
        of = f" of {self.total:,}" if self.total is not None else ""
        facts = [f"{self.name} {self.done:,}{of}"]
        left = self.left_s if self.state == "running" else None
        spent = format_whole_seconds(self.seconds)
        facts.append(spent if left is None else f"{spent}, {format_whole_seconds(left)} left")
        if self.usd_per_hour:
            cost = format_usd(self.cost(self.seconds))
            if left is not None:
                cost += f" of about {format_usd(self.cost(self.seconds + left))}"
            facts.append(cost + (" (simulated)" if self.simulated else ""))
        return facts

    def metric(self) -> str:
        return "" if self.last is None else f"{self.label} {self.last:.4g}"

    @property
    def part(self) -> float | None:
        return min(1.0, self.done / self.total) if self.total else None


# --- as it is shown -------------------------------------------------------------------------------


def text(seen: Seen) -> str:
    first, *rest = seen.facts()
    head = f"{seen.mark} {first}"
    if seen.part is not None:
        full = round(WIDTH * seen.part)
        head += " " + "▓" * full + "░" * (WIDTH - full)
    metric = " ".join(filter(None, [seen.metric(), _blocks(seen.curve)]))
    return " · ".join([head, *rest, *([metric] if metric else [])])


def html(seen: Seen) -> str:
    words = ", ".join([*seen.facts(), *filter(None, [seen.metric()])])
    first, *rest = (escaped(fact) for fact in seen.facts())
    parts = [f"<span>{seen.mark} {first}</span>"]
    if seen.part is not None:
        parts.append(
            f'<progress value="{seen.part:.4f}" max="1" style="width:9em" '
            f'aria-label="{escape(words)}">{seen.part:.0%}</progress>'
        )
    parts.append(f'<span style="{_QUIET}">{" · ".join(rest)}</span>')
    if seen.last is not None:
        curve = curve_svg(seen.curve, seen.label)
        parts.append(f'<span style="{_TOGETHER}">{escaped(seen.metric())} {curve}</span>')
    return f'<div style="{_STYLE}">{"".join(parts)}</div>'


def curve_svg(curve: Sequence[tuple[float, float]], label: str) -> str:
    """A small line of (place, value), or nothing of fewer than two."""
    known = [(step, value) for step, value in curve if math.isfinite(value)]
    if len(known) < 2:
        return ""
    width, height = _CURVE
    low, high = min(v for _, v in known), max(v for _, v in known)
    first, last = known[0][0], known[-1][0]
    points = " ".join(
        f"{2 + (step - first) / (last - first) * (width - 4):.1f},"
        f"{2 + (1 - ((value - low) / (high - low) if high > low else 0.5)) * (height - 4):.1f}"
        for step, value in known
    )
    words = (
        f"{label} from {known[0][1]:.4g} to {known[-1][1]:.4g}, between {low:.4g} and {high:.4g}"
    )
    return (
        f'<svg role="img" aria-label="{escape(words)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><title>{escape(words)}</title>'
        f'<polyline points="{points}" fill="none" style="stroke:{_ACCENT}" stroke-width="1.5"/>'
        "</svg>"
    )


def _blocks(curve: list[tuple[int, float]]) -> str:
    values = [value for _, value in curve if math.isfinite(value)][-WIDTH:]
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in values)


class _Surface:
    """Where it is drawn. Without a terminal or a notebook: only how it ended."""

    def draw(self, seen: Seen) -> None:
        pass

    def end(self, seen: Seen) -> None:
        print(text(seen), file=sys.stderr, flush=True)


class _Terminal(_Surface):
    def draw(self, seen: Seen) -> None:
        print(f"\r\x1b[2K{text(seen)}", end="", file=sys.stderr, flush=True)

    def end(self, seen: Seen) -> None:
        self.draw(seen)
        print(file=sys.stderr, flush=True)


class _Notebook(_Surface):
    def __init__(self, publisher: Any) -> None:
        self._publisher = publisher
        self._id = f"mlcloud-{uuid4().hex[:12]}"
        self._shown = False

    def draw(self, seen: Seen) -> None:
        self._publisher.publish(
            {"text/plain": text(seen), "text/html": html(seen)},
            transient={"display_id": self._id},
            update=self._shown,
        )
        self._shown = True

    end = draw


def publisher() -> Any:
    """What shows displays in this notebook; None where there is no notebook."""
    ipython = sys.modules.get("IPython")
    shell: Any = ipython.get_ipython() if ipython is not None else None
    return shell.display_pub if getattr(shell, "kernel", None) is not None else None


def _surface() -> _Surface:
    if (found := publisher()) is not None:
        return _Notebook(found)
    return _Terminal() if sys.stderr.isatty() else _Surface()


# --- small ----------------------------------------------------------------------------------------


def _resumes(iterable: object) -> bool:
    from mlcloud.checkpoint.resumable import Resumable

    return isinstance(iterable, Resumable)


def _number(value: Any) -> float | None:
    """A float of a number, a tensor of one element, a NumPy scalar; None of anything else."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
