"""`GET /v1/advice`: the facts that this gateway has, for `cost.advice`.

usage, ledger, cloud's records, sessions, settings ─► Facts ─► advise() ─► AdviceReport
          └ with the rows of days that are settled: three months of who ran what, where
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from mlcloud.cluster.clouds.base import CloudWithLeftovers, Instance, Leftover
from mlcloud.cluster.records import now
from mlcloud.cost import catalogue
from mlcloud.cost.advice import Facts, SessionFacts, advise
from mlcloud.cost.advice.own import read_own
from mlcloud.cost.ledger import Ledger
from mlcloud.cost_models import AdviceInfo, AdviceReport
from mlcloud.errors import MLCloudError
from mlcloud.gateway import entries
from mlcloud.gateway.billing import is_worker

if TYPE_CHECKING:
    from mlcloud.gateway.core import Gateway
    from mlcloud.gateway.session import Session

log = logging.getLogger(__name__)

HISTORY = timedelta(days=92)
#: So many rows are read in some seconds; of a larger history only those of sessions that are there.
MOST_ROWS = 300_000
COLD_START_S, LOST_S = 120.0, 60.0  # while nothing has been seen here
LONG_START_S = 900.0  # a node that joined later had waited for something else


async def report(gateway: Gateway, own: Sequence[str] = ()) -> AdviceReport:
    """What could be saved here; `own` are machines that might be bought (`cost.advice.own`).

    Raises `UsageError` for a machine that cannot be read.
    """
    at = now()
    machines = [read_own(text, at.date()) for text in own]
    services, cloud = gateway.sessions.services, gateway.cluster.cloud
    instances = await asyncio.to_thread(cloud.instances)
    services.billing.see(instances)
    leftovers, notes = await _leftovers(cloud, at)
    first = services.usage.first()
    starts = [node.started_at for node in services.billing.ledger.nodes]
    since = max(min([*starts, first or at, at]), at - HISTORY)
    there = [each for each in gateway.sessions if not each.over]
    ids = [each.id for each in there]
    ledger = await asyncio.to_thread(history, gateway.engine, services.billing.ledger, since, ids)
    usage = await asyncio.to_thread(services.usage.since, since, ledger)
    facts = Facts(
        now=at,
        since=since,
        usage=usage,
        offers=cloud.offers(),
        ledger=ledger,
        sessions=[_session(each, at) for each in there],
        preempted=frozenset(each.id for each in instances if _taken(each)),
        heads=frozenset(each.id for each in instances if not is_worker(each)),
        leftovers=leftovers,
        own=machines,
        spares=gateway.settings.warm_spares,
        node_idle_s=gateway.settings.node_idle.total_seconds(),
        idle_timeout_s=gateway.settings.idle_timeout.total_seconds(),
        cold_start_s=_cold_start_s(instances),
        lost_s=_lost_s(ledger, at),
        accelerator_memory=_accelerator_memory(cloud.name),
    )
    return AdviceReport(
        since=first and max(first, since),
        executions=len(usage),
        advice=[AdviceInfo.model_validate(asdict(each)) for each in advise(facts)],
        notes=notes,
    )


def _session(session: Session, at: datetime) -> SessionFacts:
    idle_since = None
    if session.host is not None and session.current is None and not session.queue:
        ledger = session.services.billing.ledger
        ends = [each.until(at) for each in ledger.executions_of(session.id)]
        starts = [each.started_at for each in session.services.billing.open_placements(session.id)]
        idle_since = max([*ends, *starts], default=None)
    return SessionFacts(
        id=session.id,
        name=session.request.name,
        market=session.request.market,
        idle_timeout_s=session.idle_timeout_s,
        idle_since=idle_since,
        busy_why=session.detail if session.detail.startswith("not parked") else "",
        memory_bytes=session.memory_bytes,
        asks=(session.request.gpu, session.request.cpus),
    )


async def _leftovers(cloud: object, at: datetime) -> tuple[list[Leftover], list[str]]:
    """What the cloud says was left behind, and why it could not say."""
    if not isinstance(cloud, CloudWithLeftovers):
        return [], []
    try:
        return await asyncio.to_thread(cloud.leftovers, at), []
    except MLCloudError as error:
        log.warning("what was left behind could not be asked: %s", error)
        return [], [f"what was left behind in the cloud is not known: {error}"]


def _taken(instance: Instance) -> bool:
    return instance.offer.market == "spot" and (
        instance.notice is not None or instance.reason == "preempted"
    )


def _cold_start_s(instances: Sequence[Instance]) -> float:
    """From the order of a node to its first sign of life, on average."""
    took = [
        (each.joined_at - each.launched_at).total_seconds()
        for each in instances
        if is_worker(each) and each.joined_at is not None
    ]
    known = [each for each in took if 0 <= each <= LONG_START_S]
    return sum(known) / len(known) if known else COLD_START_S


def _lost_s(ledger: Ledger, at: datetime) -> float:
    """Seconds of work that a preemption cut off, on average."""
    lost = [
        (span.until(at) - span.started_at).total_seconds()
        for session_id in dict.fromkeys(each.session_id for each in ledger.placements)
        for span in ledger.executions_of(session_id)
        if span.only_on_spot
    ]
    return sum(lost) / len(lost) if lost else LOST_S


def history(engine: Engine, live: Ledger, since: datetime, session_ids: Sequence[str]) -> Ledger:
    """The ledger with what had not ended by then of days that are settled. Blocks."""
    with engine.connect() as connection:
        if entries.count_over(connection, since) <= MOST_ROWS:
            rows = entries.not_over(connection, since)
        else:
            rows = [row for each in session_ids for row in entries.of_session(connection, each)]
    # Of entries with the same identity the last one counts: what is live knows best.
    return Ledger([*(row.entry for row in rows), *live.entries])


def _accelerator_memory(cloud: str) -> dict[str, int]:
    if cloud not in catalogue.CLOUDS:
        return {}
    return {
        each.instance_type: each.accelerator_memory_bytes
        for each in catalogue.machines(cloud)
        if each.accelerator_memory_bytes
    }
