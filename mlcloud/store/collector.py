"""Removing the chunks that nobody names, while others go on writing.

    mark   chunks that no manifest names and nobody has touched for `grace` ─► step n, "marked"
    grace  …at least that long; the next `prune` goes on
    sweep  step n+1, "sweeping" ─► list manifests and chunks again ─► remove those that are still
           unnamed and were not written since ─► look for what was committed meanwhile ─► "done"

The steps are manifests of kind `sweeps`, so each has one author: a collector that finds the next
one taken has been replaced, and stops. They are also how writers and collectors see each other,
whatever their clocks say:

    a writer     looks at the newest step ─► uploads ─► creates its manifest ─► looks again
    a collector  creates "sweeping" ─► lists the manifests ─► removes

Either the collector's list has the manifest, and its chunks stay; or the writer finds another step
than at its first look, waits until the sweep is over, and looks whether its chunks are all there.
If not, its manifest goes again (`Collected`) and it saves once more. A writer that died before it
looked is found by the collector: what was committed while it removed is looked at in the end, and
taken back where chunks are missing. So a writer looks whether its manifest is still there, too:
somebody else may have put its chunks since. What is left is a writer that slept through all of
`grace` and the sweep, and died between its last two requests: nobody was told of that step, and a
reader notices that it is damaged.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import TYPE_CHECKING, Any

from mlcloud import errors
from mlcloud.store import manifest as manifests

if TYPE_CHECKING:
    from mlcloud.store.store import Store

KIND, NAME = "sweeps", "chunks"
GRACE_S = 24 * 3600.0
ABANDONED_S = 900.0  # a sweep that is this old was left by a collector that died
WAIT_S = 60.0  # that a writer waits for a sweep
POLL_S = 0.2
VIEW_S = 60.0  # so old a writer's look may be: much less than any grace
BATCH = 64


@dataclass(frozen=True)
class Phase:
    """The newest step. `condemned`: the chunks it is about. Times are the server's."""

    step: int = 0
    phase: str = "done"
    condemned: frozenset[str] = frozenset()
    at: float = 0.0  # they were marked
    began: float = 0.0  # this step
    grace_s: float = 0.0


class Checked(Enum):
    """Of the chunks that a writer names."""

    QUIET = "nobody swept since they were there"
    THERE = "there was a sweep, and they are there"
    GONE = "some of them went, or may go yet"


@dataclass(frozen=True)
class Pruned:
    """What `prune` did: removed now, and what will be by one after `due`."""

    chunks: int = 0
    bytes: int = 0
    marked: int = 0
    marked_bytes: int = 0
    due: datetime | None = None


class Collector:
    """Of one store. `seen` is what this process knows of the newest step."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.seen: Phase | None = None
        self._first = -1
        self._looked = 0.0

    @property
    def first(self) -> int:
        """The newest step when this was asked first: before anything was put."""
        if self._first < 0:
            try:
                self._first = self.look().step
            except errors.StoreError:
                self._first = 0  # unknown: a commit looks whether all is there, if anything goes
        return self._first

    # --- what writers do --------------------------------------------------------------------------

    def look(self) -> Phase:
        """The newest step; one listing, and a read where it is another than before."""
        self._looked = time.monotonic()
        newest = self._store.latest(KIND, NAME)
        if newest is None:
            self.seen = Phase()
        elif self.seen is None or self.seen.step != newest:
            try:
                body = self._store.read(KIND, NAME, newest)
            except errors.NoCheckpoint:  # tidied away: there is a newer one
                return self.look()
            self.seen = Phase(
                newest,
                *(str(body["phase"]), frozenset(body["condemned"])),
                *(float(body["at"]), float(body["began"]), float(body["grace_s"])),
            )
        assert self.seen is not None
        return self.seen

    def keep_in_view(self) -> None:
        """Before a chunk is put: what is condemned is known, as of not long ago."""
        _ = self.first
        if time.monotonic() - self._looked > VIEW_S:
            with contextlib.suppress(errors.StoreError):  # what is put next says so
                self.look()

    def settled(self, refs: Iterable[manifests.ChunkRef]) -> Phase:
        """The newest step; waits while a sweep is about some of these chunks, within reason."""
        refs = list(refs)
        now, until = self.look(), time.monotonic() + WAIT_S
        while now.phase == "sweeping" and any(ref.hash in now.condemned for ref in refs):
            if time.monotonic() > until:
                break
            time.sleep(POLL_S)
            now = self.look()
        return now

    def is_condemned(self, hash_: str) -> bool:
        """Whether a chunk that is there may go: it is to be written anew, not taken as there."""
        seen = self.seen
        return seen is not None and seen.phase != "done" and hash_ in seen.condemned

    def check(self, since: int, raw: bytes) -> Checked:
        """After a commit: whether all chunks it names are there. They were at step `since`."""
        now = self.look()
        if now.step == since and now.phase != "sweeping":
            return Checked.QUIET
        refs = manifests.refs_in(raw)
        now = self.settled(refs)
        if now.phase == "sweeping" and any(ref.hash in now.condemned for ref in refs):
            return Checked.GONE  # it goes on, and may remove them yet
        return Checked.GONE if self._store.missing(refs) else Checked.THERE

    # --- what collectors do -----------------------------------------------------------------------

    def prune(self, grace_s: float) -> Pruned:
        """Go on with what was marked long enough ago, and mark what is unnamed now."""
        phase, now = self.look(), self._store.now()
        done = Pruned()
        if phase.phase == "sweeping" and now - phase.began < ABANDONED_S:
            raise errors.Conflict(
                f"the store at {self._store.url} is being swept by another process: try again "
                "when it is done"
            )
        due = phase.at + min(grace_s, phase.grace_s)
        if phase.phase == "sweeping" or (phase.phase == "marked" and now >= due):
            done = self._sweep(phase)
        elif phase.phase == "marked":
            return Pruned(marked=len(phase.condemned), due=_time(due))
        return self._mark(grace_s, done)

    def _mark(self, grace_s: float, done: Pruned) -> Pruned:
        now = self._store.now()
        chunks = list(self._store.chunks())  # before the manifests: what appears since is kept
        named = self._named()
        marked = {h: n for h, n, written in chunks if h not in named and written <= now - grace_s}
        if not marked:
            return done
        self._commit("marked", marked, now, now, grace_s)
        if grace_s <= 0:
            swept = self._sweep(self.look())
            return Pruned(done.chunks + swept.chunks, done.bytes + swept.bytes)
        return Pruned(
            *(done.chunks, done.bytes, len(marked), sum(marked.values())), _time(now + grace_s)
        )

    def _sweep(self, phase: Phase) -> Pruned:
        mine = self._commit("sweeping", phase.condemned, phase.at, self._store.now(), phase.grace_s)
        named = self._named()
        # A chunk that was written since it was condemned belongs to somebody.
        before = phase.at - self._store.clock_s
        doomed = [
            (hash_, size)
            for hash_, size, written in self._store.chunks()
            if hash_ in phase.condemned and hash_ not in named and written <= before
        ]
        freed = 0
        for at in range(0, len(doomed), BATCH):
            self._go_on(mine)
            for size in self._store.remove_chunks(doomed[at : at + BATCH]):
                freed += size
        self._take_back(phase.condemned, mine)
        self._commit("done", (), 0.0, self._store.now(), 0.0)
        return Pruned(len(doomed), freed)

    def _take_back(self, condemned: frozenset[str], mine: int) -> None:
        """Manifests that came while chunks of theirs went: their writers have died, or do it too.

        Nobody named these chunks when they were condemned, so whoever does came later.
        """
        for path, raw in self._store.read_manifests():
            refs = manifests.refs_in(raw)
            if any(ref.hash in condemned for ref in refs) and self._store.missing(refs):
                self._go_on(mine)
                self._store.remove_manifest(path)

    def _go_on(self, mine: int) -> None:
        if self.look().step != mine:
            raise errors.Conflict("another process has taken over this sweep")

    def _named(self) -> set[str]:
        # The raw text, whether or not it is valid: a damaged manifest still protects.
        named = set[str]()
        for _, raw in self._store.read_manifests():
            named |= {ref.hash for ref in manifests.refs_in(raw)}
        return named

    def _commit(
        self, phase: str, condemned: Iterable[str], at: float, began: float, grace_s: float
    ) -> int:
        """The next step, if nobody else has made it. Raises `Conflict`."""
        before = Phase() if self.seen is None else self.seen
        body: dict[str, Any] = {
            "phase": phase,
            "condemned": sorted(condemned),  # without `blake3:`, which would name them
            "at": at,
            "began": began,
            "grace_s": grace_s,
        }
        step = before.step + 1
        try:
            self._store.commit(KIND, NAME, step, body)
        except errors.StepExists:
            raise errors.Conflict(
                f"the store at {self._store.url} is being pruned by another process: try again "
                "when it is done"
            ) from None
        self.seen = Phase(step, phase, frozenset(body["condemned"]), at, began, grace_s)
        if step > 4:
            self._store.discard(KIND, NAME, step - 4)
        return step


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
