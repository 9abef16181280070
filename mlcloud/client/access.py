"""Who may in on the machines of a cluster elsewhere: host keys pinned, the cluster's key let in.

    pin      host keys that are told ─► known_hosts, before the first contact
    let_in   the cluster's public key ─► authorized_keys, on every machine
    clear    a script that ends what runs there, and the key is forgotten

The head gets a key of the cluster's own, made here, never the user's; and the host keys as they
were pinned here, so that it meets the same machines.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from mlcloud.client.machines import SSHCluster
from mlcloud.client.notes import Note
from mlcloud.cluster import bootstrap, ssh
from mlcloud.cluster.clouds.ssh import SSHCloud
from mlcloud.cluster.headspec import Machine
from mlcloud.config import Settings
from mlcloud.errors import MLCloudError

Say = Callable[[str], None]
AT_ONCE = 16  # machines


def pin(wanted: SSHCluster, path: Path) -> None:
    """Host keys that are told are known before the first contact. `path`: of the known hosts."""
    lines = [
        f"{_as_known(each.host, each.port)} {each.host_key}"
        for each in wanted.machines
        if each.host_key
    ]
    there = path.read_text().splitlines() if path.exists() else []
    new = [line for line in lines if line not in there]
    if new:
        path.write_text("\n".join([*there, *new]) + "\n")


def known_hosts(path: Path, machines: tuple[Machine, ...]) -> str:
    """The keys that were pinned here, by the names that the head uses."""
    lines = [line.split(" ", 1) for line in path.read_text().splitlines() if " " in line]
    return "\n".join(
        f"{_as_known(each.private, each.port)} {key}"
        for each in machines
        for name, key in lines
        if name == _as_known(each.host, each.port)
    )


def _as_known(host: str, port: int) -> str:
    return host if port == 22 else f"[{host}]:{port}"


def let_in(cloud: SSHCloud, hosts: list[str], public_key: str, tell: Say) -> None:
    """The cluster's key, on each machine. One that is away is left out; the first, which is the
    head, must be there."""
    script = bootstrap.authorizing(public_key)

    def ask(host: str) -> MLCloudError | None:
        try:
            ssh.run(replace(cloud.target(host), sudo=False), script, timeout=30)
        except MLCloudError as error:
            return error
        return None

    with ThreadPoolExecutor(min(len(hosts), AT_ONCE)) as pool:
        failures = dict(zip(hosts, pool.map(ask, hosts), strict=True))
    failure = failures[hosts[0]]
    if failure is not None:
        raise failure
    for host, problem in failures.items():
        if problem is not None:
            tell(f"{host} is left out for now: {problem}")
    reached = sum(problem is None for problem in failures.values())
    tell(f"{reached} of {len(hosts)} machines let the cluster's key in")


def clear(note: Note, settings: Settings, hosts: list[str], script: str) -> dict[str, MLCloudError]:
    """The script has run on these machines, and the cluster's key is forgotten; what failed."""
    cloud = note.cloud_of(settings)
    public = settings.clusters / note.name / "id_ed25519.pub"
    forget = bootstrap.forgetting(public.read_text().strip()) if public.exists() else ""

    def ask(host: str) -> MLCloudError | None:
        try:
            ssh.run(cloud.target(host), script, timeout=60)
            if forget:
                ssh.run(replace(cloud.target(host), sudo=False), forget, timeout=30)
        except MLCloudError as error:
            return error
        return None

    with ThreadPoolExecutor(min(len(hosts), AT_ONCE)) as pool:
        found = zip(hosts, pool.map(ask, hosts), strict=True)
        return {host: error for host, error in found if error is not None}
