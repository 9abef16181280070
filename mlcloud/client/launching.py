"""A cluster elsewhere: brought up from here, and taken down.

    up    key for the cluster ── let it in on every machine (`access`) ── bootstrap the head, with
          its files (`head_files`) ── gateway answers ── the note (`notes`) ── `elsewhere.connect`
          of one that runs: what differs is its gateway's to take up (`changing`)
    down  the gateway ends its nodes ── every machine is swept ── the note goes

Rented machines come from `renting`, pods from `podded`. Nothing secret is on a command line or in a
log: scripts and files go through ssh's stdin.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import httpx

from mlcloud import __version__
from mlcloud.client import access, changing, head_files, machines, notes
from mlcloud.client.connection import Address, Connection
from mlcloud.client.elsewhere import connect, name_of, tunnel_of
from mlcloud.client.machines import SSHCluster
from mlcloud.client.notes import Note
from mlcloud.client.packages import Packages
from mlcloud.client.packages import of_specification as packages_of
from mlcloud.client.residency import require_store
from mlcloud.cluster import bootstrap, ssh
from mlcloud.config import Settings
from mlcloud.errors import ConnectionFailed, MLCloudError, UsageError
from mlcloud.store import load_or_create_key

Say = Callable[[str], None]
RENTED = ("aws", "gcp", "azure")
HEAD_S, GATEWAY_S, DOWN_S = 900.0, 180.0, 90.0


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
        found = changing.change(target, packages, settings, tell)
        if found is not None:
            return found
        wanted = replace(_wanted(target, settings, tell), packages=packages)
    note = _begun(wanted, settings)
    cloud = note.cloud_of(settings)
    cloud.check()
    folder = settings.clusters / wanted.name
    wanted, wheel = head_files.with_wheel(wanted)
    access.pin(wanted, folder / "known_hosts")
    public_key = ssh.make_key(folder / "id_ed25519", f"mlcloud cluster {wanted.name}")
    access.let_in(cloud, list(cloud.machines), public_key, tell)
    tell(f"{wanted.machines[0].host} becomes the head")
    script = bootstrap.head(
        cluster=wanted.name,
        cluster_id=note.cluster_id,
        instance=f"head-{note.cluster_id}",
        files={
            **head_files.files(wanted, note, folder),
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
    notes.write(note, settings)
    tell("opening the tunnel")
    connection = connect(wanted.name, settings)
    tell(f'{wanted.name} is up: mlcloud.connect("{wanted.name}")')
    return connection


def _wanted(target: Any, settings: Settings, tell: Say) -> SSHCluster:
    """The machines: those that are named, or one that is rented now."""
    if target.cloud not in RENTED:
        if target.image:
            tell(f"image: {target.image} is not used: machines of your own have theirs already")
        require_store(target, tell)
        return machines.of_specification(target)
    from mlcloud.client import renting

    folder = settings.clusters / target.name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return renting.rent(target, folder, tell)


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
    if wanted.name in notes.known(settings):
        before = notes.note_of(wanted.name, settings)
        same = before.head["host"] == fresh.head["host"]
        # A rented head that ended, as one does when nobody uses it, has a successor elsewhere.
        if not same and wanted.cloud == "ssh":
            raise UsageError(
                f"the cluster {wanted.name!r} has its head on {before.head['host']}: "
                f"`mlcloud down {wanted.name}` first"
            )
        token = before.token if same else ""
        fresh = replace(fresh, cluster_id=before.cluster_id, token=token)
    notes.write(fresh, settings)
    return fresh


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


def _up_in_pods(
    specification: Any, packages: Packages, settings: Settings, tell: Say
) -> Connection:
    from mlcloud.client import podded

    before = notes.running(specification, settings)
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
    if specification.name not in notes.known(settings):
        notes.write(note, settings)  # so that `down` clears whatever comes of it
    there, refusal = podded.found(specification), None
    if there is not None:
        notes.write(_of_pods(note, there), settings)
        specification, refusal = changing.change_in_pods(
            specification, packages, there, settings, tell
        )
    kept = podded.up(specification, settings, tell, there, packages)
    notes.write(_of_pods(note, kept), settings)
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


# --- down -----------------------------------------------------------------------------------------


def down(target: Any, settings: Settings | None = None, say: Say = print) -> bool:
    """End the cluster: its gateway first, then whatever of it is left on any of its machines.

    Raises `ConnectionFailed`, naming them, where machines cannot be reached: what runs there ends
    itself within `dead_man`, and `down` can be called again.
    """
    settings = settings or Settings()
    name = name_of(target)
    note = notes.note_of(name, settings)
    _ask_to_end(note, settings, say)
    if note.cloud != "ssh":
        return _swept(note, settings, say)
    hosts = list(note.cloud_of(settings).machines)
    script = bootstrap.ending(
        bootstrap.CLUSTER_MARK, note.cluster_id, folders=note.cluster_id, claims=f" {name} "
    )
    failures = access.clear(note, settings, hosts, script)
    if failures:
        raise ConnectionFailed(
            f"{len(failures)} of {len(hosts)} machines could not be cleared; what runs there ends "
            f"itself when no gateway answers it; `mlcloud down {name}` tries again: "
            + "; ".join(str(error) for error in failures.values())
        )
    notes.forget(name, settings)
    say(f"{name} is down: nothing of it is left on {len(hosts)} machines")
    return True


def _ask_to_end(note: Note, settings: Settings, say: Say) -> None:
    """Sessions are saved and parked by their gateway, if it answers."""
    if not note.token:
        return
    tunnel = tunnel_of(note, settings)
    try:
        url = tunnel.open(10)
        headers = Address(url, note.token).headers
        httpx.post(f"{url}/v1/down", headers=headers, timeout=DOWN_S, trust_env=False)
    except (MLCloudError, httpx.HTTPError) as error:
        say(f"the gateway does not answer ({error}): its machines are cleared without it")
    finally:
        tunnel.close()


def _swept(note: Note, settings: Settings, say: Say) -> bool:
    """All of it that the cloud still has."""
    from mlcloud.client import renting

    count = renting.sweep(note.specification, say)
    notes.forget(note.name, settings)
    say(f"{note.name} is down: {count} things were removed from {note.cloud}")
    return True
