"""The five sockets of a Jupyter kernel, and the loop that reads them.

    shell, control, stdin   ROUTER, read by the main thread
    iopub                   PUB
    hb                      echoed by a thread

Everything happens on the main thread: other threads `post` what is to be done there. The sockets
are polled by level, so that no message waits because an edge was missed.

https://jupyter-client.readthedocs.io/en/stable/messaging.html
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import zmq
from jupyter_client.session import Session as Wire

Message = dict[str, Any]
Handler = Callable[[str, list[bytes], Message], None]

log = logging.getLogger(__name__)

LOOK_S = 1.0
LINGER_MS = 1000


class Sockets:
    """Bound as the connection file says. `publish` and `reply` are safe from any thread."""

    def __init__(self, connection_file: Path) -> None:
        info = json.loads(connection_file.read_text())
        self._wire = Wire(
            key=info["key"].encode(),
            signature_scheme=info.get("signature_scheme", "hmac-sha256"),
            username="kernel",
        )
        self._info = info
        self._context = zmq.Context()
        self._main = threading.current_thread()
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        self._open = True
        self._topic = f"kernel.{uuid4()}".encode()
        self._channels = {
            name: self._bind(zmq.ROUTER, name) for name in ("shell", "control", "stdin")
        }
        self._iopub = self._bind(zmq.PUB, "iopub")
        heart = self._bind(zmq.REP, "hb")
        threading.Thread(target=self._beat, args=(heart,), name="heartbeat", daemon=True).start()

    def _bind(self, kind: int, name: str) -> zmq.Socket[bytes]:
        bound = self._context.socket(kind)
        bound.linger = LINGER_MS
        bound.set_hwm(0)  # nothing is dropped
        if self._info.get("curve_secretkey"):
            bound.curve_secretkey = self._info["curve_secretkey"].encode()
            bound.curve_publickey = self._info["curve_publickey"].encode()
            bound.curve_server = True
        between = "-" if self._info["transport"] == "ipc" else ":"
        port = self._info[f"{name}_port"]
        bound.bind(f"{self._info['transport']}://{self._info['ip']}{between}{port}")
        return bound

    def _beat(self, heart: zmq.Socket[bytes]) -> None:
        with contextlib.suppress(zmq.ZMQError):  # the context ends
            while True:
                heart.send(heart.recv())
        heart.close(0)

    # --- out --------------------------------------------------------------------------------------

    def publish(
        self,
        msg_type: str,
        content: Message,
        parent: Message,
        metadata: Message | None = None,
        buffers: list[Any] | None = None,
    ) -> None:
        """To every front end, under the request `parent`."""
        self._here(
            lambda: self._wire.send(
                self._iopub,
                msg_type,
                content,
                parent=parent,
                ident=self._topic + b"." + msg_type.encode(),
                metadata=metadata,
                buffers=buffers,
            )
        )

    def reply(
        self,
        channel: str,
        idents: list[bytes],
        msg_type: str,
        content: Message,
        parent: Message,
        metadata: Message | None = None,
    ) -> None:
        """To the front end that asked; on `stdin`, to ask it something."""
        self._here(
            lambda: self._wire.send(
                self._channels[channel],
                msg_type,
                content,
                parent=parent,
                ident=idents,
                metadata=metadata,
            )
        )

    def _here(self, send: Callable[[], Any]) -> None:
        if threading.current_thread() is self._main:
            send()
        else:
            self.post(lambda: send() and None)

    # --- in ---------------------------------------------------------------------------------------

    def post(self, what: Callable[[], None]) -> None:
        """Have the main thread do this next."""
        self._posted.put(what)
        with contextlib.suppress(OSError):  # full: it wakes anyway; or closed
            self._waker.send(b".")

    def stop(self) -> None:
        """`run` returns when it has done what it does now."""
        self._open = False
        self.post(lambda: None)

    def run(self, handle: Handler, tick: Callable[[], float]) -> None:
        """Hand every message to `handle(channel, idents, message)`, until `stop`.

        `tick` is called before each wait, and says how many seconds that may last.
        """
        poller = zmq.Poller()
        names = {channel: name for name, channel in self._channels.items()}
        for channel in names:
            poller.register(channel, zmq.POLLIN)
        poller.register(self._woken, zmq.POLLIN)
        while self._open:
            ready = dict(poller.poll(int(min(tick(), LOOK_S) * 1000)))
            if self._woken.fileno() in ready:
                self._woken.recv(4096)
            self._do_posted()
            for channel in ready.keys() & names.keys():
                self._read(channel, names[channel], handle)

    def _do_posted(self) -> None:
        while self._open:
            try:
                what = self._posted.get_nowait()
            except queue.Empty:
                return
            try:
                what()
            except Exception:  # one event must not end the kernel
                log.exception("mlcloud: an event could not be handled")

    def _read(self, channel: zmq.Socket[bytes], name: str, handle: Handler) -> None:
        while self._open:
            try:
                frames = channel.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                idents, parts = self._wire.feed_identities(frames)
                message = self._wire.deserialize(parts)
            except ValueError:  # not signed with our key, sent twice, or no message at all
                log.warning("mlcloud: a message on %s was refused", name)
                continue
            try:
                handle(name, idents, message)
            except Exception:
                log.exception("mlcloud: %s could not be handled", message["header"]["msg_type"])

    def close(self) -> None:
        """What was sent still leaves."""
        for bound in (*self._channels.values(), self._iopub):
            bound.close()
        self._context.term()  # which ends the heartbeat's thread
