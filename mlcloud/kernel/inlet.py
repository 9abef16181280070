"""Where a cell enters the kernel: the outlet's socket, which the kernel's main loop reads.

By ZMQ a request passes an I/O thread and, in ipykernel 7, the shell channel's thread before the
main thread has it, and is then verified and taken apart for a millisecond. Here it is there at
once, from a socket in a private folder. ZMQ's shell channel goes on working beside it.

    on the socket:  as in `outlet.py`, the number always 0; the frames are header and content
                    (JSON), and the request, after the identity of the host's ZMQ sockets
"""

from __future__ import annotations

import asyncio
import json
import logging
import select
import socket
import sys
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

from mlcloud.kernel.outlet import HEAD, LENGTH

log = logging.getLogger(__name__)

PIECE = 2**20


class Inlet:
    """Gives each request to the kernel, in order. `start()` is called in its main thread."""

    def __init__(self, outlet: socket.socket, kernel: Any) -> None:
        self._outlet = outlet
        self._kernel = kernel
        self._came = bytearray()
        # One for all cells, as in ipykernel: what a cell sets in it the next one finds.
        self._context = copy_context()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    def start(self) -> None:
        loop = self._kernel.io_loop
        loop.add_handler(self._outlet.fileno(), self._readable, loop.READ)

    def waits(self) -> bool:
        """Whether a request has come that nobody has read."""
        poll = select.poll()  # of any number, where `select` ends at 1024
        poll.register(self._outlet, select.POLLIN)
        return bool(poll.poll(0))

    def _readable(self, *_: Any) -> None:
        try:
            piece = self._outlet.recv(PIECE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not piece:  # the host is gone: the supervisor knows
            self._kernel.io_loop.remove_handler(self._outlet.fileno())
        self._came += piece
        for ident, *frames in self._complete():
            self._begin([ident], _message(*frames))

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

    def _begin(self, ident: list[bytes], message: dict[str, Any]) -> None:
        work = self._handle(ident, message)
        if sys.version_info >= (3, 11):
            task = asyncio.get_running_loop().create_task(work, context=self._context)
        else:
            task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, ident: list[bytes], message: dict[str, Any]) -> None:
        """What ipykernel's `dispatch_shell` does around a request."""
        kernel = self._kernel
        async with self._turn:
            kernel.set_parent(ident, message, channel="shell")
            kernel.pre_handler_hook()
            try:
                await kernel.execute_request(kernel.shell_stream, ident, message)
            except KeyboardInterrupt:
                log.error("interrupted outside of a cell")
            except Exception:
                log.exception("a request failed")
            finally:
                kernel.post_handler_hook()
            sys.stdout.flush()
            sys.stderr.flush()


def _message(header: bytes, content: bytes, request: bytes) -> dict[str, Any]:
    """As ipykernel's handlers take it."""
    head = json.loads(header)
    return {
        "header": head,
        "msg_id": head["msg_id"],
        "msg_type": head["msg_type"],
        "parent_header": {},
        "metadata": {},
        "content": json.loads(content),
        "buffers": [request],
    }
