"""The dashboard: what the page shows live, and as text and HTML what an exported notebook keeps.

    take(cluster, spend) ──► traits, JSON as the gateway sent it ──► dashboard.js
                         ╰─► when it is displayed: the same figures as tables

The page reads the JSON, so that a look costs this process next to nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import anywidget
import traitlets

from mlcloud.cluster_models import ClusterInfo, NodeInfo
from mlcloud.cost.budgets import whose
from mlcloud.cost_models import Spend
from mlcloud.models import SessionInfo
from mlcloud.units import format_usd, format_usd_per_hour, format_whole_seconds
from mlcloud.widgets.page import source
from mlcloud.widgets.tables import TABLE, escaped, table

NO_CLUSTER = "no cluster is up, and nothing bills: a %%remote cell or %mlcloud up starts one"

_NOTEWORTHY = Decimal("0.00005")
MEASURED = ("CPU", "memory", "GPU")

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]], tuple[str, ...]]


class Dashboard(anywidget.AnyWidget):
    """Made by `mlcloud.show()`."""

    _esm = source("common.js", "chart.js", "dashboard.js")
    _css = source("common.css", "dashboard.css")

    cluster = traitlets.Unicode("").tag(sync=True)  # a ClusterInfo; empty: none is up
    spend = traitlets.Unicode("").tag(sync=True)  # a Spend
    range = traitlets.Unicode("hour").tag(sync=True)
    at = traitlets.Float(0.0).tag(sync=True)  # seconds since the epoch: when it was read

    on_close: Callable[[], None] | None = None

    def take(self, cluster: str | None, spend: str | None) -> None:
        """New figures, in one message to the page; None: as they were. From any thread."""
        with self.hold_sync():
            if cluster is not None:
                self.cluster = cluster
            if spend is not None:
                self.spend = spend
            self.at = time.time()

    def close(self) -> None:
        if self.on_close is not None:
            self.on_close()
        super().close()

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        bundle = super()._repr_mimebundle_(**options)
        if bundle is None:
            return None
        data, metadata = bundle
        return {**data, "text/plain": self.text(), "text/html": self.html()}, metadata

    def __repr__(self) -> str:
        return self.text()

    def text(self) -> str:
        """The figures as they are now."""
        info, spend = self._read()
        if info is None:
            return NO_CLUSTER
        parts = head(info, spend, datetime.fromtimestamp(self.at, timezone.utc))
        for title, heads, rows, numbers in tables(info):
            parts += ["", title, table(heads, rows, numbers=numbers)["text/plain"]]
        return "\n".join(parts)

    def html(self) -> str:
        """The same, in the page's colours."""
        info, spend = self._read()
        if info is None:
            return f'<div style="{TABLE}">{escaped(NO_CLUSTER)}</div>'
        first, *rest = head(info, spend, datetime.fromtimestamp(self.at, timezone.utc))
        lines = [f"<b>{escaped(first)}</b>", *map(escaped, rest)]
        shown = "".join(
            f'<div style="font-weight:600;margin:0.8em 0 0.2em">{escaped(title)}</div>'
            f'<div style="overflow-x:auto">{table(heads, rows, numbers=numbers)["text/html"]}</div>'
            for title, heads, rows, numbers in tables(info)
        )
        return f'<div style="{TABLE}">{"<br>".join(lines)}{shown}</div>'

    def _read(self) -> tuple[ClusterInfo | None, Spend | None]:
        return (
            ClusterInfo.model_validate_json(self.cluster) if self.cluster else None,
            Spend.model_validate_json(self.spend) if self.spend else None,
        )


# --- the figures in words -------------------------------------------------------------------------


def head(info: ClusterInfo, spend: Spend | None, at: datetime) -> list[str]:
    """The lines above the tables: what it costs now, today, beside budgets, and while parked."""
    money = [f"{format_usd_per_hour(info.usd_per_hour)} now"]
    if spend is not None:
        money.append(
            f"{format_usd(max(Decimal(0), info.usd - spend.usd_before_today))} today (UTC)"
        )
    money.append(f"{format_usd(info.usd)} so far")
    lines = [
        f"cluster {info.name} on {info.cloud}: {info.state}{': ' * bool(info.detail)}{info.detail}",
        " · ".join(money) + (" · simulated prices: nobody is charged" if info.simulated else ""),
    ]
    for budget in info.budgets:
        of = whose(budget.session, budget.user, budget.job)
        part = budget.spent_usd / budget.limit_usd
        spent = ", spent: new work is refused" if budget.refuses else ""
        lines.append(
            f"budget of {of}: {format_usd(budget.spent_usd)} of ${budget.limit} ({part:.0%}){spent}"
        )
    if info.standing_usd_per_hour:
        lines.append(
            f"the head bills {format_usd_per_hour(info.standing_usd_per_hour)}, also while every "
            "session is parked"
        )
    return [*lines, f"figures of {at:%Y-%m-%d %H:%M:%S} UTC"]


def tables(info: ClusterInfo) -> list[Table]:
    """What is not empty of nodes, sessions, and offers that could not be had."""
    now = datetime.now(timezone.utc)
    nodes = ("node", "type", "market", "zone", "$/h", "reserved", *MEASURED, "used by")
    sessions = ("session", "state", "on", "cells safe", "spent", "$/h")
    tried = ("tried", "for", "offer", "result")
    failed = [each for each in info.attempts if each.what != "launched"]
    found: list[Table] = [
        ("nodes", nodes, [_node(each, now) for each in info.nodes], ("$/h", "reserved", *MEASURED)),
        ("sessions", sessions, [_session(each, now) for each in info.sessions], ("spent", "$/h")),
        (
            "offers that could not be had within the last hour",
            tried,
            [
                (
                    f"{each.at:%H:%M:%S} UTC",
                    each.node_type,
                    f"{each.instance_type} {each.market} {each.zone}".strip() or "every offer",
                    f"{each.what}: {each.detail}",
                )
                for each in failed
            ],
            (),
        ),
    ]
    return [each for each in found if each[2]]


def _node(node: NodeInfo, now: datetime) -> tuple[str, ...]:
    since = f"idle for {_ago(node.idle_since, now)}, and bills" if node.idle_since else "idle"
    return (
        node.id,
        node.instance_type,
        node.market,
        node.zone,
        f"${node.usd_per_hour:f}",
        f"{node.reserved:.0%}",
        *_measured(node),
        ", ".join([*node.sessions, *node.jobs]) or since,
    )


def _measured(node: NodeInfo) -> tuple[str, str, str]:
    """CPU, memory and GPU of its last seconds."""
    use = node.use
    if use is None:
        return "", "", "" if node.gpu else "none"
    gpus = [each.busy for each in use.gpus]
    return (
        f"{min(1.0, use.cpus / node.cpus):.0%}" if node.cpus else "",
        f"{use.memory / node.memory_bytes:.0%}" if node.memory_bytes else "",
        f"{sum(gpus) / len(gpus):.0%}" if gpus else "not seen" if node.gpu else "none",
    )


def _session(session: SessionInfo, now: datetime) -> tuple[str, ...]:
    idle = f" for {_ago(session.idle_since, now)}" if session.idle_since else ""
    return (
        session.name,
        f"{session.state.value}{idle}",
        session.instance_type or "no node",
        f"{session.safe_cells} of {session.finished_cells}",
        _spent(session),
        f"${session.usd_per_hour:f}",
    )


def _spent(session: SessionInfo) -> str:
    """With what egress and requests may cost beside it, where that is worth a word."""
    data = session.data_usd_estimate
    beside = f" + about {format_usd(data)} for data" if data >= _NOTEWORTHY else ""
    return format_usd(session.usd) + beside


def _ago(since: datetime, now: datetime) -> str:
    return format_whole_seconds(max(0.0, (now - since).total_seconds()))
