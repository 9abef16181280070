"""Where a request enters the kernel: the outlet's socket, which the kernel's main loop reads.

By ZMQ a request passes an I/O thread and, in ipykernel 7, the shell channel's thread before the
main thread has it; this way it is there at once. What dispatches it then is ipykernel's own, and
the answer leaves as ever. ZMQ's shell channel goes on working beside it.

    on the socket:  as in `outlet.py`, the number always 0
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import zmq

from mlcloud.kernel.outlet import HEAD, LENGTH

PIECE = 2**20


class Inlet:
    """Gives each request to the kernel, in order. `start()` is called in its main thread."""

    def __init__(self, outlet: socket.socket, kernel: Any) -> None:
        self._outlet = outlet
        self._kernel = kernel
        self._came = bytearray()
        # One for all cells, as in ipykernel: what a cell sets in it the next one finds.
        self._context = copy_context()
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        loop = self._kernel.io_loop
        loop.add_handler(self._outlet.fileno(), self._readable, loop.READ)

    def _readable(self, *_: Any) -> None:
        try:
            piece = self._outlet.recv(PIECE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not piece:  # the host is gone: the supervisor knows
            self._kernel.io_loop.remove_handler(self._outlet.fileno())
        self._came += piece
        for frames in self._complete():
            self._dispatch([zmq.Frame(frame) for frame in frames])

    def _complete(self) -> Iterator[list[bytes]]:
        """The messages that are here as a whole."""
        while len(self._came) >= HEAD.size:
            _, count = HEAD.unpack_from(self._came)
            at = HEAD.size + count * LENGTH.size
            if len(self._came) < at:
                return
            lengths = [n for (n,) in LENGTH.iter_unpack(self._came[HEAD.size : at])]
            if len(self._came) < at + sum(lengths):
                return
            frames = []
            for length in lengths:
                frames.append(bytes(self._came[at : at + length]))
                at += length
            del self._came[:at]
            yield frames

    def _dispatch(self, frames: list[zmq.Frame]) -> None:
        kernel = self._kernel
        if not hasattr(kernel, "shell_main"):  # ipykernel 6 has a queue
            kernel.schedule_dispatch(kernel.dispatch_shell, frames)
            return
        work = kernel.shell_main(None, frames)
        if sys.version_info >= (3, 11):
            task = asyncio.get_running_loop().create_task(work, context=self._context)
        else:
            task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
