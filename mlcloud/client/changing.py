"""`up` of a cluster elsewhere that runs with another specification: its head is told what differs.

    what runs, by its note ── split ─┬─ nothing differs ─► None: `up` goes on
                                     └─ something ─► new machines let the key in ─► the head's file
                                          ─► its gateway (`respecifying`) ─► the note, as it is now

What cannot be taken up while it runs is `Conflict`, when the rest has been.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from mlcloud import __version__
from mlcloud.client import access, machines, notes, respecifying
from mlcloud.client.connection import Connection
from mlcloud.client.elsewhere import connect
from mlcloud.client.head_files import head_settings
from mlcloud.client.machines import SSHCluster
from mlcloud.client.notes import Note
from mlcloud.client.packages import Packages
from mlcloud.client.residency import require_store
from mlcloud.cluster import bootstrap, ssh
from mlcloud.cluster.headspec import machine_of
from mlcloud.config import Settings
from mlcloud.errors import Conflict, ConnectionFailed, MLCloudError

Say = Callable[[str], None]


def change(
    specification: Any, packages: Packages, settings: Settings, tell: Say
) -> Connection | None:
    """What differs from what the cluster of that name runs with, applied; None where nothing does,
    or where none runs and all of it can be taken up by one that starts.

    Raises `Conflict` for what cannot be applied, when the rest has been.
    """
    before = notes.running(specification, settings)
    if before is None:
        return None
    note = notes.note_of(specification.name, settings)
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


def change_in_pods(
    specification: Any, packages: Packages, kept: Any, settings: Settings, tell: Say
) -> tuple[Any, Conflict | None]:
    """What the cluster whose head this is runs with now, and why not with all of it."""
    from mlcloud.client import podded

    before = type(specification).model_validate(kept.specification)
    note = notes.note_of(specification.name, settings)
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
            access.pin(wanted, folder / "known_hosts")
            public_key = (folder / "id_ed25519.pub").read_text().strip()
            access.let_in(
                cloud, [wanted.machines[0].host, *(each.host for each in new)], public_key, tell
            )
        # A head that runs takes this one file.
        files = {"known_hosts": access.known_hosts(folder / "known_hosts", wanted.machines)}
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
    return {"settings": head_settings(wanted), "runtime": asdict(wanted.runtime)}


def _again(note: Note, settings: Settings, specification: Any) -> SSHCluster:
    """The running cluster as this specification has it."""
    if note.cloud == "ssh":
        return machines.of_specification(specification)
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
    are = [asdict(each) for each in wanted.machines]
    gone = {each["host"] for each in note.machines} - {each["host"] for each in are}
    if gone:  # nothing runs there: the gateway would have refused
        script = f"rm -rf -- {bootstrap.ROOT}/{note.cluster_id}"
        for host, problem in access.clear(note, settings, sorted(gone), script).items():
            tell(f"{host} is none of its machines any more, but could not be cleared: {problem}")
    told = now.model_dump(mode="json")
    notes.write(replace(note, machines=are, jump=wanted.jump, specification=told), settings)
