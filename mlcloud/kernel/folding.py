"""What the ranks beside 0 show, folded under rank 0's output: a line each, that opens.

Text as a terminal would have it (a progress bar's last state), figures as pictures, other displays
by their plain text. Ranks that showed the same share a line. Of each rank the last 64 kB are kept.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any

from mlcloud.widgets.tables import escaped

MOST = 64 * 1024
MOST_PICTURE = 256 * 1024
_COLORS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_STYLE = "font-size:var(--jp-code-font-size,13px);margin:2px 0"


class Folded:
    """Of one execution."""

    def __init__(self, execution_id: str, workers: int) -> None:
        self.execution_id = execution_id
        self._workers = workers
        self._texts: dict[int, str] = {}
        self._cut: set[int] = set()
        self._pictures: dict[int, list[str]] = {}
        self._display = f"mlcloud-ranks-{execution_id}"
        self._shown = self._changed = False

    def add(self, rank: int, kind: str, content: dict[str, Any]) -> bool:
        """Whether it was something to show."""
        if kind == "stream":
            self._write(rank, content["text"])
        elif kind in ("display_data", "execute_result", "update_display_data"):
            data = content.get("data", {})
            picture = data.get("image/png")
            if isinstance(picture, str) and len(picture) <= MOST_PICTURE:
                self._pictures.setdefault(rank, []).append(picture)
            self._write(rank, f"{data.get('text/plain', '')}\n")
        elif kind == "error":
            trace = content.get("traceback") or [f"{content['ename']}: {content['evalue']}"]
            self._write(rank, "\n".join(map(str, trace)) + "\n")
        elif kind == "clear_output":
            self._texts.pop(rank, None)
            self._pictures.pop(rank, None)
        else:
            return False
        self._changed = True
        return True

    def _write(self, rank: int, text: str) -> None:
        whole = self._texts.get(rank, "") + _COLORS.sub("", text)
        if len(whole) > MOST:
            self._cut.add(rank)
            whole = whole[-MOST:]
        self._texts[rank] = whole

    def message(self) -> tuple[str, dict[str, Any]] | None:
        """Kind and body of the message that shows it; None where nothing is new."""
        if not self._changed:
            return None
        self._changed = False
        kind = "update_display_data" if self._shown else "display_data"
        self._shown = True
        parts = self._parts()
        content = {
            "data": {"text/plain": _plain(parts), "text/html": self._html(parts)},
            "metadata": {"mlcloud": {"ranks": sorted({*self._texts, *self._pictures})}},
            "transient": {"display_id": self._display},
        }
        return kind, {"type": kind, "content": content, "metadata": {}, "buffers": []}

    def _parts(self) -> list[tuple[list[int], str]]:
        """Ranks, and what they showed."""
        found: dict[tuple[str, int], list[int]] = {}
        for rank in sorted({*self._texts, *self._pictures}):
            alone = rank if rank in self._pictures else -1
            text = _as_terminal(self._texts.get(rank, ""))
            found.setdefault((text, alone), []).append(rank)
        return [(ranks, text) for (text, _), ranks in found.items()]

    def _html(self, parts: list[tuple[list[int], str]]) -> str:
        blocks = []
        for ranks, text in parts:
            cut = "… (earlier text left out)\n" if self._cut & set(ranks) else ""
            images = "".join(
                f'<img src="data:image/png;base64,{escape(each)}">'
                for rank in ranks
                for each in self._pictures.get(rank, [])
            )
            last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
            blocks.append(
                f'<details style="{_STYLE}"><summary>{_names(ranks)} <code>{escaped(last[:120])}'
                f"</code></summary><pre>{escaped(cut + text)}</pre>{images}</details>"
            )
        return "".join(blocks)


def _plain(parts: list[tuple[list[int], str]]) -> str:
    lines = []
    for ranks, text in parts:
        body = text.rstrip("\n").splitlines()
        lines.append(f"{_names(ranks)}:")
        lines += [f"  {line}" for line in body]
    return "\n".join(lines)


def _names(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def _as_terminal(text: str) -> str:
    """Each line as it stands after its carriage returns."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
