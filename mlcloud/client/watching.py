"""The cluster, read once a second while somebody looks at it, and never woken for that.

    the page's view ── beat, every 10 s ──► Watch.beat ──► a thread, while beats come
    thread ── GET /v1/cluster each second, /v1/spend each 10 s ──► publish(…) ──► the page

A cell may hold the main thread for hours, and the page's beats wait behind it: a cell that began
while somebody looked counts as a beat until its end. Reading is marked as a glance, so that an idle
gateway ends all the same; where none answers, the thread only looks whether one has come.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from mlcloud.client import frontend
from mlcloud.client.connection import Address, error_in
from mlcloud.errors import ConnectionFailed, MLCloudError

EVERY_S = 1.0
AWAY_EVERY_S = 3.0
LINGER_S = 25.0  # the page's beats are 10 s apart
SPEND_EVERY_S = 10.0
READ_TIMEOUT_S = 10.0
ACT_TIMEOUT_S = 600.0  # a session that resumes waits for its node
GLANCE = {"mlcloud-glance": "1"}

#: What a chart shows: how long, and the seconds of a step.
RANGES = {
    "hour": (timedelta(hours=1), 60),
    "day": (timedelta(days=1), 900),
    "week": (timedelta(days=7), 7200),
}

Look = Callable[[], "Address | None"]


class Wire:
    """Requests to wherever `look` finds the gateway. It starts none, and keeps one connection."""

    def __init__(self, look: Look, timeout: float = READ_TIMEOUT_S) -> None:
        self._look = look
        self._timeout = timeout
        self._address: Address | None = None
        self._lane: http.client.HTTPConnection | None = None
        self._prefix = ""
        self._looked = -AWAY_EVERY_S

    def request(
        self, method: str, path: str, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body. Raises `ConnectionFailed` where no gateway is."""
        for again in (True, False):
            lane = self._lane or self._open()
            try:
                lane.request(method, self._prefix + path, headers=self._headers(headers))
                answer = lane.getresponse()
                return answer.status, answer.read()
            except (OSError, http.client.HTTPException) as error:
                # One that was kept may have been closed meanwhile: once more, by a new one.
                lane.close()
                self._lane = None
                if not again:
                    self._address = None
                    raise ConnectionFailed(f"the gateway does not answer ({error})") from error
        raise AssertionError

    def _headers(self, more: dict[str, str] | None) -> dict[str, str]:
        assert self._address is not None
        return {**self._address.headers, **(more or {})}

    def _open(self) -> http.client.HTTPConnection:
        if self._address is None:
            if time.monotonic() - self._looked < AWAY_EVERY_S:
                raise ConnectionFailed("no gateway is up")
            self._looked = time.monotonic()
            self._address = self._look()
        if self._address is None:
            raise ConnectionFailed("no gateway is up")
        parts = urlsplit(self._address.url)
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._prefix = parts.path.rstrip("/")
        self._lane = kind(parts.hostname or "localhost", parts.port, timeout=self._timeout)
        return self._lane

    def close(self) -> None:
        if self._lane is not None:
            self._lane.close()
            self._lane = None


class Watch:
    """`publish(cluster, spend)` gets the gateway's answers, JSON as it is: None for a part that was
    not read this time, `cluster` empty where no gateway is up. It is called on the thread."""

    def __init__(self, look: Look, publish: Callable[[str | None, str | None], None]) -> None:
        self._look = look
        self._wire = Wire(look)
        self._publish = publish
        self._range = "hour"
        self._spend_due = 0.0
        self._seen = 0.0
        self._cell_since: float | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        ip = frontend.shell()
        if ip is not None:
            ip.events.register("pre_run_cell", self._cell_begins)
            ip.events.register("post_run_cell", self._cell_ended)

    # --- whether somebody looks -------------------------------------------------------------------

    def beat(self) -> None:
        """Somebody looks: go on, or begin."""
        with self._lock:
            self._seen = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="mlcloud-dashboard", daemon=True
                )
                self._thread.start()

    @property
    def runs(self) -> bool:
        return self._thread is not None

    def close(self) -> None:
        """Nobody looks any more."""
        with self._lock:
            self._seen, self._cell_since = -LINGER_S, None
        self._wake.set()
        ip = frontend.shell()
        if ip is not None:
            with contextlib.suppress(ValueError):
                ip.events.unregister("pre_run_cell", self._cell_begins)
                ip.events.unregister("post_run_cell", self._cell_ended)

    def _cell_begins(self, *_: Any) -> None:
        now = time.monotonic()
        self._cell_since = now if now - self._seen < LINGER_S else None

    def _cell_ended(self, *_: Any) -> None:
        if self._cell_since is not None:
            self._cell_since = None
            self._seen = time.monotonic()
        self._wake.set()

    def _goes_on(self) -> bool:
        with self._lock:
            looked_at = time.monotonic() - self._seen < LINGER_S
            if looked_at or self._cell_since is not None:
                return True
            self._thread = None
            return False

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._goes_on():
            began = time.monotonic()
            self.tick()
            self._wake.wait(max(0.05, EVERY_S - (time.monotonic() - began)))
            self._wake.clear()
        self._wire.close()

    def tick(self) -> None:
        """Read and publish once."""
        cluster = self._read("/v1/cluster")
        spend = None
        if cluster and time.monotonic() >= self._spend_due:
            spend = self._read(self._spend_path())
            self._spend_due = time.monotonic() + SPEND_EVERY_S
        self._publish(cluster or "", spend)

    def _read(self, path: str) -> str | None:
        try:
            status, body = self._wire.request("GET", path, GLANCE)
        except ConnectionFailed:
            return None
        return body.decode() if status == 200 else None

    def _spend_path(self) -> str:
        long, step = RANGES[self._range]
        since = datetime.now(timezone.utc) - long
        return f"/v1/spend?{urlencode({'since': since.isoformat(), 'step_s': step})}"

    def show_range(self, name: str) -> None:
        """The chart is to show the last hour, day or week."""
        if name in RANGES:
            self._range, self._spend_due = name, 0.0
            self._wake.set()

    # --- what is pressed --------------------------------------------------------------------------

    def act(self, action: str, session: str, execution: str | None = None) -> str:
        """Park, resume, close or interrupt a session; returns what came of it, in words. Blocks."""
        name = quote(session, safe="")
        if action == "interrupt" and not execution:
            return f"session {session} runs no cell"
        method, path, done = {
            "park": ("POST", f"/v1/sessions/{name}/park", "is parked: its node is given back"),
            "resume": ("POST", f"/v1/sessions/{name}/resume", "is on a node again"),
            "close": ("DELETE", f"/v1/sessions/{name}", "is closed"),
            "interrupt": (
                "POST",
                f"/v1/sessions/{name}/executions/{quote(execution or '', safe='')}/interrupt",
                "was interrupted",
            ),
        }[action]
        wire = Wire(self._look, ACT_TIMEOUT_S)
        try:
            status, body = wire.request(method, path)
            if status >= 400:
                raise error_in(body, status, f"{method} {path}")
        except MLCloudError as error:
            return f"session {session}: {action} failed: {error}"
        finally:
            wire.close()
            self._wake.set()
        return f"session {session} {done}"
