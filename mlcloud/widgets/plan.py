"""A plan as text and as HTML: a table for each node group, and below it what else bills."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mlcloud.units import format_bytes, format_usd, format_whole_seconds
from mlcloud.widgets.tables import escaped, table

if TYPE_CHECKING:
    from mlcloud.cluster.planning import Plan, Row

_FONT = (
    "font-family:var(--jp-ui-font-family,system-ui,sans-serif);"
    "font-size:var(--jp-ui-font-size1,0.9em);color:var(--jp-ui-font-color1,inherit)"
)
_TITLE = f"{_FONT};margin:0.6em 0 0.3em;font-weight:600"
_QUIET = f"{_FONT};color:var(--jp-ui-font-color2,inherit)"
_REGIONS = 4  # named in the head
ESTIMATED = "~ estimated: no source states this price"
_NUMBERS = ("#", "CPUs", "memory", "$/h", "saved", "first cell", "price")


def text(plan: Plan) -> str:
    """For a shell, and for front ends without HTML."""
    parts = [_head(plan)]
    for group, rows in _groups(plan):
        parts += ["", _title(group, rows), _table(plan, rows)["text/plain"]]
        parts += _below(plan, rows)
    return "\n".join([*parts, "", *(f"- {note}" for note in plan.notes)])


def html(plan: Plan) -> str:
    """For a notebook, in the page's own colours."""
    parts = [f'<div style="{_FONT}">{escaped(_head(plan))}</div>']
    for group, rows in _groups(plan):
        parts.append(f'<div style="{_TITLE}">{escaped(_title(group, rows))}</div>')
        parts.append(f'<div style="overflow-x:auto">{_table(plan, rows)["text/html"]}</div>')
        parts += [f'<div style="{_QUIET}">{escaped(line)}</div>' for line in _below(plan, rows)]
    notes = "".join(f"<li>{escaped(note)}</li>" for note in plan.notes)
    parts.append(f'<ul style="margin:0.6em 0 0;padding-left:1.2em;{_QUIET}">{notes}</ul>')
    return f"<div>{''.join(parts)}</div>"


def _head(plan: Plan) -> str:
    specification = plan.specification
    regions = specification.node_regions
    rest = len(regions) - _REGIONS
    where = ", ".join(regions[:_REGIONS]) + (f" and {rest} more regions" if rest > 0 else "")
    simulated = ", simulated prices: nobody is charged" if plan.simulated else ""
    return (
        f"plan of {specification.name} on {specification.cloud}"
        f"{f' in {where}' if where else ''}{simulated}. Nothing was launched."
    )


def _groups(plan: Plan) -> Iterable[tuple[str, list[Row]]]:
    found: dict[str, list[Row]] = {}
    for row in plan.offers:
        found.setdefault(row.group, []).append(row)
    return found.items()


def _title(group: str, rows: list[Row]) -> str:
    offers = f"{len(rows)} {'offer' if len(rows) == 1 else 'offers'}"
    return f"{group}: {offers}, in the order in which they are tried"


def _below(plan: Plan, rows: list[Row]) -> list[str]:
    rest = len(rows) - plan.limit
    guessed = any(row.offer.estimated for row in rows[: plan.limit])
    return [
        *([f"and {rest} more, dearer"] if rest > 0 else []),
        *([ESTIMATED] if guessed else []),
    ]


def _table(plan: Plan, rows: list[Row]) -> dict[str, str]:
    cost = f"{plan.hours:g} h"
    heads = (
        *("#", "type", "GPU", "CPUs", "memory", "market", "zone", "$/h", "saved", cost),
        *("first cell", "price"),
    )
    return table(
        heads,
        [_cells(number, row) for number, row in enumerate(rows[: plan.limit], 1)],
        numbers=[*_NUMBERS, cost],
    )


def _cells(number: int, row: Row) -> tuple[str, ...]:
    offer, saving = row.offer, row.saving
    return (
        "–" if row.lacking else str(number),
        offer.instance_type,
        offer.gpu or "–",
        f"{offer.cpus:g}",
        format_bytes(offer.memory_bytes, binary=True),
        offer.market,
        offer.zone,
        f"{'~' * offer.estimated}${offer.usd_per_hour:,.4f}",
        "–" if saving is None else f"{saving:.0%}",
        format_usd(row.usd),
        "no quota" if row.lacking else format_whole_seconds(row.startup.total.total_seconds()),
        "simulated" if offer.simulated else _age(row),
    )


def _age(row: Row) -> str:
    days = row.age.days
    return "today" if days == 0 else f"{days} d old"
