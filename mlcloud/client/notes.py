"""What is known here of clusters elsewhere: a note of each, `clusters/<name>.json` (0600).

    up    write ─► head, machines, token, fingerprint, what it runs with ─► note_of ─► who connects
    down  forget, with the folder of its keys

A note is written before anything is started, so that `down` can clear whatever comes of it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlcloud.cluster import ssh
from mlcloud.cluster.clouds.ssh import SSHCloud
from mlcloud.cluster.headspec import machine_of
from mlcloud.cluster.records import write_json
from mlcloud.config import Settings
from mlcloud.errors import NotFound, UsageError


@dataclass(frozen=True)
class Note:
    """What is known here of a cluster elsewhere: `clusters/<name>.json`."""

    name: str
    cluster_id: str
    cloud: str
    head: dict[str, Any]
    machines: list[dict[str, Any]]
    port: int
    token: str = field(repr=False, default="")
    fingerprint: str = ""
    nodes_url: str = ""
    key: str | None = None
    jump: str | None = None
    specification: dict[str, Any] | None = None

    def cloud_of(self, settings: Settings) -> SSHCloud:
        """Its machines, as they are reached from here."""
        folder = settings.clusters / self.name
        return SSHCloud(
            folder,
            [machine_of(each) for each in self.machines],
            cluster_id=self.cluster_id,
            known_hosts=folder / "known_hosts",
            key=Path(self.key).expanduser() if self.key else None,
            jump=self.jump,
        )

    def target(self, settings: Settings) -> ssh.Target:
        """Raises `UsageError` for a cluster of pods."""
        if self.cloud == "kubernetes":
            raise UsageError(
                f"the nodes of {self.name!r} are pods: kubectl exec -it POD -- bash; `kubectl get "
                f"pods -l ray.io/cluster={self.name}` lists them"
            )
        return self.cloud_of(settings).target(self.head["host"])


def known(settings: Settings) -> list[str]:
    """The names of the clusters that were brought up from here."""
    return sorted(path.stem for path in settings.clusters.glob("*.json"))


def note_of(name: str, settings: Settings) -> Note:
    """Raises `NotFound`, naming those there are."""
    path = settings.clusters / f"{name}.json"
    try:
        if "/" in name:
            raise FileNotFoundError
        return Note(**json.loads(path.read_text()))
    except FileNotFoundError:
        there = ", ".join(known(settings)) or "none yet"
        raise NotFound(
            f"no cluster {name!r} was brought up from here (there are: {there}); `mlcloud up FILE` "
            "makes one, no name at all means the embedded one, and a gateway is named by its URL"
        ) from None


def running(specification: Any, settings: Settings | None = None) -> Any:
    """The specification with which the cluster of that name was brought up; None of none."""
    settings = settings or Settings()
    if specification.name not in known(settings):
        return None
    told = note_of(specification.name, settings).specification
    return None if told is None else type(specification).model_validate(told)


def write(note: Note, settings: Settings) -> None:
    """In the place of the one before, whole or not at all."""
    write_json(settings.clusters / f"{note.name}.json", asdict(note))


def forget(name: str, settings: Settings) -> None:
    """The note, the cluster's key and its known hosts."""
    (settings.clusters / f"{name}.json").unlink(missing_ok=True)
    shutil.rmtree(settings.clusters / name, ignore_errors=True)
