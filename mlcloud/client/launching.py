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
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx

from mlcloud import __version__
from mlcloud.client import respecifying
from mlcloud.client.connection import Address, Connection
from mlcloud.client.machines import SSHCluster, of_specification
from mlcloud.client.packages import Packages
from mlcloud.client.packages import of_specification as packages_of
from mlcloud.client.portforward import PortForward
from mlcloud.client.residency import require_store
from mlcloud.client.tunnel import Tunnel
from mlcloud.cluster import bootstrap, ssh
from mlcloud.cluster.clouds.ssh import SSHCloud
from mlcloud.cluster.headspec import HeadSpec, Machine, machine_of
from mlcloud.cluster.records import write_json
from mlcloud.config import Settings
from mlcloud.environment import index
from mlcloud.environment.wheels import own_wheel
from mlcloud.errors import (
    ClusterDown,
    Conflict,
    ConnectionFailed,
    MLCloudError,
    NotFound,
    UsageError,
)
from mlcloud.store import load_or_create_key

Say = Callable[[str], None]
#: This process's, by the cluster's name.
tunnels: dict[str, Tunnel | PortForward] = {}
RENTED = ("aws", "gcp", "azure")
EXTRAS = ("aws", "gcp", "azure")
STORE_EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "aws"),
    **dict.fromkeys(("gs", "gcs"), "gcp"),
    **dict.fromkeys(("az", "abfs", "abfss"), "azure"),
}
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
        """Raises `UsageError` for a cluster of pods."""
        if self.cloud == "kubernetes":
            raise UsageError(
                f"the nodes of {self.name!r} are pods: kubectl exec -it POD -- bash; `kubectl get "
                f"pods -l ray.io/cluster={self.name}` lists them"
            )
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
        if note.name not in known(settings):
            raise ClusterDown(f"cluster {note.name!r} was taken down: `mlcloud up FILE` makes it")
        direct = _direct(note)
        return _answering(direct or Address(tunnel.open(), note.token), note.name)

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


def _direct(note: Note) -> Address | None:
    if note.cloud != "kubernetes":
        return None
    from mlcloud.client import podded

    return podded.direct(_specification(note), note.token, note.fingerprint)


def _specification(note: Note) -> Any:
    from mlcloud.cluster.specification import Specification

    return Specification.model_validate(note.specification)


def _tunnel(note: Note, settings: Settings) -> Tunnel | PortForward:
    known = tunnels.get(note.name)
    if note.cloud == "kubernetes":
        from mlcloud.client import podded

        if not isinstance(known, PortForward) or known.closed:
            known = tunnels[note.name] = podded.way(_specification(note))
        return known
    target = note.target(settings)
    if known is None or known.closed or (known.target, known.far) != (target, note.port):
        known = tunnels[note.name] = Tunnel(target, note.port)
    return known


def _answering(address: Address, name: str, wait_s: float = 20.0) -> Address:
    """`address`, once the gateway behind it answers: it may be about to be started again."""
    until = time.monotonic() + wait_s
    while True:
        try:
            response = httpx.get(
                f"{address.url}/v1/nodes",
                headers=address.headers,
                timeout=10,
                verify=address.tls or True,
                trust_env=False,
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
    if isinstance(target, SSHCluster):
        wanted = target
    else:
        packages = packages_of(target)
        if target.cloud == "kubernetes":
            return _up_in_pods(target, packages, settings, tell)
        found = _changed(target, packages, settings, tell)
        if found is not None:
            return found
        wanted = replace(_wanted(target, settings, tell), packages=packages)
    note = _begun(wanted, settings)
    cloud = note.cloud_of(settings)
    cloud.check()
    folder = settings.clusters / wanted.name
    wanted, wheel = _with_wheel(wanted)
    _pin(wanted, folder / "known_hosts")
    public_key = ssh.make_key(folder / "id_ed25519", f"mlcloud cluster {wanted.name}")
    _let_in(cloud, list(cloud.machines), public_key, tell)
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


def _up_in_pods(
    specification: Any, packages: Packages, settings: Settings, tell: Say
) -> Connection:
    from mlcloud.client import podded

    before = running(specification, settings)
    if before is not None:
        podded.require_same_place(before, specification)
    settings.clusters.mkdir(parents=True, exist_ok=True, mode=0o700)
    note = Note(
        name=specification.name,
        cluster_id="",
        cloud="kubernetes",
        head={"host": specification.name},
        machines=[],
        port=0,
        specification=specification.model_dump(mode="json"),
    )
    if specification.name not in known(settings):
        _write(note, settings)  # so that `down` clears whatever comes of it
    there, refusal = podded.found(specification), None
    if there is not None:
        _write(_of_pods(note, there), settings)
        specification, refusal = _changed_in_pods(specification, packages, there, settings, tell)
    kept = podded.up(specification, settings, tell, there, packages)
    _write(_of_pods(note, kept), settings)
    if refusal is not None:
        raise refusal
    tell("opening the way through the API server")
    connection = connect(specification.name, settings)
    tell(f'{specification.name} is up: mlcloud.connect("{specification.name}")')
    return connection


def _of_pods(note: Note, kept: Any) -> Note:
    return replace(
        note,
        cluster_id=kept.cluster_id,
        token=kept.token,
        fingerprint=kept.fingerprint,
        specification=kept.specification,
    )


def _wanted(target: Any, settings: Settings, tell: Say) -> SSHCluster:
    """The machines: those that are named, or one that is rented now."""
    if target.cloud not in RENTED:
        if target.image:
            tell(f"image: {target.image} is not used: machines of your own have theirs already")
        require_store(target, tell)
        return of_specification(target)
    from mlcloud.client import renting

    folder = settings.clusters / target.name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return renting.rent(target, folder, tell)


# --- another specification ------------------------------------------------------------------------


def _changed(
    specification: Any, packages: Packages, settings: Settings, tell: Say
) -> Connection | None:
    """What differs from what the cluster of that name runs with, applied; None where nothing does,
    or where none runs and all of it can be taken up by one that starts.

    Raises `Conflict` for what cannot be applied, when the rest has been.
    """
    before = running(specification, settings)
    if before is None:
        return None
    note = note_of(specification.name, settings)
    connection = _asked_to_change(before, specification, packages, note, settings, tell)
    if connection is None:
        return None
    if before.regions != specification.regions:
        require_store(specification, tell)
    try:
        applied = respecifying.change(
            connection, specification, partial(_told, note, settings, tell), packages
        )
    except MLCloudError:
        _note_change(connection, note, settings, tell)
        connection.close()
        raise
    _note_change(connection, note, settings, tell)
    for each in applied:
        tell(str(each))
    if applied:
        tell(f"{note.name} runs with the new one")
    return connection


def _changed_in_pods(
    specification: Any, packages: Packages, kept: Any, settings: Settings, tell: Say
) -> tuple[Any, Conflict | None]:
    """What the cluster whose head this is runs with now, and why not with all of it."""
    from mlcloud.client import podded

    before = type(specification).model_validate(kept.specification)
    note = note_of(specification.name, settings)
    connection = _asked_to_change(before, specification, packages, note, settings, tell)
    if connection is None:
        return specification, None
    refusal = None
    try:
        for each in respecifying.change(connection, specification, podded.head_told, packages):
            tell(str(each))
    except Conflict as error:
        refusal = error
    try:
        now, _ = respecifying.present(connection)
    finally:
        connection.close()
    return now, refusal


def _asked_to_change(
    before: Any,
    specification: Any,
    packages: Packages,
    note: Note,
    settings: Settings,
    tell: Say,
) -> Connection | None:
    """To the gateway of the cluster that runs with another specification, or with `packages` that
    may be others under the same names; None where nothing differs, or where none runs and all of it
    can be taken up by one that starts.

    Raises `Conflict` where none runs, for what one that starts could not.
    """
    from mlcloud.cluster.specification import split

    found = split(before, specification)
    differs = bool(found.applied or found.refused)
    if not (differs or packages):
        return None
    try:
        if not note.token:
            raise ConnectionFailed("its gateway never answered")
        connection = connect(note.name, settings)
    except ConnectionFailed as error:
        if not differs or (note.token and not found.refused):
            return None
        raise Conflict(
            f"the cluster {note.name!r} was brought up with another specification, and does not "
            f"answer ({error}); `mlcloud down {note.name}` first, or leave it as it was: "
            + "; ".join(map(str, [*found.applied, *found.refused]))
        ) from error
    if differs:
        tell(f"{note.name} runs with another specification")
    return connection


def _told(note: Note, settings: Settings, tell: Say, merged: Any) -> dict[str, Any]:
    """What the head is told anew. New machines let the cluster's key in before."""
    wanted = _again(note, settings, merged)
    if note.cloud == "ssh":
        folder = settings.clusters / note.name
        known = {each["host"] for each in note.machines}
        new = [each for each in wanted.machines if each.host not in known]
        cloud = replace(note, machines=[asdict(each) for each in wanted.machines]).cloud_of(
            settings
        )
        if new:
            _pin(wanted, folder / "known_hosts")
            public_key = (folder / "id_ed25519.pub").read_text().strip()
            _let_in(
                cloud, [wanted.machines[0].host, *(each.host for each in new)], public_key, tell
            )
        # A head that runs takes this one file.
        files = {"known_hosts": _known_hosts(folder / "known_hosts", wanted.machines)}
        script = bootstrap.head(
            cluster=note.name,
            cluster_id=note.cluster_id,
            instance=f"head-{note.cluster_id}",
            files=files,
            variables={},
            runtime=wanted.runtime,
            version=__version__,
        )
        ssh.run(note.target(settings), script, timeout=60)
    return {"settings": _head_settings(wanted), "runtime": asdict(wanted.runtime)}


def _again(note: Note, settings: Settings, specification: Any) -> SSHCluster:
    """The running cluster as this specification has it."""
    if note.cloud == "ssh":
        return of_specification(specification)
    from mlcloud.client import renting

    public_key = (settings.clusters / note.name / "id_ed25519.pub").read_text().strip()
    return renting.as_cluster(specification, machine_of(note.head), public_key)


def _note_change(connection: Connection, note: Note, settings: Settings, tell: Say) -> None:
    """What runs now, also where a part was refused: for the next `up`, and for `down`."""
    try:
        now, _ = respecifying.present(connection)
    except MLCloudError as error:
        tell(f"what it runs with now could not be read: {error}")
        return
    wanted = _again(note, settings, now)
    machines = [asdict(each) for each in wanted.machines]
    gone = {each["host"] for each in note.machines} - {each["host"] for each in machines}
    if gone:  # nothing runs there: the gateway would have refused
        script = f"rm -rf -- {bootstrap.ROOT}/{note.cluster_id}"
        for host, problem in _cleared(note, settings, sorted(gone), script).items():
            tell(f"{host} is none of its machines any more, but could not be cleared: {problem}")
    told = now.model_dump(mode="json")
    _write(replace(note, machines=machines, jump=wanted.jump, specification=told), settings)


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
        same = before.head["host"] == fresh.head["host"]
        # A rented head that ended, as one does when nobody uses it, has a successor elsewhere.
        if not same and wanted.cloud == "ssh":
            raise UsageError(
                f"the cluster {wanted.name!r} has its head on {before.head['host']}: "
                f"`mlcloud down {wanted.name}` first"
            )
        token = before.token if same else ""
        fresh = replace(fresh, cluster_id=before.cluster_id, token=token)
    _write(fresh, settings)
    return fresh


def _let_in(cloud: SSHCloud, hosts: list[str], public_key: str, tell: Say) -> None:
    """The cluster's key, on each machine. One that is away is left out; the first, which is the
    head, must be there."""
    script = bootstrap.authorizing(public_key)

    def let_in(host: str) -> MLCloudError | None:
        try:
            ssh.run(replace(cloud.target(host), sudo=False), script, timeout=30)
        except MLCloudError as error:
            return error
        return None

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
    spec = HeadSpec(
        name=wanted.name,
        cluster_id=note.cluster_id,
        cloud=wanted.cloud,
        address=head.private,
        settings=_head_settings(wanted),
        port=wanted.port,
        runtime=wanted.runtime,
        region="" if wanted.cloud == "ssh" else head.region,
    )
    record = {
        "url": "",
        "specification": wanted.specification,
        "environment": wanted.packages.environment,
        "variables": {},
    }
    return {
        index.FILE: wanted.packages.pip_conf,
        "head.json": spec.write(),
        **({"cluster.json": json.dumps(record)} if wanted.specification else {}),
        "id_ed25519": (folder / "id_ed25519").read_text(),
        "known_hosts": _known_hosts(folder / "known_hosts", wanted.machines),
    }


def _head_settings(wanted: SSHCluster) -> dict[str, Any]:
    """What its cloud is told at the head (`clouds.make`)."""
    return wanted.cloud_settings or {
        "machines": [asdict(replace(each, key=None)) for each in wanted.workers],
        "known_hosts": "known_hosts",
        "key": "id_ed25519",
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
        extras=_extras(wanted),
        minor=f"{sys.version_info[0]}.{sys.version_info[1]}",
    )
    return replace(wanted, runtime=runtime), {name: data}


def _extras(wanted: SSHCluster) -> tuple[str, ...]:
    """Those of mlcloud with which nodes reach their cloud, and their store."""
    store = STORE_EXTRAS.get(wanted.store.partition("://")[0])
    return tuple(sorted({each for each in (wanted.cloud, store) if each in EXTRAS}))


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
    _ask_to_end(note, settings, say)
    if note.cloud != "ssh":
        return _swept(note, settings, say)
    hosts = list(note.cloud_of(settings).machines)
    script = bootstrap.ending(
        bootstrap.CLUSTER_MARK, note.cluster_id, folders=note.cluster_id, claims=f" {name} "
    )
    failures = _cleared(note, settings, hosts, script)
    if failures:
        raise ConnectionFailed(
            f"{len(failures)} of {len(hosts)} machines could not be cleared; what runs there ends "
            f"itself when no gateway answers it; `mlcloud down {name}` tries again: "
            + "; ".join(str(error) for error in failures.values())
        )
    _forget(name, settings)
    say(f"{name} is down: nothing of it is left on {len(hosts)} machines")
    return True


def _cleared(
    note: Note, settings: Settings, hosts: list[str], script: str
) -> dict[str, MLCloudError]:
    """The script has run on these machines, and the cluster's key is forgotten; what failed."""
    cloud = note.cloud_of(settings)
    public = settings.clusters / note.name / "id_ed25519.pub"
    forget = bootstrap.forgetting(public.read_text().strip()) if public.exists() else ""

    def clear(host: str) -> MLCloudError | None:
        try:
            ssh.run(cloud.target(host), script, timeout=60)
            if forget:
                ssh.run(replace(cloud.target(host), sudo=False), forget, timeout=30)
        except MLCloudError as error:
            return error
        return None

    with ThreadPoolExecutor(min(len(hosts), 16)) as pool:
        found = zip(hosts, pool.map(clear, hosts), strict=True)
        return {host: error for host, error in found if error is not None}


def _swept(note: Note, settings: Settings, say: Say) -> bool:
    """All of it that the cloud still has."""
    from mlcloud.client import renting

    count = renting.sweep(note.specification, say)
    _forget(note.name, settings)
    say(f"{note.name} is down: {count} things were removed from {note.cloud}")
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
