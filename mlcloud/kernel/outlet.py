"""Where a kernel's iopub messages leave it: a unix socket, written to at once and in order.

ipykernel publishes on a ZMQ socket, whose own thread sends later: what a cell showed just before it
crashed is gone, and a slow reader loses messages. Here each message is written to a stream socket.
What is written is the operating system's, whatever happens to the kernel, and when the reader is
slow ipykernel's IO thread waits, with what has been published since.

What is printed goes another way (`streams.py`). So that both can be put in order again, each
message has a number, and `sync(number)` marks in the printed text where it was published. The
socket's other direction is `inlet.py`'s.

    on the socket:  number (u64), count of frames (u32), their lengths (u64 each), the frames
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Any

SOCKET = "outlet"
HEAD = struct.Struct(">QI")
DELIMITER = b"<IDS|MSG>"
SETTLE_S = 1.0
# Linux takes so much whole or not at all: one buffer (unix_stream_sendmsg, net/unix/af_unix.c).
WHOLE = 2**14 - 2**10
LENGTH = struct.Struct(">Q")
# How a cell ended: what its last message, `mlcloud_return`, says of the reply that follows it.
END = (
    "status",
    "ename",
    "evalue",
    "traceback",
    "execution_count",
    "payload",
    *("missing", "rebuilt", "pending", "user_expressions"),
)


def connect(path: str) -> socket.socket:
    """The socket at `path`, where a host listens."""
    outlet = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    outlet.connect(path)
    return outlet


def packed(number: int, frames: Sequence[bytes] | Sequence[memoryview]) -> bytes:
    """A message as it is written."""
    lengths = b"".join(LENGTH.pack(len(frame)) for frame in frames)
    return b"".join([HEAD.pack(number, len(frames)), lengths, *frames])


class Outlet:
    """Takes the messages of an `ipykernel.iostream.IOPubThread`, and writes them to `outlet`.

    A short one is written by the thread that publishes it, where nothing waits before it and the
    socket takes it at once: waking another thread takes longer than all the rest.

    `sync(number)` marks in the printed text where message `number` was published; `printed()` says
    whether the host has text to read yet.
    """

    def __init__(
        self,
        thread: Any,
        outlet: socket.socket,
        sync: Callable[[int], None],
        printed: Callable[[], bool],
    ) -> None:
        self._thread = thread
        self._outlet = outlet
        self._sync = sync
        self._printed = printed
        self._by_zmq = thread._really_send
        self._numbering = threading.RLock()  # a comm that is collected meanwhile publishes its end
        self._writing = threading.Lock()
        self.last = self.sent = 0  # numbers of messages: published, and written
        thread._really_send = self._send
        thread.send_multipart = self._send_multipart

    def settle(self) -> None:
        """Wait until what was published has left, a second at most. What is printed next is read
        after that, even if no other thread of the kernel runs from then on."""
        thread = self._thread
        if self.sent == self.last or not thread._is_master_process():
            return
        if threading.current_thread() is thread.thread or not thread.thread.is_alive():
            return
        left = threading.Event()
        thread.schedule(left.set)
        left.wait(SETTLE_S)

    def end(self, frames: Sequence[bytes]) -> None:
        """Publish the last message of a cell: after all that was printed before, but what is
        printed later need not wait for it. So it needs no mark where all has been read."""
        with self._numbering:
            if self._printed():
                self._publish([memoryview(frame) for frame in frames])
                return
            data = packed(0, frames)
            if not self._written_at_once(data, 0):
                self._thread.schedule(lambda: self._write(data, 0))

    def _send_multipart(self, message: list[Any], *args: Any, **kwargs: Any) -> None:
        thread = self._thread
        if threading.current_thread() is thread.thread or not thread._is_master_process():
            self._send(message, *args, **kwargs)
            return
        views = _views(message)
        with self._numbering:  # marked and queued in one order
            self._publish(views)

    def _publish(self, views: list[memoryview]) -> None:
        self.last += 1
        number = self.last
        self._sync(number)
        data = packed(number, views)
        if not self._written_at_once(data, number):
            self._thread.schedule(lambda: self._write(data, number))

    def _send(self, message: list[Any], *args: Any, **kwargs: Any) -> None:
        if not self._thread._is_master_process():
            self._by_zmq(message, *args, **kwargs)  # a forked child pipes to the master's thread
            return
        self._write(packed(0, _views(message)), 0)

    def _write(self, data: bytes, number: int) -> None:
        with self._writing:
            self._outlet.sendall(data)
            if number:
                self.sent = number

    def _written_at_once(self, data: bytes, number: int) -> bool:
        """All of it or nothing, whenever an interrupt comes."""
        if len(data) > WHOLE or self._writing.locked():
            return False
        with self._writing:
            if self.sent != (number - 1 if number else self.last):
                return False
            try:
                self._outlet.send(data, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            self.sent = number or self.sent
            return True


def _views(message: Sequence[Any]) -> list[memoryview]:
    return [memoryview(getattr(frame, "buffer", frame)).cast("B") for frame in message]


def parse(frames: list[bytes]) -> dict[str, Any]:
    """A message of the Jupyter protocol. Its signature is not checked: the socket is private."""
    start = frames.index(DELIMITER) + 2
    header, parent, metadata, content = map(json.loads, frames[start : start + 4])
    return {
        "header": header,
        "parent_header": parent,
        "metadata": metadata,
        "content": content,
        "buffers": frames[start + 4 :],
    }


async def read(reader: asyncio.StreamReader) -> tuple[int, list[bytes]]:
    """The next message's number (0: it has no place among the printed text) and its frames.

    Raises `asyncio.IncompleteReadError` at the end.
    """
    number, count = HEAD.unpack(await reader.readexactly(HEAD.size))
    lengths = await reader.readexactly(LENGTH.size * count)
    return number, [await reader.readexactly(length) for (length,) in LENGTH.iter_unpack(lengths)]
