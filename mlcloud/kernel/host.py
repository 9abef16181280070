"""The host: a detached, async Ray actor that owns one session's kernel and forwards all it shows.

    gateway ── submit(request) ──► host ── shell ──► kernel
            ◄─ events(after=n) ──       ◄─ iopub ──
       (over the link, else by Ray)

    kernel ─► Output ─► text ─► Masking ─► Printed ─► Events ─► gateway
                    └─► messages, masked ─────────────┘

One long poll is outstanding at any time (`events.py`). What is not acknowledged (by the next
`after`) is kept, so a killed gateway misses nothing. When too much waits, the host stops reading;
the kernel's pipes fill, and the cell's `print` waits. What of a cell's text is shown, and what goes
to the store instead, is said in `printing.py`. Beside the Jupyter messages there are events of our
own: `finished`, `kernel_died`, `mlcloud_…`.

The actor is expendable: it holds nothing that the store or the journal does not.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections import deque
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from mlcloud.kernel import link
from mlcloud.kernel.events import Event, Events
from mlcloud.kernel.masking import Masking
from mlcloud.kernel.printed import Printed
from mlcloud.kernel.printing import Limits
from mlcloud.kernel.process import KernelProcess
from mlcloud.kernel.use import Use
from mlcloud.values.secrets import Secrets

INTERRUPT_REPEATS = 5
DRAIN_S = 10.0
SECRETS_S = 10.0
# What is called over a link; the rest of the methods concern the actor itself.
LINKED = (
    *("events", "submit", "interrupt", "kill_kernel", "notice", "save_now"),
    *("answer", "comm", "ask", "environment", "settled", "secrets"),
)


class Host:
    """Started by the gateway as `ray.remote(Host).options(...)`; see `gateway/hosts.py`."""

    def __init__(
        self,
        session_id: str,
        store_url: str,
        folder: str,
        memory_bytes: int,
        output_limits: dict[str, int],
        kernel_options: dict[str, float],
    ) -> None:
        self._session_id = session_id
        self._store_url = store_url
        # A node that is not on the head's own disk has its own place for this.
        self._folder = Path(os.environ.get("MLCLOUD_NODE_DIR", folder))
        self._memory_bytes = memory_bytes
        self._kernel_options = kernel_options
        self._events = Events()
        limits = Limits(**output_limits)
        self._printed = Printed(session_id, store_url, limits, self._events, self._make_room)
        self._masking = Masking(self._printed.text)
        self._running: str | None = None
        self._unfinished: set[str] = set()
        self._returned: dict[str, dict[str, Any]] = {}
        self._early: dict[str, dict[str, Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._kernel: KernelProcess | None = None
        self._use = Use()
        self._question: dict[str, Any] | None = None
        self._asked: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._submitted: deque[str] = deque(maxlen=64)
        self._link: asyncio.Task[None] | None = None
        self._settled = False
        self._variables: dict[str, str] = {}  # of the kernel's environment

    async def start(self, secrets: dict[str, str] | None = None) -> dict[str, Any]:
        """Start (or restart) the kernel. Returns the facts of this host.

        `secrets` are environment variables of the kernel; None: those that it had.
        """
        if secrets is not None:
            self._masking.secrets = Secrets(secrets)
        if self._kernel is not None:
            await self._close_kernel()
        self._submitted.clear()
        self._settled = False
        self._kernel = KernelProcess(
            self._folder / "k",
            session_id=self._session_id,
            store_url=self._store_url,
            workspace=self._folder / "work" / self._session_id,
            memory_bytes=self._memory_bytes,
            options=self._kernel_options,
            held=self._masking.secrets,
            variables={**_as_driver(), **self._variables},
        )
        self._kernel.on_use = self._use.report
        await self._kernel.start()
        self._use.of(self._kernel.pid, self._kernel.supervisor_pid, self._kernel.aside)
        output = self._spawn(self._read_output(self._kernel))
        self._spawn(self._read_stdin(self._kernel))
        self._spawn(self._read_control(self._kernel))
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
            "settled": self._settled,
            "last": self._events.number(),
            "question": self._question,
        }

    async def settled(self) -> None:
        """The kernel has the session's state. Until then another gateway must not take it up."""
        self._settled = True

    async def held_secrets(self) -> dict[str, str]:
        """For a gateway that was started again and has them no more."""
        return self._masking.secrets.values

    async def secrets(self, values: dict[str, str]) -> bool:
        """More secrets, or new values, for the kernel that runs: whether it has them."""
        self._masking.secrets = Secrets({**self._masking.secrets.values, **values})
        answer = await self._request("mlcloud_secrets", {"values": values}, SECRETS_S)
        return bool(answer)

    async def environment(self, modules: list[str]) -> dict[str, Any]:
        """What the kernel beside this runs with, as of now: a cell may have installed something."""
        from mlcloud.environment import facts

        found = await asyncio.to_thread(facts.report, modules)
        return found.to_wire()

    async def dial(self, url: str, token: str) -> str:
        """Open a link to the gateway, over which it calls what it calls often. Returns why not."""
        try:
            connection = await link.dial(url, token)
        except OSError as error:
            return str(error)
        if self._link is not None:
            self._link.cancel()
        self._link = asyncio.create_task(
            link.serve(connection, {name: getattr(self, name) for name in LINKED})
        )
        return ""

    # --- requests ---------------------------------------------------------------------------------

    async def submit(
        self,
        request: bytes,
        code: str,
        execution_id: str,
        allow_stdin: bool = False,
        burst: int = 0,
        port: int = 0,
    ) -> None:
        """Run a cell or an operation. The gateway sends one at a time.

        The same one again, since a link broke, changes nothing. `burst`: characters that its front
        end can show at once, if it knows (0: it does not). `port`: where the ranks of a gang meet.
        """
        if execution_id in self._submitted:
            return
        self._submitted.append(execution_id)
        kernel = self._live()
        if burst:
            self._printed.limit(execution_id, burst)
        self._running = execution_id
        self._unfinished.add(execution_id)
        self._use.begin(execution_id)
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": allow_stdin,
            "stop_on_error": False,
            "port": port,
        }
        kernel.execute(content, execution_id, request)

    async def interrupt(self, execution_id: str) -> None:
        """SIGINT, again each second while the execution goes on, five times in all."""
        self._spawn(self._interrupt(execution_id))

    async def _interrupt(self, execution_id: str) -> None:
        for _ in range(INTERRUPT_REPEATS):
            if self._running != execution_id or self._kernel is None:
                return
            self._kernel.interrupt()
            await asyncio.sleep(1.0)

    async def notice(self, in_s: float | None) -> None:
        """Tell the kernel that the node goes away in so many seconds (None: the danger has passed).

        Its deadline is by this node's clock, whatever the gateway's shows.
        """
        kernel = self._live()
        at = None if in_s is None else datetime.now(timezone.utc) + timedelta(seconds=in_s)
        deadline = at and at.isoformat()
        kernel.send(kernel.control, "mlcloud_notice", {"deadline": deadline}, "notice")

    async def save_now(self) -> None:
        """Tell the kernel that the node may go away: loops save, and every boundary counts."""
        kernel = self._live()
        kernel.send(kernel.control, "mlcloud_notice", {"save": True}, "notice")

    async def answer(self, request: str, value: str) -> None:
        """Answer the `input()` that the kernel waits in, if it is still this one."""
        if self._question is None or self._question["request"] != request:
            return
        self._question = None
        kernel = self._live()
        kernel.send(kernel.stdin, "input_reply", {"value": value}, f"input-{self._events.last}")

    async def comm(self, relay_id: str, message: dict[str, Any]) -> None:
        """A page's message for a widget: on the control channel, which also answers while a cell
        runs. What its callbacks show comes back under `relay_id`."""
        kernel = self._live()
        content = {key: message[key] for key in ("type", "content", "metadata")}
        kernel.send(kernel.control, "mlcloud_comm", content, relay_id, message["buffers"])

    async def ask(self, question: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """What Tab and `?` want to know; empty where the kernel does not answer in time."""
        return await self._request("mlcloud_ask", question, timeout_s)

    async def _request(
        self, msg_type: str, content: dict[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        kernel = self._live()
        asked = f"ask-{secrets.token_hex(8)}"
        answer = self._asked[asked] = asyncio.get_running_loop().create_future()
        kernel.send(kernel.control, msg_type, content, asked)
        try:
            return await asyncio.wait_for(answer, timeout_s)
        except asyncio.TimeoutError:
            return {}
        finally:
            del self._asked[asked]

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
        """What came after number `after`, as soon as there is any; drops what came before."""
        found = await self._events.read(after, wait_s)
        self._make_room()
        return found

    def _make_room(self) -> None:
        """Read on, unless too much waits for the gateway or for the store."""
        if self._kernel is None:
            return
        if self._events.full or self._printed.behind:
            self._kernel.output.pause()
        else:
            self._kernel.output.resume()

    def _emit(
        self, execution_id: str, kind: str, content: dict[str, Any], *, wake: bool = True
    ) -> None:
        self._events.add(execution_id, kind, {"type": kind, "content": content}, wake=wake)

    async def _read_output(self, kernel: KernelProcess) -> None:
        await kernel.output.read(kernel.outlet, self._on_text, self._on_message)

    def _on_text(self, execution_id: str, stream: str, text: str) -> None:
        self._masking.text(execution_id, stream, text)
        self._make_room()

    def _on_message(self, message: dict[str, Any]) -> None:
        kind = message["header"]["msg_type"]
        parent = message["parent_header"].get("msg_id", "")
        if kind == "mlcloud_transfer" and parent not in self._unfinished:
            # A snapshot takes long: it is the cell that waits for it which wants to know.
            if self._running is None:
                return
            parent = self._running
        self._masking.flush()  # what was printed before
        if kind != "mlcloud_snapshot":  # names and chunks; what they hold is looked at there
            for part in ("content", "metadata"):
                message[part] = self._masking.secrets.masked(message[part])
        body = {
            "type": kind,
            "content": message["content"],
            "metadata": message["metadata"],
            "buffers": message["buffers"],
        }
        if kind == "mlcloud_return":
            # The last message of a cell, and with it comes how the cell ended.
            if parent in self._unfinished:  # an interrupt may make the kernel say it twice
                self._returned[parent] = {**body, "content": {}}
                self._finish(parent, message["content"])
        elif kind == "mlcloud_snapshot" and parent in self._unfinished:
            # A cell is finished before it is safe.
            self._early[parent] = body
        elif kind == "mlcloud_snapshot":
            self._tell_snapshot(parent, body)
        else:
            self._events.add(parent, kind, body)
        self._make_room()

    def _tell_snapshot(self, execution_id: str, body: dict[str, Any]) -> None:
        self._events.add(execution_id, "mlcloud_snapshot", body)

    def _finish(self, execution_id: str, content: dict[str, Any]) -> None:
        if self._running == execution_id:
            self._running = None
            self._question = None
        content = {**content, "use": self._use.end(execution_id)}
        if self._printed.is_more(execution_id):
            self._spawn(self._finish_after_log(execution_id, content))
        else:
            self._tell_finished(execution_id, content)

    async def _finish_after_log(self, execution_id: str, content: dict[str, Any]) -> None:
        await self._printed.ended(execution_id)
        self._tell_finished(execution_id, content)

    def _tell_finished(self, execution_id: str, content: dict[str, Any]) -> None:
        """In one batch: what the cell returned, and its end."""
        self._unfinished.discard(execution_id)
        returned = self._returned.pop(execution_id, None)
        if returned is not None:
            self._events.add(execution_id, "mlcloud_return", returned, wake=False)
        self._emit(execution_id, "finished", content)
        early = self._early.pop(execution_id, None)
        if early is not None:
            self._tell_snapshot(execution_id, early)

    async def _read_control(self, kernel: KernelProcess) -> None:
        while True:
            message = kernel.decode(await kernel.control.recv_multipart())
            answer = self._asked.get(message["parent_header"].get("msg_id", ""))
            if answer is not None and not answer.done():
                answer.set_result(self._masking.secrets.masked(message["content"]))

    async def _read_stdin(self, kernel: KernelProcess) -> None:
        while True:
            message = kernel.decode(await kernel.stdin.recv_multipart())
            if message["header"]["msg_type"] != "input_request":
                continue
            asked = self._masking.secrets.masked(message["content"])
            content = {**asked, "request": secrets.token_hex(8)}
            self._question = content
            kernel.output.look()  # what was printed before it asked
            self._masking.flush()
            parent = message["parent_header"].get("msg_id", "")
            self._emit(parent, "input_request", content)

    async def _watch(self, kernel: KernelProcess, output: asyncio.Task[None]) -> None:
        report = await asyncio.shield(kernel.ended)
        # What it printed before it died is in its socket still: that comes first.
        await asyncio.wait({output}, timeout=DRAIN_S)
        self._masking.flush()
        running, self._running = self._running, None
        report = {**report, "use": self._use.end(running or "")}
        self._unfinished.clear()
        if running is not None:
            await self._printed.ended(running)
        self._tell_died(running or "", report)

    def _tell_died(self, execution_id: str, report: dict[str, Any]) -> None:
        self._emit(execution_id, "kernel_died", report)


def _as_driver() -> dict[str, str]:
    """What makes `ray.init()` in a cell join the cluster that the kernel is on."""
    import ray

    address = ray.get_runtime_context().gcs_address
    found = {"RAY_ADDRESS": address}
    if address.rpartition(":")[0] == "127.0.0.1":  # else it is taken for a network card's
        found["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return found
