"""A kernel process as its host sees it: started through the supervisor, spoken to over IPC sockets.

    KernelProcess.start() ─► supervisor ─► python -m mlcloud.kernel.launch
                             (a gang's: both forked by the node's fork server, if it has one)
        .shell / .control / .stdin  requests, replies (zmq DEALER, unix sockets in a private folder)
        .output             everything the cell shows (`output.py`), read from .outlet and its pipes
        .ended              resolves to the supervisor's last report

Messages are signed with a fresh key per kernel, as Jupyter does.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from jupyter_client.session import Session as WireSession

from mlcloud.cluster import lean, warmth
from mlcloud.errors import SessionFailed
from mlcloud.kernel import forkserver, outlet
from mlcloud.kernel.masking import as_variables
from mlcloud.kernel.output import Output
from mlcloud.values.secrets import Secrets

PORTS = {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5}


class KernelProcess:
    """One ipykernel. `folder` is private and short (unix socket paths end at 107 bytes)."""

    def __init__(
        self,
        folder: Path,
        *,
        session_id: str,
        store_url: str,
        workspace: Path,
        memory_bytes: int,
        options: dict[str, float] | None = None,
        held: Secrets | None = None,
        variables: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder / secrets.token_hex(4)
        self.workspace = workspace
        self._nonce = secrets.token_hex(8)
        self._arguments = [
            f"--RemoteKernelApp.session_id={session_id}",
            f"--RemoteKernelApp.store_url={store_url}",
            *(f"--RemoteKernelApp.{name}={value}" for name, value in (options or {}).items()),
            f"--RemoteKernelApp.output_folder={self.folder}",
            f"--RemoteKernelApp.output_nonce={self._nonce}",
            # A cell's text stays in this process: a file is for the notebook's own IPython, and
            # its thread took a third of the kernel's time for a trivial cell.
            "--HistoryManager.hist_file=:memory:",
        ]
        self._memory_bytes = memory_bytes
        self._secrets = held or Secrets()
        self._variables = variables or {}
        self.ended: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.pid = 0
        self.aside: frozenset[int] = frozenset()  # beside the kernel, and no work of its cells
        self.on_use: Callable[[dict[str, Any]], None] = lambda report: None

    @property
    def supervisor_pid(self) -> int:
        return self._supervisor.pid

    async def start(self) -> None:
        """Start and connect. Raises `SessionFailed` with the log's end if it does not come up."""
        self.folder.mkdir(parents=True, mode=0o700)
        self.workspace.mkdir(parents=True, exist_ok=True)
        key = secrets.token_hex(32)
        connection = {
            "transport": "ipc",
            "ip": str(self.folder / "k"),
            "key": key,
            "signature_scheme": "hmac-sha256",
            **PORTS,
        }
        self.output = Output(self.folder, self._nonce.encode())
        outlets: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self._server = await asyncio.start_unix_server(
            lambda *ends: outlets.put_nowait(ends), self.folder / outlet.SOCKET
        )
        file = self.folder / "connection.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps(connection))
        self.log = self.folder / "kernel.log"
        arguments = ["-f", str(file), *self._arguments]
        environment = {**kernel_environment(), **self._variables, **as_variables(self._secrets)}
        forked = None
        if "MLCLOUD_RANK" in self._variables:
            forked = await asyncio.to_thread(self._fork, arguments, environment)
        self._supervisor = forked or self._spawn(arguments, environment)
        self._reader = asyncio.create_task(self._read_reports())
        self.wire = WireSession(key=key.encode(), username="mlcloud")
        context = zmq.asyncio.Context.instance()
        self.shell = self._connect(context, zmq.DEALER, "shell_port")
        self.control = self._connect(context, zmq.DEALER, "control_port")
        self.stdin = self._connect(context, zmq.DEALER, "stdin_port")
        self.outlet, self._inlet = await self._until_ready(outlets)

    def _fork(self, arguments: list[str], environment: dict[str, str]) -> forkserver.Forked | None:
        return forkserver.start(
            *(self._memory_bytes, str(self.log), arguments),
            environment=environment,
            cwd=str(self.workspace),
        )

    def _spawn(self, arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *(sys.executable, "-S", "-m", "mlcloud.kernel.supervisor"),
                *(str(self._memory_bytes), str(self.log)),
                *(sys.executable, "-Xfrozen_modules=off", "-m", "mlcloud.kernel.launch"),
                *arguments,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self.workspace,
            env=environment,
            start_new_session=True,
        )

    def _connect(self, context: zmq.asyncio.Context, kind: int, port: str) -> zmq.asyncio.Socket:
        socket = context.socket(kind)
        socket.linger = 0
        socket.identity = self.wire.bsession  # the kernel asks who sent the request
        socket.connect(f"ipc://{self.folder / 'k'}-{PORTS[port]}")
        return socket

    async def _until_ready(
        self,
        outlets: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]],
        timeout: float = 60.0,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Wait for the kernel's output socket and the reply to a kernel_info request."""
        self.send(self.shell, "kernel_info_request", {}, "ready")
        ready = asyncio.gather(outlets.get(), self.shell.recv_multipart())
        try:
            waiting: set[asyncio.Future[Any]] = {ready, self.ended}
            done, _ = await asyncio.wait(
                waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
        except asyncio.CancelledError:
            ready.cancel()
            raise
        if ready not in done:
            ready.cancel()
            what = "ended at once" if self.ended.done() else f"did not answer for {timeout:.0f} s"
            end = self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""
            await self.stop()
            raise SessionFailed(f"the kernel {what}:\n{self._secrets.mask(end)}")
        return ready.result()[0]

    async def _read_reports(self) -> None:
        assert self._supervisor.stdout is not None
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._supervisor.stdout
        )
        last: dict[str, Any] = {"exit": None, "reason": "its supervisor ended", "peak_bytes": 0}
        async for line in reader:
            report = json.loads(line)
            if "pid" in report:
                self.pid, self.aside = report["pid"], frozenset(report["aside"])
            elif "exit" in report:
                last = report
            else:
                self.on_use(report)
        transport.close()
        self._supervisor.wait()
        if not self.ended.done():
            self.ended.set_result(last)

    # --- messages ---------------------------------------------------------------------------------

    def execute(self, content: dict[str, Any], msg_id: str, request: bytes) -> None:
        """Send an execute request, by the way that is quickest."""
        header = {
            "msg_id": msg_id,
            "msg_type": "execute_request",
            "username": self.wire.username,
            "session": self.wire.session,
            "date": datetime.now(timezone.utc).isoformat(),
            "version": "5.3",
        }
        parts = [json.dumps(header).encode(), json.dumps(content).encode(), request]
        frames = [self.wire.bsession, *parts]  # whom `input()` asks
        self._inlet.write(outlet.packed(0, frames))

    def send(
        self,
        socket: zmq.asyncio.Socket,
        msg_type: str,
        content: dict[str, Any],
        msg_id: str,
        buffers: list[bytes] | None = None,
    ) -> None:
        """Send a request whose id is `msg_id`: answers and output carry it as their parent."""
        message = self.wire.msg(msg_type, content)
        message["header"]["msg_id"] = message["msg_id"] = msg_id
        frames = self.wire.serialize(message)
        zmq.Socket.send_multipart(socket, [*frames, *(buffers or [])])

    def decode(self, frames: list[bytes]) -> dict[str, Any]:
        _, parts = self.wire.feed_identities(frames)
        message: dict[str, Any] = self.wire.deserialize(parts)
        return message

    # --- signals ----------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """SIGINT to the kernel's process group, as Jupyter does."""
        self._tell(b"int\n")

    def kill(self) -> None:
        self._tell(b"kill\n")

    def _tell(self, line: bytes) -> None:
        assert self._supervisor.stdin is not None
        try:
            self._supervisor.stdin.write(line)
            self._supervisor.stdin.flush()
        except BrokenPipeError:  # it has ended: `ended` says so
            pass

    async def stop(self) -> None:
        """End the kernel's tree and clean up."""
        self.kill()
        await asyncio.wait({self.ended}, timeout=10)
        self.output.close()
        self._server.close()
        for socket in (self.shell, self.control, self.stdin):
            socket.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def kernel_environment() -> dict[str, str]:
    """The host's environment without what belongs to this one Ray worker."""
    private = (
        *("RAY_JOB_ID", "RAY_RAYLET_PID", "RAY_WORKER_NICENESS"),
        *("MLCLOUD_NODE_TOKEN", warmth.VARIABLE),
    )
    everything = lean.restored(os.environ)
    environment = {key: value for key, value in everything.items() if key not in private}
    environment["PYTHONUNBUFFERED"] = "1"
    environment.setdefault("TERM", "xterm-color")
    # What the kernel's debugger would else say on stderr, in the first cell.
    environment["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    environment["CLICOLOR"] = "1"
    environment["PAGER"] = "cat"
    return environment
