"""To the gateway of a cluster elsewhere, by the name under which it was brought up from here.

    connect(name) ── its note ── tunnel (ssh, or through the API server) ── gateway, if it answers
                            └─── straight, where pods' service can be reached

One tunnel a cluster and process: who asks again gets the same.
"""

from __future__ import annotations

import time
from typing import Any

import httpx

from mlcloud.client.connection import Address, Connection
from mlcloud.client.notes import Note, known, note_of
from mlcloud.client.portforward import PortForward
from mlcloud.client.tunnel import Tunnel
from mlcloud.config import Settings
from mlcloud.errors import ClusterDown, ConnectionFailed

#: This process's, by the cluster's name.
tunnels: dict[str, Tunnel | PortForward] = {}


def connect(target: Any, settings: Settings | None = None) -> Connection:
    """Through this process's tunnel to the head of the cluster of that name, or specification.

    Raises `NotFound`, `ConnectionFailed`.
    """
    settings = settings or Settings()
    note = note_of(name_of(target), settings)
    tunnel = tunnel_of(note, settings)

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
    return Address(tunnel_of(note, settings).open(), note.token)


def tunnel_of(note: Note, settings: Settings) -> Tunnel | PortForward:
    """This process's to that cluster's head; it need not be open."""
    opened = tunnels.get(note.name)
    if note.cloud == "kubernetes":
        from mlcloud.client import podded

        if not isinstance(opened, PortForward) or opened.closed:
            opened = tunnels[note.name] = podded.way(_specification(note))
        return opened
    target = note.target(settings)
    if opened is None or opened.closed or (opened.target, opened.far) != (target, note.port):
        opened = tunnels[note.name] = Tunnel(target, note.port)
    return opened


def name_of(target: Any) -> str:
    """Of a cluster: given, or a specification's."""
    return target if isinstance(target, str) else str(target.name)


def _direct(note: Note) -> Address | None:
    if note.cloud != "kubernetes":
        return None
    from mlcloud.client import podded

    return podded.direct(_specification(note), note.token, note.fingerprint)


def _specification(note: Note) -> Any:
    from mlcloud.cluster.specification import Specification

    return Specification.model_validate(note.specification)


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
