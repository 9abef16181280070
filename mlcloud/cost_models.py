"""The wire of money: what was spent and by whom, budgets, and advice.

Money is Decimal dollars, sent as strings. What nobody is charged is `simulated`, what nobody
measured an estimate; both say so.
"""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from mlcloud.models import Market, Model


class BudgetRequest(Model):
    """`PUT /v1/budgets`: of a session, a user, a job, or else of the cluster. A limit of null
    removes it."""

    session: str | None = None
    user: str | None = Field(None, max_length=100, description="All sessions of this owner.")
    job: str | None = Field(None, max_length=100, description="Its id.")
    limit: str | None = Field(description="`5`, `5/h`, `50/day`, `1000/month`: dollars.")
    alerts: list[Annotated[float, Field(gt=0, lt=1)]] = Field([0.5, 0.8, 0.95])


class BudgetInfo(Model):
    """A budget in force: of a session, a user or a job; none of them: the cluster's. `refuses`:
    why new work is refused now."""

    session: str | None
    user: str | None = None
    job: str | None = None
    limit: str
    limit_usd: Decimal
    spent_usd: Decimal
    period: str
    ends_at: datetime | None
    alerts: list[float]
    refuses: str
    reserve_usd: Decimal = Field(
        Decimal(0), description="Kept back: what stopping now would cost, minimum billing included."
    )


class CostRow(Model):
    """What one group has cost. `idle_usd` is that part of `usd` in which nothing ran."""

    key: dict[str, str] = Field(description="`day`, `session` …: what it is grouped by.")
    usd: Decimal
    on_demand_usd: Decimal
    idle_usd: Decimal
    node_hours: Decimal = Field(description="Of whole nodes.")


class CostEstimate(Model):
    """What bills beside the nodes. Nobody measured it: see `basis`."""

    what: str
    usd: Decimal | None = Field(None, description="In the report's time; None: not known.")
    usd_per_month: Decimal | None = None
    basis: str = Field(description="How it comes about, with the list price.")
    source: str
    as_of: date
    simulated: bool


class DataMoved(Model):
    """What a session moved, as far as the gateway saw it, and what that may cost: an estimate."""

    session: str
    to_notebook_bytes: int
    between_regions_bytes: int
    store_writes: int
    store_reads: int
    usd_estimate: Decimal


class CostNode(Model):
    """A node that rows name."""

    cloud: str
    region: str
    zone: str
    instance_type: str
    market: Market
    simulated: bool
    source: str


class Costs(Model):
    """`GET /v1/costs`: what nodes have cost, by who caused it."""

    by: list[str]
    since: datetime | None = Field(
        description="None: from the beginning. Days before yesterday are whole ones, UTC."
    )
    until: datetime = Field(description="Give it with `next`, for pages of one and the same time.")
    usd: Decimal
    on_demand_usd: Decimal
    idle_usd: Decimal
    node_hours: Decimal
    usd_per_hour: Decimal = Field(description="Of all nodes, now.")
    simulated: bool = Field(description="Whether prices that nobody is charged are in it.")
    rows: list[CostRow]
    next: str | None = Field(None, description="Where the next page begins; None: this is the end.")
    nodes: dict[str, CostNode] = Field({})
    tags: dict[str, dict[str, str]] = Field({}, description="Of the sessions that rows name.")
    estimates: list[CostEstimate] = Field([])
    data: list[DataMoved] = Field([], description="The first 100 sessions that moved most.")


class SpendOf(Model):
    """Of a session; None: of no session, which is nodes that start up or wait, and the head."""

    session: str | None
    usd: list[Decimal] = Field(description="For each step; the last one goes on.")


class Spend(Model):
    """`GET /v1/spend`: dollars by session over time."""

    begins_at: datetime
    step_s: int
    of: list[SpendOf]
    usd_before_today: Decimal = Field(
        description="All that was spent before this day (UTC): `usd` of the cluster less this is "
        "what today has cost."
    )


class AdviceInfo(Model):
    """One advice. Dollars are never below zero; every number of `text` comes from `arithmetic`."""

    kind: str = Field(description="`right-size`, `park`, `idle-node`, `market`, `commitment` …")
    about: str = Field(description="The session, node or resource.")
    text: str
    saves_usd: Decimal
    per: Literal["month", "once"]
    arithmetic: list[str] = Field(description="`what: expression = result`, or a fact.")
    action: str = Field(description="What does it.")
    confidence: Literal["low", "medium", "high"]
    simulated: bool = Field(description="Whether its prices are.")


class AdviceReport(Model):
    """`GET /v1/advice`, the biggest saving first."""

    since: datetime | None = Field(description="Since when it is measured; None: nothing was yet.")
    executions: int = Field(description="That were measured since then.")
    advice: list[AdviceInfo]
    notes: list[str] = Field([])
