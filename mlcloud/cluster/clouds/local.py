"""The local cloud: machines are process groups on this computer, prices are simulated.

It is what `mlcloud.connect()` uses when no cloud is named: the same path as a real cloud, with
nothing to pay. Its state is one JSON file an instance, under `root/instances/`, written atomically,
so that every process of the cluster (the gateway, Ray's autoscaler, the agents) sees the same
machines and a killed gateway forgets nothing:

    launch()     writes the record, starts `python -m mlcloud.cluster.agent RECORD` as the leader of
                 a new process group; that agent runs `ray start` and watches for notices
    preempt()    writes the notice into the record: the metadata service shows it from then on, and
                 the agent, playing the cloud's part, kills the group at the deadline
    warn()       the same for a softer sign (a rebalance recommendation, a live migration)
    terminate()  tells the agent to switch off: it SIGKILLs and reaps all that is below it

Every process an instance starts inherits `MLCLOUD_INSTANCE=<id>` in its environment; that mark
finds the ones that left the group. Process ids are compared with their start times, so that a
reused pid is never killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil

from mlcloud.cluster.clouds.base import Cloud, CloudWithPreemption, Instance, LaunchRequest, Notice
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.records import Records, instance_of, now, plain, write_json
from mlcloud.errors import NoCapacity, NotFound, UsageError

HEAD = "head"
_MOVED = "prices.json"
MARK = "MLCLOUD_INSTANCE"
SWITCH_OFF_S = 5.0


class LocalCloud(Cloud, CloudWithPreemption):
    """Process groups under `root`."""

    name = "local"
    address = "127.0.0.1"  # of the head, as its nodes reach it
    gcs_port, ray_token = 0, ""  # any free one, and one that is made

    def __init__(self, root: Path, *, offers: list[Offer] | None = None) -> None:
        self.root = root
        self.records = Records(root)
        self._offers = offers
        self._sold: tuple[tuple[int, int], list[Offer]] | None = None  # by the moves' file
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._by_key: dict[str, str] = {}

    # --- the catalogue ----------------------------------------------------------------------------

    def offers(self) -> list[Offer]:
        if self._offers is not None:
            return self._offers
        path = self.root / _MOVED
        try:
            facts = path.stat()
            revision = facts.st_ino, facts.st_mtime_ns
        except FileNotFoundError:
            revision = 0, 0
        if self._sold is None or self._sold[0] != revision:
            from mlcloud.cost.prices import local_offers

            moved = json.loads(path.read_text()) if revision != (0, 0) else {}
            factors = {zone: Decimal(factor) for zone, factor in moved.items()}
            self._sold = revision, local_offers(factors)
        return self._sold[1]

    def move_prices(self, factors: Mapping[str, Decimal | str]) -> None:
        """A drill: from now on spot costs so many times its first price in these zones."""
        write_json(self.root / _MOVED, {zone: str(each) for zone, each in factors.items()})

    # --- life of an instance ----------------------------------------------------------------------

    @staticmethod
    def new_id() -> str:
        return f"i-{secrets.token_hex(6)}"

    def launch(self, offer: Offer, request: LaunchRequest) -> Instance:
        if f"{offer.zone} {offer.market}" in self._empty():
            raise NoCapacity(f"no {offer.market} capacity in {offer.zone} (simulated)")
        instance_id = request.instance_id or self.new_id()
        instance = Instance(
            id=instance_id,
            node_type=request.node_type,
            offer=offer,
            launched_at=now(),
            tags=dict(request.tags),
        )
        self.records.create(instance, request)
        log = open(self.root / f"{instance_id}.log", "ab")  # noqa: SIM115 - the child keeps it
        try:
            child = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "mlcloud.cluster.agent",
                    str(self.records.path(instance_id)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.root,
                env={**os.environ, **importable(), MARK: instance_id},
                start_new_session=True,
            )
        finally:
            log.close()
        self._children[instance_id] = child
        with self.records.changing(instance_id) as record:
            record["pid"] = child.pid
            record["pid_started"] = _started(child.pid)
        return replace(instance, pid=child.pid)

    def run_out(self, *stock: str) -> None:
        """A drill: from now on there is none left of these, each `"ZONE MARKET"`; of nothing
        named, all is there again."""
        write_json(self.root / "empty.json", list(stock))

    def _empty(self) -> list[str]:
        try:
            found: list[str] = json.loads((self.root / "empty.json").read_text())
        except FileNotFoundError:
            return []
        return found

    def instances(self) -> list[Instance]:
        for child in self._children.values():
            child.poll()  # reaps, so that an ended machine is not a zombie of ours
        return sorted(
            (self._settled(each) for each in self.records.ids()),
            key=lambda instance: instance.launched_at,
        )

    def get(self, instance_id: str) -> Instance:
        """One instance. Raises `NotFound`."""
        if instance_id not in self.records:
            raise NotFound(f"no node {instance_id!r}; `mlcloud status` lists the nodes")
        return self._settled(instance_id)

    def metadata_of(self, key: str) -> dict[str, Any] | None:
        """The record of the instance whose metadata lives behind `key`: of its own, `notice` and
        `warned_at` say what is to be shown."""
        if key not in self._by_key:  # nodes ask several times a second
            for each in self.records.ids():
                if secrets.compare_digest(str(self.records.read(each)["metadata_key"]), key):
                    self._by_key[key] = each
        found = self._by_key.get(key)
        return None if found is None else self.records.read(found)

    def revision(self, instance_id: str) -> tuple[int, int]:
        """Another one after each change of the instance's record."""
        facts = self.records.path(instance_id).stat()
        return facts.st_ino, facts.st_mtime_ns

    def terminate(self, instance_id: str, reason: str) -> None:
        if instance_id not in self.records:
            return
        self.records.end(instance_id, reason)
        record = self.records.read(instance_id)
        if record.get("pid") and _started(record["pid"]) == record.get("pid_started"):
            self._switch_off(record["pid"], record["pid_started"])
        kill_marked(instance_id)
        child = self._children.pop(instance_id, None)
        if child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5)

    def _switch_off(self, pid: int, started: float) -> None:
        """The agent kills and reaps what is below it; if it cannot, its whole group is killed."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGTERM)
            until = time.monotonic() + SWITCH_OFF_S
            while _started(pid) == started and time.monotonic() < until:
                time.sleep(0.02)
            os.killpg(pid, signal.SIGKILL)

    def preempt(self, instance_id: str, seconds: float) -> Notice:
        instance = self.get(instance_id)
        if not instance.alive:
            raise NotFound(f"node {instance_id} has ended already ({instance.reason})")
        if instance.offer.market != "spot":
            raise UsageError(
                f"node {instance_id} is {instance.offer.market}: only spot nodes are taken back"
            )
        notice = Notice(given_at=now(), deadline=now() + timedelta(seconds=seconds))
        with self.records.changing(instance_id) as record:
            record["notice"] = plain(notice)
        return notice

    def warn(self, instance_id: str) -> None:
        """A drill as well: the cloud says that `instance_id` is at risk, and takes nothing back."""
        with self.records.changing(instance_id) as record:
            record["warned_at"] = now().isoformat()

    def withdraw(self, instance_id: str) -> None:
        """The cloud thinks better of a notice or a warning. AWS and GCP never do."""
        with self.records.changing(instance_id) as record:
            record["notice"] = record["warned_at"] = None

    def _settled(self, instance_id: str) -> Instance:
        """The instance as it is: one whose leader is gone has ended, whoever ended it."""
        record = self.records.read(instance_id)
        if (
            record["ended_at"] is None
            and record.get("pid")
            and _started(record["pid"]) != record.get("pid_started")
        ):
            self.records.end(instance_id, "preempted" if record["notice"] else "its process ended")
            kill_marked(instance_id)
            record = self.records.read(instance_id)
        return instance_of(record)


def importable() -> dict[str, str]:
    """`PYTHONPATH` with which a child imports mlcloud from where this process did."""
    parts = [str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(part for part in parts if part)}


def kill_marked(instance_id: str, *, grace: float = 3.0) -> None:
    """SIGKILL every process that carries the instance's mark, until none is left."""
    until = time.monotonic() + grace
    while True:
        alive = False
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get(MARK) == instance_id:
                    alive = True
                    process.kill()
            except (psutil.Error, OSError):
                continue
        if not alive or time.monotonic() > until:
            return
        time.sleep(0.02)


def _started(pid: int) -> float | None:
    """The start time of a live process, None for none (or a zombie)."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None
