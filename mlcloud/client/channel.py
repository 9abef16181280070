"""The client's end of a session's WebSocket: executions out, events in, across lost connections.

The cursor is the number of the last event handled. A new connection starts after it, so nothing is
missed and nothing comes twice, whether a tunnel dropped or the gateway was killed and came back.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgpack
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from mlcloud import errors
from mlcloud.client.connection import Connection, error_named

GIVE_UP_S = 120.0
TICK_S = 0.5


class Event(NamedTuple):
    """`body` is `{type, content, metadata, buffers, time}`, unpacked."""

    seq: int
    execution_id: str
    kind: str
    body: dict[str, Any]


class Channel:
    """One session's channel. Not safe for several threads at once."""

    def __init__(self, connection: Connection, name: str, *, after: int) -> None:
        self._connection = connection
        self._name = name
        self.cursor = after
        self._socket: ClientConnection | None = None
        self._opened = ExitStack()
        self._waiting: deque[Event] = deque()
        self._pending: dict[str, dict[str, Any]] = {}

    def execute(self, message: dict[str, Any]) -> None:
        """Send an execution. It is sent again on a new connection until its end was seen."""
        self._pending[message["id"]] = message
        self._send(message)

    def ended(self, execution_id: str) -> None:
        self._pending.pop(execution_id, None)

    def interrupt(self, execution_id: str) -> None:
        self._send({"op": "interrupt", "id": execution_id})

    def kill(self, execution_id: str) -> None:
        self._send({"op": "kill", "id": execution_id})

    def _send(self, message: dict[str, Any]) -> None:
        packed = msgpack.packb(message)
        for _ in (1, 2):
            try:
                self._open().send(packed)
                return
            except (ConnectionClosed, OSError):
                self._drop()
        raise errors.ConnectionFailed("the connection to the gateway breaks at every message")

    def next(self, on_lost: Callable[[str], None] = lambda _: None) -> Event:
        """The next event, waiting for it. Raises what the gateway answered to a bad request."""
        while not self._waiting:
            try:
                data = self._open(on_lost).recv(timeout=TICK_S)
            except TimeoutError:
                continue
            except (ConnectionClosed, OSError):
                self._drop()
                on_lost("the connection to the gateway was lost; reconnecting")
                self._open(on_lost)
                on_lost("reconnected to the gateway; nothing was missed")
                continue
            message = msgpack.unpackb(data, strict_map_key=False)
            if "error" in message:
                self._pending.pop(message.get("id") or "", None)
                raise error_named(message["error"]["code"], message["error"]["message"])
            for seq, execution_id, kind, blob in message["events"]:
                if seq > self.cursor + len(self._waiting):
                    body = msgpack.unpackb(blob, strict_map_key=False)
                    self._waiting.append(Event(seq, execution_id, kind, body))
        event = self._waiting.popleft()
        self.cursor = event.seq
        return event

    def _open(self, on_lost: Callable[[str], None] = lambda _: None) -> ClientConnection:
        if self._socket is not None:
            return self._socket
        until = time.monotonic() + GIVE_UP_S
        while True:
            try:
                self._socket = self._connect()
            except (OSError, InvalidHandshake, ConnectionClosed) as error:
                if time.monotonic() > until:
                    raise errors.ConnectionFailed(
                        f"the gateway at {self._connection.address.url} does not answer: {error}"
                    ) from error
                time.sleep(0.2)
                self._connection.reopen()
                continue
            # Requests are idempotent by their id: those whose end we have not seen go again.
            for message in self._pending.values():
                self._socket.send(msgpack.packb(message))
            return self._socket

    def _connect(self) -> ClientConnection:
        address = self._connection.address
        url = address.url.replace("http", "ws", 1)
        parts = urlsplit(address.url)
        tcp = None
        if parts.scheme == "http":
            tcp = socket.create_connection((parts.hostname, parts.port or 80), timeout=10)
            # Else a small message waits up to 40 ms for the last one's acknowledgement.
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opening = connect(
            f"{url}/v1/sessions/{self._name}/channel?after={self.cursor + len(self._waiting)}",
            additional_headers=address.headers,
            max_size=None,
            compression=None,
            proxy=None,
            sock=tcp,
            open_timeout=10,
            # Leaving with events unread would else wait for the reader that nobody is any more.
            close_timeout=0.5,
        )
        self._opened = ExitStack()
        return self._opened.enter_context(opening)

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket = None
            with suppress(OSError, ConnectionClosed):
                self._opened.close()

    def close(self) -> None:
        self._drop()
