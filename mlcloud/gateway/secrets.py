"""A session's secrets as its clients see them: declared, given, and asked for again.

Part of `session.py`, which holds the state; each function works on one session. The values are in
`vault.py`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mlcloud.errors import NotFound
from mlcloud.gateway import vault
from mlcloud.gateway.livehost import LiveHost
from mlcloud.models import SecretInfo

if TYPE_CHECKING:
    from mlcloud.gateway.session import Session

log = logging.getLogger(__name__)


def infos(session: Session) -> list[SecretInfo]:
    """Names and sources, never values."""
    missing = session.services.vault.missing(session)
    return [
        SecretInfo(name=name, source=source, held=name not in missing)
        for name, source in session.request.secrets.items()
    ]


async def give(session: Session, sources: Mapping[str, str], values: Mapping[str, str]) -> None:
    """Declare more secrets, and take values of those declared. A kernel that runs gets them now.

    Raises `UsageError`, `NotFound` for a value that nobody declared, `SecretMissing` where a
    cloud's store refuses a new one.
    """
    vault.check(sources)
    declared = {**session.request.secrets, **sources}
    unknown = sorted(values.keys() - declared.keys())
    if unknown:
        raise NotFound(f"session {session.request.name!r} has no secret {', '.join(unknown)}")
    new = session.services.vault.changed(session.id, values)
    new.update(each for each in sources if sources[each] != session.request.secrets.get(each))
    session.services.vault.put(session.id, values)
    if declared != session.request.secrets:
        session.request = session.request.model_copy(update={"secrets": declared})
        session.save(request=session.request.model_dump_json())
        session.spawn(session.write_record())
    host = session.host
    if new and host is not None and host.alive and not session.services.vault.missing(session):
        everything = await session.services.vault.gather(session)
        with contextlib.suppress(Exception):  # a host that dies now has a successor, which asks
            await host.call("secrets", {name: everything[name] for name in new})


async def recall(session: Session, host: LiveHost) -> None:
    """After a restart of the gateway: what the host was given by the one before."""
    try:
        held = await host.handle.held_secrets.remote()
    except Exception as error:  # Ray's kinds of gone
        log.info("the host of %s has no secrets to tell: %s", session.id, error)
        return
    wanted = session.services.vault.missing(session)
    session.services.vault.put(session.id, {n: held[n] for n in wanted if n in held})
