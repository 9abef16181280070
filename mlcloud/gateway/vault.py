"""The values of sessions' and jobs' secrets, in this process's memory and nowhere else.

    notebook ─ PUT …/secrets ─► put ──┐
    a host that outlived a gateway ───┼─► gather ─► the host's kernel, as environment variables
    the cloud's own secret store ─────┘

What is kept elsewhere (the session's row, its record in the store) are names, and where each value
is kept: `env` and `keyring` are the notebook's, the rest is read here, anew for each host. A
gateway that was started again asks the hosts that it finds, and each notebook that connects
(`channel.py`); a session that needs a host meanwhile waits `WAIT_S`, then its cell fails before any
of it has run: without the secret it would do something else than meant.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mlcloud.cluster.clouds import secret_stores
from mlcloud.cluster.specification.values import Source
from mlcloud.errors import MLCloudError, SecretMissing, UsageError
from mlcloud.job_models import JobRequest

if TYPE_CHECKING:
    from mlcloud.gateway.jobs.job import Job
    from mlcloud.gateway.session import Session

log = logging.getLogger(__name__)

WAIT_S = 10.0
LOCAL = ("env", "keyring")
OWN = ("MLCLOUD_", "RAY_")  # what the system itself reads
MOST_BYTES = 64 << 10  # Linux takes 128 KiB for one variable


def check(sources: Mapping[str, str]) -> None:
    """Raises `UsageError` for a name or a source that cannot be, and never repeats a source."""
    for name, text in sources.items():
        if name.startswith(OWN):
            raise UsageError(f"a secret cannot be called {name}: {', '.join(OWN)}… are taken")
        if text:
            try:
                Source.parse(text)
            except ValueError as error:
                raise UsageError(f"secret {name}: {error}") from None


def check_value(name: str, value: str) -> None:
    """Raises `UsageError`, without the value."""
    if not value:
        raise UsageError(f"secret {name} is empty")
    if "\0" in value or len(value.encode("utf-8", "replace")) > MOST_BYTES:
        raise UsageError(
            f"secret {name} cannot be an environment variable: text without a NUL, of at most "
            f"{MOST_BYTES >> 10} KiB"
        )


def is_local(source: str) -> bool:
    """Whether its value comes from a notebook."""
    return not source or Source.parse(source).kept in LOCAL


class Vault:
    """By a session's or a job's id. Nothing here is written, logged or pickled."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, str]] = {}
        self._new = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Vault of {len(self._values)} sessions>"

    def __reduce__(self) -> str:
        raise TypeError("secrets do not travel in a pickle")

    def put(self, session_id: str, values: Mapping[str, str]) -> None:
        """Values that a notebook, or a host, had. Raises `UsageError`."""
        for name, value in values.items():
            check_value(name, value)
        if values:
            self._values.setdefault(session_id, {}).update(values)
            self._new.set()
            self._new = asyncio.Event()

    def changed(self, session_id: str, values: Mapping[str, str]) -> set[str]:
        """The names for which these are others than those held."""
        held = self._values.get(session_id, {})
        return {name for name, value in values.items() if held.get(name) != value}

    def copy(self, from_id: str, to_id: str) -> None:
        """For a fork."""
        self.put(to_id, self._values.get(from_id, {}))

    def forget(self, session_id: str) -> None:
        self._values.pop(session_id, None)

    def held(self, owner_id: str) -> dict[str, str]:
        return dict(self._values.get(owner_id, {}))

    def holds(self, session_id: str, name: str) -> bool:
        return name in self._values.get(session_id, {})

    def missing(self, session: Session | Job) -> dict[str, str]:
        """The secrets that only a notebook can give, and none has: name, and where it is kept."""
        return {
            name: source
            for name, source in session.request.secrets.items()
            if is_local(source) and not self.holds(session.id, name)
        }

    async def gather(self, session: Session | Job, wait_s: float = WAIT_S) -> dict[str, str]:
        """All of a session's secrets. Raises `SecretMissing`, naming the one."""
        until = asyncio.get_running_loop().time() + wait_s
        while missing := self.missing(session):
            left = until - asyncio.get_running_loop().time()
            if left <= 0:
                raise SecretMissing(_missing(session, missing))
            names = ", ".join(missing)
            session.status(f"waiting for the secret {names}, which a notebook that has it gives")
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._new.wait(), left)
        held = self._values.get(session.id, {})
        found: dict[str, str] = {}
        for name, source in session.request.secrets.items():
            if is_local(source):
                found[name] = held[name]
            else:
                found[name] = await self._read(session, name, Source.parse(source))
        return found

    async def _read(self, session: Session | Job, name: str, source: Source) -> str:
        try:
            value = await asyncio.to_thread(secret_stores.read, source)
            check_value(name, value)
        except MLCloudError as error:
            raise SecretMissing(
                f"secret {name} of {_title(session)} could not be read from {source}: {error}"
            ) from None
        return value


def _title(session: Session | Job) -> str:
    if isinstance(session.request, JobRequest):
        return f"job {session.id} ({session.request.name})"
    return f"session {session.request.name!r}"


def _missing(session: Session | Job, missing: Mapping[str, str]) -> str:
    words = ", ".join(
        f"{name} (from {source or 'the notebook'})" for name, source in missing.items()
    )
    first = next(iter(missing))
    how = (
        f"mlcloud.attach({session.id!r})"
        if isinstance(session.request, JobRequest)
        else f"mlcloud.session({session.request.name!r}, secrets=[{first!r}])"
    )
    return (
        f"{_title(session)} needs the secret {words}, and the gateway has it no "
        "more: it keeps secrets in memory only, and was started again. Nothing has run "
        f"without it. Give it from a notebook that has it: {how}"
    )
