"""What was spent, as `mlcloud.cost()` and `%mlcloud cost` show it: a total, a table, a DataFrame.

    GET /v1/costs?by=…  ─ page by page ─► Spending ─► .usd  .to_frame(by=…)  .focus(file)
                                                  └─► .reconcile(bill): ours beside the cloud's

It compares, adds and formats as its total, so `if mlcloud.cost() > 5` reads as it is meant.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcloud.client.connection import Connection
from mlcloud.cost_models import CostRow, Costs, DataMoved
from mlcloud.errors import UsageError
from mlcloud.units import format_usd, format_usd_per_hour, parse_duration
from mlcloud.widgets.tables import table

if TYPE_CHECKING:
    import pandas

    from mlcloud.cost.reconcile import Day

When = str | datetime | date | timedelta | None
_PAGE = 10_000
_SHOWN = 30


@functools.total_ordering
class Spending:
    """What nodes have cost, grouped `by` a field or several: `day`, `session`, `node`, `user`,
    `tag:KEY`, `market`, `instance_type`, `zone`, `price`, or `execution`."""

    def __init__(
        self,
        connection: Connection,
        by: str = "session",
        since: When = None,
        until: When = None,
    ) -> None:
        self._connection = connection
        self.by = by
        self._times = moment(since), moment(until)
        self._costs = self._page(by, None)

    def _page(self, by: str, after: str | None, until: datetime | None = None) -> Costs:
        since, default = self._times
        times = {"since": since, "until": until or default}
        asked: dict[str, str] = {"by": by, "limit": str(_PAGE)}
        asked |= {name: value.isoformat() for name, value in times.items() if value is not None}
        if after is not None:
            asked["after"] = after
        return Costs.model_validate(self._connection.get("/v1/costs", params=asked))

    # --- figures ----------------------------------------------------------------------------------

    @property
    def usd(self) -> Decimal:
        """Dollars in all, exact to half a billionth."""
        return self._costs.usd

    @property
    def saved_usd(self) -> Decimal:
        """What the same node time would have cost more on demand."""
        return self._costs.on_demand_usd - self._costs.usd

    @property
    def usd_per_hour(self) -> Decimal:
        """What all nodes cost an hour, now."""
        return self._costs.usd_per_hour

    @property
    def costs(self) -> Costs:
        """The first page, as the gateway gave it."""
        return self._costs

    @property
    def data(self) -> list[DataMoved]:
        """What sessions moved, those that moved most first, with an estimate of what it costs: it
        is beside `usd`, not in it."""
        return self._costs.data

    def rows(self, by: str | None = None) -> Iterator[CostRow]:
        """All rows of one and the same moment, page by page."""
        return (row for _, row in self._rows(by or self.by))

    def _rows(self, by: str) -> Iterator[tuple[Costs, CostRow]]:
        page = self._costs if by == self.by else self._page(by, None, self._costs.until)
        while True:
            for row in page.rows:
                yield page, row
            if page.next is None:
                return
            page = self._page(by, page.next, page.until)

    def to_frame(
        self, by: str | None = None, *, since: When = None, until: When = None
    ) -> pandas.DataFrame:
        """A row for each group, with `usd`, `saved_usd`, `idle_usd` and `node_hours` as floats."""
        import pandas

        if since is not None or until is not None:
            return Spending(self._connection, by or self.by, since, until).to_frame()
        asked = by or self.by
        rows = [
            {
                **row.key,
                "usd": float(row.usd),
                "saved_usd": float(row.on_demand_usd - row.usd),
                "idle_usd": float(row.idle_usd),
                "node_hours": float(row.node_hours),
            }
            for row in self.rows(asked)
        ]
        keys = ["execution", "session"] if asked == "execution" else asked.split(",")
        columns = [*keys, "usd", "saved_usd", "idle_usd", "node_hours"]
        frame: pandas.DataFrame = pandas.DataFrame(rows, columns=columns)
        if "day" in keys:
            frame["day"] = pandas.to_datetime(frame["day"], utc=True)
        return frame

    def to_json(self) -> str:
        """All rows, with money as strings."""
        whole = self._costs.model_copy(update={"rows": list(self.rows()), "next": None})
        return whole.model_dump_json(indent=2)

    # --- to and from other accounts ---------------------------------------------------------------

    def focus(self, path: str | Path) -> int:
        """Write it as FOCUS 1.1 CSV (finops.org): a charge for each day, node, session and price.

        Returns how many charges there are. Compute only; prices that nobody is charged are marked.
        """
        from mlcloud.cost import focus

        with Path(path).expanduser().open("w", encoding="utf-8", newline="") as file:
            return focus.write(self._usages(), self._cluster(), file)

    def _usages(self) -> Iterator[Any]:
        from mlcloud.cost.focus import Machine, Usage

        for page, row in self._rows("day,node,session,price"):
            key, node = row.key, page.nodes[row.key["node"]]
            session = key["session"]
            yield Usage(
                date.fromisoformat(key["day"]),
                Machine(
                    *(key["node"], node.cloud, node.region, node.zone, node.instance_type),
                    *(node.market, node.simulated),
                ),
                None if session.startswith("(") else session,
                page.tags.get(session, {}),
                Decimal(key["price"]),
                row.on_demand_usd,
                row.node_hours,
            )

    def _cluster(self) -> str:
        return str(self._connection.get("/v1/cluster")["name"])

    def reconcile(self, bill: str | Path, cluster: str | None = None) -> Reconciliation:
        """Beside the cloud's own bill, day by day: a file of Cost Explorer (JSON), CUR 2.0 or FOCUS
        (CSV, also gzipped), or `"aws"`, which asks Cost Explorer ($0.01 a request).

        `cluster`: whose lines to take where the bill has the tag `mlcloud-cluster`.
        """
        from mlcloud.cost import reconcile

        ours = {date.fromisoformat(row.key["day"]): row.usd for row in self.rows("day")}
        if str(bill) == "aws":
            if not ours:
                return Reconciliation([])
            name = cluster or self._cluster()
            lines = reconcile.from_aws(name, min(ours), max(ours) + timedelta(days=1))
        else:
            lines = reconcile.read(bill, cluster)
        return Reconciliation(reconcile.reconcile(ours, lines))

    # --- as its total -----------------------------------------------------------------------------

    def __float__(self) -> float:
        return float(self.usd)

    def __bool__(self) -> bool:
        return bool(self.usd)

    def __eq__(self, other: object) -> bool:
        return bool(self.usd == _amount(other))

    def __lt__(self, other: Any) -> bool:
        return bool(self.usd < _amount(other))

    def __hash__(self) -> int:
        return hash(self.usd)

    def __add__(self, other: Any) -> Decimal:
        return self.usd + _exactly(other)

    def __sub__(self, other: Any) -> Decimal:
        return self.usd - _exactly(other)

    __radd__ = __add__

    def __rsub__(self, other: Any) -> Decimal:
        return _exactly(other) - self.usd

    def __mul__(self, other: Any) -> Decimal:
        return self.usd * _exactly(other)

    def __truediv__(self, other: Any) -> Decimal:
        return self.usd / _exactly(other)

    def __str__(self) -> str:
        return str(self.usd)

    def __format__(self, spec: str) -> str:
        return format(self.usd, spec)

    # --- shown ------------------------------------------------------------------------------------

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        heads = self._heads()
        bundle = table(
            [*heads, "cost", "saved", "idle", "node hours"], self._lines(), numbers=_RIGHT
        )
        before, after = self._title(), self._notes()
        text = "\n".join([before, bundle["text/plain"], *after])
        notes = "".join(f"<div>{escape(note)}</div>" for note in after)
        html = f"<div><b>{escape(before)}</b></div>{bundle['text/html']}{notes}"
        return {"text/plain": text, "text/html": html}

    def _repr_html_(self) -> str:
        return self._repr_mimebundle_()["text/html"]

    def __repr__(self) -> str:
        return self._repr_mimebundle_()["text/plain"]

    def _heads(self) -> list[str]:
        return ["execution", "session"] if self.by == "execution" else self.by.split(",")

    def _lines(self) -> list[tuple[str, ...]]:
        return [
            (
                *row.key.values(),
                format_usd(row.usd),
                _signed(row.on_demand_usd - row.usd),
                format_usd(row.idle_usd),
                f"{row.node_hours:.2f}",
            )
            for row in self._costs.rows[:_SHOWN]
        ]

    def _title(self) -> str:
        costs = self._costs
        since = f" since {costs.since:%Y-%m-%d %H:%M} UTC" if costs.since else ""
        note = ", simulated prices" if costs.simulated else ""
        now = format_usd_per_hour(costs.usd_per_hour)
        return f"{format_usd(costs.usd)} so far{since}, {now} now{note}"

    def _notes(self) -> list[str]:
        notes = []
        more = len(self._costs.rows) - _SHOWN
        if more > 0 or self._costs.next:
            many = f"{more:,} more" if not self._costs.next else "many more"
            notes.append(f"… and {many}: .to_frame() has all of them")
        for each in self._costs.estimates:
            if each.simulated and not each.usd:
                continue
            usd = "not known" if each.usd is None else f"about {format_usd(each.usd)}"
            monthly = each.usd_per_month
            later = f", {format_usd(monthly)} a month" if monthly is not None else ""
            about = f"({each.basis}; {each.source}, {each.as_of})"
            notes.append(f"estimated beside it: {each.what} {usd}{later} {about}")
        moved = [each for each in self._costs.data if each.usd_estimate >= _NOTEWORTHY]
        if moved:
            most = ", ".join(f"{e.session} {format_usd(e.usd_estimate)}" for e in moved[:_SESSIONS])
            notes.append(f"of egress and requests, estimated by session: {most}")
        return notes


_NOTEWORTHY = Decimal("0.00005")
_SESSIONS = 5
_RIGHT = ("cost", "saved", "idle", "node hours")


class Reconciliation:
    """Days of ours beside the cloud's."""

    def __init__(self, days: list[Day]) -> None:
        self.days = days

    def __iter__(self) -> Iterator[Day]:
        return iter(self.days)

    def __len__(self) -> int:
        return len(self.days)

    @property
    def unexplained_usd(self) -> Decimal:
        """Of all days, dollars: theirs less ours, less what is explained."""
        return sum((day.unexplained for day in self.days), Decimal(0))

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        heads = ("day", "ours", "theirs", "difference", "explained", "by", "unexplained")
        rows = [
            (
                day.day.isoformat(),
                format_usd(day.ours),
                format_usd(day.billed),
                _signed(day.difference),
                _signed(day.explained),
                ", ".join(
                    f"{kind} {_signed(usd)}"
                    for kind, usd in sorted(day.theirs.items())
                    if kind != "compute" and usd
                ),
                _signed(day.unexplained),
            )
            for day in self.days
        ]
        return table(heads, rows, numbers=[head for head in heads if head not in ("day", "by")])

    def __repr__(self) -> str:
        if not self.days:
            return "nothing was spent, and nothing is billed"
        return self._repr_mimebundle_()["text/plain"]


def moment(when: When) -> datetime | None:
    """`"7d"` ago, `"2026-01-31"` (UTC), a date, a datetime with a zone. Raises `UsageError`."""
    if when is None or when == "":
        return None
    if isinstance(when, timedelta):
        return datetime.now(timezone.utc) - when
    if isinstance(when, datetime):
        if when.utcoffset() is None:
            raise UsageError(f"{when!r} has no time zone: costs are told in UTC")
        return when
    if isinstance(when, date):
        return datetime.combine(when, time(), timezone.utc)
    parse: Callable[[str], datetime] = datetime.fromisoformat
    try:
        found = parse(when.strip().replace("Z", "+00:00"))
    except ValueError:
        try:
            return datetime.now(timezone.utc) - parse_duration(when)
        except UsageError:
            raise UsageError(
                f"cannot read {when!r} as a time: 7d (ago), 2026-01-31, 2026-01-31T12:00"
            ) from None
    return found if found.utcoffset() is not None else found.replace(tzinfo=timezone.utc)


def _amount(other: Any) -> Any:
    return other.usd if isinstance(other, Spending) else other


def _exactly(other: Any) -> Decimal:
    if isinstance(other, Spending):
        return other.usd
    return Decimal(str(other)) if isinstance(other, float) else Decimal(other)


def _signed(usd: Decimal) -> str:
    return f"-{format_usd(-usd)}" if usd < 0 else format_usd(usd)
