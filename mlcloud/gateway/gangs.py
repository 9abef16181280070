"""Sessions of several kernels: what is refused, where their ranks are, and what a notice to one of
them means for all.

    notice to one node ─► all ranks are told (loops save); a place for its rank is asked for now
          │ the cell ends             │ the node ends
          ▼                           ▼
    saved, given back ────────► a new gang: on the nodes that stay, and the one that was asked for

Two gangs at once would need twice the nodes: so the old one is given back first, and its nodes are
there for the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mlcloud.cluster.records import now
from mlcloud.cluster.shapes import HostRequest
from mlcloud.cluster_models import Warmth
from mlcloud.errors import Conflict, NoSuchResources, UsageError
from mlcloud.gateway import hosting, restoring
from mlcloud.gateway.livehost import LiveHost
from mlcloud.models import RankInfo, SessionRequest, SessionState

if TYPE_CHECKING:
    from mlcloud.gateway.session import Services, Session

log = logging.getLogger(__name__)

LIVING = (SessionState.IDLE, SessionState.BUSY, SessionState.WAITING, SessionState.MOVING)
LINGER_S = 300.0  # one training is followed by another
MOST_HOPEFUL_S = 600.0  # a place that nobody has taken by then is given back
# What most gangs import, and what that imports when a model is first wrapped or trained.
WARM = (
    *("numpy", "torch", "torch.distributed", "torch.nn.parallel", "torch.utils.data"),
    *("torch._dynamo", "mlcloud.training.run", "mlcloud.training.context"),
)


class Warm:
    """What nodes are to keep ready: what the kernels of a gang that lives, or has lived of late,
    begin with."""

    def __init__(self) -> None:
        self._latest: Warmth | None = None
        self._until = 0.0

    def wanted(self, sessions: Iterable[Session]) -> Warmth | None:
        for session in sessions:
            if session.is_gang and session.state in LIVING and session.request.environment is None:
                threads = max(1, math.floor(session.host_request.num_cpus))
                self._latest = Warmth(modules=[*WARM], threads=threads)
                self._until = time.monotonic() + LINGER_S
                break
        return self._latest if time.monotonic() < self._until else None


def check(services: Services, request: SessionRequest, host: HostRequest) -> None:
    """Raises `NoSuchResources` for a gang that the cluster could never hold."""
    if request.min_workers is not None and not 1 <= request.min_workers <= request.workers > 1:
        raise UsageError(
            f"workers={(request.min_workers, request.workers)} is no range: it is the fewest and "
            "the most workers, the most being 2 at least"
        )
    if request.workers == 1:
        return
    node = host.node_type
    rows = [
        (host.num_cpus, node.cpus),
        (host.num_gpus, node.accelerator_count),
        (host.share, 1.0),
    ]
    each = min(math.floor(has / asks + 1e-9) for asks, has in rows if asks)
    most = each * services.cluster.settings.max_nodes
    fewest = request.min_workers or request.workers
    if fewest > most:
        raise NoSuchResources(
            f"{fewest} workers never fit into this cluster: it has at most "
            f"{services.cluster.settings.max_nodes} nodes (MLCLOUD_MAX_NODES), and a node of "
            f"{node.describe()} holds {each} of them, which makes {most}. Ask for fewer workers, "
            "or for less in each"
        )


def same(existing: SessionRequest, wanted: SessionRequest) -> None:
    """Raises `Conflict` where the number of workers would change."""
    if wanted.min_workers != existing.min_workers and "min_workers" in wanted.model_fields_set:
        raise Conflict(
            f"session {existing.name!r} has at least {existing.min_workers} workers, not "
            f"{wanted.min_workers}; use another session, or close this one"
        )
    if "workers" in wanted.model_fields_set and wanted.workers != existing.workers:
        raise Conflict(
            f"session {existing.name!r} has {existing.workers} "
            f"{'worker' if existing.workers == 1 else 'workers'}, not {wanted.workers}: that does "
            "not change while a session lives, since each rank has a state of its own. Use another "
            "session (`--session NAME`), or close this one"
        )


def ranks(session: Session) -> list[RankInfo]:
    if session.host is None or not session.is_gang:
        return []
    found = []
    for rank, instance in enumerate(session.host.instances):
        offer = session.services.cluster.cloud.get(instance).offer
        found.append(
            RankInfo(rank=rank, node=instance, instance_type=offer.instance_type, zone=offer.zone)
        )
    return found


def place(session: Session, host: LiveHost) -> str:
    """Where a gang is, in words; empty for another session."""
    return place_by(session, host.facts)


def place_by(session: Session, facts: dict[str, Any]) -> str:
    if not session.is_gang:
        return ""
    on = Counter(session.place_of(str(each["instance"])) for each in facts["ranks"])
    nodes = Counter(
        session.place_of(instance)
        for instance in {str(each["instance"]) for each in facts["ranks"]}
    )
    places = ", ".join(f"{nodes[each]} × {each}" for each in on)
    count = len(facts["ranks"])
    return f"{count} worker{'s' * (count > 1)} on {places}"


def asked(session: Session) -> str:
    return f"nodes for {session.request.workers} workers" if session.is_gang else ""


async def regroup(session: Session, host: LiveHost) -> None:
    """Process groups were aborted to end a cell: all ranks begin anew with the saved state."""
    session.status("saving the ranks' states, to connect them anew")
    await session.until_safe()
    await restoring.revive(session, host)
    session.status("the ranks are connected again", ready=True)


def on_notice(
    session: Session, host: LiveHost, instance: str, deadline: datetime, kind: str
) -> bool:
    """A node of the gang goes away: all ranks save, and its place is asked for elsewhere."""
    if instance in session.leaving_ranks:
        return False
    session.leaving_ranks.add(instance)
    seconds = max(0, math.ceil((deadline - now()).total_seconds()))
    gone = [str(rank) for rank, each in enumerate(host.instances) if each == instance]
    text = hosting.notice_text(session.place_of(instance), kind, seconds)
    session.story(
        "notice",
        f"{text} (rank {', '.join(gone)}): all ranks move with it",
        node=instance,
        deadline=deadline.isoformat(),
        kind=kind,
    )
    session.set_state(SessionState.MOVING)
    session.spawn(hosting.tell_notice(session, host, deadline))
    if session.request.min_workers is None:  # an elastic one leaves at once, and asks then
        session.spawn(_hold_place(session, host, instance, deadline, len(gone)))
    else:
        session.spawn(_drain(session, host, instance, deadline))
    if len(session.leaving_ranks) == 1:
        session.spawn(_move_when_idle(session, host))
    return True


async def _hold_place(
    session: Session, host: LiveHost, instance: str, deadline: datetime, ranks: int
) -> None:
    """Have Ray bring a node for these ranks while the old one is still there."""
    await _drain(session, host, instance, deadline)
    hosts = await session.services.cluster.joined()
    avoid = {instance, *session.services.leaving}
    name = f"{session.id}-hold-{instance}"
    hosts.hold(name, session.host_request, session.memory_bytes, ranks, avoid)
    until = asyncio.get_running_loop().time() + MOST_HOPEFUL_S
    try:
        while session.host is host and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.1)
    finally:
        hosts.let_go(name)


async def _drain(session: Session, host: LiveHost, instance: str, deadline: datetime) -> None:
    hosts = await session.services.cluster.joined()
    with contextlib.suppress(Exception):  # a node that is gone cannot be drained, nor chosen
        await hosts.drain(host.node_on(instance), deadline)


async def _move_when_idle(session: Session, old: LiveHost) -> None:
    """Between two cells, all ranks: to the nodes that stay and the ones that were asked for."""
    async with session.turn:
        if session.host is old:
            if old.alive:
                await hosting.save_background(session)
                await session.until_safe()
                await hosting.release(session, old, billing=False)
            else:
                await hosting.host_lost(session, old)
            session.set_state(SessionState.MOVING)
            try:
                await session.ensure_host()
            except Exception as error:  # the next cell tries again, and says so
                log.info("session %s was not brought up elsewhere: %s", session.id, error)
                session.detail = str(error)
        session.settle()
