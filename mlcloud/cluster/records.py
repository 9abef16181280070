"""Instances on disk: one JSON record each, replaced atomically under a lock that processes share.

The gateway, Ray's autoscaler and (on the local cloud) the agents look at the same folder, so a
killed process forgets nothing. A record is the `Instance` and what only we need to know of it: the
resources it was declared with, and the secrets of its agent.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, fields
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

from mlcloud.cluster.clouds.base import Instance, LaunchRequest, Notice
from mlcloud.cluster.offers import Offer

_TIMES = ("launched_at", "ended_at", "joined_at", "served_at")
_FIELDS = {each.name for each in fields(Instance)}


def now() -> datetime:
    """Time is UTC, everywhere."""
    return datetime.now(timezone.utc)


class Records:
    """The records under `root/instances`."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "instances"
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def ids(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob("[!.]*.json"))

    def path(self, instance_id: str) -> Path:
        return self.folder / f"{instance_id}.json"

    def __contains__(self, instance_id: str) -> bool:
        return "/" not in instance_id and self.path(instance_id).exists()

    def create(self, instance: Instance, request: LaunchRequest) -> None:
        record = plain(instance)
        record["resources"] = request.resources
        record["labels"] = request.labels
        record["metadata_key"] = secrets.token_urlsafe(24)
        record["node_token"] = secrets.token_urlsafe(24)
        write_json(self.path(instance.id), record)

    def read(self, instance_id: str) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.path(instance_id).read_bytes())
        return record

    def instance(self, instance_id: str) -> Instance:
        return instance_of(self.read(instance_id))

    @contextlib.contextmanager
    def changing(self, instance_id: str) -> Iterator[dict[str, Any]]:
        """Read, change and replace a record under the lock."""
        with self.locked():
            record = self.read(instance_id)
            yield record
            write_json(self.path(instance_id), record)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with open(self.folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def end(self, instance_id: str, reason: str, at: datetime | None = None) -> None:
        """It bills no more. The first end stays."""
        with self.changing(instance_id) as record:
            if record["ended_at"] is None:
                record["ended_at"] = (at or now()).isoformat()
                record["reason"] = record.get("said") or reason

    def joined(self, instance_id: str) -> None:
        """Its agent was heard."""
        self._first(instance_id, "joined_at")

    def served(self, instance_id: str) -> None:
        """It holds a session."""
        self._first(instance_id, "served_at")

    def noticed(self, instance_id: str, deadline: datetime, kind: str) -> None:
        """Its cloud takes it back, as its agent has heard."""
        with self.changing(instance_id) as record:
            if record.get("notice") is None:
                record["notice"] = plain(Notice(now(), deadline, kind))

    def said(self, instance_id: str, reason: str) -> None:
        """Why it is about to end itself, in its own words: the reason, once it has ended."""
        with self.changing(instance_id) as record:
            record["said"] = reason

    def _first(self, instance_id: str, what: str) -> None:
        if instance_id in self and self.read(instance_id).get(what) is None:
            with self.changing(instance_id) as record:
                record[what] = record.get(what) or now().isoformat()

    def secrets_of(self, instance_id: str) -> dict[str, str]:
        """The instance's `metadata_key` and `node_token`."""
        record = self.read(instance_id)
        return {key: str(record[key]) for key in ("metadata_key", "node_token")}


def write_json(path: Path, value: Any) -> None:
    """Replace `path` atomically, readable by its owner alone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(value, file)
    os.replace(temporary, path)


def plain(value: Any) -> dict[str, Any]:
    """A dataclass as JSON takes it."""

    def of(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: of(inner) for key, inner in item.items()}
        if isinstance(item, (datetime, date)):
            return item.isoformat()
        return str(item) if isinstance(item, Decimal) else item

    result: dict[str, Any] = of(asdict(value))
    return result


def instance_of(record: dict[str, Any]) -> Instance:
    """The instance that `plain` wrote; what else the record has is left out."""
    values = {key: value for key, value in record.items() if key in _FIELDS}
    for name in _TIMES:
        if values.get(name):
            values[name] = datetime.fromisoformat(values[name])
    values["offer"] = offer_of(values["offer"])
    if values.get("notice"):
        notice = dict(values["notice"])
        for name in ("given_at", "deadline"):
            notice[name] = datetime.fromisoformat(notice[name])
        values["notice"] = Notice(**notice)
    return Instance(**values)


def offer_of(record: dict[str, Any]) -> Offer:
    """The offer that `plain` wrote."""
    offer = dict(record)
    offer["usd_per_hour"] = Decimal(offer["usd_per_hour"])
    offer["as_of"] = date.fromisoformat(offer["as_of"])
    return Offer(**offer)
