"""The client's end of a session's WebSocket: requests out, events in, across lost connections.

A thread reads, so that what comes after a cell has ended (a background thread's print, a widget's
answer, a detached cell) arrives too. Every event goes to `on_event`, in order, once: the cursor is
the number of the last one, and a new connection starts after it, whether a tunnel dropped or the
gateway was killed and came back.

While something is awaited (`execute` … `ended`), a lost connection is made again, and an embedded
gateway that is gone is started again. Else the channel rests until it is used: an idle notebook
starts nothing, and what it missed meanwhile comes with the next connection.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any, NamedTuple

import msgpack
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from mlcloud import errors
from mlcloud.client.connection import Connection, error_named
from mlcloud.client.wire import Wire

GIVE_UP_S = 120.0
REST_S = 5.0  # between two looks for a gateway that nobody waits for


class Event(NamedTuple):
    """`body` is `{type, content, metadata, buffers, time}`, unpacked."""

    seq: int
    execution_id: str
    kind: str
    body: dict[str, Any]


class Listener:
    """What a channel tells. Called on its thread."""

    def on_event(self, event: Event) -> None:
        """The next event of the session."""

    def on_refused(self, request_id: str, error: errors.MLCloudError) -> None:
        """The gateway refused a request; nothing of it ran."""

    def on_link(self, text: str) -> None:
        """The connection was lost, or is back: a word for who waits."""

    def on_secrets(self, sources: dict[str, str]) -> None:
        """The gateway has these secrets no more: name, and where it is kept."""

    def on_broken(self, error: errors.MLCloudError) -> None:
        """The connection could not be made again. Nothing more comes until it is used."""


class Channel:
    """One session's channel. Sending is safe from any thread."""

    def __init__(
        self, connection: Connection, name: str, *, after: int, listener: Listener
    ) -> None:
        self._connection = connection
        self._name = name
        self.cursor = after
        self._listener = listener
        self._socket: Wire | None = None
        self._opening = threading.Lock()
        self._pending: dict[str, dict[str, Any]] = {}
        self._awaited: set[str] = set()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._closed = False

    # --- requests ---------------------------------------------------------------------------------

    def execute(self, message: dict[str, Any]) -> None:
        """Send an execution. It is sent again on a new connection until its end was seen."""
        self._pending[message["id"]] = message
        self._awaited.add(message["id"])
        try:
            self._send(message)
        except BaseException:
            self.ended(message["id"])
            raise

    def expect(self, execution_id: str) -> None:
        """Somebody waits for an execution that was sent before: stay connected for it."""
        self._awaited.add(execution_id)
        self.open()

    def ended(self, execution_id: str) -> None:
        """Its end was seen, or nobody waits any more."""
        self._pending.pop(execution_id, None)
        self._awaited.discard(execution_id)

    def interrupt(self, execution_id: str) -> None:
        self._send({"op": "interrupt", "id": execution_id})

    def kill(self, execution_id: str) -> None:
        self._send({"op": "kill", "id": execution_id})

    def answer(self, execution_id: str, request: str, value: str | None) -> None:
        """Answer a cell's `input()`; None is the end of input."""
        self._send({"op": "input", "id": execution_id, "request": request, "value": value})

    def comm(self, relay_id: str, message: dict[str, Any]) -> None:
        """A page's comm message for a widget of the session: lost if the session is out of reach,
        as it would be with a local kernel that is gone."""
        if self._socket is None and not self._awaited and not self._connection.answers():
            return
        with suppress(errors.MLCloudError, ConnectionClosed, OSError):
            self._send({"op": "comm", "id": relay_id, "message": message})

    def open(self) -> None:
        """Connect and read, if that is not so yet."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._read, name=f"mlcloud-{self._name}", daemon=True
            )
            self._thread.start()
        self._wake.set()

    def close(self) -> None:
        self._closed = True
        self._drop(self._socket)
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2)

    def _send(self, message: dict[str, Any]) -> None:
        packed = msgpack.packb(message)
        for _ in (1, 2):
            link = self._connected()
            try:
                link.send(packed)
                self.open()
                return
            except (ConnectionClosed, OSError):
                self._drop(link)
        raise errors.ConnectionFailed("the connection to the gateway breaks at every message")

    # --- events -----------------------------------------------------------------------------------

    def _read(self) -> None:
        while not self._closed:
            link = self._socket
            try:
                if link is None:
                    if not self._awaited:
                        self._wake.wait(REST_S)
                        self._wake.clear()
                        if self._closed or not (self._awaited or self._connection.answers()):
                            continue
                    link = self._connected()
                data = link.recv()
            except (ConnectionClosed, OSError):
                self._drop(link)
                if self._awaited and not self._closed:
                    self._reconnect()
                continue
            except errors.MLCloudError as error:
                self._broken(error)
                continue
            self._take(msgpack.unpackb(data, strict_map_key=False))

    def _reconnect(self) -> None:
        self._listener.on_link("the connection to the gateway was lost; reconnecting")
        try:
            self._connected()
        except errors.MLCloudError as error:
            self._broken(error)
        else:
            self._listener.on_link("reconnected to the gateway; nothing was missed")

    def _broken(self, error: errors.MLCloudError) -> None:
        self._wake.clear()
        self._awaited.clear()
        self._pending.clear()
        self._listener.on_broken(error)

    def _take(self, message: dict[str, Any]) -> None:
        if "error" in message:
            request_id = message.get("id") or ""
            self.ended(request_id)
            error = error_named(message["error"]["code"], message["error"]["message"])
            self._listener.on_refused(request_id, error)
            return
        if "secrets" in message:
            self._listener.on_secrets(message["secrets"])
            return
        for seq, execution_id, kind, blob in message["events"]:
            if seq > self.cursor:
                body = msgpack.unpackb(blob, strict_map_key=False)
                self._listener.on_event(Event(seq, execution_id, kind, body))
                self.cursor = seq

    # --- the connection ---------------------------------------------------------------------------

    def _connected(self) -> Wire:
        with self._opening:
            return self._socket or self._connect_again()

    def _connect_again(self) -> Wire:
        until = time.monotonic() + GIVE_UP_S
        while True:
            if self._closed:
                raise errors.SessionClosed(f"session {self._name!r} is closed here")
            try:
                link = self._connect()
                # Requests are idempotent by their id: those whose end we have not seen go again.
                for message in list(self._pending.values()):
                    link.send(msgpack.packb(message))
            except (OSError, InvalidHandshake, ConnectionClosed) as error:
                if time.monotonic() > until:
                    raise errors.ConnectionFailed(
                        f"the gateway at {self._connection.address.url} does not answer: {error}"
                    ) from error
                time.sleep(0.2)
                self._connection.reopen()
                continue
            self._socket = link
            return link

    def _connect(self) -> Wire:
        address = self._connection.address
        url = address.url.replace("http", "ws", 1)
        path = f"/v1/sessions/{self._name}/channel?after={self.cursor}"
        return Wire(url + path, address.headers, address.tls)

    def _drop(self, link: Wire | None) -> None:
        """Forget a connection that broke, unless another has taken its place."""
        if link is None or link is not self._socket:
            return
        self._socket = None
        link.close()
