"""The store is the record: a head's disk may be lost, and a cluster; two heads never hold one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import insert, select

from mlcloud import errors
from mlcloud.cost.ledger import NodeSpan, Placement
from mlcloud.gateway import books, db, entries, lease
from mlcloud.gateway.billing import Billing
from mlcloud.gateway.budgets import Budgets
from mlcloud.gateway.lease import Lease
from mlcloud.gateway.record import Fenced, Record
from mlcloud.gateway.snapshots import SnapshotLog
from mlcloud.store import Signer, Store
from tests.cost.test_meter import offer
from tests.live import Embedded, Running, events, until

KEY = b"k" * 32

# --- two heads, one store -------------------------------------------------------------------------


class Head:
    """A head's database and its part of the record."""

    def __init__(self, root: Path, name: str) -> None:
        self.engine = db.open_database(f"sqlite:///{root / name}.db")
        self.store, self.signer = Store(str(root / "store")), Signer(KEY)
        self.record = Record(self.engine, self.store, self.signer, name)
        self.lease = Lease(self.store, self.signer, name)

    def begin(self, session_id: str = "s-1", name: str = "exp") -> None:
        with self.engine.begin() as connection:
            connection.execute(
                insert(db.sessions).values(
                    id=session_id,
                    name=name,
                    state="starting",
                    detail="",
                    request="{}",
                    created_at=datetime.now(timezone.utc),
                )
            )
        self.record.name(name, session_id)
        self.record.write(session_id)

    def event(self, seq: int, session_id: str = "s-1") -> None:
        with self.engine.begin() as connection:
            row = {"session_id": session_id, "seq": seq, "execution_id": "x", "kind": "stream"}
            connection.execute(insert(db.events).values({**row, "blob": b"%d" % seq}))
        self.record.write(session_id)

    def journal(self) -> list[int]:
        with self.engine.connect() as connection:
            return list(
                connection.execute(select(db.events.c.seq).order_by(db.events.c.seq)).scalars()
            )


@pytest.fixture
def head(tmp_path: Path) -> Callable[[str], Head]:
    return lambda name: Head(tmp_path, name)


def test_an_empty_database_is_filled_again(head: Callable[[str], Head], tmp_path: Path) -> None:
    first = head("one")
    first.begin()
    for seq in range(1, 6):
        first.event(seq)
    (tmp_path / "one.db").unlink()
    again = head("one")
    assert again.record.rebuild() == 1
    assert again.journal() == [1, 2, 3, 4, 5]
    again.event(6)
    assert again.record.rebuild() == 0, "one that is not empty is left alone"


def test_what_jobs_cost_and_what_was_moved_is_in_the_record(
    head: Callable[[str], Head], tmp_path: Path
) -> None:
    """A head whose disk is new has a job's budget where it was, shut if it was."""
    first = head("one")
    first.begin()
    at = datetime(2026, 11, 27, tzinfo=timezone.utc)
    node = NodeSpan("i-1", offer("3.6"), at, at + timedelta(seconds=100))
    work = Placement("job:j", "i-1", Decimal("0.5"), at, at + timedelta(seconds=100))
    with first.engine.begin() as connection:
        entries.add(node, connection)
        entries.add(work, connection)
        connection.execute(insert(db.charged).values(whose="job:j", of="e-1"))
        row = {"day": 20_000, "session_id": "s-1", "out": 7, "across": 0, "puts": 3, "gets": 1}
        connection.execute(insert(db.traffic).values(row))
    first.event(1)
    first.record.write_nodes([node], [["job:j", "1", [0.5], "it is spent", ""]])
    steps = first.store.steps("records", "cluster-one")
    first.record.write_nodes([node], [["job:j", "1", [0.5], "it is spent", ""]])
    assert first.store.steps("records", "cluster-one") == steps, "nothing has changed"
    (tmp_path / "one.db").unlink()

    again = head("one")
    assert again.record.rebuild() == 1
    with again.engine.connect() as connection:
        assert books.read(connection)["charged"] == [["job:j", "e-1"]]
        assert connection.execute(select(db.traffic)).one() == tuple(row.values())
    billing = Billing(again.engine, [])
    billing.recall(again.record.nodes(), [])
    assert billing.spent("job:j") == Decimal("0.05")
    assert billing.spent() == Decimal("0.1")
    sessions: Any = type("Sessions", (), {"__iter__": lambda self: iter(())})()
    sessions.services = SimpleNamespace(engine=again.engine, billing=billing)
    budgets = Budgets(sessions)
    budgets.recall(again.record.budgets())
    assert budgets.refusal("job:j") == "it is spent"
    assert budgets.payers.spent("job:j", None) == Decimal("0.05")
    # What is here already knows better.
    assert head("one").record.rebuild() == 0


def test_of_two_heads_with_one_session_one_is_fenced_off(head: Callable[[str], Head]) -> None:
    old, new = head("old"), head("new")
    old.begin()
    old.event(1)
    assert new.record.take_over("exp") == "s-1"
    assert new.journal() == [1]
    with pytest.raises(Fenced, match="the cluster new"):
        old.event(2)
    with pytest.raises(Fenced):
        old.record.check("s-1")
    new.event(2)
    new.record.check("s-1")
    old.record.let_go_of_lost()
    with old.engine.connect() as connection:
        assert connection.execute(select(db.sessions.c.state)).scalar() == "closed"


def test_two_heads_race_for_a_session(head: Callable[[str], Head]) -> None:
    head("gone").begin()
    one, two = head("one"), head("two")
    assert one.record.take_over("exp") == "s-1"
    one.lease.take()
    with pytest.raises(errors.Conflict, match="held by the cluster one, which is alive"):
        two.record.take_over("exp")
    one.lease.release()
    assert two.record.take_over("exp") == "s-1"
    with pytest.raises(Fenced):
        one.event(7)


def test_a_last_commit_of_the_old_head_does_not_win(head: Callable[[str], Head]) -> None:
    """It had looked, and then stood still while it was taken for dead."""
    old, new = head("old"), head("new")
    old.begin()
    snapshots = [SnapshotLog(each.store, each.signer) for each in (old, new)]
    snapshots[0].commit("s-1", 1, "e-1", {"groups": [], "whose": "old"})
    new.record.take_over("exp")
    snapshots[0].commit("s-1", 2, "e-2", {"groups": [], "whose": "old, too late"})
    with new.engine.connect() as connection:
        ordinal = connection.execute(select(db.sessions.c.ordinal)).scalar_one()
    snapshots[1].commit("s-1", ordinal + 1, "e-3", {"groups": [], "whose": "new"})
    latest = snapshots[1].latest("s-1")
    assert latest is not None
    assert latest[1]["whose"] == "new"


def test_a_forged_record_is_refused(head: Callable[[str], Head], tmp_path: Path) -> None:
    first = head("one")
    first.begin()
    Store(str(tmp_path / "store")).commit("records", "s-1", 2, {"cluster": "one", "session": {}})
    (tmp_path / "one.db").unlink()
    with pytest.raises(errors.Damaged, match="not signed"):
        head("one").record.rebuild()


def test_one_head_at_a_time(head: Callable[[str], Head], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = head("c"), head("c")
    first.lease.take()
    monkeypatch.setattr(lease, "_where", lambda: "another machine")
    with pytest.raises(errors.Conflict, match="another head holds the cluster c"):
        second.lease.take()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + lease.LEASE_S + 1)
    second.lease.take()
    assert second.lease.is_held()
    assert not first.lease.renew(), "the first one is fenced"
    first.lease.release()
    assert second.lease.is_held()


def test_a_head_made_anew_waits_until_the_old_one_is_silent(
    head: Callable[[str], Head], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = head("c"), head("c")
    first.lease.take()
    monkeypatch.setattr(lease, "_where", lambda: "another machine")
    monkeypatch.setattr(lease, "LEASE_S", 0.5)
    monkeypatch.setattr(lease, "LOOK_S", 0.05)
    second.lease.take(patience_s=5)
    assert second.lease.is_held()
    assert lease.cluster_of(Path("/a"), "gpus-1") == lease.cluster_of(Path("/b"), "gpus-1")
    assert lease.cluster_of(Path("/a")) != lease.cluster_of(Path("/b"))


def test_a_head_that_ended_in_peace_is_not_waited_for(
    head: Callable[[str], Head], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = head("c"), head("c")
    first.lease.take()
    first.lease.release()
    monkeypatch.setattr(lease, "_where", lambda: "another machine")
    second.lease.take()
    assert second.lease.number == 2


def test_a_session_comes_back_to_where_it_was(head: Callable[[str], Head]) -> None:
    old, new = head("old"), head("new")
    old.begin()
    old.event(1)
    new.record.take_over("exp")
    new.event(2)
    old.record.let_go("s-1", "it is elsewhere")
    with old.engine.connect() as connection:
        assert connection.execute(select(db.sessions.c.name)).scalar() == "exp#s-1"
    assert old.record.take_over("exp") == "s-1"
    assert old.journal() == [1, 2]
    with old.engine.connect() as connection:
        assert connection.execute(select(db.sessions.c.name)).scalar() == "exp"
    old.event(3)
    with pytest.raises(Fenced, match="the cluster old has this session now"):
        new.event(3)


def test_a_lease_lapses_before_another_head_may_think_so(
    head: Callable[[str], Head], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = head("c"), head("d")
    first.lease.take()
    now, clock = time.time(), time.monotonic()
    monkeypatch.setattr(time, "time", lambda: now + lease.LEASE_S - 1)  # as after a sleep
    life = lease.sign_of_life(second.store, "c")
    assert life is not None
    assert life[1] < lease.LEASE_S, "it is still taken to be alive"
    assert first.lease.lapsed
    assert first.lease.renew(), "no other head is there"
    assert first.lease.lapsed, "but what it held may be gone: it has not looked"
    first.lease.looked()
    assert not first.lease.lapsed
    monkeypatch.setattr(time, "time", lambda: now)  # a clock that was set back
    monkeypatch.setattr(time, "monotonic", lambda: clock + lease.LEASE_S)
    assert first.lease.lapsed


# --- live -----------------------------------------------------------------------------------------

PART = "import time\nprint('begun', flush=True)\ntime.sleep({})\nlast = 'done'"


def lose_database(cluster: Embedded) -> None:
    for file in cluster.home.glob("gateway.db*"):
        file.unlink()


@pytest.mark.cluster
def test_the_heads_disk_is_lost_while_a_cell_runs(own_cluster: Callable[..., Embedded]) -> None:
    cluster = own_cluster(node_idle="60s")
    s = cluster.connect().session("exp", namespace={})
    s.run("kept = [1, 2, 3]\nprint('hello')", durable=True, quiet=True)
    cell = Running(s, PART.format(25))
    cell.printed("begun")
    time.sleep(8)  # what a cell shows is recorded within seconds
    before, spent = events(s), s.cost
    cluster.kill_gateway()
    lose_database(cluster)
    again = cluster.connect().attach("exp")
    assert again.cost >= spent
    assert [e["seq"] for e in events(again)][: len(before)] == [e["seq"] for e in before]
    assert "hello" in str(events(again))
    until(lambda: again.info.running is None, "the cell has ended", 60)
    assert again["last"] == "done"
    assert again["kept"] == [1, 2, 3]
    runs = [e for e in events(again) if e["kind"] == "stream" and "begun" in str(e)]
    assert len(runs) == 1, "it went on, and did not run again"


@pytest.mark.slow
@pytest.mark.cluster
def test_only_the_store_and_the_key_are_left(own_cluster: Callable[..., Embedded]) -> None:
    cluster = own_cluster()
    s = cluster.connect().session("exp", namespace={})
    s.run("import sqlite3\nkept = {'a': [1]}\nalias = kept['a']", durable=True, quiet=True)
    spent = cluster.connect().cost()
    s.feed.close()
    cluster.end()
    for path in cluster.home.iterdir():
        if path.name not in ("store", "store.key"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    client = cluster.connect()
    again = client.attach("exp")
    again.run("alias.append(2)", quiet=True)
    assert again["kept"] == {"a": [1, 2]}
    assert client.cost() >= spent
    assert [each.step for each in again.history()]


@pytest.mark.slow
@pytest.mark.cluster
def test_attached_from_another_cluster(
    own_cluster: Callable[..., Embedded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: dict[str, Any] = {
        "store": f"file://{tmp_path / 'shared'}",
        "store_key": str(tmp_path / "key"),
    }
    first = own_cluster("first", **shared)
    s = first.connect().session("exp", namespace={})
    s.run("kept = [1]", durable=True, quiet=True)
    second = own_cluster("second", **shared)
    with pytest.raises(errors.Conflict, match="which is alive"):
        second.connect().attach("exp")
    s.feed.close()
    monkeypatch.setenv("MLCLOUD_HOME", str(first.home))
    first.end()
    monkeypatch.setenv("MLCLOUD_HOME", str(second.home))
    there = second.connect().attach("exp")
    there.run("kept.append(2)", durable=True, quiet=True)
    assert there["kept"] == [1, 2]
    there.feed.close()
    monkeypatch.setenv("MLCLOUD_HOME", str(first.home))
    with pytest.raises(errors.Conflict, match="which is alive"):
        first.connect().attach("exp")
    first.end()
    monkeypatch.setenv("MLCLOUD_HOME", str(second.home))


@pytest.mark.cluster
def test_a_store_with_another_key_says_so(
    own_cluster: Callable[..., Embedded], tmp_path: Path
) -> None:
    store = f"file://{tmp_path / 'shared'}"
    Store(store).write_mark("key", b"0123456789abcdef")
    with pytest.raises(errors.ConnectionFailed, match="another key"):
        own_cluster(store=store, store_key=str(tmp_path / "key")).connect()
