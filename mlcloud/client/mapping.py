"""A function over many items: `train.map(items)`.

    iterable ─► Feeder's thread: packs, sends in batches ─► gateway ─► workers
                  ▲ no further ahead of who reads the results than `ahead`
    for result in jobs: ◄─ pages of results by cursor, one at a time ◄─┘

What has a length (a list, a range) is sent as fast as the gateway takes it: it keeps items on disk,
so the notebook can be closed soon. A generator is asked for items only as results are read, `wait`
or `result` reading all: 100,000 items, or endless ones, are never in memory at once on either side.
It runs in the feeder's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import operator
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from decimal import Decimal
from itertools import islice
from typing import Any, Literal

from mlcloud import errors
from mlcloud.client.jobs import POLL_S, Handle, Peer, failure
from mlcloud.client.kept import Hold
from mlcloud.job_models import ENDED, JobInfo, JobState
from mlcloud.values import packed, refs
from mlcloud.widgets.loop import Seen, _Surface, _surface

__all__ = ["ItemResult", "Jobs"]

BATCH, BATCH_BYTES, BATCH_S = 1000, 2**20, 0.05
AHEAD = 2000
ALIVE_S = 15.0
SHOW_S = 0.25
OnError = Literal["raise", "return", "skip"]


class ItemResult:
    """One item of a map, by its number: `jobs[3]`. As an argument of a `.submit` it stands for its
    result, when the whole map is done."""

    def __init__(self, jobs: Jobs, number: int) -> None:
        self._jobs, self.number = jobs, number

    @property
    def __mlcloud_ref__(self) -> tuple[str, str, int]:
        return ("job", self._jobs.id, self.number)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for it, and raise what it raised. Raises TimeoutError after `timeout` seconds."""
        entry = self._jobs._entry(self.number, timeout)
        return self._jobs._value(entry)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for it: what it raised, or None. Raises TimeoutError after `timeout` seconds."""
        try:
            self.result(timeout)
        except TimeoutError:
            raise
        except BaseException as error:
            return error
        return None

    def done(self) -> bool:
        """Whether it has ended, or failed. Does not wait."""
        return self._jobs._entry_now(self.number) is not None

    def logs(self) -> str:
        """What this item printed."""
        return self._jobs.logs(item=self.number)

    def __repr__(self) -> str:
        return f"<item {self.number} of job {self._jobs.id}>"


class Jobs(Handle):
    """What `.map()` returns: iterate for the results, in order.

    `as_completed()` gives (number, result) as they end, `result()` all of them as a list,
    `failures()` what failed, `jobs[3]` one item. It is a future of the whole list too.
    """

    _feeder: Feeder | None = None
    _quiet = False
    _on_error: OnError = "raise"
    _hold: Hold | None = None

    def _end(self, info: JobInfo, result: list[Any] | None) -> None:
        if info.state is JobState.CANCELLED:
            self._cancelled()
            return
        with contextlib.suppress(Exception):
            # The results are many, perhaps: `result()` reads them.
            self.set_result(None)

    # --- results ----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        return self.results()

    def __getitem__(self, number: int) -> ItemResult:
        number = operator.index(number)  # not a slice: `results()` gives many
        if number < 0:
            raise IndexError("items of a map are counted from 0")
        return ItemResult(self, number)

    def __len__(self) -> int:
        info = self._info
        if not info.complete and (self._feeder is None or self._feeder.total is None):
            raise TypeError("this map does not know yet how many items it has")
        return info.items if info.complete else self._feeder.total  # type: ignore[union-attr, return-value]

    def results(self, *, on_error: OnError | None = None) -> Iterator[Any]:
        """The results in order, as they are ready. `on_error`: `raise` what an item raised,
        `return` it in the place of its result, or `skip` it."""
        for entry in self._entries("index"):
            found = self._by_rule(entry, on_error or self._on_error)
            yield from found

    def as_completed(self, *, on_error: OnError | None = None) -> Iterator[tuple[int, Any]]:
        """(number, result) of each item as it ends."""
        for entry in self._entries("told"):
            if entry[1] == "part":
                continue
            for value in self._by_rule(entry, on_error or self._on_error):
                yield entry[0], value

    def result(self, timeout: float | None = None) -> list[Any]:
        """All results. Raises `PartialFailure` where items failed; it has the others' results. What
        the iterable raised is raised at once: iterating gives the results of the items before that.

        Raises TimeoutError after `timeout` seconds; the job goes on.
        """
        until = None if timeout is None else time.monotonic() + timeout
        values: list[Any] = []
        failed: dict[int, BaseException] = {}
        for entry in self._entries("index", until, at_once=True):
            if entry[1] == "error":
                failed[entry[0]] = self._error(entry)
                values.append(failed[entry[0]])
            else:
                values.append(self._value(entry))
        if failed:
            raise partial(self._info, failed, values)
        return values

    def __await__(self) -> Generator[Any, None, Any]:
        async def all_results() -> list[Any]:
            return await asyncio.to_thread(self.result)

        return all_results().__await__()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The `PartialFailure` that `result` would raise, None where nothing failed. Waits for all;
        raises TimeoutError after `timeout` seconds."""
        try:
            self.result(timeout)
        except TimeoutError:
            raise
        except BaseException as error:
            return error
        return None

    def failures(self) -> dict[int, BaseException]:
        """What failed so far, by the number of the item."""
        found: dict[int, BaseException] = {}
        after = 0
        while True:
            answer = self._peer.results(self.id, "told", after, 0)
            after = answer["after"]
            for entry in answer["entries"]:
                if entry[1] == "error":
                    found[entry[0]] = self._error(entry)
            if not answer["more"]:
                return dict(sorted(found.items()))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all items have ended, at most `timeout` seconds; whether they have."""
        if self._feeder is not None:
            self._feeder.read_all()
        with self._shown():
            return super().wait(timeout)

    def cancel(self) -> bool:
        """Stop it, wherever it is: nothing of it is sent any more. False where it had ended."""
        if self._feeder is not None:
            self._feeder.stop()
        return super().cancel()

    def _entries(
        self, order: str, until: float | None = None, *, at_once: bool = False
    ) -> Iterator[list[Any]]:
        """What there is, then what the iterable raised; that first with `at_once`."""
        after = 0
        feeder = self._feeder
        with self._shown() as shown:
            while True:
                if feeder is not None and at_once:
                    feeder.check()
                wait_s = (
                    POLL_S if until is None else max(0.0, min(POLL_S, until - time.monotonic()))
                )
                wait_s = min(wait_s, SHOW_S) if shown else wait_s
                answer = self._peer.results(self.id, order, after, wait_s)
                for entry in answer["entries"]:
                    if feeder is not None:
                        feeder.read(entry[0] + 1 if order == "index" else None)
                    yield entry
                after = answer["after"]
                ended = JobState(answer["state"]) in ENDED
                if ended and not answer["entries"] and not answer["more"]:
                    if feeder is not None:
                        feeder.check()
                    if answer["state"] == "cancelled" or (
                        order == "index" and after < answer["total"]
                    ):
                        raise failure(self.info)
                    if order == "told" and self.info.items > self._info.done + self._info.failed:
                        raise failure(self._info)
                    return
                if until is not None and time.monotonic() > until and not answer["entries"]:
                    raise TimeoutError(f"job {self.id} has not ended yet; it goes on")

    def _by_rule(self, entry: list[Any], rule: OnError) -> Iterator[Any]:
        if entry[1] != "error":
            yield self._value(entry)
        elif rule == "raise":
            raise self._error(entry)
        elif rule == "return":
            yield self._error(entry)

    def _value(self, entry: list[Any]) -> Any:
        if entry[1] == "error":
            raise self._error(entry)
        if isinstance(entry[2], int):
            return self._parts(entry[0])
        if isinstance(entry[2], dict):  # kept in its worker, for as long as these jobs too
            self._hold = self._peer.hold(self.id)
        return self._peer.value(entry[2])

    def _parts(self, item: int) -> list[Any]:
        """What an item yielded."""
        found: dict[int, Any] = {}
        after = 0
        while True:
            answer = self._peer.results(self.id, "told", after, 0)
            after = answer["after"]
            for number, kind, value, more in answer["entries"]:
                if number == item and kind == "part":
                    if isinstance(value, dict):
                        self._hold = self._peer.hold(self.id)
                    found[more[0]] = self._peer.value(value)
            if not answer["more"]:
                return [found[each] for each in sorted(found)]

    def _error(self, entry: list[Any]) -> BaseException:
        return self._peer.error(entry[2], f"item {entry[0]} of {self.id} ({self.name})")

    def _entry_now(self, number: int) -> list[Any] | None:
        entries = self._peer.results(self.id, "index", number, 0)["entries"]
        return entries[0] if entries else None

    def _entry(self, number: int, timeout: float | None) -> list[Any]:
        until = None if timeout is None else time.monotonic() + timeout
        if self._feeder is not None:
            self._feeder.read(number + 1)
        while True:
            left = POLL_S if until is None else min(POLL_S, max(0.0, until - time.monotonic()))
            answer = self._peer.results(self.id, "index", number, left)
            if answer["entries"]:
                entry: list[Any] = answer["entries"][0]
                return entry
            if JobState(answer["state"]) in ENDED:
                if number >= answer["total"]:
                    raise IndexError(f"job {self.id} has {answer['total']:,} items")
                raise failure(self.info)
            if until is not None and time.monotonic() >= until:
                raise TimeoutError(f"item {number} of job {self.id} has not ended yet")

    # --- progress ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _shown(self) -> Iterator[bool]:
        """How far it is, under the cell, while somebody waits for it."""
        if self._quiet or self._is_shown:
            yield False
            return
        self._is_shown = True
        bar = _Bar(self)
        try:
            yield bar.is_live
        finally:
            bar.end()
            self._is_shown = False

    _is_shown = False


class _Bar:
    """Drawn by a thread of its own while it is there."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._surface: _Surface = _surface()
        self.is_live = type(self._surface) is not _Surface
        self._seen = Seen("item", None, "", None)
        self._seen.begin(0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        if self.is_live:
            self._thread.start()

    def _look(self) -> None:
        info, seen, feeder = self._jobs._info, self._seen, self._jobs._feeder
        seen.total = info.items if info.complete else (feeder.total if feeder else None)
        seen.done = info.done + info.failed
        seen.usd_per_hour = info.usd_per_hour or seen.usd_per_hour or Decimal(0)
        seen.simulated = info.simulated
        if info.failed:
            seen.label, seen.last = "failed", float(info.failed)

    def _run(self) -> None:
        while not self._over.wait(SHOW_S * 2):
            self._look()
            self._surface.draw(self._seen)

    def end(self) -> None:
        self._over.set()
        if self.is_live:
            self._thread.join(1.0)
        with contextlib.suppress(errors.MLCloudError):
            self._jobs.info  # noqa: B018  # as of now
        self._look()
        info = self._jobs._info
        ended = info.state in ENDED
        self._seen.state = ("failed" if info.failed else "done") if ended else "left"
        if self.is_live:
            self._surface.end(self._seen)


def partial(
    info: JobInfo, failed: dict[int, BaseException], results: list[Any]
) -> errors.PartialFailure:
    """The report of a map of which items failed."""
    shown = [
        f"  item {number}: {type(error).__name__}: {str(error)[:200]}"
        for number, error in islice(failed.items(), 5)
    ]
    more = [f"  … and {len(failed) - 5:,} more"] if len(failed) > 5 else []
    text = "\n".join(
        [
            f"{len(failed):,} of {len(results):,} items of {info.name} failed:",
            *shown,
            *more,
            "The others' results are there: `results(on_error='skip')`, or `.results` of this "
            "error; `rerun(failed_only=True)` tries these again.",
        ]
    )
    error = errors.PartialFailure(text)
    error.failures, error.results = failed, results
    error.__cause__ = next(iter(failed.values()))
    return error


# --- sending --------------------------------------------------------------------------------------

Pack = Callable[[Any], packed.Packed]


class Feeder:
    """Sends the items. `total`: how many there are, None where that is not known."""

    def __init__(
        self, peer: Peer, job_id: str, items: Iterable[Any], pack: Pack, ahead: int
    ) -> None:
        self._peer, self._job_id, self._pack = peer, job_id, pack
        self.total: int | None = None
        with contextlib.suppress(TypeError):
            self.total = len(items)  # type: ignore[arg-type]
        self._items = iter(items)
        self._ahead = ahead
        self._read = 0
        self._all = self.total is not None
        self._sent = 0
        self._news = threading.Condition()
        self._stopped = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="mlcloud-items", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def read(self, number: int | None = None) -> None:
        """So many results have been read (None: one more)."""
        with self._news:
            self._read = self._read + 1 if number is None else max(self._read, number)
            if not self._all:
                self._news.notify_all()

    def read_all(self) -> None:
        with self._news:
            self._all = True
            self._news.notify_all()

    def stop(self) -> None:
        with self._news:
            self._stopped = True
            self._news.notify_all()

    def check(self) -> None:
        """Raises what the iterable raised, or what could not be sent."""
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            self._send_all()
        except errors.Conflict as error:
            if not self._stopped:  # it was cancelled elsewhere, or has failed: its results say so
                self.error = None
                del error
        except BaseException as error:
            # What was sent goes on; nothing more comes.
            self.error = error
            with contextlib.suppress(errors.MLCloudError):
                self._send([], {}, last=True)

    def _send_all(self) -> None:
        while not self._stopped:
            room = self._room()
            if room == 0:
                continue
            batch: list[Any] = []
            needs: dict[int, list[str]] = {}
            size, began = 0, time.monotonic()
            over = False
            try:
                for item in islice(self._items, room):
                    self._add(item, batch, needs)
                    size += _size(batch[-1][0])
                    if size > BATCH_BYTES or time.monotonic() - began > BATCH_S:
                        break
                else:
                    over = len(batch) < room  # that was all
            except BaseException:
                with contextlib.suppress(errors.MLCloudError):
                    self._send(batch, needs, last=True)  # what came before is not lost
                raise
            self._send(batch, needs, last=over)
            if over:
                return

    def _add(self, item: Any, batch: list[Any], needs: dict[int, list[str]]) -> None:
        number = self._sent + len(batch)
        try:
            found = self._pack(item)
        except errors.NotPicklable as error:
            raise errors.NotPicklable(f"item {number} was not sent: {error}") from error
        if found.needs:
            named = refs.named(found.needs)
            needs[number] = refs.jobs_of(named)
            batch.append([found.wire, named])
        else:
            batch.append([found.wire])

    def _room(self) -> int:
        """How many items may be pulled now; waits a while for some."""
        with self._news:
            if self._all:
                return BATCH
            room = self._read + self._ahead - self._sent
            if room <= 0:
                self._news.wait(ALIVE_S)
                room = self._read + self._ahead - self._sent
        if room <= 0 and not self._all and not self._stopped:
            self._send([], {}, last=False)  # it is still here
            return 0
        return max(0, min(room, BATCH)) if not self._all else BATCH

    def _send(self, batch: list[Any], needs: dict[int, list[str]], *, last: bool) -> None:
        body = {"first": self._sent, "items": batch, "needs": needs, "last": last}
        # In the background: it brings no cluster up.
        try:
            self._peer.send("POST", f"/v1/jobs/{self._job_id}/items", body, start=False)
        except errors.ClusterDown as error:
            raise self._peer.is_down(self._job_id) from error
        self._sent += len(batch)
        if last:
            self.total = self._sent


def _size(wire: Any) -> int:
    if isinstance(wire, bytes):
        return len(wire)
    return sum(map(_size, wire)) if isinstance(wire, list) else 100
