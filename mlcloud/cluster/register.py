"""What a real cloud does not keep for us: every machine it ever had, at what price, from when to
when.

    gateway ──┐                              ┌── launch, terminate: at once ──► the cloud's API
              ├─► Register(cloud) ─ records ─┤
    provider ─┘    (the same folder)         └── looks what there is, every few seconds at most

A cloud forgets an ended machine within the hour, lists a new one late, and may not answer at all;
the meter needs to know of each for ever. So records are the truth about what was bought, and the
cloud's list about what still runs:

- a machine in the list that has no record is taken up: it was launched just before a crash
- a record whose machine is not in the list `SETTLE_S` after its launch, twice in a row, has ended
- a list that cannot be had changes nothing; why is kept as `trouble`
"""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from mlcloud.cluster.clouds.base import Cloud, Instance, LaunchRequest
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.records import Records, now, plain, write_json
from mlcloud.errors import MLCloudError, NotFound

log = logging.getLogger(__name__)
LOOK_S = 5.0
SETTLE_S = 60.0


class Register(Cloud):
    """`cloud`, with a memory under `root`."""

    def __init__(self, cloud: Cloud, root: Path, *, look_s: float = LOOK_S) -> None:
        self.cloud = cloud
        self.name = cloud.name
        self.root = root
        self.records = Records(root)
        self._look_s = look_s

    def offers(self) -> list[Offer]:
        return self.cloud.offers()

    def launch(self, offer: Offer, request: LaunchRequest) -> Instance:
        instance = self.cloud.launch(offer, request)
        self.records.create(instance, request)
        return instance

    def terminate(self, instance_id: str, reason: str) -> None:
        self.cloud.terminate(instance_id, reason)
        if instance_id in self.records:
            self.records.end(instance_id, reason)

    def get(self, instance_id: str) -> Instance:
        """One instance, as last seen. Raises `NotFound`."""
        if instance_id not in self.records:
            raise NotFound(f"no node {instance_id!r}; `mlcloud status` lists the nodes")
        return self.records.instance(instance_id)

    def instances(self) -> list[Instance]:
        self._look_if_due()
        found = [self.records.instance(each) for each in self.records.ids()]
        return sorted(found, key=lambda instance: instance.launched_at)

    @property
    def trouble(self) -> str:
        """Why the cloud could not be looked at last time; empty where it could."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            return str(self._looked()["trouble"])
        return ""

    # --- looking ----------------------------------------------------------------------------------

    def _look_if_due(self) -> None:
        at = now()
        with contextlib.suppress(OSError, ValueError, KeyError):
            if at - datetime.fromisoformat(self._looked()["at"]) < timedelta(seconds=self._look_s):
                return
        # Written first: of two processes that come at once, one asks.
        write_json(self.root / "looked.json", {"at": at.isoformat(), "trouble": self.trouble})
        trouble = ""
        try:
            self._take_in(self.cloud.instances(), at)
        except MLCloudError as error:
            trouble = f"{type(error).__name__}: {error}"
            log.warning("%s could not be looked at: %s", self.name, error)
        write_json(self.root / "looked.json", {"at": at.isoformat(), "trouble": trouble})

    def _looked(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.root / "looked.json").read_text())
        return found

    def _take_in(self, listed: list[Instance], at: datetime) -> None:
        for each in listed:
            if each.id not in self.records:
                if each.alive:
                    self.records.create(each, LaunchRequest(each.node_type, {}, tags=each.tags))
                continue
            with self.records.changing(each.id) as record:
                seen = plain(replace(each, tags={}))
                for name in ("private_ip", "public_ip"):
                    record[name] = seen[name] or record.get(name)
                record["missed"] = 0
                if record["ended_at"] is None and seen["ended_at"] is not None:
                    record["ended_at"] = seen["ended_at"]
                    record["reason"] = record.get("said") or seen["reason"]
        there = {each.id for each in listed}
        for instance_id in self.records.ids():
            record = self.records.read(instance_id)
            if record["ended_at"] is not None or instance_id in there:
                continue
            launched = datetime.fromisoformat(record["launched_at"])
            if (at - launched).total_seconds() < SETTLE_S:
                continue
            with self.records.changing(instance_id) as record:
                record["missed"] = record.get("missed", 0) + 1
                if record["missed"] >= 2 and record["ended_at"] is None:
                    record["ended_at"] = at.isoformat()
                    record["reason"] = record.get("said") or (
                        "preempted" if record.get("notice") else "the cloud has it no more"
                    )
