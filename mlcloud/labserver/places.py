"""The clusters this server knows, and where each one's gateway is reached.

    embedded     this home's; its connection file is read anew at each look
    <host>       a gateway named by MLCLOUD_URL and MLCLOUD_TOKEN
    <name>       one that was brought up from here (`mlcloud up FILE`), through its tunnel

`file` is what the panel calls one that shall come up from a file, and is none of these yet.
A look starts nothing, and says why there is nothing to reach.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from mlcloud.client.connection import Address
from mlcloud.config import Settings
from mlcloud.errors import ConnectionFailed, MLCloudError, NotFound, UsageError

if TYPE_CHECKING:
    from mlcloud.cluster.specification import Specification

Kind = Literal["embedded", "url", "remote", "file"]
Say = Callable[[str], None]
EMBEDDED = "embedded"


@dataclass(frozen=True)
class Place:
    """`look` gives the address, or None where nothing is up. It may block, and raises
    `MLCloudError` with what is wrong."""

    name: str
    kind: Kind
    look: Callable[[], Address | None]


def places(settings: Settings) -> list[Place]:
    """All that are known now. Reads two folders of this home."""
    from mlcloud.client import notes

    found = [Place(EMBEDDED, "embedded", lambda: _noted(settings))]
    if settings.url and "://" in settings.url:
        host = urlsplit(settings.url).netloc
        found.append(Place(host, "url", lambda: _by_url(settings)))
    for name in notes.known(settings):
        if name != EMBEDDED:
            found.append(Place(name, "remote", partial(_tunnelled, name, settings)))
    return found


def place(name: str, settings: Settings) -> Place:
    """Raises `NotFound`, naming those there are."""
    there = places(settings)
    for each in there:
        if each.name == name:
            return each
    names = ", ".join(each.name for each in there)
    raise NotFound(f"this server knows no cluster {name!r}; there are: {names}")


class Ways:
    """Where to send requests. An address that was looked up is kept until somebody forgets it: a
    look at a certificate or through a tunnel is a connection of its own, for each request one.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._kept: dict[str, Address] = {}

    async def reach(self, name: str) -> Address:
        """Raises `NotFound`, `ConnectionFailed`."""
        kept = self._kept.get(name)
        if kept is not None:
            return kept
        if name == EMBEDDED:
            address = _noted(self._settings)  # a small file, written anew with each start
        else:
            found = place(name, self._settings)
            address = await asyncio.to_thread(found.look)
            if address is not None:
                self._kept[name] = address
        if address is None:
            raise ConnectionFailed(f"the cluster {name!r} is not up: bring it up first")
        return address

    def forget(self, name: str) -> None:
        """It did not answer there, or not to this token."""
        self._kept.pop(name, None)


# --- bring up, take down --------------------------------------------------------------------------


def up(name: str, settings: Settings, say: Say) -> None:
    """Start it, or find it running. Blocks, for minutes where machines are rented."""
    from mlcloud.client import embedded, launching, notes

    kind = place(name, settings).kind
    if kind == "embedded":
        say("the gateway is starting")
        embedded.find(settings)
    elif kind == "url":
        raise UsageError(f"who runs {settings.url} starts it: from here it is only found")
    else:
        note = notes.note_of(name, settings)
        if note.specification is None:
            raise UsageError(f"{name} has no specification here: `mlcloud up FILE` in a terminal")
        from mlcloud.cluster.specification import Specification

        launching.up(Specification.model_validate(note.specification), settings, say)


def up_as(specification: Specification, settings: Settings, say: Say) -> None:
    """Bring up what a file describes, or let the cluster of that name take up what differs. Blocks.

    Raises `SpecificationError`, `Conflict` for what needs `down` first, and what a cloud refuses.
    """
    from mlcloud.client import embedded_specification, launching
    from mlcloud.client.planning import check_sold

    if specification.cloud == "local":
        say("the gateway is starting")
        embedded_specification.up(specification)
    else:
        check_sold(specification)
        launching.up(specification, settings, say)


def name_of(specification: Specification) -> str:
    """Under which its cluster is known here."""
    return EMBEDDED if specification.cloud == "local" else specification.name


def running(specification: Specification, settings: Settings) -> Specification | None:
    """With what the cluster of that name runs; None where none does."""
    from mlcloud.client import embedded, notes
    from mlcloud.client import embedded_specification as local

    if specification.cloud == "local":
        if embedded.running(settings) is None:
            return None
        return local.running() or local.of_settings()
    found: Specification | None = notes.running(specification, settings)
    return found


def down(name: str, settings: Settings, say: Say) -> None:
    """End it and everything it runs. Blocks."""
    from mlcloud.client import embedded, launching

    kind = place(name, settings).kind
    if kind == "embedded":
        say("sessions are saved, nodes are given back")
        embedded.down(settings)
    elif kind == "url":
        raise UsageError(f"who runs {settings.url} ends it: `mlcloud down` there")
    else:
        launching.down(name, settings, say)


# --- looks ----------------------------------------------------------------------------------------


def _noted(settings: Settings) -> Address | None:
    """What the connection file says; a gateway that was killed leaves it behind."""
    try:
        told: dict[str, Any] = json.loads(settings.connection_file.read_text())
        return Address(told["url"], told["token"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _by_url(settings: Settings) -> Address:
    from mlcloud.client import pinned

    assert settings.url is not None
    url = settings.url.rstrip("/")
    tls: ssl.SSLContext | None = None
    if settings.fingerprint:
        tls = pinned.context(url, settings.fingerprint)
    return Address(url, settings.token or "", tls)


def _tunnelled(name: str, settings: Settings) -> Address:
    from mlcloud.client import elsewhere

    return elsewhere.address(name, settings)


def explained(error: BaseException) -> str:
    """An error as one line of the panel."""
    return str(error) if isinstance(error, MLCloudError) else f"{type(error).__name__}: {error}"
