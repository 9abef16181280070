"""A cluster from the notebook's side: what it is to be, what it has, what it costs, its end.

Cluster("gpus", cloud="aws", …)      a specification, checked at once; nothing runs yet
    .plan()   what it would cost     .up()  ─► connected    .changes()  against what runs
connect().cluster                    the one that is connected
    .status()  .preempt()  .down()
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcloud.client.connection import Connection
from mlcloud.cluster_models import ClusterInfo, Notice
from mlcloud.errors import ConnectionFailed, NotFound
from mlcloud.models import SessionInfo
from mlcloud.units import format_usd, format_usd_per_hour, parse_duration

if TYPE_CHECKING:
    from mlcloud.cluster.planning import Plan
    from mlcloud.cluster.specification import ChangeList, Specification


class Cluster:
    """A cluster, up or not; `mlcloud.connect().cluster` is the embedded one.

    `regions` is a residency list: nothing is launched, stored or copied outside it. `nodes` are
    node groups, each by its least shape or by an instance type:

        Cluster("gpus", cloud="aws", regions=["eu-central-1"], store="s3://bucket/runs",
                nodes=[{"gpu": "A10G:1", "max": 8}, {"instance_type": "c7i.xlarge"}],
                budget="50/day")

    Further fields: `head`, `image`, `setup`, `ssh`, `network`, `tags`, `store_region`, `spares`,
    `secrets`, `data`, `environment`, `max_lifetime`, `owner`, `idle`, `endpoints`; `mlcloud schema`
    prints them all with what each means. Raises `SpecificationError` with everything that is wrong.
    """

    def __init__(
        self,
        name: str,
        *,
        cloud: str = "local",
        regions: Iterable[str] = (),
        nodes: Iterable[Mapping[str, Any]] = (),
        store: str | None = None,
        budget: str | list[str] | None = None,
        **more: Any,
    ) -> None:
        from mlcloud.cluster.specification import specify

        given: dict[str, Any] = {
            "regions": _listed(regions),
            "nodes": _listed(nodes),
            "store": store,
            "budget": budget,
        }
        fields = {key: value for key, value in given.items() if value not in (None, (), [])}
        self._specification: Specification | None = specify(
            f"Cluster({name!r})", None, name=name, cloud=cloud, **fields, **more
        )
        self._connection: Connection | None = None

    @classmethod
    def from_file(cls, path: str | Path) -> Cluster:
        """The cluster of a `cluster.yaml`. Raises `SpecificationError`, naming the lines."""
        from mlcloud.cluster.specification import load

        return cls._of(load(path), None)

    @classmethod
    def from_yaml(cls, text: str) -> Cluster:
        """The cluster that a text in YAML describes."""
        from mlcloud.cluster.specification import from_yaml

        return cls._of(from_yaml(text), None)

    @classmethod
    def connected(cls, connection: Connection) -> Cluster:
        """The cluster behind a connection."""
        return cls._of(None, connection)

    @classmethod
    def _of(cls, specification: Specification | None, connection: Connection | None) -> Cluster:
        made = cls.__new__(cls)
        made._specification, made._connection = specification, connection
        return made

    # --- what it is to be -------------------------------------------------------------------------

    @property
    def specification(self) -> Specification:
        """What it is to be. Of a cluster that was only connected to, `NotFound`, unless it is the
        embedded one: that has its settings."""
        if self._specification is None:
            if self._connection is None or not self._connection.embedded:
                raise NotFound("this cluster was connected to by its URL: its file is elsewhere")
            from mlcloud.client import embedded_specification as local

            self._specification = local.running() or local.of_settings()
        return self._specification

    @property
    def name(self) -> str:
        """As its specification has it; `NotFound` as there."""
        return self.specification.name

    def to_yaml(self) -> str:
        """As a `cluster.yaml`, without what is default."""
        from mlcloud.cluster.specification import to_yaml

        return to_yaml(self.specification)

    def plan(self, *, hours: float | str = 2) -> Plan:
        """Its offers ranked, with $/h, what `hours` cost, and what would be launched. Costs
        nothing, starts nothing."""
        from mlcloud.client.planning import plan

        return plan(self, hours=hours)

    def changes(self) -> ChangeList:
        """What differs between this specification and the cluster of that name that runs.

        Raises `NotFound` where none runs.
        """
        from mlcloud.cluster.specification import changes

        if self._is_local:
            from mlcloud.client import embedded_specification as local

            found = local.running()
        else:
            from mlcloud.client import notes

            found = notes.running(self.specification)
        if found is None:
            raise NotFound(f"cluster {self.name!r} is not up: there is nothing to compare with")
        return changes(found, self.specification)

    # --- its life ---------------------------------------------------------------------------------

    def up(self) -> Status:
        """Start it, or find it running, and make it the one that `%%remote` uses.

        Where it runs with another specification, what can change while it runs is applied and
        shown: node groups and their limits, markets, budgets, idle times, regions, tags … Raises
        `Conflict` for the rest, naming each field and what was applied; that needs `down`, then
        `up`. Raises `CredentialsMissing` before anything is started, and `SpecificationError` for
        what the cloud does not sell.
        """
        from mlcloud.client import api

        if self._is_local:
            from mlcloud.client import embedded_specification as local

            self._connection, applied = local.up(self.specification)
            if applied:
                print(f"applied to the running cluster {self.name}:\n{applied!r}")
        else:
            from mlcloud.client import launching
            from mlcloud.client.planning import check_sold

            check_sold(self.specification)
            self._connection = launching.up(self.specification)
        api.use(self._connection)
        return self.status()

    def down(self) -> None:
        """End the cluster and everything it runs. Sessions stay in the store, parked."""
        if self._is_local:
            from mlcloud.client.embedded import down
            from mlcloud.config import Settings

            down(Settings())
        elif self._specification is not None:
            from mlcloud.client import launching

            launching.down(self._specification)
        else:
            self._reached().post("/v1/down")

    @property
    def _is_local(self) -> bool:
        if self._specification is None:
            return self._connection is not None and self._connection.embedded
        return self._specification.cloud == "local"

    def _reached(self) -> Connection:
        """The connection to its gateway; one that is up is found, none is started."""
        if self._connection is not None:
            return self._connection
        if self._is_local:
            from mlcloud.client import embedded_specification as local

            self._connection = local.connection()
        else:
            from mlcloud.client import elsewhere

            self._connection = elsewhere.connect(self.specification)
        if self._connection is None:
            raise ConnectionFailed(f"cluster {self.name!r} is not up: cluster.up() starts it")
        return self._connection

    # --- while it runs ----------------------------------------------------------------------------

    def __repr__(self) -> str:
        if self._connection is not None:
            return str(self.status())
        specification = self.specification
        where = f" ({', '.join(specification.regions)})" if specification.regions else ""
        nodes = "; ".join(
            f"{group}, {group.market}, {group.min} to {group.max}" for group in specification.nodes
        )
        return f"<cluster {self.name} on {specification.cloud}{where}: {nodes or 'any nodes'}>"

    def status(self) -> Status:
        """Nodes, sessions and spending, as of now. Shows itself as a table.

        Raises `ConnectionFailed` where the cluster is not up.
        """
        return Status(ClusterInfo.model_validate(self._reached().get("/v1/cluster")))

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
        answer = self._reached().post(f"/v1/nodes/{target}/preempt", {"notice_s": seconds})
        return Notice.model_validate(answer)


def _listed(given: Any) -> Any:
    """A list of what can be one; all else is for the specification to refuse."""
    if isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
        return given
    return list(given)


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
                f"  session {each.name}  {each.state.value}  {_where(each)}  "
                f"safe to cell {each.safe_cells} of {each.finished_cells}  {format_usd(each.usd)}"
            )
        for row in self._tries():
            again = f"; again at {row['again']}" if row["again"] else ""
            lines.append(
                f"  tried {row['tried']}  {row['for']}: {row['offer']}: {row['result']}{again}"
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from mlcloud.widgets.tables import escaped

        def table(rows: list[dict[str, Any]]) -> str:
            if not rows:
                return ""
            head = "".join(f"<th style='text-align:left'>{escaped(key)}</th>" for key in rows[0])
            body = "".join(
                "<tr>"
                + "".join(
                    f"<td style='text-align:left'>{escaped(str(value))}</td>"
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
                "on": _where(each),
                "safe": f"{each.safe_cells} of {each.finished_cells} cells",
                "spent": format_usd(each.usd),
            }
            for each in self.info.sessions
        ]
        tables = "".join(table(rows) for rows in (self._rows(), sessions, self._tries()))
        return f"<div>{escaped(self._head())}</div>{tables}"


def _where(session: SessionInfo) -> str:
    """A session's machine; of a gang each machine, and how many ranks are on it."""
    if session.workers == 1 or not session.ranks:
        return session.instance_type or "no node"
    count = Counter(f"{each.instance_type} {each.node}" for each in session.ranks)
    places = ", ".join(f"{ranks} on {node}" for node, ranks in count.items())
    return f"{session.workers} ranks: {places}"
