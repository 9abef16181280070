"""What a job survives: its notebook, a worker, its node, the gateway, the head's disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psutil
import pytest

import mlcloud
from mlcloud import errors
from mlcloud.job_models import JobRequest
from tests.jobs.calls import OPTIONS, WAIT_S
from tests.live import Embedded, until


def counted(x: int, folder: str, seconds: float = 0.05) -> int:
    """Leaves a mark each time that it runs to its end."""
    import os
    import time

    time.sleep(seconds)
    with open(f"{folder}/{x}", "ab", buffering=0) as file:
        file.write(f"{os.getpid()}\n".encode())
    return x


def marks(folder: Path) -> Counter[int]:
    return Counter({int(each.name): len(each.read_text().split()) for each in folder.iterdir()})


def mapped(folder: Path, count: int, seconds: float = 0.05, **options: Any) -> Any:
    made: Any = mlcloud.remote(**{"quiet": True, "max_workers": 2, **options})(counted)
    return made.starmap([(x, str(folder), seconds) for x in range(count)])


def committed(jobs: Any) -> set[int]:
    """The items whose results the gateway has."""
    found: set[int] = set()
    after = 0
    while True:
        answer = jobs._peer.results(jobs.id, "told", after, 0)
        found |= {entry[0] for entry in answer["entries"] if entry[1] == "ok"}
        after = answer["after"]
        if not answer["more"]:
            return found


def worker_processes(embedded: Embedded) -> list[psutil.Process]:
    found = []
    for each in embedded.processes():
        if "ray::JobWorker" in each.command:
            found.append(psutil.Process(each.pid))
    return found


@pytest.mark.slow
def test_the_gateway_is_killed_in_the_middle(
    own_cluster: Callable[..., Embedded], tmp_path: Path
) -> None:
    embedded = own_cluster(**OPTIONS)
    embedded.connect()
    folder = tmp_path / "marks"
    folder.mkdir()
    jobs = mapped(folder, 200)
    until(lambda: len(committed(jobs)) > 20, "some items are committed", WAIT_S)
    before = committed(jobs)
    pids = {each.pid for each in worker_processes(embedded)}
    embedded.kill_gateway()
    assert jobs.result(WAIT_S) == list(range(200))  # another gateway is started by who asks
    # Workers went on: nothing ran twice, neither what was committed nor what they had then.
    assert marks(folder) == Counter(dict.fromkeys(range(200), 1))
    assert before <= committed(jobs)
    used = {int(pid) for each in folder.iterdir() for pid in each.read_text().split()}
    assert pids & used


@pytest.mark.slow
def test_a_worker_is_killed_in_the_middle(
    own_cluster: Callable[..., Embedded], tmp_path: Path
) -> None:
    embedded = own_cluster(**OPTIONS)
    embedded.connect()
    folder = tmp_path / "marks"
    folder.mkdir()
    jobs = mapped(folder, 120, 0.1, max_workers=1)
    until(lambda: len(committed(jobs)) > 10, "some items are committed", WAIT_S)
    (worker,) = worker_processes(embedded)
    os.kill(worker.pid, signal.SIGSTOP)  # so that what is committed is known
    before = committed(jobs)
    os.kill(worker.pid, signal.SIGKILL)
    assert jobs.result(WAIT_S) == list(range(120))
    ran = marks(folder)
    assert all(ran[item] == 1 for item in before)
    assert max(ran.values()) <= 2
    info = jobs.info
    assert (info.state.value, info.preempted) == ("done", 0)


@pytest.mark.slow
def test_a_node_is_taken_back_and_no_retry_is_spent(
    own_cluster: Callable[..., Embedded], tmp_path: Path
) -> None:
    embedded = own_cluster(**OPTIONS)
    client = embedded.connect()
    folder = tmp_path / "marks"
    folder.mkdir()
    jobs = mapped(folder, 12, 1.0, max_workers=1, retries=0)
    until(lambda: len(committed(jobs)) >= 2, "some items are committed", WAIT_S)
    (node,) = jobs.info.places
    client.cluster.preempt(node, notice=3)
    assert jobs.result(WAIT_S) == list(range(12))
    ran = marks(folder)
    assert sum(ran.values()) <= 12 + 1  # at most the one that ran when the node went
    info = jobs.info
    assert info.retried == 0
    assert set(info.places) - {node}  # it ended elsewhere


@pytest.mark.slow
def test_it_goes_on_without_its_notebook_and_is_attached_elsewhere(
    own_cluster: Callable[..., Embedded], tmp_path: Path
) -> None:
    embedded = own_cluster(**OPTIONS)
    client = embedded.connect()
    code = (
        "import mlcloud, time, os\n"
        "mlcloud.connect()\n"
        "@mlcloud.remote(max_workers=2)\n"
        "def slow(x):\n    print('item', x); time.sleep(0.2); return x + 1\n"
        "jobs = slow.map(range(40))\n"
        "while jobs.info.items < 40: time.sleep(0.05)\n"
        "print(jobs.id, flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=embedded.environment,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=True,
    )
    job_id = done.stdout.split()[-1]
    jobs = mlcloud.attach(job_id)
    assert jobs.result(WAIT_S) == [x + 1 for x in range(40)]
    assert jobs[3].logs() == "item 3\n"
    assert jobs.cost > 0
    assert job_id in {each.id for each in mlcloud.jobs()}
    told = _cli(embedded, "jobs")
    assert job_id in told
    assert "40 of 40" in told
    assert "item 7\n" in _cli(embedded, "jobs", "logs", job_id)
    # Run again by a process that has none of its code.
    _cli(embedded, "jobs", "rerun", job_id)
    again = client.jobs()[-1]
    assert again.rerun_of == job_id
    assert mlcloud.attach(again.id).result(WAIT_S) == [x + 1 for x in range(40)]


def _cli(embedded: Embedded, *words: str) -> str:
    command = [sys.executable, "-m", "mlcloud.cli", *words]
    done = subprocess.run(
        command, env=embedded.environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_another_head_has_it_from_the_store_and_runs_it_again(
    own_cluster: Callable[..., Embedded], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    key = tmp_path / "store.key"
    embedded = own_cluster("first", **OPTIONS, store=store.as_uri(), store_key=str(key))
    embedded.connect()
    scale = 5

    def scaled(x: int) -> int:
        return x * scale

    job = mlcloud.remote(scaled).submit(8)
    many: Any = mlcloud.remote(scaled).map(range(500))
    assert job.result(WAIT_S) == 40
    assert sum(many) == 5 * sum(range(500))
    kept = store / "manifests" / "jobs"
    until(lambda: _is_whole(kept / job.id) and _is_whole(kept / many.id), "it is recorded")
    remembered = job.info.remembered
    assert remembered["packages"]["numpy"]
    assert remembered["python"].startswith("3.")
    embedded.end()
    (embedded.home / "gateway.db").unlink()  # the head's disk is lost

    other = own_cluster("second", **OPTIONS, store=store.as_uri(), store_key=str(key))
    other.connect()
    found = mlcloud.attach(many.id)
    assert found.result(WAIT_S) == [5 * x for x in range(500)]
    assert mlcloud.attach(job.id).result(WAIT_S) == 40
    assert mlcloud.attach(job.id).rerun().result(WAIT_S) == 40
    # What is in the store is not believed without the key's signature.
    other_key = tmp_path / "other.key"
    manifest = max((kept / job.id).iterdir())
    told = json.loads(manifest.read_text())
    told["body"]["job"]["detail"] = "somebody else's"
    shutil.copy(key, other_key)
    third = tmp_path / "third"
    shutil.copytree(store, third)
    (third / "manifests" / "jobs" / job.id / manifest.name).write_text(json.dumps(told))
    with pytest.raises(errors.Damaged):
        _load(third, other_key, job.id, tmp_path)


def _is_whole(folder: Path) -> bool:
    found = sorted(folder.glob("*.json")) if folder.exists() else []
    return len(found) == 1 and json.loads(found[0].read_text())["body"]["whole"]


def _load(store: Path, key: Path, job_id: str, tmp_path: Path) -> None:
    from mlcloud.gateway.db import open_database
    from mlcloud.gateway.jobs.keeping import Keeping
    from mlcloud.store import Signer, Store, load_or_create_key

    engine = open_database(f"sqlite:///{tmp_path / 'x.db'}")
    Keeping(engine, Store(str(store)), Signer(load_or_create_key(key)), "here").load(job_id)


@pytest.mark.slow
def test_a_schedule_runs_it_again_and_again(
    own_cluster: Callable[..., Embedded], tmp_path: Path
) -> None:
    embedded = own_cluster(**OPTIONS)
    embedded.connect()
    folder = tmp_path / "marks"
    folder.mkdir()
    made: Any = mlcloud.remote(every="2s")(counted)
    schedule = made.submit(1, str(folder), 0.0)
    assert schedule.state == "scheduled"
    until(lambda: marks(folder)[1] >= 2, "it has run twice", WAIT_S)
    embedded.kill_gateway()
    mlcloud.jobs()
    now = marks(folder)[1]
    until(lambda: marks(folder)[1] >= now + 2, "it goes on with another gateway", WAIT_S)
    runs = schedule.runs
    assert len(runs) >= 4
    assert mlcloud.attach(runs[0].id).result(WAIT_S) == 1
    assert schedule.cancel()
    until(lambda: all(each.state.value != "running" for each in schedule.runs), "none runs")
    over = len(schedule.runs)
    assert schedule.state == "cancelled"
    assert mlcloud.jobs()
    assert len(schedule.runs) == over


@pytest.mark.slow
def test_a_job_stops_at_its_limit_and_keeps_what_is_done(
    own_cluster: Callable[..., Embedded], tmp_path: Path
) -> None:
    embedded = own_cluster(**OPTIONS)
    embedded.connect()
    folder = tmp_path / "marks"
    folder.mkdir()
    jobs = mapped(folder, 100_000, 0.5, gpu="A10G:1", max_workers=1, max_cost="0.006")
    with pytest.raises(errors.BudgetExceeded, match="max_cost"):
        for _ in jobs:
            pass
    assert jobs.state == "failed"
    assert 0 < float(jobs.cost) < 0.012
    assert len(committed(jobs)) >= 1
    assert [each["job"] for each in embedded.http().get("/v1/budgets").json()] == [jobs.id]


@pytest.mark.slow
def test_a_deadline_chooses_the_market(own_cluster: Callable[..., Embedded]) -> None:
    embedded = own_cluster(**OPTIONS)
    client = embedded.connect()

    def where() -> str:
        import os

        return os.environ["RAY_CLOUD_INSTANCE_ID"]

    made: Any = mlcloud.remote(where)
    markets = {}
    # One after the other: a worker for spot is put on an on-demand node that is there anyway.
    for name, deadline, expect in (("relaxed", "10h", "1h"), ("tight", "1h", "59m")):
        node = made.options(deadline=deadline, expect=expect).submit().result(WAIT_S)
        nodes = client.cluster.status().info.nodes
        markets[name] = next(each.market for each in nodes if each.id == node)
    assert markets == {"relaxed": "spot", "tight": "on-demand"}


# --- schedules, without a cluster -----------------------------------------------------------------


def _request(**options: Any) -> JobRequest:
    return JobRequest(id="j-0123456789ab", name="f", **options)


def test_when_a_schedule_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cronsim")
    from mlcloud.gateway.jobs import schedule

    at = datetime(2026, 3, 1, 12, 30, tzinfo=timezone.utc)
    monkeypatch.setattr(schedule, "now", lambda: at)
    assert schedule.first(_request()) is None
    assert schedule.first(_request(every="1d")) == at
    assert schedule.first(_request(cron="0 6 * * 1")) == datetime(
        2026, 3, 2, 6, tzinfo=timezone.utc
    )
    # What was missed while the head was down is made up for once.
    late = at - timedelta(hours=49)
    assert schedule.following(_request(every="1d"), late) == late + timedelta(days=3)
    assert schedule.following(_request(every="1d"), at) == at + timedelta(days=1)
    for wrong in ({"cron": "often"}, {"every": "1d", "cron": "0 6 * * *"}, {"every": "0s"}):
        with pytest.raises(errors.UsageError):
            schedule.first(_request(**wrong))
