"""What tests of the running system share: an embedded cluster in a home of its own, a notebook with
a real kernel, and waiting for what is to happen.

    Embedded(home, node_idle="2s")  ─ sets MLCLOUD_… for its lifetime; connect, processes, end
    Notebook()                      ─ a real ipykernel; run(cell) gives its outputs as a user sees
    until(condition)                ─ polls, and fails with what it waited for

Nothing here starts a mocked part: a test that uses these runs gateway, Ray, host and kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeVar

import httpx
import nbformat
import psutil
import pytest
from jupyter_core.utils import run_sync
from nbclient import NotebookClient

import mlcloud
from mlcloud.client.api import Client
from mlcloud.client.embedded import connection, down, running
from mlcloud.client.session import Session
from mlcloud.config import Settings

T = TypeVar("T")
LOOK_S = 2.0
TOLD_LINES = 25
ROOT = Path(__file__).resolve().parents[1]


def until(condition: Callable[[], T], what: str, timeout: float = 30.0, every: float = 0.05) -> T:
    """The condition's first true value; fails the test with `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:g} s: {what}")
        time.sleep(every)


@dataclass(frozen=True)
class Process:
    """A process as it was seen; `alive` is about this very one, not a later one with its number."""

    pid: int
    started: float
    command: str

    @property
    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return (
                process.create_time() == self.started and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            return False


class Embedded:
    """The embedded cluster of one home. As a context manager it sets the environment, and at its
    end takes the cluster down and checks that nothing of it is left."""

    all: ClassVar[list[Embedded]] = []  # the ones that are up, for the report of a failure

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        self._settings = settings
        self._seen: set[Process] = set()
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Embedded:
        self._patch.setenv("MLCLOUD_HOME", str(self.home))
        for name, value in self._settings.items():
            self._patch.setenv(f"MLCLOUD_{name.upper()}", value)
        self.all.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.all.remove(self)
        try:
            self.end()
        finally:
            self._patch.undo()

    @property
    def settings(self) -> Settings:
        return Settings()

    @property
    def environment(self) -> dict[str, str]:
        """For a process of a test's own."""
        path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
        return {**os.environ, "PYTHONPATH": path}

    @property
    def connection(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / "gateway.json").read_text())
        return found

    def connect(self) -> Client:
        client = mlcloud.connect()
        self.processes()
        return client

    def http(self, *, token: str | None = None) -> httpx.Client:
        """A plain HTTP client of the gateway, with the right token unless told another."""
        connection = self.connection
        bearer = connection["token"] if token is None else token
        return httpx.Client(
            base_url=connection["url"],
            headers={"Authorization": f"Bearer {bearer}"} if bearer else {},
            timeout=30,
            trust_env=False,
        )

    # --- nodes and processes ----------------------------------------------------------------------

    def records(self) -> list[dict[str, Any]]:
        """What the local cloud has on disk, the head included."""
        found = []
        for path in (self.home / "cloud" / "instances").glob("i-*.json"):
            try:
                found.append(json.loads(path.read_text()))
            except (OSError, ValueError):
                continue
        return found

    def workers(self) -> list[dict[str, Any]]:
        """The live worker nodes that have a process: psutil takes no pid for the test's own, and a
        test that kills a node of a moment ago would kill itself."""
        return [
            record
            for record in self.records()
            if record["node_type"] != "head" and record["ended_at"] is None and record.get("pid")
        ]

    def processes(self) -> list[Process]:
        """Every live process of this cluster; remembers them for the check at the end."""
        roots = [record.get("pid") for record in self.records()]
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            roots.append(self.connection["pid"])
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            if self._is_ours(process):
                found[process.pid] = process
        for root in roots:
            if root in found:
                for child in _children(found[root]):
                    found[child.pid] = child
        seen = [each for each in map(_seen, found.values()) if each is not None]
        self._seen.update(seen)
        return [each for each in seen if each.alive]

    def _is_ours(self, process: psutil.Process) -> bool:
        if process.pid == os.getpid():
            return False
        home = str(self.home)
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            words = process.cmdline()
            if process.ppid() == os.getpid() and "multiprocessing.resource_tracker" in str(words):
                return False  # the tests' own, of any test that had a semaphore
            marked = process.environ().get("MLCLOUD_HOME") == home
            return marked or any(home in word for word in words)
        except (psutil.Error, OSError):
            return False

    def kill_gateway(self) -> int:
        """SIGKILL, as the kernel's out-of-memory killer would."""
        pid: int = self.connection["pid"]
        gateway = psutil.Process(pid)
        gateway.kill()
        until(lambda: not alive(gateway), "the killed gateway is gone")
        return pid

    def end(self) -> None:
        """`down`, then nothing of this cluster may be left running or lying in Ray's folder."""
        self.processes()
        settings = self.settings
        ray_dir = settings.ray_dir
        try:
            down(settings)
        finally:
            left = self.left()
            for process in left:  # so that one failure does not become everybody's
                _kill(process.pid)
        assert not left, f"still running after down: {[(p.pid, p.command) for p in left]}"
        assert not ray_dir.exists()
        assert not settings.connection_file.exists()

    def left(self) -> list[Process]:
        """Which of its processes still run, given a moment to be reaped."""
        deadline = time.monotonic() + 10
        while True:
            alive = [each for each in {*self._seen, *self.processes()} if each.alive]
            if not alive or time.monotonic() > deadline:
                return alive
            time.sleep(0.1)

    def running(self) -> bool:
        return running(self.settings) is not None

    def told(self) -> str:
        """What a failed test wants to know: where the sessions stand, and the end of the logs."""
        parts = []
        with contextlib.suppress(Exception), self.http() as http:
            parts.append(json.dumps(http.get("/v1/cluster", timeout=5).json(), indent=1))
        logs = [self.home / "gateway.log", *sorted((self.home / "cloud").glob("*.log"))]
        for path in [*logs, self.home / "cloud" / "attempts.jsonl"]:
            with contextlib.suppress(OSError):
                lines = path.read_text(errors="replace").splitlines()
                parts.append("\n".join([f"--- {path.name}", *lines[-TOLD_LINES:]]))
        return "\n".join(parts)


def _seen(process: psutil.Process) -> Process | None:
    try:
        command = " ".join(process.cmdline())[:200]
        return Process(process.pid, process.create_time(), command)
    except psutil.Error:
        return None


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def alive(process: psutil.Process) -> bool:
    """Runs, and is no zombie that nobody collects."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# --- processes that use mlcloud -------------------------------------------------------------------


def start_python(embedded: Embedded, code: str) -> subprocess.Popen[str]:
    """A Python process of its own that runs `code`, as a user's script would."""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=embedded.environment,
    )


# --- notebooks ------------------------------------------------------------------------------------


@dataclass
class Cell:
    """An executed cell: `outputs` as a notebook file keeps them."""

    outputs: list[Any] = field(default_factory=list)

    def stream(self, name: str = "stdout") -> str:
        return "".join(
            each["text"]
            for each in self.outputs
            if each["output_type"] == "stream" and each["name"] == name
        )

    @property
    def shown(self) -> list[dict[str, Any]]:
        """The data of what was displayed, lines of mlcloud's own and the footer left out."""
        return [
            dict(each["data"])
            for each in self.outputs
            if each["output_type"] in ("display_data", "execute_result")
            and "mlcloud" not in each.get("metadata", {})
        ]

    @property
    def shown_texts(self) -> list[str]:
        """The plain text of everything displayed, mlcloud's own lines included."""
        return [str(each["data"].get("text/plain", "")) for each in self.outputs if "data" in each]

    @property
    def result(self) -> str | None:
        for each in self.outputs:
            if each["output_type"] == "execute_result":
                text: str = each["data"]["text/plain"]
                return text
        return None

    @property
    def lines(self) -> str:
        """What mlcloud said: waiting, notices, moves."""
        return "\n".join(
            str(each["metadata"]["mlcloud"]["line"])
            for each in self.outputs
            if "line" in each.get("metadata", {}).get("mlcloud", {})
        )

    @property
    def footer(self) -> dict[str, Any] | None:
        """The figures of the footer's metadata."""
        for each in self.outputs:
            figures = each.get("metadata", {}).get("mlcloud", {})
            if "usd" in figures:
                return dict(figures)
        return None

    @property
    def error(self) -> Any:
        """The error output: `ename`, `evalue`, `traceback`."""
        for each in self.outputs:
            if each["output_type"] == "error":
                return each
        return None


class PatientClient(NotebookClient):
    """nbclient that looks for its reply every two seconds.

    ZMQ tells asyncio of news by an edge, and of plain local kernels' replies (ipykernel 7.4, rich's
    progress bars) one edge in some runs was lost: nbclient slept until its timeout, and then found
    the reply that had been there all the time.
    """

    async def async_start_new_kernel_client(self) -> Any:
        client = await super().async_start_new_kernel_client()
        channel: Any = client.shell_channel
        wait_for = channel.get_msg

        async def get_msg(timeout: float | None = None) -> Any:
            until = None if timeout is None else time.monotonic() + timeout
            while True:
                left = LOOK_S if until is None else min(LOOK_S, until - time.monotonic())
                try:
                    return await wait_for(timeout=max(left, 0))
                except queue.Empty:
                    if until is not None and time.monotonic() >= until:
                        raise

        channel.get_msg = get_msg
        return client

    start_new_kernel_client = run_sync(async_start_new_kernel_client)


class Notebook:
    """A notebook with a real local kernel, cell after cell. Use `open_notebook`."""

    def __init__(self, client: NotebookClient) -> None:
        self._client = client

    def run(self, source: str) -> Cell:
        """Run one more cell; errors are in its outputs, as in a notebook."""
        cells = self._client.nb.cells
        cells.append(nbformat.v4.new_code_cell(source))
        executed = self._client.execute_cell(cells[-1], len(cells) - 1)
        return Cell(executed["outputs"])

    def ok(self, source: str) -> Cell:
        """Run a cell that must not fail."""
        cell = self.run(source)
        assert cell.error is None, "\n".join(cell.error["traceback"])
        return cell

    @property
    def cells(self) -> list[Any]:
        """All cells so far as the notebook file has them, later updates included."""
        return list(self._client.nb.cells)

    def interrupt(self) -> None:
        """What the notebook's stop button does."""
        assert self._client.km is not None
        os.kill(self.pid, signal.SIGINT)

    @property
    def pid(self) -> int:
        km: Any = self._client.km
        found: int = km.provisioner.pid
        return found


@contextmanager
def open_notebook(embedded: Embedded, *, load: bool = True) -> Iterator[Notebook]:
    """A fresh kernel with `%load_ext mlcloud` run, against this cluster."""
    client = PatientClient(
        nbformat.v4.new_notebook(), kernel_name="python3", timeout=240, allow_errors=True
    )
    with client.setup_kernel(env=embedded.environment, cwd=str(embedded.home)):
        notebook = Notebook(client)
        if load:
            notebook.ok("%load_ext mlcloud")
        yield notebook


# --- a cell that runs meanwhile -------------------------------------------------------------------


class Running:
    """A cell that runs in another thread, while the test does something to it."""

    def __init__(self, session: Session, code: str, **options: Any) -> None:
        # Watched through a connection of its own: the session belongs to the thread that runs it.
        self.watch = another(session)
        self._after = self.watch.info.last_event
        self._pool = ThreadPoolExecutor(1)
        self.done = self._pool.submit(session.run, code, **options)

    def printed(self, text: str, timeout: float = 60.0) -> None:
        """Wait until the cell has printed `text`."""
        until(lambda: text in self.text() or self.done.done(), f"the cell prints {text!r}", timeout)
        assert text in self.text(), f"the cell ended without printing {text!r}"

    def text(self) -> str:
        return printed(self.watch, after=self._after)

    def error(self, timeout: float = 60.0) -> BaseException | None:
        """What the cell raised, once it has ended."""
        return self.done.exception(timeout)


def another(session: Session) -> Session:
    """The same session as a second notebook sees it."""
    return Client(connection(Settings())).attach(session.name)


def events(session: Session, after: int = 0) -> list[dict[str, Any]]:
    """All of the journal after `after`."""
    found: list[dict[str, Any]] = []
    while batch := session.events(found[-1]["seq"] if found else after):
        found.extend(batch)
    return found


def printed(session: Session, after: int = 0) -> str:
    """What cells wrote to stdout, by the journal."""
    return "".join(
        each["content"]["text"]
        for each in events(session, after)
        if each["kind"] == "stream" and each["content"]["name"] == "stdout"
    )


def stories(session: Session, after: int = 0) -> dict[str, str]:
    """What happened to the session: the last text of each kind."""
    return {
        each["content"]["what"]: each["content"]["text"]
        for each in events(session, after)
        if each["kind"] == "story"
    }
