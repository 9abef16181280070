"""The gateway keeps its store small, and nothing that somebody can come back to goes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import insert, select, update

import mlcloud.client.session as client_session
from mlcloud import errors
from mlcloud.client.remote_value import RemoteValue
from mlcloud.config import Settings
from mlcloud.gateway import db
from mlcloud.gateway.inputs import Inputs
from mlcloud.gateway.lease import Lease
from mlcloud.gateway.record import Record
from mlcloud.gateway.retention import kept
from mlcloud.gateway.snapshots import SnapshotLog
from mlcloud.gateway.upkeep import Upkeep
from mlcloud.store import Signer, Store
from tests.live import Embedded, until

KEY = b"k" * 32
NOW = datetime(2026, 3, 4, 15, 30, tzinfo=timezone.utc)


# --- which states stay ----------------------------------------------------------------------------


def test_the_newest_one_an_hour_and_one_a_day() -> None:
    """A state each ten minutes for three days, thinned out each hour as the gateway does."""
    states: list[tuple[int, datetime]] = []
    at = NOW - timedelta(days=3)
    step = 0
    while at < NOW:
        step += 1
        states.append((step, at))
        at += timedelta(minutes=10)
        if step % 6 == 0:
            stay = kept(states, at, newest=8)
            states = [each for each in states if each[0] in stay]
    stay = kept(states, NOW, newest=8)
    times = [at for step, at in states if step in stay]
    assert times[-8:] == [NOW - timedelta(minutes=10 * n) for n in range(8, 0, -1)]
    day = [at for at in times if NOW - at < timedelta(days=1)]
    assert {at.replace(minute=0) for at in day} == {
        (NOW - timedelta(hours=n)).replace(minute=0) for n in range(25)
    }
    older = [at for at in times if at not in day]
    assert [(at.day, at.hour, at.minute) for at in older] == [(1, 23, 50), (2, 23, 50), (3, 14, 50)]
    assert len(times) < 24 + 8 + 3


def test_few_states_all_stay() -> None:
    assert kept([(n, NOW) for n in range(5)], NOW, newest=5) == set(range(5))
    assert kept([], NOW, newest=5) == set()


# --- what comes with cells ------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def test_inputs_stay_until_the_state_is_there(store: Store, tmp_path: Path) -> None:
    held, lost = store.put_buffers([b"held", b"lost"])
    inputs = Inputs(store)
    inputs.hold("s-1", 3, [f"{held.hash}:{held.size}"])
    inputs.hold("s-1", 3, [f"{held.hash}:{held.size}"])  # on another node
    store.prune(grace_s=0)
    assert store.exists(held.hash)
    assert not store.exists(lost.hash)
    # A new process knows of no earlier step, and is told all the same.
    with pytest.raises(errors.Collected, match="run it again"):
        Inputs(Store(str(tmp_path / "store"))).hold("s-1", 4, [f"{lost.hash}:{lost.size}"])
    assert store.steps("inputs", "s-1") == [3]
    inputs.let_go("s-1", 2)
    store.prune(grace_s=0)
    assert store.exists(held.hash)
    inputs.let_go("s-1", 3)
    store.prune(grace_s=0)
    assert not store.exists(held.hash)


def test_what_is_about_to_go_is_asked_for_again(store: Store, tmp_path: Path) -> None:
    (ref,) = store.put_buffers([b"sent last week"])
    other = Store(str(tmp_path / "store"))
    assert other.wanted([ref]) == []
    until(lambda: store.prune(grace_s=0.05).marked, "it is marked")
    assert other.missing([ref]) == []
    assert other.wanted([ref]) == [ref]
    assert other.put_chunk(b"sent last week").new
    until(lambda: store.prune(grace_s=0.05).marked, "the sweep is over, what is new is marked")
    assert other.missing([ref]) == []


# --- sessions -------------------------------------------------------------------------------------


class Head:
    """A gateway's store side, with a database, and no cluster."""

    def __init__(self, root: Path, name: str = "one", **settings: Any) -> None:
        self.engine = db.open_database(f"sqlite:///{root / name}.db")
        url = str(root / "store")
        self.store, self.signer = Store(url), Signer(KEY)
        self.record = Record(self.engine, self.store, self.signer, name)
        self.lease = Lease(self.store, self.signer, name)
        self.lease.take()
        self.snapshots = SnapshotLog(self.store, self.signer)
        chosen = {"prune_grace": "0s", "closed_keep": "0s", "history_keep": 2, **settings}
        self.sessions: list[Any] = []
        sessions: Any = self.sessions
        self.upkeep = Upkeep(Settings(store=url, **chosen), sessions, self.record, self.lease)

    def begin(self, session_id: str, name: str) -> None:
        row = {"id": session_id, "name": name, "state": "idle", "detail": "", "request": "{}"}
        with self.engine.begin() as connection:
            connection.execute(
                insert(db.sessions).values(**row, created_at=datetime.now(timezone.utc))
            )
            event = {"session_id": session_id, "seq": 1, "execution_id": "x", "kind": "stream"}
            connection.execute(insert(db.events).values(**event, blob=b"printed"))
            entry = {"session_id": session_id, "execution_id": "x"}
            connection.execute(
                insert(db.ledger).values(kind="ExecutionSpan", entry=json.dumps(entry))
            )
        self.record.name(name, session_id)
        self.record.write(session_id)

    def put(self, kind: str, name: str, step: int, data: bytes) -> None:
        (ref,) = self.store.put_buffers([data])
        self.store.commit(kind, name, step, {"c": str(ref)}, sign=self.signer.sign)

    def close(self, session_id: str, name: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(
                update(db.sessions)
                .where(db.sessions.c.id == session_id)
                .values(state="closed", name=f"{name}#{session_id}")
            )

    def tidy(self) -> None:
        asyncio.run(self.upkeep.once())


def everything_of(head: Head, session_id: str, name: str) -> None:
    head.begin(session_id, name)
    for step in (1, 2):
        head.put("sessions", session_id, step, b"state %d of " % step + session_id.encode())
        head.put("checkpoint", f"{session_id}/x-1/0", step, b"step %d " % step + name.encode())
    head.put("logs", f"{session_id}/xlog", 1, b"log of " + name.encode())
    head.put("inputs", session_id, 1, b"input of " + name.encode())


def test_of_a_closed_session_stays_what_it_cost(tmp_path: Path) -> None:
    head = Head(tmp_path)
    everything_of(head, "s-gone", "exp")
    everything_of(head, "s-open", "other")
    head.put("checkpoint", "mine", 1, b"a series of the user's")
    head.close("s-gone", "exp")  # and its end is not recorded: the store was away
    head.tidy()
    assert head.store.steps("sessions", "s-gone") == [1, 2], "its end is recorded first"
    before = head.store.usage()
    head.tidy()
    for kind in ("sessions", "logs", "inputs", "checkpoint"):
        assert not head.store.names(kind, under="s-gone")
        assert head.store.names(kind, under="s-open")
    assert head.store.names("checkpoint", under="mine") == ["mine"]
    assert head.store.names("names") == ["other"]
    after = head.store.usage()
    assert after.unnamed == 0
    assert after.chunks <= before.chunks - 6
    assert len(head.store.steps("records", "s-gone")) == 1
    head.tidy()
    assert head.store.usage() == after
    assert head.store.verify() == []

    # A head that has lost its disk knows what it cost still.
    (tmp_path / "one.db").unlink()
    again = Head(tmp_path)
    assert again.record.rebuild() == 2
    with again.engine.connect() as connection:
        states = {
            row.id: row.state
            for row in connection.execute(select(db.sessions.c.id, db.sessions.c.state))
        }
        assert states == {"s-gone": "closed", "s-open": "idle"}
        entries = connection.execute(select(db.ledger.c.entry)).scalars()
        assert {json.loads(each)["session_id"] for each in entries} == {"s-gone", "s-open"}
        whose = connection.execute(select(db.events.c.session_id)).scalars().all()
        assert whose == ["s-open"]
    assert again.record.take_over("exp") is None


def test_a_closed_session_stays_for_a_while(tmp_path: Path) -> None:
    head = Head(tmp_path, closed_keep="1h")
    everything_of(head, "s-1", "exp")
    head.close("s-1", "exp")
    head.record.write("s-1")
    head.tidy()
    assert head.store.steps("sessions", "s-1") == [1, 2]


def test_a_session_that_another_cluster_took_up_is_left_alone(tmp_path: Path) -> None:
    old = Head(tmp_path, "old")
    everything_of(old, "s-1", "exp")
    old.lease.release()
    new = Head(tmp_path, "new")
    assert new.record.take_over("exp") == "s-1"
    old.record.let_go_of_lost()  # here it is closed from now on
    old.tidy()
    old.tidy()
    assert new.store.steps("sessions", "s-1") == [1, 2]
    assert new.store.steps("checkpoint", "s-1/x-1/0") == [1, 2]
    new.close("s-1", "exp")
    new.record.write("s-1")
    old.tidy()
    assert new.store.steps("sessions", "s-1") == [1, 2], "it is the other one's to remove"
    new.tidy()
    assert new.store.steps("sessions", "s-1") == []
    assert new.store.verify() == []


def test_only_the_head_that_holds_the_lease(tmp_path: Path) -> None:
    first = Head(tmp_path)
    everything_of(first, "s-1", "exp")
    first.close("s-1", "exp")
    first.record.write("s-1")
    second = Head(tmp_path)
    first.tidy()
    assert second.store.steps("sessions", "s-1") == [1, 2]
    second.tidy()
    assert second.store.steps("sessions", "s-1") == []


class Open:
    """What upkeep looks at of an open session."""

    over = False

    def __init__(self, id: str) -> None:
        self.id, self.past = id, asyncio.Lock()
        self.queue: list[Any] = []
        self.current: Any = None


class Waiting:
    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal


def test_old_states_go_and_inputs_of_safe_cells(tmp_path: Path) -> None:
    head = Head(tmp_path)
    head.begin("s-1", "exp")
    session = Open("s-1")
    head.sessions.append(session)
    for step in range(1, 7):
        head.put("inputs", "s-1", step, b"input %d" % step)
        if step != 6:
            (ref,) = head.store.put_buffers([b"state %d" % step])
            head.snapshots.commit("s-1", step, f"x-{step}", {"groups": [str(ref)]})
    head.put("inputs", "s-1", 0, b"a wheel")
    session.queue = [Waiting(4)]
    head.tidy()
    assert head.store.steps("sessions", "s-1") == [4, 5]
    assert head.store.steps("inputs", "s-1") == [0, 4, 5, 6]
    session.queue = []
    head.tidy()
    assert head.store.steps("inputs", "s-1") == [0, 6]
    assert head.store.usage().unnamed == 0
    assert head.store.verify() == []


def test_a_state_that_is_gone_back_to_stays_meanwhile(tmp_path: Path) -> None:
    head = Head(tmp_path)
    head.begin("s-1", "exp")
    session = Open("s-1")
    head.sessions.append(session)
    for step in range(1, 6):
        head.snapshots.commit("s-1", step, f"x-{step}", {"groups": []})

    async def scene() -> None:
        async with session.past:
            tidying = asyncio.create_task(head.upkeep.once())
            await asyncio.sleep(0.2)
            assert head.snapshots.read("s-1", 1)
        await tidying
        with pytest.raises(errors.NotFound):
            head.snapshots.read("s-1", 1)

    asyncio.run(scene())


def test_trouble_with_the_store_is_for_the_next_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another process sweeps; the store cannot be read; a bug: the task goes on."""
    head = Head(tmp_path, prune_every="10ms")
    head.store.put_buffers([b"left over"])
    rounds: list[BaseException | None] = [
        errors.Conflict("another process prunes"),
        errors.StoreError("away"),
        errors.StoreFull("full"),
        ZeroDivisionError(),
        None,
    ]
    tried = iter(rounds)
    prune = head.upkeep._store.prune

    def trouble(**options: Any) -> Any:
        error = next(tried, None)
        if error is not None:
            raise error
        return prune(**options)

    head.upkeep._store.prune = trouble  # type: ignore[method-assign]

    async def scene() -> None:
        task = asyncio.create_task(head.upkeep.run())
        async with asyncio.timeout(20):
            while head.store.usage().unnamed:
                await asyncio.sleep(0.02)
        assert not task.done()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(scene())
    assert "the store could not be tidied" in caplog.text


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    asyncio.run(asyncio.wait_for(Head(tmp_path, prune_every="0s").upkeep.run(), 5))


# --- all of it running ----------------------------------------------------------------------------


def prune(embedded: Embedded) -> int:
    """All that nobody names is removed at this moment; how many chunks."""
    store = Store(embedded.settings.store_url)
    while True:
        with contextlib.suppress(errors.Conflict):
            return store.prune(grace_s=0).chunks


@pytest.fixture
def pruned(cluster: Embedded, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[int]]:
    """`pruned("upload")`: when that is called next, all that nobody names goes (after it; before a
    `download`); how many chunks. Once."""

    def after(name: str) -> list[int]:
        counts: list[int] = []
        real = getattr(client_session, name)

        def call(*arguments: Any) -> Any:
            if name == "download":
                counts.append(prune(cluster))
                monkeypatch.setattr(client_session, name, real)
                return real(*arguments)
            found = real(*arguments)
            counts.append(prune(cluster))
            monkeypatch.setattr(client_session, name, real)
            return found

        monkeypatch.setattr(client_session, name, call)
        return counts

    return after


@pytest.mark.cluster
def test_values_are_there_whenever_somebody_prunes(
    session: Callable[..., Any], pruned: Callable[[str], list[int]]
) -> None:
    names: dict[str, Any] = {}
    s = session(namespace=names)
    s.run("import numpy as np", durable=True, quiet=True)

    # Between sending a value and the cell: it is sent again, and the cell runs once.
    names["x"] = np.arange(50_000.0)
    counts = pruned("upload")
    s.run("ran = globals().get('ran', 0) + 1; total = float(x.sum())", quiet=True)
    assert counts[0] >= 1, "it was removed"
    assert (names["ran"], names["total"]) == (1, float(np.arange(50_000.0).sum()))
    counts = pruned("upload")
    s["y"] = np.ones(60_000)
    assert counts[0] >= 1
    s.run("total = float(y.sum())", durable=True, quiet=True)
    assert names["total"] == 60_000

    # Between a cell's end and its value's way here (one that no state names, since it is made
    # again): it is in the session still, and comes when asked for; also if that happens again at
    # that moment.
    counts = pruned("download")
    s.run("back = np.ones(400_000); n = 7", out=["back", "n"], quiet=True)
    assert counts[0] >= 1
    assert isinstance(names["back"], RemoteValue)
    assert names["n"] == 7
    counts = pruned("download")
    assert names["back"].get().sum() == 400_000
    assert counts[0] >= 1
    s.run("back = back * 2", durable=True, quiet=True)
    assert s["back"].sum() == 800_000


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """A cluster whose gateway tidies all the time."""
    home = tmp_path_factory.mktemp("upkeep")
    settings = {"prune_every": "500ms", "prune_grace": "2s", "closed_keep": "0s"}
    with Embedded(home, history_keep="3", node_idle="20s", **settings) as embedded:
        yield embedded


@pytest.mark.slow
@pytest.mark.cluster
def test_a_gateway_tidies_by_itself(busy: Embedded) -> None:
    names: dict[str, Any] = {}
    s = busy.connect().session("exp", namespace=names, market="spot")
    store = Store(busy.settings.store_url)
    for number in range(7):
        names["given"] = np.full(50_000, float(number))
        s.run(f"import numpy as np; x = given + {number}", durable=True, quiet=True)
    until(lambda: len(s.history()) == 3, "old states are gone")
    steps = [each.step for each in s.history()]
    assert steps == [5, 6, 7]
    with pytest.raises(errors.NotFound, match="history"):
        s.restore(1)
    other = s.fork("other", step=5)
    s.restore(6)
    s.run("is_back = float(x[0])", quiet=True)
    assert names["is_back"] == 10.0
    until(lambda: store.usage().unnamed == 0, "what they alone had is gone")
    found = store.usage()
    assert found.bytes < 4_000_000, "7 states of 400 kB, and as many inputs"

    # How long a node lasts is learnt, and told to loops.
    code = (
        "from mlcloud.checkpoint import context; mean = context.current().mean_time_to_preemption_s"
    )
    s.run(code, quiet=True)
    before, node = names["mean"], s.info.node
    assert before > 7200
    busy.connect().cluster.preempt(s, "6s")
    until(lambda: s.state == "idle" and s.info.node not in (node, None), "it has moved", 60)
    s.run(code, durable=True, quiet=True)
    assert names["mean"] < before * 0.6

    for each in (s, other):
        each.close()
    until(lambda: not store.names("sessions") and not store.names("inputs"), "their states go")
    until(lambda: store.usage().unnamed == 0, "and their chunks")
    assert store.usage().bytes < 200_000
    assert store.verify() == []
