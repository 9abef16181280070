"""A session's events: who gets them, and under which cell they are shown.

channel's thread ─ on_event ─► its followers: the cell that runs now (`following`),
                           │                  a detached one (`execution`)
                           ├─► under the cell that made it, when that has ended
                           ├─► the relay: widgets           (`relay`)
                           └─► nowhere: another notebook's cell
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from mlcloud import errors
from mlcloud.client import frontend
from mlcloud.client.channel import Channel, Event, Listener
from mlcloud.client.connection import Connection
from mlcloud.client.display import Display, Here, Under
from mlcloud.client.frontend import Cell
from mlcloud.models import ExecutionInfo

if TYPE_CHECKING:
    from mlcloud.client.relay import Relay
    from mlcloud.client.router import Router

CELLS = 10_000  # of this notebook, remembered for what comes after their end
# Of these a cell that has ended needs nothing any more.
OVER = {"done", "safe", "status", "mlcloud_return", "input_request", "input_reply"}


class Follower(Protocol):
    """Who follows an execution. Called on the channel's thread."""

    holds_the_cell: bool  # whether the cell that runs now waits for it

    def put(self, event: Event) -> None: ...

    def refused(self, error: errors.MLCloudError) -> None: ...

    def link(self, text: str) -> None: ...

    def left(self) -> Iterable[Event]:
        """What it was given and has not looked at, when it stops following."""


class Feed(Listener):
    """The events of one session, from number `after` on."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        *,
        after: int,
        on_secrets: Callable[[dict[str, str]], None] = lambda sources: None,
    ) -> None:
        self._on_secrets = on_secrets
        self._connection = connection
        self._name = name
        self.channel = Channel(connection, name, after=after, listener=self)
        self._followers: dict[str, list[Follower]] = {}
        self._cells: OrderedDict[str, Cell | None] = OrderedDict()
        self._routing = threading.RLock()
        self._relay: Relay | None = None
        self._footers: set[str] = set()  # executions whose footers are to be renewed
        self._newer_footers: dict[str, dict[str, Any]] = {}  # that came before them

    def close(self) -> None:
        """Nothing more comes. Its widgets stay in the page as they are."""
        self.channel.close()
        if self._relay is not None:
            self._relay.close()

    def follow_with(self, execution_id: str, follower: Follower, cell: Cell | None) -> None:
        """`follower` gets this execution's events from now on; `cell` is where they belong."""
        with self._routing:
            self._followers.setdefault(execution_id, []).append(follower)
            self._cells[execution_id] = cell
            while len(self._cells) > CELLS:
                self._cells.popitem(last=False)
        if self.router is not None and follower.holds_the_cell:
            self.router.running = cell

    def unfollow(self, execution_id: str, follower: Follower) -> None:
        """Its later events are shown under its cell."""
        with self._routing:
            followers = self._followers.get(execution_id, [])
            if follower in followers:
                followers.remove(follower)
            if not followers:
                self._followers.pop(execution_id, None)
            for event in follower.left():
                self._late(event)
        if self.router is not None and follower.holds_the_cell:
            self.router.running = None

    def ended(self, execution_id: str) -> None:
        """Its end was seen: it need not be sent again."""
        self.channel.ended(execution_id)

    def answer(self, execution_id: str, request: str, value: str | None) -> None:
        """Answer the `input()` of a cell; None is the end of input."""
        self.channel.answer(execution_id, request, value)

    def on_event(self, event: Event) -> None:
        with self._routing:
            followers = self._followers.get(event.execution_id)
            if not followers:
                self._late(event)
            for follower in list(followers or ()):
                follower.put(event)

    def on_refused(self, request_id: str, error: errors.MLCloudError) -> None:
        for follower in list(self._followers.get(request_id, ())):
            follower.refused(error)

    def on_link(self, text: str) -> None:
        for followers in list(self._followers.values()):
            for follower in list(followers):
                follower.link(text)

    def on_secrets(self, sources: dict[str, str]) -> None:
        self._on_secrets(sources)

    def on_broken(self, error: errors.MLCloudError) -> None:
        for execution_id in list(self._followers):
            self.on_refused(execution_id, error)

    def _late(self, event: Event) -> None:
        """Something of a cell that has ended, or of a widget's callback."""
        if event.execution_id in self._cells:
            cell = self._cells[event.execution_id]
        else:
            cell = self._relay.cell_of(event.execution_id) if self._relay is not None else None
            if cell is None:
                return  # another notebook's
        if event.kind in OVER or self._is_newer_footer(event):
            return
        sink = Here(result_hook=False) if cell is None else Under(cell)
        self.show(event, Display(sink, late=True), cell)

    def footer(self, display: Display, content: dict[str, Any]) -> None:
        """Show the bill under a cell; one that says more than the bill is renewed later."""
        execution_id = content["metadata"]["mlcloud"]["execution_id"]
        with self._routing:
            newer = self._newer_footers.pop(execution_id, None)
            if newer is None and content.get("transient"):
                self._footers.add(execution_id)
        if newer is not None:
            content = {
                "text": newer["data"]["text/plain"],
                "html": newer["data"]["text/html"],
                "metadata": newer["metadata"],
            }
        display.footer(content)

    def _is_newer_footer(self, event: Event) -> bool:
        """Whether this renews a footer that is not shown: not yet, or not at all."""
        content = event.body.get("content") or {}
        shown = str((content.get("transient") or {}).get("display_id", ""))
        if event.kind != "update_display_data" or not shown.startswith("mlcloud-footer-"):
            return False
        if event.execution_id in self._footers and frontend.shell() is not None:
            self._footers.discard(event.execution_id)
            return False
        self._newer_footers[event.execution_id] = content
        while len(self._newer_footers) > CELLS:
            del self._newer_footers[next(iter(self._newer_footers))]
        return True

    def show(self, event: Event, display: Display, cell: Cell | None) -> None:
        """Show one event in `display`; comms are relayed under `cell`."""
        if event.kind.startswith("comm_"):
            if cell is not None:
                self._relayed().receive(event.kind, event.body, cell)
        elif event.kind == "mlcloud_comm_done":
            if self._relay is not None:
                self._relay.done(event.execution_id)
        elif event.kind == "mlcloud_comm_target":
            if cell is not None:
                self._relayed().target(event.body["content"]["name"])
        else:
            relay = self._relay
            display.captured = relay is not None and cell is not None and relay.captures(cell)
            display.show(event.kind, event.body)

    @property
    def router(self) -> Router | None:
        """What picks up the page's messages for this session's widgets, once there are any."""
        return None if self._relay is None else self._relay.router

    def _relayed(self) -> Relay:
        if self._relay is None:
            from mlcloud.client.relay import Relay

            self._relay = Relay(self.channel.comm, self._cell_of)
            for execution_id, followers in self._followers.items():
                if any(each.holds_the_cell for each in followers):
                    self._relay.router.running = self._cells.get(execution_id)
        return self._relay

    def _cell_of(self, request_id: str) -> Cell | None:
        """The local cell, or page's message, that a request in the session stands for."""
        found = self._cells.get(request_id)
        if found is None and self._relay is not None:
            found = self._relay.cell_of(request_id)
        return found

    def replay(self, info: ExecutionInfo) -> Iterator[Event]:
        """The execution's events so far, from the journal; those that follow come by themselves.

        Its follower must be there before, so that none is missed between the two.
        """
        upto = self.channel.cursor
        self.channel.expect(info.id)
        return self._replay(info, upto)

    def _replay(self, info: ExecutionInfo, upto: int) -> Iterator[Event]:
        if info.first_event >= upto:
            return
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()

        class Reader(Listener):
            def on_event(self, event: Event) -> None:
                events.put(event)

            def on_broken(self, error: errors.MLCloudError) -> None:
                events.put(error)

        channel = Channel(self._connection, self._name, after=info.first_event, listener=Reader())
        try:
            channel.expect(info.id)
            while True:
                event = events.get()
                if isinstance(event, errors.MLCloudError):
                    raise event
                if event.seq > upto:
                    return
                if event.execution_id == info.id:
                    yield event
                if event.seq == upto:
                    return
        finally:
            channel.close()
