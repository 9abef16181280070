"""A cluster of one's own machines as `up` takes it, and how it comes out of a specification.

cluster.yaml, `cloud: ssh` ── Specification ── of_specification() ──► SSHCluster ──► launching.up
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlcloud.client.packages import Packages
from mlcloud.cluster.clouds.ssh import offer_of
from mlcloud.cluster.headspec import Machine, Runtime
from mlcloud.errors import UsageError
from mlcloud.units import parse_gpu

MOST_NODES = 64  # as `Settings.max_nodes`


@dataclass(frozen=True)
class SSHCluster:
    """What `up` needs to know. The first machine is the head; on a rented one it is the only one.

    `head_works`: it is a node too, as it is where there is no other; cells that run there can read
    what the gateway keeps, its signing key included. `settings` are the gateway's, by the names of
    their variables (`{"MLCLOUD_NODE_IDLE": "5m"}`). Where the store is a folder, all machines must
    share it. `specification` is kept, for who compares it with a changed one.
    """

    name: str
    machines: tuple[Machine, ...]
    store: str
    key: Path | None = None
    jump: str | None = None
    head_works: bool = False
    port: int = 8443
    runtime: Runtime = field(default_factory=Runtime)
    settings: dict[str, str] = field(default_factory=dict)
    specification: dict[str, Any] | None = None
    cloud: str = "ssh"  # whose nodes the head launches, and what it is told of that (`clouds.make`)
    cloud_settings: dict[str, Any] = field(default_factory=dict)
    packages: Packages = field(default_factory=Packages)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", self.name):
            raise UsageError(
                f"name: {self.name!r} cannot be: lower-case letters, digits and `-`, at most 40"
            )
        if not self.machines:
            raise UsageError("ssh.hosts: name the machines of the cluster, the head first")
        if not self.store:
            raise UsageError("store: machines of your own need one that all of them reach (s3://…)")

    @property
    def workers(self) -> tuple[Machine, ...]:
        alone = len(self.machines) == 1
        return self.machines if self.head_works or alone else self.machines[1:]


def of_specification(told: Any) -> SSHCluster:
    """What a `Specification` with `cloud: ssh` asks for (any object with its fields)."""
    if told.cloud != "ssh":
        raise UsageError(f"up for `cloud: {told.cloud}` is not here yet; there are: local, ssh")
    head, *others = (_machine(each, told.ssh) for each in told.ssh.hosts)
    # Groups say which of the machines are used; of no group, all are.
    used = [
        each
        for each in others
        if not told.nodes or any(group.takes(offer_of(each)) for group in told.nodes)
    ]
    if others and not used:
        raise UsageError("nodes: none of the machines under ssh.hosts has what any group asks for")
    most = sum(group.max for group in told.nodes) if told.nodes else len(used)
    return SSHCluster(
        name=told.name,
        machines=(head, *used),
        store=told.store,
        key=Path(told.ssh.key).expanduser() if told.ssh.key else None,
        jump=told.ssh.jump,
        runtime=Runtime(indexes=bool(told.environment.index_urls), setup=tuple(told.setup)),
        settings=settings_of(told, min(most, len(used) or 1)),
        specification=told.model_dump(mode="json"),
    )


def settings_of(told: Any, most: int) -> dict[str, str]:
    """The gateway's settings of a specification; `most` nodes at once."""
    return {
        "MLCLOUD_MAX_NODES": str(max(1, min(most, MOST_NODES))),
        "MLCLOUD_WARM_SPARES": str(told.spares),
        "MLCLOUD_IDLE_TIMEOUT": _seconds(told.idle.session),
        "MLCLOUD_NODE_IDLE": _seconds(told.idle.node),
        "MLCLOUD_IDLE_END": _seconds(told.idle.cluster),
        "MLCLOUD_NODE_LIFETIME": _seconds(told.max_lifetime),
    }


def _machine(told: Any, ssh: Any) -> Machine:
    return Machine(
        host=told.host,
        cpus=told.cpus,
        memory=int(told.memory),
        gpu=parse_gpu(told.gpu) if told.gpu else None,
        usd_per_hour=str(told.usd_per_hour),
        user=told.user or ssh.user,
        port=told.port,
        key=told.key,
        region=told.region or "owned",
        host_key=told.host_key or "",
    )


def _seconds(duration: Any) -> str:
    return f"{duration.total_seconds():g}s"
