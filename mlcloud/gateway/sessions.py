"""All sessions of a gateway: created once per name, found again after a restart, told of
notices."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select, update

from mlcloud.cluster.attempts import Attempt
from mlcloud.cluster.clouds.base import Instance
from mlcloud.cluster.records import now
from mlcloud.cluster.shapes import HostRequest, NodeMarket, choose, gone
from mlcloud.errors import Conflict, MLCloudError, NoSuchResources, NotFound
from mlcloud.gateway import db, environments, gangs, mounting, reshaping, stories, vault
from mlcloud.gateway.given import Given
from mlcloud.gateway.inputs import WHEELS
from mlcloud.gateway.session import Services, Session
from mlcloud.gateway.traffic import data_usd
from mlcloud.models import SessionInfo, SessionRequest, SessionState, ShapeRequest
from mlcloud.units import parse_duration, parse_gpu, parse_size

log = logging.getLogger(__name__)

SESSION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


class Sessions:
    """By name; a closed session's name is free again."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self._by_name: dict[str, Session] = {}
        self._finding = asyncio.Lock()

    def __iter__(self) -> Any:
        return iter(list(self._by_name.values()))

    def create(self, request: SessionRequest) -> Session:
        """The session of this name, made if there is none.

        Raises `NoSuchResources` at once where the cluster has no such shape, `Conflict` where the
        name is taken by a session with other resources.
        """
        existing = self._by_name.get(request.name)
        if existing is not None:
            _same_resources(existing.request, request, self.services.given())
            return existing
        request = self.services.given().to(request)
        environments.check(request)
        vault.check(request.secrets)
        mounting.check(request)
        host_request, memory_bytes, idle_s = self._resolve(request)
        session = Session(
            self.services,
            id=f"s-{secrets.token_hex(6)}",
            request=request,
            host_request=host_request,
            memory_bytes=memory_bytes,
            created_at=now(),
            idle_timeout_s=idle_s,
        )
        with self.services.engine.begin() as connection:
            connection.execute(
                insert(db.sessions).values(
                    id=session.id,
                    name=request.name,
                    state=session.state.value,
                    request=request.model_dump_json(),
                    created_at=session.created_at,
                )
            )
        self._by_name[request.name] = session
        session.spawn(self._name(session))
        return session

    async def _name(self, session: Session) -> None:
        """In the store its name leads to it, so that another cluster may find it one day."""
        try:
            await asyncio.to_thread(self.services.record.name, session.request.name, session.id)
            await session.write_record()
            await self._hold_wheels(session)
        except MLCloudError as error:
            log.warning("session %s could not be named in the store: %s", session.id, error)

    async def _hold_wheels(self, session: Session) -> None:
        """They are needed on each new node."""
        spec = session.request.environment
        names = [name for wheel in spec.wheels for name in wheel.objects] if spec else []
        try:
            await asyncio.to_thread(self.services.inputs.hold, session.id, WHEELS, names)
        except MLCloudError as error:
            log.warning("the wheels of session %s could not be named: %s", session.id, error)

    async def find(self, name: str) -> Session:
        """The session of this name, also of another cluster that is gone and had this store.

        Raises `NotFound`, `Conflict` where that cluster is alive.
        """
        if self._is_elsewhere(name) and SESSION_NAME.fullmatch(name):
            async with self._finding:
                found = None
                if self._is_elsewhere(name):
                    await self._let_go(name)
                    found = await asyncio.to_thread(self.services.record.take_over, name)
                if found is not None:
                    log.info("session %s is taken up from the store", name)
                    self._adopt(self._rows(found)[0])
        return self.get(name)

    def _is_elsewhere(self, name: str) -> bool:
        """Whether the store must be asked: it is not here, or another head has taken it up."""
        known = self._by_name.get(name)
        return known is None or known.state is SessionState.FAILED

    async def _let_go(self, name: str) -> None:
        """Of a session that another head has taken up: its name may lead back to it one day."""
        session = self._by_name.pop(name, None)
        if session is not None:
            await session.shut(keep_host=False)
            await asyncio.to_thread(self.services.record.let_go, session.id, session.detail)

    def _resolve(
        self, request: SessionRequest, wished: HostRequest | None = None
    ) -> tuple[HostRequest, int, float]:
        memory = parse_size(request.memory) if request.memory else 0
        if request.keep_files:
            parse_size(request.keep_files)  # said now, not when a node starts
        host_request = wished or self.request_of(request, request.market)
        gangs.check(self.services, request, host_request)
        idle = (
            parse_duration(request.idle_timeout).total_seconds()
            if request.idle_timeout
            else self.services.idle_timeout_s
        )
        return host_request, memory, idle

    def request_of(self, request: SessionRequest, market: NodeMarket) -> HostRequest:
        """What a host for this asks of Ray, in this market. Raises `NoSuchResources`."""
        return choose(
            self.services.cluster.types,
            cpus=request.cpus,
            memory_bytes=parse_size(request.memory) if request.memory else 0,
            gpu=parse_gpu(request.gpu) if request.gpu else None,
            market=market,
        )

    def respecify(self, idle_timeout_s: float) -> None:
        """The cluster has other shapes and another idle time: what that is to its sessions."""
        self.services.idle_timeout_s = idle_timeout_s
        for session in self:
            if not session.request.idle_timeout:
                session.idle_timeout_s = idle_timeout_s
                session.look_again()
            if session.host is None and session.successor is None:
                session.host_request = self._wished(session.request)

    def _wished(self, request: SessionRequest) -> HostRequest:
        """As `request_of`; a request that no node holds, where the cluster has no such shape any
        more: a session of an earlier specification."""
        try:
            return self.request_of(request, request.market)
        except NoSuchResources:
            return gone(request.cpus, parse_gpu(request.gpu) if request.gpu else None)

    async def resume(self, name: str, wanted: ShapeRequest | None) -> Session:
        """Bring a session up without running anything, on this shape from now on if one is given.

        Raises `NoSuchResources` where the cluster has no such shape, and as `reshaping.reshape`.
        """
        session = self.get(name)
        asked = {} if wanted is None else wanted.model_dump(exclude_unset=True)
        request = session.request.model_copy(update=asked)
        host_request, memory_bytes, _ = self._resolve(request)
        if (host_request, memory_bytes) == (session.host_request, session.memory_bytes):
            await session.resume()
        else:
            shape = reshaping.Shape(request, host_request, memory_bytes)
            await reshaping.reshape(session, shape)
        return session

    def has(self, name: str) -> bool:
        return name in self._by_name

    def get(self, name: str) -> Session:
        """Raises `NotFound`, naming the sessions there are."""
        session = self._by_name.get(name)
        if session is None:
            known = ", ".join(sorted(self._by_name)) or "none"
            raise NotFound(f"no session {name!r}; there are: {known}")
        return session

    async def close(self, name: str) -> None:
        session = self.get(name)
        await session.close()
        del self._by_name[name]
        self.services.vault.forget(session.id)
        with self.services.engine.begin() as connection:
            connection.execute(
                update(db.sessions)
                .where(db.sessions.c.id == session.id)
                .values(name=f"{name}#{session.id}")
            )
        await session.write_record()

    def adopt_all(self) -> None:
        """Load every open session of an earlier gateway; hosts are found in the background."""
        for row in self._rows():
            self._adopt(row)

    def _rows(self, session_id: str | None = None) -> list[Any]:
        over = [SessionState.CLOSED.value, SessionState.FAILED.value]
        query = select(db.sessions).where(db.sessions.c.state.not_in(over))
        if session_id is not None:
            query = query.where(db.sessions.c.id == session_id)
        with self.services.engine.connect() as connection:
            return list(connection.execute(query).all())

    def _adopt(self, row: Any) -> None:
        request = SessionRequest.model_validate_json(row.request)
        host_request, memory_bytes, idle_s = self._resolve(request, self._wished(request))
        self._by_name[request.name] = Session(
            self.services,
            id=row.id,
            request=request,
            host_request=host_request,
            memory_bytes=memory_bytes,
            created_at=row.created_at,
            idle_timeout_s=idle_s,
            state=SessionState.PARKED if row.epoch else SessionState.STARTING,
            epoch=row.epoch,
            ordinal=row.ordinal,
            last_event=row.last_event,
            adopted_number=row.host_number,
        )
        self._by_name[request.name].spawn(self._hold_wheels(self._by_name[request.name]))

    def on_notice(self, instance_id: str, deadline: datetime, kind: str) -> bool:
        """False: no session moves because of it."""
        moving = [session.on_notice(instance_id, deadline, kind) for session in self]
        return any(moving)

    def on_risk(self, instance_id: str, kind: str) -> None:
        for session in self:
            session.on_risk(instance_id, kind)

    def on_withdrawn(self, instance_id: str, was_risk: bool) -> None:
        for session in self:
            session.on_withdrawn(instance_id, was_risk)

    def on_node_end(self, instance: Instance) -> None:
        for session in self:
            session.on_node_end(instance.id, instance.reason)

    def on_attempt(self, attempt: Attempt) -> None:
        """The autoscaler tried to buy a node: tell the sessions that wait for one."""
        text = stories.attempt(attempt, now())
        for session in self:
            if session.host is None and session.current is not None:
                session.status(text)

    def busy(self) -> bool:
        return any(session.current is not None or session.queue for session in self)

    async def shut(self, *, keep_hosts: bool) -> None:
        await asyncio.gather(*(session.shut(keep_host=keep_hosts) for session in self))

    # --- facts ------------------------------------------------------------------------------------

    def info(self, session: Session) -> SessionInfo:
        services = self.services
        finished, safe = services.executions.counts(session.id)
        offer = services.cluster.cloud.get(session.host.instance).offer if session.host else None
        return SessionInfo(
            id=session.id,
            name=session.request.name,
            state=session.state,
            gpu=session.request.gpu,
            cpus=session.request.cpus,
            memory=session.request.memory,
            market=session.request.market,
            created_at=session.created_at,
            node=session.host.instance if session.host else None,
            instance_type=offer.instance_type if offer else None,
            zone=offer.zone if offer else None,
            usd_per_hour=services.billing.per_hour(session.id),
            usd=services.billing.spent(session.id),
            data_usd_estimate=data_usd(services.store_url, services.traffic.of(session.id)),
            simulated=services.billing.simulated(session.id)
            or (offer.simulated if offer else False),
            running=session.current.id if session.current else None,
            queued=len(session.queue),
            last_event=session.journal.last,
            finished_cells=finished,
            safe_cells=safe,
            environment=session.request.environment.summary if session.request.environment else "",
            ancestors=session.request.ancestors,
            detail=session.detail,
            secrets=session.request.secrets,
            idle_since=self._idle_since(session),
            workers=len(session.host.instances) if session.host else session.request.workers,
            ranks=gangs.ranks(session),
        )

    def _idle_since(self, session: Session) -> datetime | None:
        if session.host is None or session.current is not None or session.queue:
            return None
        ledger = self.services.billing.ledger
        placed = [p.started_at for p in ledger.placements_of(session.id) if p.ended_at is None]
        worked = ledger.last_end(session.id)
        return max([*placed, *([worked] if worked else [])], default=None)

    def infos(self) -> list[SessionInfo]:
        return [self.info(session) for session in self]

    def by_name_or_node(self, target: str) -> str:
        """The instance that a node id or a session's name stands for."""
        session = self._by_name.get(target)
        if session is not None:
            if session.host is None:
                raise Conflict(f"session {target!r} is on no node now ({session.state.value})")
            return session.host.instance
        return target


def _same_resources(existing: SessionRequest, wanted: SessionRequest, given: Given) -> None:
    for field in sorted(wanted.model_fields_set & {"gpu", "cpus", "memory", "market"}):
        have, want = getattr(existing, field), getattr(wanted, field)
        if have != want:
            raise Conflict(
                f"session {existing.name!r} exists with {field}={have!r}, not {want!r}; "
                f"`resume({field}=…)` puts it on another shape; or use another name"
            )
    gangs.same(existing, wanted)
    environments.same(existing, wanted)
    mounting.same(existing, wanted, given.data)
