"""A cluster elsewhere: brought up from here, found again by its name, and taken down.

    up ── key for the cluster ── let it in on every machine ── bootstrap the head ── gateway answers
                                                                     │
    connect(name) ── tunnel ── gateway ◄────────── clusters/<name>.json (0600: address, token …)
    down(name) ── the gateway ends its nodes ── every machine is swept ── the note goes

The head gets a key of the cluster's own, made here and let in on its machines, never the user's.
Host keys are pinned at the first contact, and the head is told them. Nothing secret is on a command
line or in a log: scripts and files go through ssh's stdin.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx

from mlcloud import __version__
from mlcloud.client.connection import Address, Connection
from mlcloud.client.machines import SSHCluster, of_specification
from mlcloud.client.tunnel import Tunnel
from mlcloud.cluster import bootstrap, ssh
from mlcloud.cluster.clouds.ssh import SSHCloud
from mlcloud.cluster.headspec import HeadSpec, Machine, machine_of
from mlcloud.cluster.records import write_json
from mlcloud.config import Settings
from mlcloud.environment.wheels import own_wheel
from mlcloud.errors import Conflict, ConnectionFailed, MLCloudError, NotFound, UsageError
from mlcloud.store import load_or_create_key

Say = Callable[[str], None]
#: This process's, by the cluster's name.
tunnels: dict[str, Tunnel] = {}
RENTED = ("aws", "gcp", "azure")
HEAD_S, GATEWAY_S, DOWN_S = 900.0, 180.0, 90.0


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
        return self.cloud_of(settings).target(self.head["host"])


# --- finding --------------------------------------------------------------------------------------


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


def connect(target: Any, settings: Settings | None = None) -> Connection:
    """Through this process's tunnel to the head of the cluster of that name, or specification.

    Raises `NotFound`, `ConnectionFailed`.
    """
    settings = settings or Settings()
    note = note_of(_name(target), settings)
    tunnel = _tunnel(note, settings)

    def find() -> Address:
        return _answering(Address(tunnel.open(), note.token), note.name)

    return Connection(find, embedded=False, cluster=note.name)


def address(name: str, settings: Settings | None = None) -> Address:
    """Where that cluster's gateway is reached from here, its tunnel open; whether it answers is not
    asked. Raises `NotFound`, `ConnectionFailed`. Blocks."""
    settings = settings or Settings()
    note = note_of(name, settings)
    return Address(_tunnel(note, settings).open(), note.token)


def running(specification: Any, settings: Settings | None = None) -> Any:
    """The specification with which the cluster of that name was brought up; None of none."""
    settings = settings or Settings()
    if specification.name not in known(settings):
        return None
    told = note_of(specification.name, settings).specification
    return None if told is None else type(specification).model_validate(told)


def _name(target: Any) -> str:
    return target if isinstance(target, str) else str(target.name)


def _tunnel(note: Note, settings: Settings) -> Tunnel:
    target = note.target(settings)
    known = tunnels.get(note.name)
    if known is None or known.closed or (known.target, known.far) != (target, note.port):
        known = tunnels[note.name] = Tunnel(target, note.port)
    return known


def _answering(address: Address, name: str, wait_s: float = 20.0) -> Address:
    """`address`, once the gateway behind it answers: it may be about to be started again."""
    until = time.monotonic() + wait_s
    while True:
        try:
            response = httpx.get(
                f"{address.url}/v1/nodes", headers=address.headers, timeout=10, trust_env=False
            )
        except httpx.TransportError as error:
            if time.monotonic() < until:
                time.sleep(0.2)
                continue
            raise ConnectionFailed(
                f"the head of {name!r} can be reached, but its gateway does not answer ({error}): "
                f"it has ended after idle time, or `mlcloud down {name}` clears what is left of it"
            ) from error
        if response.status_code == 401:
            raise ConnectionFailed(
                f"the gateway of {name!r} does not take the token that is noted here: the cluster "
                "was made anew elsewhere"
            )
        return address


# --- up -------------------------------------------------------------------------------------------


def up(target: Any, settings: Settings | None = None, say: Say = print) -> Connection:
    """Bring the cluster up, or find it. Each step is said, with the time since the beginning.

    `target` is an `SSHCluster`, or a specification with `cloud: ssh`. Raises `CredentialsMissing`
    and `CloudRefused` for a head that lets nobody in, `NoCapacity` for one that cannot be reached,
    `CloudRefused` with its last words for a gateway that does not come up.
    """
    settings = settings or Settings()
    began = time.monotonic()

    def tell(text: str) -> None:
        say(f"{time.monotonic() - began:5.1f} s  {text}")

    settings.make_folders()
    if not isinstance(target, SSHCluster):
        _check_same(target, settings)
    wanted = _wanted(target, settings, tell)
    note = _begun(wanted, settings)
    cloud = note.cloud_of(settings)
    cloud.check()
    folder = settings.clusters / wanted.name
    wanted, wheel = _with_wheel(wanted)
    _pin(wanted, folder / "known_hosts")
    public_key = ssh.make_key(folder / "id_ed25519", f"mlcloud cluster {wanted.name}")
    _let_in(cloud, wanted, public_key, tell)
    tell(f"{wanted.machines[0].host} becomes the head")
    script = bootstrap.head(
        cluster=wanted.name,
        cluster_id=note.cluster_id,
        instance=f"head-{note.cluster_id}",
        files={
            **_files(wanted, note, folder),
            **wheel,
            # Kept here, since a head's disk goes with the head: nobody could read the store then.
            "store.key": load_or_create_key(settings.key_file_of(wanted.store)),
        },
        variables={
            "MLCLOUD_STORE": wanted.store,
            "MLCLOUD_PORT": str(wanted.port),
            "MLCLOUD_MAX_NODES": str(max(1, len(wanted.workers))),
            **wanted.settings,
        },
        runtime=wanted.runtime,
        version=__version__,
    )
    head = note.target(settings)
    ssh.run(head, script, timeout=HEAD_S)
    tell("the gateway is starting")
    told = json.loads(ssh.run(head, _waiting(note.cluster_id), timeout=GATEWAY_S))
    note = replace(
        note,
        token=told["token"],
        fingerprint=told["fingerprint"],
        nodes_url=told["nodes_url"],
    )
    _write(note, settings)
    tell("opening the tunnel")
    connection = connect(wanted.name, settings)
    tell(f'{wanted.name} is up: mlcloud.connect("{wanted.name}")')
    return connection


def _wanted(target: Any, settings: Settings, tell: Say) -> SSHCluster:
    """The machines: those that are named, or one that is rented now."""
    if isinstance(target, SSHCluster):
        return target
    if target.cloud not in RENTED:
        return of_specification(target)
    from mlcloud.client import renting

    folder = settings.clusters / target.name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return renting.rent(target, folder, tell)


def _check_same(specification: Any, settings: Settings) -> None:
    """Raises `Conflict` with what differs where the cluster runs with another specification: its
    head was told of that one, and takes up no other."""
    from mlcloud.cluster.specification import changes

    before = running(specification, settings)
    differs = changes(before, specification) if before is not None else None
    if differs:
        raise Conflict(
            f"the cluster {specification.name!r} runs with another specification; "
            f"`mlcloud down {specification.name}` first, or leave it as it was: "
            + "; ".join(map(str, differs))
        )


def _begun(wanted: SSHCluster, settings: Settings) -> Note:
    """Noted before anything is started, so that `down` can clear whatever comes of it."""
    settings.clusters.mkdir(parents=True, exist_ok=True, mode=0o700)
    (settings.clusters / wanted.name).mkdir(exist_ok=True, mode=0o700)
    fresh = Note(
        name=wanted.name,
        cluster_id=f"{wanted.name}-{secrets.token_hex(4)}",
        cloud=wanted.cloud,
        head=asdict(wanted.machines[0]),
        machines=[asdict(each) for each in wanted.machines],
        port=wanted.port,
        key=str(wanted.key) if wanted.key else None,
        jump=wanted.jump,
        specification=wanted.specification,
    )
    if wanted.name in known(settings):
        before = note_of(wanted.name, settings)
        if before.head["host"] != fresh.head["host"]:
            raise UsageError(
                f"the cluster {wanted.name!r} has its head on {before.head['host']}: "
                f"`mlcloud down {wanted.name}` first"
            )
        fresh = replace(fresh, cluster_id=before.cluster_id, token=before.token)
    _write(fresh, settings)
    return fresh


def _let_in(cloud: SSHCloud, wanted: SSHCluster, public_key: str, tell: Say) -> None:
    """The cluster's key, on every machine. One that is away is left out; the head must be there."""
    script = bootstrap.authorizing(public_key)

    def let_in(host: str) -> MLCloudError | None:
        try:
            ssh.run(replace(cloud.target(host), sudo=False), script, timeout=30)
        except MLCloudError as error:
            return error
        return None

    hosts = list(cloud.machines)
    with ThreadPoolExecutor(min(len(hosts), 16)) as pool:
        failures = dict(zip(hosts, pool.map(let_in, hosts), strict=True))
    failure = failures[hosts[0]]
    if failure is not None:
        raise failure
    for host, problem in failures.items():
        if problem is not None:
            tell(f"{host} is left out for now: {problem}")
    reached = sum(problem is None for problem in failures.values())
    tell(f"{reached} of {len(hosts)} machines let the cluster's key in")


def _files(wanted: SSHCluster, note: Note, folder: Path) -> dict[str, str]:
    head = wanted.machines[0]
    there = {each.host: replace(each, key=None, port=each.port) for each in wanted.workers}
    spec = HeadSpec(
        name=wanted.name,
        cluster_id=note.cluster_id,
        cloud=wanted.cloud,
        address=head.private,
        settings=wanted.cloud_settings
        or {
            "machines": [asdict(each) for each in there.values()],
            "known_hosts": "known_hosts",
            "key": "id_ed25519",
        },
        port=wanted.port,
        runtime=wanted.runtime,
    )
    return {
        "head.json": spec.write(),
        "id_ed25519": (folder / "id_ed25519").read_text(),
        "known_hosts": _known_hosts(folder / "known_hosts", wanted.machines),
    }


def _with_wheel(wanted: SSHCluster) -> tuple[SSHCluster, dict[str, bytes]]:
    """Where nodes shall make an environment, they get the very mlcloud and Ray that are here."""
    given = wanted.runtime.requirements
    if wanted.runtime.python is not None or any(each.startswith("mlcloud") for each in given or ()):
        return wanted, {}
    name, data, digest = own_wheel()
    runtime = replace(
        wanted.runtime,
        requirements=(f"ray[default]=={metadata.version('ray')}",) if given is None else given,
        wheel=name,
        digest=digest,
        minor=f"{sys.version_info[0]}.{sys.version_info[1]}",
    )
    return replace(wanted, runtime=runtime), {name: data}


def _pin(wanted: SSHCluster, known_hosts: Path) -> None:
    """Host keys that are told are known before the first contact."""
    lines = [
        f"{_as_known(each.host, each.port)} {each.host_key}"
        for each in wanted.machines
        if each.host_key
    ]
    there = known_hosts.read_text().splitlines() if known_hosts.exists() else []
    new = [line for line in lines if line not in there]
    if new:
        known_hosts.write_text("\n".join([*there, *new]) + "\n")


def _as_known(host: str, port: int) -> str:
    return host if port == 22 else f"[{host}]:{port}"


def _known_hosts(path: Path, machines: tuple[Machine, ...]) -> str:
    """The keys that were pinned here, by the names that the head uses."""

    lines = [line.split(" ", 1) for line in path.read_text().splitlines() if " " in line]
    return "\n".join(
        f"{_as_known(each.private, each.port)} {key}"
        for each in machines
        for name, key in lines
        if name == _as_known(each.host, each.port)
    )


def _waiting(cluster_id: str) -> str:
    """The script that prints the gateway's connection file once it listens."""
    return f"""cd {bootstrap.ROOT}/{cluster_id}/head || exit 1
tries=0
while [ ! -s gateway.json ] && [ ! -s failed ] && [ $tries -lt {int(GATEWAY_S * 5)} ]; do
  tries=$((tries + 1)); sleep 0.2
done
[ -s gateway.json ] && exec cat gateway.json
[ -s failed ] && cat failed >&2 || echo "the gateway did not answer: $(tail -n 1 gateway.log)" >&2
exit 1
"""


def _write(note: Note, settings: Settings) -> None:
    write_json(settings.clusters / f"{note.name}.json", asdict(note))


# --- down -----------------------------------------------------------------------------------------


def down(target: Any, settings: Settings | None = None, say: Say = print) -> bool:
    """End the cluster: its gateway first, then whatever of it is left on any of its machines.

    Raises `ConnectionFailed`, naming them, where machines cannot be reached: what runs there ends
    itself within `dead_man`, and `down` can be called again.
    """
    settings = settings or Settings()
    name = _name(target)
    note = note_of(name, settings)
    cloud = note.cloud_of(settings)
    _ask_to_end(note, settings, say)
    public = settings.clusters / name / "id_ed25519.pub"
    script = bootstrap.ending(
        bootstrap.CLUSTER_MARK, note.cluster_id, folders=note.cluster_id, claims=f" {name} "
    )
    forget = bootstrap.forgetting(public.read_text().strip()) if public.exists() else ""

    def clear(host: str) -> MLCloudError | None:
        try:
            ssh.run(cloud.target(host), script, timeout=60)
            if forget:
                ssh.run(replace(cloud.target(host), sudo=False), forget, timeout=30)
        except MLCloudError as error:
            return error
        return None

    hosts = list(cloud.machines)
    if note.cloud != "ssh":
        from mlcloud.client import renting

        count = renting.sweep(note.specification, say)
        _forget(name, settings)
        say(f"{name} is down: {count} things were removed from {note.cloud}")
        return True
    with ThreadPoolExecutor(min(len(hosts), 16)) as pool:
        failures = {
            host: error
            for host, error in zip(hosts, pool.map(clear, hosts), strict=True)
            if error is not None
        }
    if failures:
        raise ConnectionFailed(
            f"{len(failures)} of {len(hosts)} machines could not be cleared; what runs there ends "
            f"itself when no gateway answers it; `mlcloud down {name}` tries again: "
            + "; ".join(str(error) for error in failures.values())
        )
    _forget(name, settings)
    say(f"{name} is down: nothing of it is left on {len(hosts)} machines")
    return True


def _forget(name: str, settings: Settings) -> None:
    (settings.clusters / f"{name}.json").unlink(missing_ok=True)
    shutil.rmtree(settings.clusters / name, ignore_errors=True)


def _ask_to_end(note: Note, settings: Settings, say: Say) -> None:
    """Sessions are saved and parked by their gateway, if it answers."""
    if not note.token:
        return
    tunnel = _tunnel(note, settings)
    try:
        url = tunnel.open(10)
        headers = Address(url, note.token).headers
        httpx.post(f"{url}/v1/down", headers=headers, timeout=DOWN_S, trust_env=False)
    except (MLCloudError, httpx.HTTPError) as error:
        say(f"the gateway does not answer ({error}): its machines are cleared without it")
    finally:
        tunnel.close()
