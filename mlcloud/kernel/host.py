"""The host: a detached, async Ray actor that owns one session's kernel and forwards all it shows.

    gateway ── submit(request) ──► host ── shell ──► kernel
            ◄─ events(after=n) ──       ◄─ iopub ──

One long poll is outstanding at any time: it returns at once with what there is, and while the
gateway writes that batch to its journal the next one gathers, so batches grow exactly with the
load. What is not acknowledged (by the next `after`) is kept, so a killed gateway misses nothing.
When `LIMIT` bytes wait, the host stops reading; the kernel's socket fills, and the cell's `print`
waits.

An event is `(number, execution id, kind, blob)`: kind is the Jupyter message type, or one of ours
(`finished`, `kernel_died`, `snapshot`); blob is msgpack of `{type, content, metadata, buffers,
time}`, packed once here and unpacked only by who reads it.

The actor is expendable: it holds nothing that the store or the journal does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import msgpack

from mlcloud.kernel import outlet
from mlcloud.kernel.process import KernelProcess

LIMIT = 32 * 2**20
REPLY = ("status", "ename", "evalue", "traceback", "execution_count", "payload")
UNSHOWN = {"status", "execute_input", "iopub_welcome"}
INTERRUPT_REPEATS = 5
DRAIN_S = 10.0

Event = tuple[int, str, str, bytes]


class Host:
    """Started by the gateway as `ray.remote(Host).options(...)`; see `gateway/hosts.py`."""

    def __init__(self, session_id: str, store_url: str, folder: str, memory_bytes: int = 0) -> None:
        self._session_id = session_id
        self._store_url = store_url
        self._folder = Path(folder)
        self._memory_bytes = memory_bytes
        self._events: deque[Event] = deque()
        self._bytes = 0
        self._number = 0
        self._new = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._running: str | None = None
        self._returned: dict[str, asyncio.Event] = {}
        self._early: dict[str, dict[str, Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._kernel: KernelProcess | None = None
        self._question: dict[str, Any] | None = None

    async def start(self) -> dict[str, Any]:
        """Start (or restart) the kernel. Returns the facts of this host."""
        if self._kernel is not None:
            await self._close_kernel()
        self._kernel = KernelProcess(
            self._folder / "k",
            session_id=self._session_id,
            store_url=self._store_url,
            workspace=self._folder / "work" / self._session_id,
            memory_bytes=self._memory_bytes,
        )
        await self._kernel.start()
        output = self._spawn(self._read_output(self._kernel))
        self._spawn(self._read_shell(self._kernel))
        self._spawn(self._read_stdin(self._kernel))
        self._spawn(self._watch(self._kernel, output))
        return self.facts()

    def facts(self) -> dict[str, Any]:
        import ray

        return {
            "instance": os.environ.get("RAY_CLOUD_INSTANCE_ID", ""),
            "node_id": ray.get_runtime_context().get_node_id(),
            "pid": os.getpid(),
            "kernel_pid": self._kernel.pid if self._kernel else 0,
            "python": ".".join(map(str, sys.version_info[:3])),
        }

    async def status(self) -> dict[str, Any]:
        """What a gateway that comes back needs to know."""
        alive = self._kernel is not None and not self._kernel.ended.done()
        return {
            **self.facts(),
            "running": self._running,
            "alive": alive,
            "last": self._number,
            "question": self._question,
        }

    async def environment(self, modules: list[str]) -> dict[str, Any]:
        """What the kernel beside this runs with, as of now: a cell may have installed something."""
        from mlcloud.environment import facts

        found = await asyncio.to_thread(facts.report, modules)
        return found.to_wire()

    # --- requests ---------------------------------------------------------------------------------

    async def submit(
        self, request: bytes, code: str, execution_id: str, allow_stdin: bool = False
    ) -> None:
        """Run a cell or an operation. The gateway sends one at a time."""
        kernel = self._live()
        self._running = execution_id
        self._returned[execution_id] = asyncio.Event()
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": allow_stdin,
            "stop_on_error": False,
        }
        kernel.send(kernel.shell, "execute_request", content, execution_id, [request])

    async def interrupt(self, execution_id: str) -> None:
        """SIGINT, again each second while the execution goes on, five times in all."""
        self._spawn(self._interrupt(execution_id))

    async def _interrupt(self, execution_id: str) -> None:
        for _ in range(INTERRUPT_REPEATS):
            if self._running != execution_id or self._kernel is None:
                return
            self._kernel.interrupt()
            await asyncio.sleep(1.0)

    async def notice(self, deadline: str | None) -> None:
        """Tell the kernel that the node goes away at `deadline` (None: the danger has passed)."""
        kernel = self._live()
        kernel.send(kernel.control, "mlcloud_notice", {"deadline": deadline}, "notice")

    async def answer(self, value: str) -> None:
        """Answer the `input()` that the kernel waits in."""
        self._question = None
        kernel = self._live()
        kernel.send(kernel.stdin, "input_reply", {"value": value}, f"input-{self._number}")

    async def comm(self, relay_id: str, message: dict[str, Any]) -> None:
        """A page's message for a widget: on the control channel, which also answers while a cell
        runs. What its callbacks show comes back under `relay_id`."""
        kernel = self._live()
        content = {key: message[key] for key in ("type", "content", "metadata")}
        kernel.send(kernel.control, "mlcloud_comm", content, relay_id, message["buffers"])

    async def kill_kernel(self) -> None:
        self._live().kill()

    async def stop(self) -> None:
        """End the kernel and this actor."""
        await self._close_kernel()
        import ray

        ray.actor.exit_actor()

    def _live(self) -> KernelProcess:
        assert self._kernel is not None, "start() comes first"
        return self._kernel

    async def _close_kernel(self) -> None:
        kernel, self._kernel = self._kernel, None
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
        if kernel is not None:
            await kernel.stop()

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- events -----------------------------------------------------------------------------------

    async def events(self, after: int, wait_s: float = 20.0) -> list[Event]:
        """What came after number `after`, at once if there is any; drops what came before."""
        while self._events and self._events[0][0] <= after:
            self._bytes -= len(self._events.popleft()[3])
        if self._bytes < LIMIT:
            self._room.set()
        if not self._events:
            self._new.clear()
            try:
                await asyncio.wait_for(self._new.wait(), wait_s)
            except asyncio.TimeoutError:
                return []
        return list(self._events)

    def _emit(self, execution_id: str, kind: str, body: dict[str, Any]) -> None:
        body["time"] = time.time()
        blob: bytes = msgpack.packb(body, default=str)
        self._number += 1
        self._events.append((self._number, execution_id, kind, blob))
        self._bytes += len(blob)
        if self._bytes >= LIMIT:
            self._room.clear()
        self._new.set()

    async def _read_output(self, kernel: KernelProcess) -> None:
        while True:
            await self._room.wait()
            try:
                message = kernel.decode(await outlet.read(kernel.output))
            except asyncio.IncompleteReadError:  # the kernel has ended
                return
            kind = message["header"]["msg_type"]
            if kind in UNSHOWN:
                continue
            parent = message["parent_header"].get("msg_id", "")
            body = {
                "type": kind,
                "content": message["content"],
                "metadata": message["metadata"],
                "buffers": [bytes(buffer) for buffer in message["buffers"]],
            }
            if kind == "mlcloud_snapshot" and parent in self._returned:
                # It overtook the reply, on another socket; a cell is finished before it is safe.
                self._early[parent] = body
                continue
            self._emit(parent, kind, body)
            if kind == "mlcloud_return" and parent in self._returned:
                self._returned[parent].set()

    async def _read_shell(self, kernel: KernelProcess) -> None:
        while True:
            message = kernel.decode(await kernel.shell.recv_multipart())
            if message["header"]["msg_type"] != "execute_reply":
                continue
            execution_id = message["parent_header"].get("msg_id", "")
            returned = self._returned.get(execution_id)
            if returned is not None and message["content"].get("status") != "aborted":
                # The reply travels on another socket than the output before it. Output always
                # ends with mlcloud_return, except when an interrupt hit exactly that line.
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(returned.wait(), 5)
            content = message["content"]
            if self._running == execution_id:
                self._running = None
                self._question = None
            self._emit(
                execution_id,
                "finished",
                {
                    "type": "finished",
                    "content": {key: content[key] for key in REPLY if key in content},
                },
            )
            self._returned.pop(execution_id, None)
            early = self._early.pop(execution_id, None)
            if early is not None:
                self._emit(execution_id, "mlcloud_snapshot", early)

    async def _read_stdin(self, kernel: KernelProcess) -> None:
        while True:
            message = kernel.decode(await kernel.stdin.recv_multipart())
            if message["header"]["msg_type"] != "input_request":
                continue
            content = {**message["content"], "request": secrets.token_hex(8)}
            self._question = content
            parent = message["parent_header"].get("msg_id", "")
            self._emit(parent, "input_request", {"type": "input_request", "content": content})

    async def _watch(self, kernel: KernelProcess, output: asyncio.Task[None]) -> None:
        report = await asyncio.shield(kernel.ended)
        # What it printed before it died is in its socket still: that comes first.
        await asyncio.wait({output}, timeout=DRAIN_S)
        running, self._running = self._running, None
        self._emit(running or "", "kernel_died", {"type": "kernel_died", "content": report})
