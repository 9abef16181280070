"""The footer under a cell: one line of what it cost and where it ran.

    12.4 s on local.cpu2 spot local-a · $0.0011 · saved $0.0024 vs on-demand · moved once
    · simulated prices

A `Bill` comes in from the meter; out go the same facts three times: as text, as HTML (small and
grey, with JupyterLab's own colours, so that it fits a light and a dark theme), and as the metadata
of the `display_data` message, where tools find the figures unrounded. Dollars are strings there,
since JSON's numbers cannot be trusted with money.
"""

from __future__ import annotations

import functools
from decimal import Decimal
from html import escape
from typing import Any

from mlcloud.cost.ledger import NodeSpan
from mlcloud.cost.meter import Bill
from mlcloud.units import format_seconds, format_usd
from mlcloud.widgets.tables import escaped

# Differences that would be shown as "<$0.0001" are not worth a word.
_NOTEWORTHY = Decimal("0.00005")

_STYLE = (
    "font-family:var(--jp-ui-font-family,system-ui,sans-serif);"
    "font-size:var(--jp-ui-font-size0,0.8em);"
    "color:var(--jp-ui-font-color2,#757575);"
    "padding:2px 0;font-variant-numeric:tabular-nums"
)


def footer(bill: Bill, lag: str = "") -> tuple[str, str, dict[str, Any]]:
    """Text, HTML and metadata (`{"mlcloud": {…}}`) of the footer for `bill`.

    `lag`: how far the store is behind, in words; empty where that is not worth one.

    Where an execution moved, the place named is the last one.
    """
    parts = [*_parts(bill), *([lag] if lag else [])]
    text = " · ".join(parts)
    html = f'<div class="mlcloud-footer" style="{_STYLE}"{_title(bill.nodes)}>{escaped(text)}</div>'
    offer = bill.nodes[-1].offer if bill.nodes else None
    figures: dict[str, Any] = {
        "seconds": round(bill.seconds, 6),
        "usd": f"{bill.usd:f}",
        "saved_usd": f"{bill.saved_usd:f}",
        "instance_type": offer.instance_type if offer else None,
        "market": offer.market if offer else None,
        "zone": offer.zone if offer else None,
        "moves": bill.moves,
        "simulated": bill.simulated,
        "execution_id": bill.execution_id,
        "session": bill.session_id,
        "lag": lag,
    }
    return text, html, {"mlcloud": figures}


def _parts(bill: Bill) -> list[str]:
    took = format_seconds(bill.seconds)
    if not bill.nodes:
        return [took, "nothing billed"]
    offer = bill.nodes[-1].offer
    parts = [f"{took} on {offer.instance_type} {offer.market} {offer.zone}", format_usd(bill.usd)]
    if bill.saved_usd >= _NOTEWORTHY:
        parts.append(f"saved {format_usd(bill.saved_usd)} vs on-demand")
    elif bill.saved_usd <= -_NOTEWORTHY:
        parts.append(f"{format_usd(-bill.saved_usd)} more than on-demand")
    if bill.moves:
        times = {1: "once", 2: "twice"}.get(bill.moves, f"{bill.moves} times")
        parts.append(f"moved {times}")
    if bill.simulated:
        parts.append("simulated prices")
    return parts


@functools.lru_cache(maxsize=256)
def _title(nodes: tuple[NodeSpan, ...]) -> str:
    """A tooltip with the source of each price, once."""
    sources = dict.fromkeys(
        f"{node.offer}: {node.offer.source}, {node.offer.as_of}" for node in nodes
    )
    return f' title="{escape("; ".join(sources))}"' if sources else ""
