"""The printed text of a host's executions: to the events within limits, to the store in full.

    Output.on_text ─► Printed.text ─┬─► Printing ─► Events      what the page shows
                                    └─► OutputLog ─► store      all of it, where that is more

A log goes to the store while the cell runs, every `STORE_S` at least, and before the cell's end is
told: who sees the end can read the log. A store that fails ends the log, and the notice in the cell
says so; the cell goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mlcloud.errors import MLCloudError
from mlcloud.kernel.events import Events
from mlcloud.kernel.log import OutputLog, log_name, store_segments
from mlcloud.kernel.printing import TICK_S, Limits, Printing, Shown, collapsed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlcloud.store import Store

KNOWN = 32  # executions whose late output is still counted with what they printed before
STORE_S = 10.0


@dataclass
class _Execution:
    printing: Printing
    log: OutputLog
    stored_at: float
    failure: str = ""
    storing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Printed:
    """See the module."""

    def __init__(
        self,
        session_id: str,
        store_url: str,
        limits: Limits,
        events: Events,
        on_stored: Callable[[], None],
    ) -> None:
        self._session_id = session_id
        self._store_url = store_url
        self._store: Store | None = None
        self._limits = limits
        self._events = events
        self._on_stored = on_stored
        self._known: OrderedDict[str, _Execution] = OrderedDict()
        self._ticking: asyncio.Task[None] | None = None

    def keep_none(self) -> None:
        """What is not shown goes nowhere."""
        self._limits = replace(self._limits, log=0)

    def limit(self, execution_id: str, burst: int) -> None:
        """Before an execution prints: show at most `burst` characters of it at once."""
        if execution_id not in self._known:  # else its kernel died, and it runs again here
            burst = min(burst, self._limits.burst)
            self._begin(execution_id, replace(self._limits, burst=burst))

    def text(self, execution_id: str, stream: str, text: str) -> None:
        """Text as it comes from the kernel."""
        execution = self._known.get(execution_id)
        if execution is None:
            execution = self._begin(execution_id)
        text = collapsed(text)
        if not execution.failure:
            execution.log.add(text)
        self._show(execution_id, execution.printing.text(stream, text, time.monotonic()))
        if execution.printing.limited:
            execution.log.keep()
        if self._ticking is None and (execution.printing.limited or execution.log.unsaved):
            self._ticking = asyncio.create_task(self._tick())

    def _begin(self, execution_id: str, limits: Limits | None = None) -> _Execution:
        now = time.monotonic()
        printing = Printing(limits or self._limits, now)
        execution = _Execution(printing, OutputLog(self._limits.log), now)
        self._known[execution_id] = execution
        for old, known in list(self._known.items())[: -KNOWN or None]:
            if not known.printing.limited and not known.log.unsaved:
                del self._known[old]
        return execution

    def _show(self, execution_id: str, shown: Iterable[Shown]) -> None:
        for kind, content in shown:
            if kind == "stream":
                self._events.text(execution_id, content["name"], content["text"])
            else:
                failure = self._known[execution_id].failure
                content = {**content, "log_failure": failure, "log_limit": self._limits.log}
                self._events.add(execution_id, kind, {"type": kind, "content": content})

    def is_more(self, execution_id: str) -> bool:
        """Whether there is something to do before the execution's end may be told (`ended`)."""
        execution = self._known.get(execution_id)
        return execution is not None and (execution.printing.limited or execution.log.kept)

    async def ended(self, execution_id: str) -> None:
        """Show how it ended, and have its log in the store when this returns."""
        execution = self._known.get(execution_id)
        if execution is not None:
            execution.log.cut()
            await self._store_log(execution_id, execution)
            self._show(execution_id, execution.printing.end())

    @property
    def behind(self) -> bool:
        """Whether segments wait for the store: no more should be printed until it has them."""
        return any(execution.log.ready > 1 for execution in self._known.values())

    # --- while it is limited ----------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            now = time.monotonic()
            busy = False
            for execution_id, execution in list(self._known.items()):
                self._show(execution_id, execution.printing.tick(now))
                if now - execution.stored_at > STORE_S:
                    execution.log.cut()
                await self._store_log(execution_id, execution)
                busy = busy or execution.printing.limited or execution.log.unsaved
            if not busy:
                self._ticking = None
                return
            await asyncio.sleep(TICK_S - min(TICK_S, time.monotonic() - now))

    async def _store_log(self, execution_id: str, execution: _Execution) -> None:
        async with execution.storing:
            segments = execution.log.take()
            if not segments:
                return
            execution.stored_at = time.monotonic()
            try:
                await asyncio.to_thread(self._put, execution_id, segments)
            except MLCloudError as error:
                execution.failure = str(error)
        self._on_stored()

    def _put(self, execution_id: str, segments: list[bytes]) -> None:
        if self._store is None:
            from mlcloud.store import Store

            self._store = Store(self._store_url)
        store_segments(self._store, log_name(self._session_id, execution_id), segments)
