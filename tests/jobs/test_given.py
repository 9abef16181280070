"""What a job's workers are given, secrets and data; and what its items print, also from C."""

from __future__ import annotations

import importlib
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mlcloud
from mlcloud import errors
from mlcloud.client import job_commands
from mlcloud.client.remote_value import RemoteValue
from tests.jobs.calls import WAIT_S, remote
from tests.live import Embedded, until

pytestmark = pytest.mark.usefixtures("connected")
VALUE = "tk_" + "5f0e11aa97c34e20b1"  # so that it is not in this text


def files_with(folder: Path, text: bytes) -> list[Path]:
    """Below the cluster's home: its database, store, logs."""
    return [
        each
        for each in folder.rglob("*")
        if each.is_file() and not each.is_socket() and text in each.read_bytes()
    ]


def test_a_secret_is_used_and_is_nowhere_else(
    jobs_cluster: Embedded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JOB_TOKEN", VALUE)

    def login(what: str) -> Any:
        import os
        import subprocess
        import sys

        token = os.environ["JOB_TOKEN"]
        if what == "length":
            print("with", token)
            sys.stdout.write(token[:7])
            sys.stdout.write(f"{token[7:]}!\n")
            subprocess.run(["echo", "echo", token], check=True)
            return len(token)
        if what == "error":
            raise ValueError(f"bad token {token}")
        return {"kept": [token]} if what == "inside" else token

    with_token = remote(login, secrets=["JOB_TOKEN"])
    job = with_token.submit("length")
    assert job.result(WAIT_S) == len(VALUE)
    assert job.logs() == "with ***\n***!\necho ***\n"
    assert (job.info.secrets, job.info.missing) == ({"JOB_TOKEN": ""}, [])
    for what in ("whole", "inside"):
        value = with_token.submit(what).result(WAIT_S)
        assert isinstance(value, RemoteValue)  # it stays there
        assert VALUE not in repr(value)
        with pytest.raises(errors.NotPicklable, match="holds the secret JOB_TOKEN"):
            value.get()
    with pytest.raises(ValueError, match=r"bad token \*\*\*") as raised:
        with_token.submit("error").result(WAIT_S)
    assert VALUE not in str(raised.value.args)

    def tokenless(x: int) -> Any:
        import os

        return os.environ.get("JOB_TOKEN")

    assert remote(tokenless).submit(1).result(WAIT_S) is None  # another worker
    (tmp_path / "has_it.py").write_text(f"TOKEN = {VALUE!r}\ndef token():\n    return TOKEN\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    has_it = importlib.import_module("has_it")

    with pytest.raises(errors.UsageError, match="source of `has_it`"):
        remote(lambda: len(has_it.token())).submit()
    (tmp_path / "has_it.py").write_text("def token():\n    return 'none'\n")
    importlib.reload(has_it)
    assert remote(lambda: has_it.token()).submit().result(WAIT_S) == "none"  # in a closure
    # It does not leave the notebook in code or arguments.
    with pytest.raises(errors.NotPicklable, match="holds the secret JOB_TOKEN"):
        remote(tokenless).submit(VALUE)
    with pytest.raises(errors.SecretMissing, match="NO_SUCH_TOKEN"):
        remote(login, secrets=["NO_SUCH_TOKEN"]).submit("length")
    # Again, from here: the gateway has forgotten it with the job's end.
    assert job.rerun().result(WAIT_S) == len(VALUE)
    until(lambda: mlcloud.connect().attach(job.id).info.state.value == "done", "it is done")
    assert files_with(jobs_cluster.home, VALUE.encode()) == []
    with sqlite3.connect(jobs_cluster.home / "gateway.db") as database:
        dumped = "\n".join(database.iterdump())
    assert "JOB_TOKEN" in dumped
    assert VALUE not in dumped


def test_a_job_waits_for_a_secret_that_nobody_has_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATE_TOKEN", VALUE)

    def reads(x: int) -> int:
        import os

        return len(os.environ["LATE_TOKEN"]) + x

    job = remote(reads, secrets={"LATE_TOKEN": "env:LATE_TOKEN"}).submit(1)
    assert job.result(WAIT_S) == len(VALUE) + 1
    monkeypatch.delenv("LATE_TOKEN")
    again = job.rerun()
    until(lambda: "waits for the secret LATE_TOKEN" in again.info.detail, "it waits")
    assert again.info.missing == ["LATE_TOKEN"]
    monkeypatch.setenv("LATE_TOKEN", VALUE)
    client = mlcloud.connect()
    assert client.attach(again.id).result(WAIT_S) == len(VALUE) + 1


def test_data_is_there_before_the_first_item(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    for number in range(3):
        (bucket / f"{number}.txt").write_text(str(number * 10))

    def reads(number: int) -> int:
        with open(f"images/{number}.txt") as file:
            return int(file.read())

    jobs = remote(reads, data={"images": f"file://{bucket}"}).map(range(3))
    assert jobs.result(WAIT_S) == [0, 10, 20]
    assert jobs.info.data == {"images": f"file://{bucket}"}
    nowhere = remote(reads, data={"images": f"file://{tmp_path / 'nowhere'}"}).submit(1)
    with pytest.raises(errors.JobFailed, match="data could not be had"):
        nowhere.result(WAIT_S)
    with pytest.raises(errors.UsageError, match="cannot be at"):
        remote(reads, data={"../x": f"file://{bucket}"}).submit(1)


def test_what_c_code_and_children_print_is_in_the_log_of_its_item() -> None:
    def prints(x: int) -> int:
        import ctypes
        import os
        import subprocess
        import sys

        libc = ctypes.CDLL(None)
        print("python", x)
        libc.printf(b"from C %d\n", x)
        subprocess.run(["echo", "a child"], check=True)
        libc.printf(b"no end")
        print(" of line", flush=True)
        os.write(2, b"to stderr\n")
        if (pid := os.fork()) == 0:
            print("a fork")
            os._exit(0)
        os.waitpid(pid, 0)
        print("last", file=sys.stderr)
        return x

    jobs = remote(prints, max_workers=1).map([0, 1])
    assert jobs.result(WAIT_S) == [0, 1]
    for item in range(2):
        lines = jobs.logs(item=item).splitlines()
        assert lines[:3] == [f"python {item}", f"from C {item}", "a child"]
        assert sorted(lines[3:]) == ["a fork", "last", "no end of line", "to stderr"]
    assert os.environ.get("MLCLOUD_HOME")


def test_costs_are_grouped_by_the_tags_of_jobs_and_stay_when_these_are_removed(
    jobs_cluster: Embedded,
) -> None:
    def work(x: int) -> int:
        print("some text")
        return x

    client = mlcloud.connect()
    old = remote(work, tags={"team": "vision"}).submit(1)
    assert old.result(WAIT_S) == 1
    spent = float(old.cost)
    by_team = mlcloud.cost("tag:team").to_frame().set_index("tag:team")["usd"]
    assert by_team["vision"] == pytest.approx(spent, rel=0.01)

    new = remote(work).submit(old)  # it needs the old one's result
    assert new.result(WAIT_S) == 1
    store = jobs_cluster.home / "store" / "manifests" / "jobs"
    until(lambda: (store / old.id).exists(), "it is in the store")
    assert [each.id for each in client.prune_jobs("1d")] == []
    told = job_commands.run(["prune", "--older", "0s", "--dry"])
    assert {old.id, new.id} <= {each.id for each in told}
    with pytest.raises(errors.UsageError, match="--older"):
        job_commands.run(["prune"])
    job_commands.run(["rm", old.id])
    assert not list((store / old.id).glob("*.json"))
    with pytest.raises(errors.NotFound, match=old.id):
        client.attach(old.id)
    assert old.id not in {each.id for each in client.jobs()}
    assert new.logs() == "some text\n"
    assert (
        mlcloud.cost("tag:team").to_frame().set_index("tag:team")["usd"]["vision"] >= spent * 0.99
    )

    def waits(x: int) -> int:
        import time

        time.sleep(60)
        return x

    slow = remote(waits).submit(new)
    with pytest.raises(errors.Conflict, match=f"{slow.id}.*needs its result"):
        new.remove()
    with pytest.raises(errors.Conflict, match="cancel it first"):
        slow.remove()
    assert new.id not in {each.id for each in client.prune_jobs("0s")}
    slow.cancel()
    new.remove()
    assert slow.id in {each.id for each in client.prune_jobs("0s")}
    assert client.jobs() == []


@pytest.mark.slow
def test_a_rerun_has_the_packages_of_then(jobs_cluster: Embedded) -> None:
    def version(x: int) -> str:
        from importlib import metadata

        return metadata.version("six")

    job = remote(version).submit(1)
    now = job.result(WAIT_S)
    assert now != "1.15.0"
    jobs_cluster.kill_gateway()
    with sqlite3.connect(jobs_cluster.home / "gateway.db") as database:  # as if it ran years ago
        ((text,),) = database.execute("select remembered from jobs where id = ?", [job.id])
        remembered = json.loads(text)
        assert remembered["packages"]["six"] == now
        remembered["packages"]["six"] = "1.15.0"
        values = [json.dumps(remembered), job.id]
        database.execute("update jobs set remembered = ? where id = ?", values)
    again = jobs_cluster.connect().attach(job.id).rerun()
    assert again.result(WAIT_S) == "1.15.0"
    assert again.rerun().result(WAIT_S) == "1.15.0"
    assert jobs_cluster.connect().attach(job.id).rerun(packages="now").result(WAIT_S) == now

    # With an environment of its own: what was resolved then is what it gets again.
    own = remote(version, environment=["six>=1.14,<1.16"]).submit(1)
    assert own.result(WAIT_S) == "1.15.0"
    assert own.info.remembered["packages"]["six"] == "1.15.0"
    assert own.rerun().result(WAIT_S) == "1.15.0"


@pytest.mark.slow
def test_old_jobs_and_runs_of_schedules_go_by_themselves(
    own_cluster: Callable[..., Embedded],
) -> None:
    embedded = own_cluster(max_nodes="2", prune_every="1s", jobs_keep="20s", schedule_keep="2")
    client = embedded.connect()

    def work() -> int:
        return 1

    once = remote(work).submit()
    assert once.result(WAIT_S) == 1
    often = remote(work, every="1s").submit()
    seen: set[str] = set()

    def runs() -> set[str]:
        found = {each.id for each in client.jobs() if each.schedule == often.id}
        seen.update(found)
        return found

    until(lambda: len(runs()) >= 2 and len(seen) >= 5, "five have run", WAIT_S)
    until(lambda: len(runs()) <= 3, "the two newest stay, and one that goes on")
    assert once.id in {each.id for each in client.jobs()}
    until(lambda: once.id not in {each.id for each in client.jobs()}, "its time is over", WAIT_S)
    assert often.state == "scheduled"
