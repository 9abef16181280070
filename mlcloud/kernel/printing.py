"""What an execution prints: shown within limits, and kept in full when that is more.

    text ─► collapsed ─► log (`log.py`)
                    └──► shown, while there is credit ── else left out: counted, the end kept

An execution may print `burst` characters at once and `rate` more each second, `shown` in all. When
that is used up, a notice takes the place of what follows: how many lines were left out so far and
the latest of them, renewed now and then. It is over when a second brought no more than `rate` (two,
four, … seconds the next times): the notice has its final count, and the last lines left out and all
that comes next are shown again.

A carriage return takes back what a line showed. Of several states of a line in one piece of text,
as a progress bar prints them, only the last is passed on.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TICK_S = 1.0
CALM_S = 60.0  # a page shows some fifty outputs of a cell: not a gap each second
TAIL_LINES = 10
TAIL_CHARS = 4_000
LATEST_CHARS = 200

Shown = tuple[str, dict[str, Any]]  # kind and content of an event


@dataclass(frozen=True)
class Limits:
    """Characters, and characters a second; `MLCLOUD_OUTPUT_…` of `mlcloud/config.py`."""

    burst: int
    rate: int
    shown: int
    log: int


class Printing:
    """The printed text of one execution. Times are seconds of any one clock."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._credit = float(limits.burst)
        self._credited = now
        self._shown = 0
        self._gap: Gap | None = None
        self._gaps = 0
        self._calm_s = 0.0

    @property
    def limited(self) -> bool:
        """Whether text is being left out now."""
        return self._gap is not None

    def text(self, stream: str, text: str, now: float) -> Iterator[Shown]:
        """What of this text is to be shown, and a notice where the rest is left out."""
        if self._gap is None:
            self._earn(now)
            if len(text) <= self._credit:
                yield self._show(stream, text)
                return
            cut = text.rfind("\n", 0, int(self._credit)) + 1
            if cut:
                yield self._show(stream, text[:cut])
            self._gaps += 1
            self._calm_s = 0.0
            self._gap = Gap(now)
            self._gap.add(stream, text[cut:])
            yield self._gap.notice()
        else:
            self._gap.add(stream, text)

    def tick(self, now: float) -> Iterator[Shown]:
        """Called each second while `limited`."""
        if self._gap is None:
            return
        self._earn(now)
        calm = self._gap.calmed(self._limits.rate)
        self._calm_s = self._calm_s + TICK_S if calm else 0.0
        enough = min(CALM_S, 2.0 ** (self._gaps - 1)) * TICK_S
        if self._calm_s >= enough and self._credit >= TAIL_CHARS:
            yield from self._close_gap()
        elif self._gap.due(now):
            yield self._gap.notice()

    def end(self) -> Iterator[Shown]:
        """The execution has ended: how it ended is shown, whatever was left out before."""
        if self._gap is not None:
            self._credit = max(self._credit, TAIL_CHARS)
            yield from self._close_gap()

    def _close_gap(self) -> Iterator[Shown]:
        gap, self._gap = self._gap, None
        assert gap is not None
        tail = gap.tail()
        yield gap.notice(done=True)
        for stream, text in tail:
            yield self._show(stream, text)

    def _show(self, stream: str, text: str) -> Shown:
        self._credit -= len(text)
        self._shown += len(text)
        return "stream", {"name": stream, "text": text}

    def _earn(self, now: float) -> None:
        earned = self._limits.rate * max(0.0, now - self._credited)
        self._credited = now
        room = max(0, self._limits.shown - self._shown)
        self._credit = min(self._credit + earned, self._limits.burst, room)


class Gap:
    """What is left out in one place."""

    def __init__(self, now: float) -> None:
        self._id = secrets.token_hex(6)
        self._lines = 0
        self._chars = 0
        self._lately = 0  # characters since the last look
        self._since = self._told = now
        self._first = True
        self._last: deque[tuple[str, str]] = deque()
        self._last_chars = 0

    def add(self, stream: str, text: str) -> None:
        self._lines += text.count("\n")
        self._chars += len(text)
        self._lately += len(text)
        text = text[-TAIL_CHARS:]
        if self._last and self._last[-1][0] == stream and self._last_chars < TAIL_CHARS:
            stream, text = stream, self._last.pop()[1] + text
            self._last_chars = sum(len(each) for _, each in self._last)
        self._last.append((stream, text))
        self._last_chars += len(text)
        while len(self._last) > 1 and self._last_chars - len(self._last[0][1]) > TAIL_CHARS:
            self._last_chars -= len(self._last.popleft()[1])

    def calmed(self, rate: int) -> bool:
        """Whether no more than `rate` came since this was last asked."""
        lately, self._lately = self._lately, 0
        return lately <= rate

    def due(self, now: float) -> bool:
        """Whether to renew the notice: each second at first, more seldom as time goes by."""
        every = min(10.0, max(TICK_S, (now - self._since) / 10))
        if now - self._told < every - 0.1:
            return False
        self._told = now
        return True

    def notice(self, *, done: bool = False) -> Shown:
        content = {
            "gap": self._id,
            "first": self._first,
            "done": done,
            "lines": self._lines,
            "chars": self._chars,
            "latest": "" if done else self._latest(),
        }
        self._first = False
        return "mlcloud_omitted", content

    def _latest(self) -> str:
        lines = "".join(text for _, text in self._last).splitlines()
        return next((line for line in reversed(lines) if line.strip()), "")[:LATEST_CHARS]

    def tail(self) -> list[tuple[str, str]]:
        """The last lines, to be shown after the gap; they count as left out no more."""
        text = "".join(text for _, text in self._last)
        lines = text[-TAIL_CHARS:].splitlines(keepends=True)
        whole = lines if len(text) >= self._chars else lines[1:]  # the first may be a part
        length = sum(map(len, whole[-TAIL_LINES:]))
        found: list[tuple[str, str]] = []
        while length > 0 and self._last:
            stream, part = self._last.pop()
            found.append((stream, part[-length:]))
            length -= len(part)
        found.reverse()
        self._lines -= sum(part.count("\n") for _, part in found)
        self._chars -= sum(len(part) for _, part in found)
        return found


def collapsed(text: str) -> str:
    """The text without the states of a line that a carriage return takes back in the same text.

    A state goes only if a later one is at least as long, so that it covers it. A line with escape
    sequences stays as it is: they may move the cursor anywhere.
    """
    if "\r" not in text:
        return text
    return "\n".join(
        _last_state(line) if "\r" in line and "\x1b" not in line else line
        for line in text.split("\n")
    )


def _last_state(line: str) -> str:
    end = ""
    if line.endswith("\r"):  # of "\r\n", or what comes next begins there anyway
        line, end = line.rstrip("\r"), "\r"
    first, *states = line.split("\r")
    kept: list[str] = []
    longest = -1
    for state in reversed(states):
        if len(state) > longest:
            kept.append(state)
            longest = len(state)
    return "".join([first, *(f"\r{state}" for state in reversed(kept)), end])
