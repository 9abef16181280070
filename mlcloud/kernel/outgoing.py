"""A snapshot's new chunks on their way into the store, while the next cell may already run.

    pieces of live memory ─► write(), in a thread ─► references, in their order
            ▲
    detach(limit): from here on the memory may change. What is not on its way yet is copied, the
                   last pieces first, up to `limit` bytes; what is in front of these is waited for

So a state of any size is saved with `limit` bytes of memory at most, and none at all where the
notebook's user thinks for as long as that takes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from mlcloud.kernel.transfer import Meter, Tell
from mlcloud.store import ChunkRef, Store
from mlcloud.values.digests import Bytes


class Outgoing:
    """The pieces of one snapshot. `tell` hears how far it is, while somebody waits for it."""

    def __init__(self, store: Store, pieces: list[memoryview], tell: Tell | None) -> None:
        self._store = store
        self._pieces: list[Bytes | None] = list(pieces)  # None: on its way, or there
        self._sizes = [piece.nbytes for piece in pieces]
        self._tell = tell
        self._changed = threading.Condition()
        self._taken = self._done = 0  # of the pieces, from the first on
        self._over = False
        self._said = False
        self.awaited = False  # by somebody, who wants to hear how far it is

    def write(self) -> Iterator[ChunkRef]:
        """Store the pieces; their references."""
        self.awaited |= threading.current_thread() is threading.main_thread()
        meter = Meter(
            *("the session's state is being saved", "the state is saved", sum(self._sizes)),
            self._say if self._tell is not None else None,
        )
        try:
            for ref in self._store.put_each(self._next()):
                with self._changed:
                    self._done += 1
                    self._changed.notify_all()
                meter.add(ref.size)
                yield ref
            meter.end()
        finally:
            with self._changed:
                self._over = True
                self._pieces.clear()
                self._changed.notify_all()

    def _next(self) -> Iterator[Bytes]:
        while True:
            with self._changed:
                if self._taken == len(self._sizes):
                    return
                piece, self._pieces[self._taken] = self._pieces[self._taken], None
                self._taken += 1
            assert piece is not None
            yield piece

    def _say(self, text: str, over: bool) -> None:
        if self._tell is not None and (self._said if over else self.awaited):
            self._said = True
            self._tell(text, over)

    def detach(self, limit: int) -> None:
        """Copy what is not on its way yet, up to `limit` bytes, and wait for the rest."""
        at = len(self._sizes)
        while at:
            with self._changed:
                if self._over or at <= self._taken:
                    break
                piece = self._pieces[at - 1]
                if isinstance(piece, memoryview) and not isinstance(piece.obj, bytes):
                    limit -= piece.nbytes
                    if limit < 0:
                        break
                    self._pieces[at - 1] = bytes(piece)
                at -= 1
        self.awaited = True
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._done >= at)
        self.awaited = False
