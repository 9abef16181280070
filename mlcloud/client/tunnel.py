"""The client's way to a gateway elsewhere: `ssh -N -L`, kept alive as long as the client lives.

    127.0.0.1:<free port> ══ ssh ══► head's sshd ──► 127.0.0.1:<gateway's port>

    opening ──► open ──► lost (killed, a sleep, another network) ──► opening again
                  └── close(), or the client's end, however that comes

Tried again after 0.2 s, 0.4 s … 10 s, and then only when somebody needs it; at once when somebody
does. The local port stays the same across reconnects. Each process that connects has a tunnel of
its own: it costs one ssh, and no notebook depends on another one.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time

from mlcloud.cluster import ssh
from mlcloud.errors import ConnectionFailed, MLCloudError, NoCapacity
from mlcloud.processes import die_with_parent

PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
OPEN_S = 20.0
TICK_S = 0.05


class Tunnel:
    """To `port` on the loopback address of `target`. Safe to use from several threads."""

    def __init__(self, target: ssh.Target, port: int) -> None:
        self.target, self.far = target, port
        self._closing = threading.Event()
        self.port = free_port()
        self._ssh: subprocess.Popen[bytes] | None = None
        self._why: MLCloudError | None = None
        self._wanted = threading.Event()  # somebody waits: no pause
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        atexit.register(self.close)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def closed(self) -> bool:
        return self._closing.is_set()

    @property
    def pid(self) -> int | None:
        """Of its ssh, if that runs."""
        running = self._ssh
        return running.pid if running is not None and running.poll() is None else None

    def open(self, timeout: float = OPEN_S) -> str:
        """Wait until it is open; its address here. Raises `ConnectionFailed` with ssh's reason."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._keep, name="mlcloud-tunnel", daemon=True
                )
                self._thread.start()
        until = time.monotonic() + timeout
        self._why = None
        while not self._listens():
            self._wanted.set()
            why = self._reason()
            # Who is refused once is refused again; a network that is away may come back.
            refused = why is not None and not isinstance(why, NoCapacity)
            if self._closing.is_set() or refused or time.monotonic() > until:
                raise ConnectionFailed(
                    f"no tunnel to {self.target} could be made: {why or 'ssh does not answer'}"
                )
            time.sleep(TICK_S)
        return self.url

    def _reason(self) -> MLCloudError | None:
        """Why there is no tunnel, as the thread found."""
        return self._why

    def close(self) -> None:
        """Idempotent."""
        self._closing.set()
        self._wanted.set()
        running = self._ssh
        if running is not None and running.poll() is None:
            running.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(2)
            running.kill()
        atexit.unregister(self.close)

    # --- its thread -------------------------------------------------------------------------------

    def _keep(self) -> None:
        """ssh is this thread's child, so that it ends with this process however that ends."""
        pause = PAUSE_S
        while not self._closing.is_set():
            began = time.monotonic()
            self._run()
            if self._closing.is_set():
                return
            lasted = time.monotonic() - began
            pause = PAUSE_S if lasted > LONGEST_PAUSE_S else pause * 2
            self._wanted.clear()
            # Who waits does so for a moment; nobody is worth a try now and then, and then none.
            self._wanted.wait(pause if pause <= LONGEST_PAUSE_S else None)
            time.sleep(PAUSE_S)
            if not is_free(self.port):
                self.port = free_port()

    def _run(self) -> None:
        command = self.target.command(
            "-N",
            *("-o", "ExitOnForwardFailure=yes"),
            *("-L", f"127.0.0.1:{self.port}:127.0.0.1:{self.far}"),
        )
        try:
            self._ssh = subprocess.Popen(
                [*command, "--", self.target.host],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # an interrupt in a notebook is not the tunnel's
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )
        except OSError as error:
            self._why = ConnectionFailed(f"ssh does not start: {error}")
            return
        if self._closing.is_set():
            self._ssh.kill()
        _, said = self._ssh.communicate()
        if self._ssh.returncode == ssh.LOST:
            self._why = ssh.explain(self.target, ssh.LOST, said.decode(errors="replace"))
        else:
            self._why = NoCapacity(f"ssh ended ({self._ssh.returncode})")

    def _listens(self) -> bool:
        if self.pid is None:
            return False
        try:
            socket.create_connection(("127.0.0.1", self.port), 2).close()
        except OSError:
            return False
        return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, os.name == "posix")
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
