"""The full text of an execution, a page at a time: its log in the store, else its journal.

The journal has all that an execution printed, unless that was more than is shown; then the store
has all of it (`kernel/log.py`). A cursor says which of the two is being read, and how far.
"""

from __future__ import annotations

import asyncio

import msgpack

from mlcloud.errors import NotFound, UsageError
from mlcloud.gateway.execution import Execution
from mlcloud.gateway.journal import Journal
from mlcloud.gateway.session import Services
from mlcloud.kernel.log import log_name, read_segment, segments_of
from mlcloud.models import LogPage
from mlcloud.store import Store

PAGE_CHARS = 2**20
BATCHES = 16  # of the journal, looked through for one page


def find(services: Services, session_id: str, execution_id: str | None) -> Execution:
    """The execution of this id, or the session's last cell. Raises `NotFound`."""
    if execution_id is None:
        latest = services.executions.latest(session_id, 1)
        if not latest:
            raise NotFound("the session has run no cell yet")
        return latest[-1]
    found = services.executions.get(execution_id)
    if found is None:
        raise NotFound(f"no execution {execution_id!r}")
    return found


async def read_page(
    services: Services, store: Store, execution: Execution, cursor: str | None
) -> LogPage:
    """The page at `cursor` (None: the first). Raises `UsageError`, and `Damaged`."""
    source, after = _parsed(cursor)
    if source != "journal":
        name = log_name(execution.session_id, execution.id)
        steps = await asyncio.to_thread(segments_of, store, name)
        left = [step for step in steps if step > after]
        if left:
            data = await asyncio.to_thread(read_segment, store, name, left[0])
            more = f"store:{left[0]}" if len(left) > 1 else None
            text = data.decode("utf-8", "replace")
            return LogPage(execution_id=execution.id, text=text, next=more)
        if source == "store":
            return LogPage(execution_id=execution.id, text="", next=None)
    return _from_journal(services, execution, max(after, execution.first_event))


def _parsed(cursor: str | None) -> tuple[str, int]:
    if cursor is None:
        return "", 0
    source, _, number = cursor.partition(":")
    if source not in ("store", "journal") or not number.isdecimal():
        raise UsageError(f"{cursor!r} is no cursor of a log: take `next` of the page before")
    return source, int(number)


def _from_journal(services: Services, execution: Execution, after: int) -> LogPage:
    journal = Journal(services.engine, execution.session_id, 0)
    texts: list[str] = []
    chars = 0
    for _ in range(BATCHES):
        rows = journal.read(after)
        if not rows:
            return LogPage(execution_id=execution.id, text="".join(texts), next=None)
        for seq, execution_id, kind, blob in rows:
            after = seq
            if kind == "stream" and execution_id == execution.id:
                texts.append(msgpack.unpackb(blob, strict_map_key=False)["content"]["text"])
                chars += len(texts[-1])
        if chars > PAGE_CHARS:
            break
    return LogPage(execution_id=execution.id, text="".join(texts), next=f"journal:{after}")
