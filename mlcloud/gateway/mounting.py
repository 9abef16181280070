"""A session's data, on its node before anything of the session runs there.

Part of `session.py`, which holds the state; each function works on one session. The kernel reads it
(`kernel/mounting.py`); how far it is, is told to the cell that waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgpack

from mlcloud.cluster.specification.parts import DATA_SCHEMES
from mlcloud.cluster.specification.values import check_url
from mlcloud.errors import Conflict, SessionFailed, UsageError
from mlcloud.gateway.livehost import LiveHost
from mlcloud.job_models import JobRequest
from mlcloud.models import DataMount, SessionRequest
from mlcloud.units import parse_size

if TYPE_CHECKING:
    from mlcloud.gateway.session import Session

PREFIX = "mount-"  # of its executions' ids: their events are not the cell's


def check(request: SessionRequest | JobRequest) -> None:
    """Raises `UsageError`."""
    paths: set[str] = set()
    for each in request.data:
        try:
            check_url(each.url, DATA_SCHEMES)
        except ValueError as error:
            raise UsageError(f"data at {each.path}: {error}") from None
        parse_size(each.cache)
        if ".." in each.path.split("/") or not each.path.strip("/"):
            raise UsageError(f"data cannot be at {each.path!r}: a path such as /data, or data")
        if each.path in paths:
            raise UsageError(f"{each.path} is given twice: choose another path")
        paths.add(each.path)


def same(existing: SessionRequest, wanted: SessionRequest, given: Sequence[DataMount] = ()) -> None:
    """Raises `Conflict` where a session of this name has other data than what is asked for and is
    `given` to every session."""
    if "data" not in wanted.model_fields_set:
        return
    own = [each for each in existing.data if each in wanted.data or each not in given]
    if own != wanted.data:
        have = ", ".join(f"{each.path}: {each.url}" for each in existing.data) or "none"
        raise Conflict(
            f"session {existing.name!r} exists with other data ({have}): close it first, or use "
            "another name"
        )


async def prepare(session: Session, host: LiveHost) -> None:
    """Raises `SessionFailed` where it cannot be had there; the host is given up then."""
    if not session.request.data:
        return
    execution_id = f"{PREFIX}{host.epoch}-{time.monotonic_ns()}"
    request = msgpack.packb(
        {
            "op": "mount",
            "execution_id": execution_id,
            "mounts": [each.model_dump() for each in session.request.data],
            "snapshot": False,
        }
    )
    ended = host.expect(execution_id)
    try:
        await host.call("submit", request, "", execution_id)
    except Exception as error:  # Ray's kinds of gone
        host.lose(f"it died before it could be used: {error}")
    waiting: set[asyncio.Future[Any]] = {ended, host.lost}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if not ended.done():
        return  # the caller's next look at the host finds out
    content = ended.result()
    if content.get("status") != "ok":
        why = f"{content.get('ename')}: {content.get('evalue')}"
        host.lose("the session's data could not be had there")
        raise SessionFailed(
            f"the data of session {session.request.name!r} could not be had on its node: {why}"
        )
