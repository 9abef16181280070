"""The client's WebSocket, read in the thread that asks for the next message.

The protocol is that of the `websockets` library, whose sans-I/O half this uses: its blocking client
reads in a thread of its own, which a message would wait for before ours sees it.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidState
from websockets.frames import DATA_OPCODES
from websockets.http11 import Response
from websockets.protocol import CLOSED
from websockets.uri import parse_uri

OPEN_S = 10.0
QUIET_S = 20.0  # without a message: then the other end is asked whether it is there
PIECE = 2**18


class Wire:
    """One connection. `send` from any thread, `recv` from one.

    Raises OSError and `websockets.InvalidHandshake` where it cannot be made, and OSError or
    `websockets.ConnectionClosed` once it is broken.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str], tls: ssl.SSLContext | None = None
    ) -> None:
        uri = parse_uri(url)
        self._protocol = ClientProtocol(uri, max_size=None)
        self._events: deque[Any] = deque()  # frames; the handshake's response comes first
        self._parts: list[bytes] = []
        self._lock = threading.Lock()
        self._heard = time.monotonic()
        plain = socket.create_connection((uri.host, uri.port), timeout=OPEN_S)
        self._socket: socket.socket = plain
        try:
            # Else a small message waits up to 40 ms for the last one's acknowledgement.
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if uri.secure:
                context = tls or ssl.create_default_context()
                self._socket = context.wrap_socket(plain, server_hostname=uri.host)
            self._shake_hands(headers)
            self._socket.settimeout(None)
            self._readable = select.poll()
            self._readable.register(self._socket, select.POLLIN)
        except BaseException:
            self._socket.close()
            raise

    def _shake_hands(self, headers: Mapping[str, str]) -> None:
        request = self._protocol.connect()
        request.headers.update(headers)
        self._protocol.send_request(request)
        self._flush()
        while True:
            self._receive(self._socket.recv(PIECE))
            if self._protocol.handshake_exc is not None:
                raise self._protocol.handshake_exc
            if self._events and isinstance(self._events[0], Response):
                self._events.popleft()
                return
            if self._protocol.state is CLOSED:
                raise ConnectionError("the connection was closed in its beginning")

    def send(self, data: bytes) -> None:
        """A binary message."""
        with self._lock:
            try:
                self._protocol.send_binary(data)
            except InvalidState:
                raise self._closed() from None
            self._flush()

    def recv(self) -> bytes:
        """The next message, however long that takes."""
        while True:
            while self._events:
                frame = self._events.popleft()
                if frame.opcode in DATA_OPCODES:
                    self._parts.append(bytes(frame.data))
                    if frame.fin:
                        message, self._parts = b"".join(self._parts), []
                        return message
            if self._protocol.state is CLOSED:
                raise self._closed()
            if self._is_readable():
                data = self._socket.recv(PIECE)
                with self._lock:
                    self._receive(data)

    def _is_readable(self) -> bool:
        """Wait for it; False after a while, when the other end was asked to answer."""
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return True
        if self._readable.poll(QUIET_S * 1000):
            self._heard = time.monotonic()
            return True
        if time.monotonic() - self._heard > 2.5 * QUIET_S:
            raise TimeoutError("nothing is heard any more from the other end")
        with self._lock:
            with contextlib.suppress(InvalidState):
                self._protocol.send_ping(b"")
            self._flush()
        return False

    def _receive(self, data: bytes) -> None:
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        self._events.extend(self._protocol.events_received())
        with contextlib.suppress(OSError):  # an answer that nobody takes any more
            self._flush()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._socket.sendall(data)
            else:  # the protocol's sign for the end
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_WR)

    def _closed(self) -> ConnectionClosed | ConnectionError:
        if self._protocol.state is CLOSED:
            return self._protocol.close_exc
        return ConnectionError("the connection is being closed")

    def close(self) -> None:
        """Say so to the other end, if that is possible, and be done with it."""
        with contextlib.suppress(OSError, InvalidState):
            if self._lock.acquire(timeout=0.5):
                try:
                    self._socket.settimeout(0.5)
                    self._protocol.send_close(1000)
                    self._flush()
                finally:
                    self._lock.release()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes who reads
        self._socket.close()
