"""How far a transfer is: a bar that appears after half a second and leaves one quiet line.

    ◌ sending `x` ▓▓▓▓▓▓▓▓░░░░░░  512 MB of 1 GB · 540 MB/s · 1 s left
    ● sent `x` · 1 GB in 1.9 s (540 MB/s)

In a notebook it is one display that is updated in place, in a terminal one line of stderr that is
written over; where stderr is no terminal, nothing is written but the last line. What is quick
shows nothing at all. Only the thread that waits draws; the others count.
"""

from __future__ import annotations

import html
import sys
import threading
import time
from collections import deque
from types import TracebackType
from typing import Any
from uuid import uuid4

from mlcloud.client import frontend
from mlcloud.client.display import STYLE
from mlcloud.units import format_bytes, format_seconds

AFTER_S = 0.5
EVERY_S = 0.2
WINDOW_S = 5.0  # the rate is that of the last seconds
WIDTH = 24


class Progress:
    """One transfer of `total` bytes, of which `done` need not move.

    `what` begins with the present participle ("sending `x`").
    """

    def __init__(self, what: str, total: int, *, done: int = 0) -> None:
        self._what = what
        self._total = total
        self._skipped = done
        self._done = done
        self._lock = threading.Lock()
        self._note = ""
        self._start = time.monotonic()
        self._drawn = 0.0
        self._samples: deque[tuple[float, int]] = deque([(self._start, done)])
        self._surface: _Surface | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._surface is None:
            return
        took = time.monotonic() - self._start
        moved = self._done - self._skipped
        if error is None:
            verb, _, what = self._what.partition(" ")
            past = {"sending": "sent", "fetching": "fetched"}.get(verb, verb)
            kept = f", {format_bytes(self._skipped)} were there" if self._skipped else ""
            rate = format_bytes(round(moved / max(took, 1e-9)))
            text = (
                f"{past} {what} · {format_bytes(moved)} in {format_seconds(took)} ({rate}/s){kept}"
            )
            self._surface.end("●", text)
        else:
            stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else "broken off"
            at = f"{format_bytes(self._done)} of {format_bytes(self._total)}"
            self._surface.end("✕", f"{self._what}: {stopped} at {at}")

    def add(self, size: int) -> None:
        """Count bytes (fewer, when a piece must go again). From any thread."""
        with self._lock:
            self._done += size
        if size > 0 and self._note:
            self._note = ""

    def note(self, text: str) -> None:
        """Say what it waits for, until bytes move again."""
        self._note = text
        self.show(now=True)

    def show(self, *, now: bool = False) -> None:
        """Draw, if it is time."""
        clock = time.monotonic()
        if not now and (clock - self._start < AFTER_S or clock - self._drawn < EVERY_S):
            return
        self._drawn = clock
        self._samples.append((clock, self._done))
        while len(self._samples) > 2 and clock - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()
        if self._surface is None:
            self._surface = _surface()
        self._surface.draw(self._what, self._done / max(1, self._total), self._facts())

    def _facts(self) -> str:
        facts = [f"{format_bytes(self._done)} of {format_bytes(self._total)}"]
        (first, before), (last, now) = self._samples[0], self._samples[-1]
        rate = (now - before) / (last - first) if last > first else 0.0
        if self._note:
            facts.append(self._note)
        elif rate > 0:
            facts.append(f"{format_bytes(round(rate))}/s")
            facts.append(f"{format_seconds(round((self._total - now) / rate))} left")
        return " · ".join(facts)


class _Surface:
    """Where it is drawn: nowhere, until the last line."""

    def draw(self, what: str, part: float, facts: str) -> None:
        pass

    def end(self, mark: str, text: str) -> None:
        print(f"{mark} {text}", file=sys.stderr)


class _Terminal(_Surface):
    """One line of a terminal, written over."""

    def draw(self, what: str, part: float, facts: str) -> None:
        self._write(f"\r\x1b[2K◌ {what} {_bar(part)} {facts}")

    def end(self, mark: str, text: str) -> None:
        self._write(f"\r\x1b[2K{mark} {text}\n")

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


class _Notebook(_Surface):
    """One display of the cell, updated in place."""

    def __init__(self, publisher: Any) -> None:
        self._publisher = publisher
        self._id = f"mlcloud-{uuid4().hex[:12]}"
        self._shown = False

    def draw(self, what: str, part: float, facts: str) -> None:
        text = f"{what} {_bar(part)} {facts}"
        bar = f'<progress value="{part:.4f}" max="1" style="width:12em;margin:0 .6em"></progress>'
        self._publish("◌", text, f"{html.escape(what)} {bar} {html.escape(facts)}")

    def end(self, mark: str, text: str) -> None:
        self._publish(mark, text, html.escape(text))

    def _publish(self, mark: str, text: str, rich: str) -> None:
        self._publisher.publish(
            {
                "text/plain": f"{mark} {text}",
                "text/html": f'<div style="{STYLE}">{mark} {rich}</div>',
            },
            {"mlcloud": {"line": text}},
            transient={"display_id": self._id},
            update=self._shown,
        )
        self._shown = True


def _surface() -> _Surface:
    if frontend.kernel() is not None:
        return _Notebook(frontend.shell().display_pub)
    return _Terminal() if sys.stderr.isatty() else _Surface()


def _bar(part: float) -> str:
    full = round(WIDTH * min(1.0, max(0.0, part)))
    return "▓" * full + "░" * (WIDTH - full)
