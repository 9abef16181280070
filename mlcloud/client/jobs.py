"""A job in the notebook: a handle that is also a `concurrent.futures.Future`.

    train.submit(0.1) ─► POST /v1/jobs ─► Job ◄─ Feed's thread ◄─ WS /v1/jobs/channel
                                            └► result(), await, add_done_callback, logs(), cancel()

The job is the gateway's: closing the notebook does not stop it, and `mlcloud.attach("j-…")` gives
the same handle in any other. One thread and one WebSocket follow all jobs of a connection.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import secrets
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgpack

from mlcloud import errors
from mlcloud.client.connection import Connection, error_named
from mlcloud.client.errors import rebuilt
from mlcloud.client.kept import Hold, job_in, of_wire
from mlcloud.client.objects import Inbox, _fetch, put
from mlcloud.client.secrets import find
from mlcloud.client.wire import Wire
from mlcloud.job_models import ENDED, JobInfo, JobLog, JobState
from mlcloud.units import format_usd
from mlcloud.values import packed
from mlcloud.values.messages import Blob
from mlcloud.values.reducers import Classes
from mlcloud.values.secrets import Secrets
from mlcloud.widgets.tables import escaped

if TYPE_CHECKING:
    import httpx

    from mlcloud.client.api import Client

__all__ = ["Job", "JobList"]

AGAIN_S = 0.5
POLL_S = 20.0
_classes = Classes()  # so that a class of the notebook comes back as itself


class Peer:
    """A gateway, as far as jobs need it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.feed = Feed(connection)
        self._holds: weakref.WeakValueDictionary[str, Hold] = weakref.WeakValueDictionary()

    def hold(self, job: str) -> Hold:
        """Of what that job left in its workers, as long as somebody refers to it."""
        found = self._holds.get(job)
        if found is None:
            found = self._holds[job] = Hold(self.connection, job)
        return found

    @property
    def namespace(self) -> dict[str, Any]:
        from mlcloud.client.session import main_namespace

        return main_namespace()

    @property
    def classes(self) -> Classes:
        return _classes

    def put(self, data: Any) -> list[str]:
        return put(self.connection, data, "what the job needs")

    def get(self, names: list[str]) -> Any:
        """Chunks from the store, each verified."""
        inbox = Inbox()
        size = sum(int(name.partition(":")[2]) for name in names)
        digests = [name.partition(":")[0] for name in names]
        from mlcloud.values.digests import whole

        blob = Blob(whole(tuple(digests)), size)
        _fetch(self.connection, list(inbox.expect(blob, names)), ["the result"])
        return inbox.take(blob)

    def value(self, wire: Any) -> Any:
        if isinstance(wire, dict):  # it cannot be pickled, and stayed where it is
            return of_wire(wire, self.hold(job_in(wire)))
        # From our own job over the authenticated channel: the user's own object.
        return packed.unpack(wire, self.namespace, self.classes, self.get)

    def give(self, info: JobInfo) -> None:
        """Secrets that a job waits for, as far as they are kept here. Raises nothing: another
        notebook may have them."""
        values, _ = find({name: info.secrets[name] for name in info.missing})
        if not values:
            return
        self.classes.secrets = Secrets({**self.classes.secrets.values, **values})
        with contextlib.suppress(errors.MLCloudError):
            self.connection.put(f"/v1/jobs/{info.id}/secrets", {"values": values})

    def error(self, told: dict[str, Any], where: str) -> BaseException:
        """The exception of an item, as it was raised there."""
        done = {"ename": told["name"], "evalue": told["text"], "traceback": told["lines"] or None}
        answer = {"exception": told["records"], "own": told["own"], "rendered": told["lines"]}
        return rebuilt(done, answer, self.value, session=where)

    def send(self, method: str, path: str, body: dict[str, Any], *, start: bool = True) -> Any:
        """A request whose body is msgpack."""
        content = msgpack.packb(body)
        return self.connection.request(method, path, content=content, start=start).json()

    def ask(self, job: str, what: str = "", **options: Any) -> httpx.Response:
        """How a job stands. Raises `ClusterDown`: nobody who waits starts a cluster."""
        try:
            return self.connection.request("GET", f"/v1/jobs/{job}{what}", start=False, **options)
        except errors.ClusterDown as error:
            raise self.is_down(job) from error

    def is_down(self, job: str) -> errors.ClusterDown:
        """What who waits for a job is told."""
        again = "`up()` of its Cluster brings it up again, with what its store has of the job"
        if self.connection.embedded:
            again = (
                "What the job has finished is kept: `mlcloud.connect()` brings it up again, and "
                "the job goes on where it was"
            )
        return errors.ClusterDown(
            f"the cluster of job {job} is down, and waiting does not start it. {again}; then "
            f"mlcloud.attach({job!r}) has its results"
        )

    def results(self, job: str, order: str, after: int, wait_s: float) -> dict[str, Any]:
        query = {"order": order, "after": after, "wait_s": wait_s}
        answer = self.ask(job, "/results", params=query, timeout=wait_s + 60)
        found: dict[str, Any] = msgpack.unpackb(answer.content, strict_map_key=False)
        return found


_peers: weakref.WeakKeyDictionary[Connection, Peer] = weakref.WeakKeyDictionary()


def peer(client: Client) -> Peer:
    """The one of this client's connection."""
    connection = client._connection
    if connection not in _peers:
        _peers[connection] = Peer(connection)
    return _peers[connection]


def new_id() -> str:
    return f"j-{secrets.token_hex(8)}"


class Feed:
    """Follows jobs until they end, or their cluster is down. `watch` from any thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._jobs: dict[str, weakref.WeakSet[Handle]] = {}
        self._awaited: set[Handle] = set()  # whose ends somebody is to be called with
        self._lock = threading.Lock()
        self._wire: Wire | None = None
        self._thread: threading.Thread | None = None

    def watch(self, job: Handle) -> None:
        with self._lock:
            self._jobs.setdefault(job.id, weakref.WeakSet()).add(job)
            wire = self._wire
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="mlcloud-jobs", daemon=True)
                self._thread.start()
        if wire is not None:
            self._ask(wire, [job.id])

    def await_end(self, job: Handle) -> None:
        """The handle stays, though nobody refers to it any more."""
        with self._lock:
            if job in self._jobs.get(job.id, ()):
                self._awaited.add(job)

    def _ask(self, wire: Wire, jobs: list[str]) -> None:
        try:
            wire.send(msgpack.packb({"watch": jobs}))
        except Exception:  # it is made anew, and asked for all
            return

    def _run(self) -> None:
        from websockets.exceptions import ConnectionClosed, InvalidHandshake

        while True:
            wire = None
            try:
                wire = self._open()
                with self._lock:
                    self._wire, jobs = wire, list(self._jobs)
                self._ask(wire, jobs)
                while True:
                    self._told(msgpack.unpackb(wire.recv(), strict_map_key=False))
                    if not self._is_needed(wire):
                        return
            except (OSError, ConnectionClosed, InvalidHandshake):
                time.sleep(AGAIN_S)
            finally:
                with self._lock:
                    self._wire = None
                if wire is not None:
                    wire.close()
            if not self._is_needed(None):
                return
            try:
                self._connection.reopen(start=False)
            except errors.ClusterDown:
                self._is_down()
                return
            except errors.MLCloudError:
                time.sleep(AGAIN_S)

    def _is_down(self) -> None:
        with self._lock:
            jobs, self._jobs = self._jobs, {}
            self._awaited.clear()
            self._wire = self._thread = None
        for job_id, handles in jobs.items():
            for handle in list(handles):
                handle._gone(handle._peer.is_down(job_id))

    def _is_needed(self, wire: Wire | None) -> bool:
        with self._lock:
            self._jobs = {job: handles for job, handles in self._jobs.items() if handles}
            if self._jobs:
                return True
            self._wire = self._thread = None
            return False

    def _open(self) -> Wire:
        address = self._connection.address
        parts = urlsplit(address.url)
        scheme = "wss" if parts.scheme == "https" else "ws"
        url = f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}/v1/jobs/channel"
        return Wire(url, address.headers, address.tls)

    def _told(self, message: dict[str, Any]) -> None:
        job_id = message["id"]
        with self._lock:
            handles = list(self._jobs.get(job_id, ()))
        failure = message.get("error")
        over = failure is not None
        for handle in handles:
            if failure is not None:
                handle._gone(error_named(failure["code"], failure["message"]))
                continue
            info = JobInfo.model_validate(message["job"])
            over = info.state in ENDED
            handle._news(info, message.get("result"))
        if over or not handles:
            with self._lock:
                self._jobs.pop(job_id, None)
                self._awaited.difference_update(handles)


class Handle(concurrent.futures.Future[Any]):
    """What `Job` and the jobs of a map have in common."""

    def __init__(self, peer: Peer, info: JobInfo) -> None:
        super().__init__()
        self._peer = peer
        self._info = info
        self.id = info.id
        self.name = info.name
        self._changed = threading.Condition()
        self._asked: list[str] = []  # secrets
        self._news(info, None)
        if info.state not in ENDED:
            peer.feed.watch(self)

    # --- what the feed tells ----------------------------------------------------------------------

    def _news(self, info: JobInfo, result: list[Any] | None) -> None:
        with self._changed:
            self._info = info
            self._changed.notify_all()
        if info.missing and info.missing != self._asked:
            self._peer.give(info)
        self._asked = info.missing
        if info.state in ENDED and not super().done():
            self._end(info, result)

    def _end(self, info: JobInfo, result: list[Any] | None) -> None:
        """Set what it came to."""
        raise NotImplementedError

    def _gone(self, error: errors.MLCloudError) -> None:
        if not super().done():
            self.set_exception(error)

    def _cancelled(self) -> None:
        with self._changed:  # here and in the feed's thread
            if not super().done() and super().cancel():
                self.set_running_or_notify_cancel()

    # --- what the user asks -----------------------------------------------------------------------

    @property
    def info(self) -> JobInfo:
        """What the gateway knows of it, as of now."""
        self._info = JobInfo.model_validate(self._peer.ask(self.id).json())
        return self._info

    @property
    def state(self) -> str:
        """One of scheduled, queued, running, done, failed, cancelled."""
        return self.info.state.value

    @property
    def cost(self) -> Decimal:
        """Dollars that it has cost so far."""
        return self.info.usd

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """`fn` is called with it at its end, in another thread, also if this handle is dropped."""
        self._peer.feed.await_end(self)
        super().add_done_callback(fn)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for it, and raise what it raised. Raises TimeoutError after `timeout` seconds; the
        job goes on."""
        concurrent.futures.wait([self], timeout)
        self._check_done()
        return super().result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What it raised; None where it has a result. Waits as `result` does."""
        concurrent.futures.wait([self], timeout)
        self._check_done()
        return super().exception()

    def _check_done(self) -> None:
        if not self.done():
            raise concurrent.futures.TimeoutError(f"job {self.id} has not ended yet; it goes on")

    def running(self) -> bool:
        """Whether items of it are with workers now."""
        return self.info.state is JobState.RUNNING

    def cancel(self) -> bool:
        """Stop it, wherever it is. False where it had ended."""
        if super().done():
            return self.cancelled()
        self._peer.connection.post(f"/v1/jobs/{self.id}/cancel")
        self._cancelled()
        return self.cancelled()

    def rerun(self, *, failed_only: bool = False, packages: str = "then") -> Any:
        """The same again, as a new job: with the code, items and packages that it had `then`, or
        with the packages that the nodes have `now`."""
        body = {"id": new_id(), "failed_only": failed_only, "packages": packages}
        answer = self._peer.connection.post(f"/v1/jobs/{self.id}/rerun", body)
        return handle(self._peer, JobInfo.model_validate(answer))

    def remove(self) -> None:
        """Forget it: its results, logs and checkpoints go, what it cost stays. Raises `Conflict`
        where it has not ended, or another job needs its result."""
        self._peer.connection.request("DELETE", f"/v1/jobs/{self.id}")

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for its end, at most `timeout` seconds; whether it has ended. Raises nothing of
        what it raised, but `ClusterDown` where it cannot be waited for."""
        concurrent.futures.wait([self], timeout)
        if self.done() and not self.cancelled():
            error = concurrent.futures.Future.exception(self)
            if isinstance(error, errors.ClusterDown):
                raise error
        return self.done()

    def logs(self, *, item: int | None = None, follow: bool = False) -> str:
        """What it printed, of one item or of all. `follow`: print it as it comes, until its end."""
        return "".join(self._log(item, follow))

    def _log(self, item: int | None, follow: bool) -> Iterator[str]:
        after = 0
        while True:
            query = {"after": after, "wait_s": POLL_S if follow else 0}
            answer = self._peer.ask(self.id, "/logs", params=query, timeout=POLL_S + 60)
            page = JobLog.model_validate(answer.json())
            for piece in page.pieces:
                after = piece.number
                if item is None or piece.item == item:
                    text = piece.text if piece.stream != "mlcloud" else f"· {piece.text}"
                    if follow:
                        out = sys.stderr if piece.stream == "stderr" else sys.stdout
                        print(text, end="", file=out, flush=True)
                    yield text
            if page.ended or (not follow and not page.pieces):
                return

    @property
    def runs(self) -> list[JobInfo]:
        """Of a scheduled one: the jobs that it has made, oldest first."""
        found = map(JobInfo.model_validate, self._peer.connection.get("/v1/jobs"))
        return [each for each in found if each.schedule == self.id]

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.wrap_future(self).__await__()

    def __repr__(self) -> str:
        return f"<{line(self._info)}>"

    def _repr_html_(self) -> str:
        return table([self._info])


class Job(Handle):
    """One call that runs on the cluster, whoever watches: what `.submit()` returns.

    A `concurrent.futures.Future`: `result`, `exception`, `done`, `add_done_callback`, and it can be
    awaited. As an argument of another `.submit` it stands for its result, and is waited for on the
    cluster. Of a generator, iterating gives what it yields as it comes, also after it has failed:
    what came before that is there.
    """

    _hold: Hold | None = None  # of what it yielded and workers keep, as long as this is there

    @property
    def __mlcloud_ref__(self) -> tuple[str, str, int]:
        return ("job", self.id, 0)

    def _end(self, info: JobInfo, result: list[Any] | None) -> None:
        if info.state is JobState.CANCELLED:
            self._cancelled()
            return
        try:
            if result is None:
                entries = self._peer.results(self.id, "index", 0, 0)["entries"]
                result = entries[0] if entries else None
            if result is None:
                self.set_exception(failure(info))
            elif result[1] == "error":
                self.set_exception(self._peer.error(result[2], f"{self.id} ({self.name})"))
            elif isinstance(result[2], int):  # so many values were yielded
                self.set_result(list(self._yielded()))
            else:
                self.set_result(self._peer.value(result[2]))
        except concurrent.futures.InvalidStateError:
            return  # it was cancelled here meanwhile
        except BaseException as error:
            self.set_exception(error)

    def __iter__(self) -> Iterator[Any]:
        """What a generator yields, as it comes. Raises what it raised."""
        yield from self._yielded()
        if not self._info.single:
            return

    def _yielded(self) -> Iterator[Any]:
        after = 0
        while True:
            answer = self._peer.results(self.id, "told", after, POLL_S)
            after = answer["after"]
            for _, kind, value, _ in answer["entries"]:
                if kind == "part":
                    if isinstance(value, dict):
                        self._hold = self._peer.hold(self.id)
                    yield self._peer.value(value)
                elif kind == "error":
                    raise self._peer.error(value, f"{self.id} ({self.name})")
                else:
                    if not isinstance(value, int):
                        raise errors.UsageError(f"{self.name} is no generator: use result()")
                    return
            if not answer["more"] and JobState(answer["state"]) in ENDED:
                raise failure(JobInfo.model_validate(self.info))


def failure(info: JobInfo) -> BaseException:
    """Why a job as a whole has no result."""
    if info.state is JobState.CANCELLED:
        return concurrent.futures.CancelledError(f"job {info.id} was cancelled")
    code, _, message = info.detail.partition(": ")
    kind = getattr(errors, code, None)
    if isinstance(kind, type) and issubclass(kind, errors.MLCloudError):
        return kind(message)
    return errors.JobFailed(f"job {info.id} ({info.name}) has failed: {info.detail or 'no reason'}")


def handle(peer: Peer, info: JobInfo) -> Any:
    """The handle of a job that the gateway has."""
    if info.single:
        return Job(peer, info)
    if info.sweep:
        from mlcloud.client.sweeps import Sweep

        return Sweep(peer, info)
    from mlcloud.client.mapping import Jobs

    return Jobs(peer, info)


def attach(client: Client, job_id: str) -> Any:
    """A job by its id, from any notebook. Raises `NotFound`."""
    answer = client._connection.get(f"/v1/jobs/{job_id}")
    return handle(peer(client), JobInfo.model_validate(answer))


# --- lists ----------------------------------------------------------------------------------------


class JobList(list[JobInfo]):
    """Jobs, newest last; a table in a notebook."""

    def __repr__(self) -> str:
        return "\n".join(map(line, self)) or "no jobs"

    def _repr_html_(self) -> str:
        return table(self)


def listed(client: Client) -> JobList:
    return JobList(JobInfo.model_validate(each) for each in client._connection.get("/v1/jobs"))


def prune(client: Client, older: str, *, dry: bool = False) -> JobList:
    """Remove jobs that ended so long ago (a duration, `30d`); those that it were. `dry`: only tell
    which. What another one needs stays."""
    body = {"older": older, "dry": dry}
    answer = client._connection.post("/v1/jobs/prune", body)
    return JobList(JobInfo.model_validate(each) for each in answer)


_MARKS = {"done": "✓", "failed": "✕", "cancelled": "■", "scheduled": "◷", "queued": "○"}


def facts(info: JobInfo) -> list[str]:
    """Its columns: mark and id, name, state, items, workers, cost, what to know."""
    state = info.state.value
    of = f"{info.done:,} of {info.items:,}{'' if info.complete else '+'}"
    failed = f", {info.failed:,} failed" if info.failed else ""
    items = "" if info.single or info.state is JobState.SCHEDULED else of + failed
    cost = format_usd(info.usd) + (" (simulated)" if info.simulated else "")
    detail = info.detail
    if info.next_run is not None:
        detail = f"next {info.next_run:%Y-%m-%d %H:%M:%S} UTC" + (f"; {detail}" if detail else "")
    workers = f"{info.workers} workers" if info.workers else ""
    if info.kept:
        kept = f"{info.kept} results kept in workers"
        workers = f"{workers}, {kept}" if workers else kept
    return [f"{_MARKS.get(state, '▷')} {info.id}", info.name, state, items, workers, cost, detail]


def line(info: JobInfo) -> str:
    return " · ".join(each for each in facts(info) if each)


def table(infos: list[JobInfo]) -> str:
    heads = ["job", "function", "state", "items", "workers", "cost", ""]
    top = "".join(f"<th style='text-align:left'>{head}</th>" for head in heads)
    rows = "".join(
        "<tr>"
        + "".join(f"<td style='text-align:left'>{escaped(each)}</td>" for each in facts(info))
        + "</tr>"
        for info in infos
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table>"
