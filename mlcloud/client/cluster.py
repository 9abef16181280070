"""The cluster from the notebook's side: what it has, what it costs, drills, and its end."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from mlcloud.client.connection import Connection
from mlcloud.models import ClusterInfo, Notice
from mlcloud.units import format_usd, format_usd_per_hour, parse_duration


class Cluster:
    """A running cluster; `mlcloud.connect().cluster` is the embedded one."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __repr__(self) -> str:
        return str(self.status())

    def status(self) -> Status:
        """Nodes, sessions and spending, as of now. Shows itself as a table."""
        return Status(ClusterInfo.model_validate(self._connection.get("/v1/cluster")))

    def preempt(self, node_or_session: object, notice: str | timedelta | float = "2m") -> Notice:
        """A drill: the cloud gives this spot node its notice now and takes it back `notice` later.

        `node_or_session` is a node's id, a session's name, or a `Session`. Returns the notice with
        its deadline (UTC). Raises `NotFound`, `Conflict` (the session has no node), `UsageError`
        (an on-demand node is never taken back).
        """
        target = getattr(node_or_session, "name", node_or_session)
        seconds = (
            float(notice)
            if isinstance(notice, (int, float))
            else parse_duration(notice).total_seconds()
        )
        answer = self._connection.post(f"/v1/nodes/{target}/preempt", {"notice_s": seconds})
        return Notice.model_validate(answer)

    def down(self) -> None:
        """End the cluster and everything it runs. Sessions stay in the store, parked."""
        if self._connection.embedded:
            from mlcloud.client.embedded import down
            from mlcloud.config import Settings

            down(Settings())
        else:
            self._connection.post("/v1/down")


class Status:
    """A cluster's status; `info` has the figures."""

    def __init__(self, info: ClusterInfo) -> None:
        self.info = info

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {
                "node": node.id,
                "type": node.instance_type,
                "market": node.market,
                "zone": node.zone,
                "$/h": str(node.usd_per_hour),
                "sessions": ", ".join(node.sessions) or "idle",
            }
            for node in self.info.nodes
        ]

    def _tries(self) -> list[dict[str, Any]]:
        """What was tried within the last hour and could not be had, and what comes next."""
        return [
            {
                "tried": f"{each.at.astimezone():%H:%M:%S}",
                "for": each.node_type,
                "offer": f"{each.instance_type} {each.market} {each.zone}".strip() or "every offer",
                "$/h": str(each.usd_per_hour) if each.usd_per_hour else "",
                "result": each.detail if each.what == "waiting" else f"{each.what}: {each.detail}",
                "again": f"{each.until.astimezone():%H:%M:%S}" if each.until else "",
            }
            for each in self.info.attempts
            if each.what != "launched"
        ]

    def _head(self) -> str:
        info = self.info
        simulated = " (simulated prices)" if info.simulated else ""
        detail = f": {info.detail}" if info.detail else ""
        return (
            f"cluster {info.name} on {info.cloud}: {info.state}{detail} · "
            f"{format_usd_per_hour(info.usd_per_hour)} now · "
            f"{format_usd(info.usd)} so far{simulated} · store {info.store}"
        )

    def __repr__(self) -> str:
        lines = [self._head()]
        for row in self._rows():
            lines.append("  node " + "  ".join(str(value) for value in row.values()))
        for each in self.info.sessions:
            lines.append(
                f"  session {each.name}  {each.state.value}  {each.instance_type or 'no node'}  "
                f"safe to cell {each.safe_cells} of {each.finished_cells}  {format_usd(each.usd)}"
            )
        for row in self._tries():
            again = f"; again at {row['again']}" if row["again"] else ""
            lines.append(
                f"  tried {row['tried']}  {row['for']}: {row['offer']}: {row['result']}{again}"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        def table(rows: list[dict[str, Any]]) -> str:
            if not rows:
                return ""
            head = "".join(f"<th style='text-align:left'>{escape(key)}</th>" for key in rows[0])
            body = "".join(
                "<tr>"
                + "".join(
                    f"<td style='text-align:left'>{escape(str(value))}</td>"
                    for value in row.values()
                )
                + "</tr>"
                for row in rows
            )
            return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

        sessions = [
            {
                "session": each.name,
                "state": each.state.value,
                "on": each.instance_type or "no node",
                "safe": f"{each.safe_cells} of {each.finished_cells} cells",
                "spent": format_usd(each.usd),
            }
            for each in self.info.sessions
        ]
        tables = "".join(table(rows) for rows in (self._rows(), sessions, self._tries()))
        return f"<div>{escape(self._head())}</div>{tables}"
