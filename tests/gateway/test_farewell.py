"""A notice for the head: everything is saved and said, and a gateway whose disk is lost goes on."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import mlcloud
from mlcloud.cluster.clouds.local import HEAD, LocalCloud
from mlcloud.cluster.records import now
from mlcloud.gateway import farewell
from mlcloud.gateway.farewell import Farewell
from tests.live import Embedded, stories, until


@pytest.mark.cluster
@pytest.mark.slow
def test_the_head_says_farewell(own_cluster: Callable[..., Embedded]) -> None:
    embedded = own_cluster(node_idle="30s")
    client = embedded.connect()
    s = client.session("s", namespace={})
    s.run("kept = list(range(1000)); import time")
    spent = s.cost
    client.set_budget(mlcloud.Budget("7/day"))

    cloud = LocalCloud(embedded.settings.cloud_root)
    [head] = [each for each in cloud.instances() if each.alive and each.node_type == HEAD]
    cloud.records.noticed(head.id, now() + timedelta(seconds=120), "terminate")
    told = until(lambda: stories(s).get("head"), "the session is told")
    assert "the cloud takes the head node back in 1" in told or "everything is in the store" in told
    until(
        lambda: "a new head goes on with it" in client.cluster.status().info.detail,
        "everything is in the store",
    )
    assert stories(s)["head"].startswith("everything is in the store at file://")
    s.run("kept.append(-1)", durable=True)
    until(lambda: s.info.safe_cells == 2, "also what ran since")

    # the disk is lost, but for the store and the key
    last = s.info.last_event
    gateway = psutil.Process(embedded.connection["pid"])
    until(lambda: recorded(embedded, s.info.id) >= last, "its journal is in the store")
    gateway.kill()
    gateway.wait(10)
    for path in embedded.home.glob("gateway.db*"):
        path.unlink()
    again = embedded.connect()
    found = again.attach("s")
    assert found.info.finished_cells == 2
    assert found["kept"][-1] == -1
    assert again.attach("s").cost >= spent
    assert [each.limit for each in again.budgets()] == ["7/day"]


def test_a_rented_head_becomes_so_old_and_no_older(monkeypatch: pytest.MonkeyPatch) -> None:
    """It saves before its end; a lifetime that was changed meanwhile counts, and 0 is none."""
    monkeypatch.setattr(farewell, "LOOK_S", 0.05)
    monkeypatch.setattr(farewell, "AGAIN_S", 0.05)
    monkeypatch.setattr(farewell, "LEAST_S", 0.05)
    saved: list[float] = []

    async def record() -> None:
        saved.append(loop.time())

    gateway: Any = SimpleNamespace(
        settings=SimpleNamespace(node_lifetime=timedelta(0)),
        sessions=[],
        cluster=SimpleNamespace(detail=""),
        store=SimpleNamespace(url="file:///s"),
        record_everything=record,
    )
    loop = asyncio.new_event_loop()

    async def live() -> tuple[float, bool]:
        its = Farewell(gateway)
        ended = asyncio.Event()

        async def end() -> None:
            ended.set()

        task = asyncio.create_task(its.of_age(now() - timedelta(seconds=10), end))
        await asyncio.sleep(0.3)
        assert not saved
        gateway.settings = SimpleNamespace(node_lifetime=timedelta(seconds=11))
        began = loop.time()
        await asyncio.sleep(0.4)
        assert saved, "it saves before its end"
        assert "everything is in the store at file:///s" in gateway.cluster.detail
        early = ended.is_set()
        await asyncio.wait_for(task, 5)
        assert ended.is_set()
        await its.close()
        return loop.time() - began, early

    took, early = loop.run_until_complete(live())
    loop.close()
    assert not early
    assert 0.5 < took < 2


def recorded(embedded: Embedded, session_id: str) -> int:
    """Up to which event a session's journal is in the store, as the gateway noted."""
    with contextlib.closing(sqlite3.connect(embedded.home / "gateway.db")) as database:
        query = "select event from recorded where id = ?"
        row = database.execute(query, (session_id,)).fetchone()
    return 0 if row is None else int(row[0])
