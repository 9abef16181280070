"""Tables in a notebook: plain text with aligned columns, and HTML that follows the page's theme."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

CELL = "text-align:left;padding:2px 10px 2px 0;vertical-align:top"
HEAD = f"{CELL};font-weight:600;border-bottom:1px solid var(--jp-border-color2,#bbb)"
TABLE = (
    "border-collapse:collapse;font-family:var(--jp-ui-font-family,system-ui,sans-serif);"
    "font-size:var(--jp-ui-font-size1,0.9em);color:var(--jp-ui-font-color1,inherit)"
)
NUMBER = ";text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums"


def escaped(text: str) -> str:
    """As HTML. Between two `$` of one text JupyterLab, and an exported notebook, see mathematics:
    each stands in an element of its own, where no formula begins."""
    return escape(text).replace("$", "<span>$</span>")


def table(
    heads: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: Iterable[str] = ()
) -> dict[str, str]:
    """The mime bundle of a table; the columns named in `numbers` stand at the right."""
    lines = [tuple(map(str, row)) for row in rows]
    right = {index for index, head in enumerate(heads) if head in set(numbers)}
    widths = [max(len(line[i]) for line in [tuple(heads), *lines]) for i in range(len(heads))]

    def text(line: Sequence[str]) -> str:
        padded = [
            part.rjust(width) if index in right else part.ljust(width)
            for index, (part, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    def html(line: Sequence[str], tag: str, style: str) -> str:
        cells = [
            f'<{tag} style="{style}{NUMBER if index in right else ""}">{escaped(part)}</{tag}>'
            for index, part in enumerate(line)
        ]
        return f"<tr>{''.join(cells)}</tr>"

    head = html(heads, "th", HEAD)
    body = "".join(html(line, "td", CELL) for line in lines)
    return {
        "text/plain": "\n".join(map(text, [heads, *lines])),
        "text/html": f'<table style="{TABLE}"><thead>{head}</thead><tbody>{body}</tbody></table>',
    }
