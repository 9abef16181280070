"""Where a kernel's iopub messages leave it: a unix socket, written to at once and in order.

ipykernel publishes on a ZMQ socket, whose own thread sends later: what a cell printed just before
it crashed is gone, and a slow reader loses messages. Here ipykernel's IO thread writes each message
to a stream socket itself. What it has written is the operating system's, whatever happens to the
kernel, and when the reader is slow the write waits, and `print` with it (`streams.py`).

    message on the socket:  count of frames (u32), their lengths (u64 each), the frames
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from typing import Any

COUNT = struct.Struct(">I")
LENGTH = struct.Struct(">Q")


def redirect(thread: Any, path: str) -> None:
    """Make an `ipykernel.iostream.IOPubThread` write its messages to the socket at `path`."""
    outlet = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    outlet.connect(path)
    by_zmq = thread._really_send

    def send(message: list[Any], *args: Any, **kwargs: Any) -> None:
        if not thread._is_master_process():
            by_zmq(message, *args, **kwargs)  # a forked child pipes to the master's thread
            return
        frames = [memoryview(getattr(frame, "buffer", frame)).cast("B") for frame in message]
        head = COUNT.pack(len(frames)) + b"".join(LENGTH.pack(len(frame)) for frame in frames)
        outlet.sendall(b"".join([head, *frames]))

    def send_multipart(message: list[Any], *args: Any, **kwargs: Any) -> None:
        # `flush()` waits for the IO thread to have run its flush: what that sends must go at once,
        # not into the queue behind the word that it is done.
        if threading.current_thread() is thread.thread:
            send(message, *args, **kwargs)
        else:
            thread.schedule(lambda: send(message, *args, **kwargs))

    thread._really_send = send
    thread.send_multipart = send_multipart


async def read(reader: asyncio.StreamReader) -> list[bytes]:
    """The next message's frames. Raises `asyncio.IncompleteReadError` at the end."""
    (count,) = COUNT.unpack(await reader.readexactly(COUNT.size))
    lengths = await reader.readexactly(LENGTH.size * count)
    return [await reader.readexactly(length) for (length,) in LENGTH.iter_unpack(lengths)]
