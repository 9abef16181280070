"""Onto the machines of a cluster elsewhere: a shell there, and ports of theirs here.

    mlcloud ssh train            the machine on which the session `train` is
    mlcloud ssh                  the head
    mlcloud forward train 6006   its TensorBoard, on http://127.0.0.1:6006

With the user's own key, to machines that were brought up from here.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

from mlcloud.client import elsewhere, notes
from mlcloud.client.tunnel import free_port, is_free
from mlcloud.cluster import ssh
from mlcloud.config import Settings
from mlcloud.errors import Conflict, ConnectionFailed, NotFound, UsageError
from mlcloud.processes import die_with_parent

OPEN_S = 20.0


def chosen(name: str | None, settings: Settings) -> str:
    """The cluster of that name; None: the one of MLCLOUD_URL, or the only one."""
    if name is None and settings.url and "://" not in settings.url:
        name = settings.url
    if name is not None:
        return name
    there = notes.known(settings)
    if len(there) != 1:
        raise UsageError(f"which cluster? --cluster NAME; there are: {', '.join(there) or 'none'}")
    return there[0]


def target(where: str | None, name: str, settings: Settings) -> ssh.Target:
    """The machine of a node or a session of this cluster; None: its head.

    Raises `NotFound`, naming what there is, and `Conflict` for a session that has no node now.
    """
    note = notes.note_of(name, settings)
    if where is None or where == "head":
        return note.target(settings)
    connection = elsewhere.connect(name, settings)
    nodes = connection.get("/v1/nodes")
    found = next((each for each in nodes if where in (each["id"], each["zone"])), None)
    found = found or next((each for each in nodes if where in each["sessions"]), None)
    if found is None:
        sessions = [each["name"] for each in connection.get("/v1/sessions")]
        if where in sessions:
            raise Conflict(f"the session {where!r} has no node now: its next cell brings one")
        there = ", ".join(["head", *(each["id"] for each in nodes), *sessions])
        raise NotFound(f"{name} has no node and no session {where!r}; there are: {there}")
    return note.cloud_of(settings).target(found["zone"])


def shell(place: ssh.Target, command: tuple[str, ...] = ()) -> int:
    """A shell, or a command, in this terminal. Returns its exit status."""
    tty = "-t" if sys.stdin.isatty() else "-T"
    return subprocess.call([*place.command(tty), "--", place.host, *command])


@contextlib.contextmanager
def forwarded(place: ssh.Target, port: int, local: int | None = None) -> Iterator[str]:
    """`port` of the machine's loopback address, here: gives the URL. `local` None: the same port,
    or a free one where that is taken."""
    here = local or (port if is_free(port) else 0) or free_port()
    process = subprocess.Popen(
        [
            *place.command("-N", "-o", "ExitOnForwardFailure=yes"),
            *("-L", f"127.0.0.1:{here}:127.0.0.1:{port}", "--", place.host),
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent if sys.platform == "linux" else None,
    )
    try:
        until = time.monotonic() + OPEN_S
        while is_free(here):
            if process.poll() is not None:
                raise ssh.explain(place, process.returncode, process.communicate()[1])
            if time.monotonic() > until:
                raise ConnectionFailed(f"ssh to {place} does not open port {here}")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{here}"
    finally:
        process.kill()
        process.communicate()
