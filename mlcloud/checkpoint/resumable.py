"""A training loop that continues where it was committed last.

    for step in mlcloud.resumable(range(10_000), state={"model": model, "opt": opt}):
        train_one(step)

    begin ── read newest step that loads ──► restore state in place ──► skip the items it has done
      item ─► body ─► asked for the next: the item is done ─► notice? due? ─► save ─► next item
    end ──► save, complete: the same execution run again restores the state and yields nothing

The loop stands still while its state is copied, and goes on while a thread writes the copy; on a
notice, and at the end, it waits until the step is committed.

A step is the number of items done. State is saved only between items, never in the middle of one:
`break` and exceptions save nothing, and the item they left is done again.

A shuffled DataLoader draws its order when its iterator is made. So each checkpoint also holds the
random state at the loop's begin; on resume the iterator is made under that one, the done items are
skipped, and then the random state of the step is set. Ranges and sequences are indexed, and an
iterable that has `state_dict()` and `load_state_dict()` (torchdata's StatefulDataLoader, a
streaming data set) is set to its place, so that skipping costs nothing.

When it saves, and what becomes of it: `saver`.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from mlcloud import errors
from mlcloud.checkpoint import context, objects, randomness
from mlcloud.checkpoint.checkpoints import Checkpoints
from mlcloud.checkpoint.codec import Encoder, plain
from mlcloud.checkpoint.context import Loop, RunContext
from mlcloud.checkpoint.restore import apply
from mlcloud.checkpoint.saver import END, Saver
from mlcloud.checkpoint.schedule import Every, Schedule
from mlcloud.checkpoint.step import Loaded

T = TypeVar("T")
#: Beside the random state at the loop's begin, `start` holds these, which are the step's.
_OF_STEP = ("position", "generators_now")
OWN_KEPT = 5  # steps of a series that the user did not make


def resumable(
    iterable: Iterable[T],
    state: dict[Any, Any],
    *,
    every: Every = "auto",
    checkpoints: Checkpoints | None = None,
) -> Resumable[T]:
    """Iterate over `iterable` from the last committed step on, and commit `state` on the way.

    Args:
        iterable: gives the same items in the same order each time, or has `state_dict()` and
            `load_state_dict()` for its position.
        state: what to save and restore, by name: objects with `state_dict()`/`load_state_dict()`,
            tensors, arrays, lists, numbers. Restored in place.
        every: a number of steps, a duration (`"30s"`), or `"auto"`, which weighs the measured cost
            of a save against the time a preemption would lose.
        checkpoints: where to save. In a remote cell the default is the session's store, and the
            loop resumes when the same execution runs again; elsewhere the default is not to save.
            Loops that share a `Checkpoints` need names of their own.
    """
    return Resumable(iterable, state, every, checkpoints)


class Resumable(Generic[T]):
    """What `resumable` returns: an iterable, with a length when `iterable` has one."""

    def __init__(
        self,
        iterable: Iterable[T],
        state: dict[Any, Any],
        every: Every,
        checkpoints: Checkpoints | None,
    ) -> None:
        self._iterable, self._state, self._every = iterable, state, every
        self._checkpoints = checkpoints
        Schedule(every, 1.0, 0.0)  # a wrong `every` is said here

    def __len__(self) -> int:
        return len(self._iterable)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[T]:
        run = context.current()
        checkpoints = self._checkpoints
        parent: Checkpoints | None = None
        if checkpoints is None and run is not None:
            series = run.next_series()
            checkpoints = Checkpoints(run.store_url, series, keep=OWN_KEPT, report=run.report)
            if run.begins_with is not None and series.startswith(run.series):
                older = run.begins_with + series[len(run.series) :]
                parent = Checkpoints(run.store_url, older)
        if checkpoints is None:
            warnings.warn(
                "mlcloud.resumable: not in a remote cell, so nothing is saved here. To save and "
                'resume, pass checkpoints=mlcloud.Checkpoints("a folder or s3://bucket/path")',
                stacklevel=2,
            )
            return iter(self._iterable)
        return _Run(self._iterable, self._state, self._every, checkpoints, run, parent).items()


class _Run(Generic[T]):
    """One pass over the iterable."""

    def __init__(
        self,
        iterable: Iterable[T],
        state: dict[Any, Any],
        every: Every,
        checkpoints: Checkpoints,
        run: RunContext | None,
        parent: Checkpoints | None,
    ) -> None:
        self._iterable, self._state, self._checkpoints = iterable, state, checkpoints
        self._parent = parent  # what it begins with while nothing of its own is saved
        self._context = run
        self._saver = Saver(checkpoints, every, "mlcloud.resumable", run)
        self._start: dict[str, Any] = {}
        self._indexed = isinstance(iterable, Sequence) and not isinstance(iterable, (str, bytes))
        self._positioned = not self._indexed and objects.has_state_dict(iterable)

    def items(self) -> Generator[T, None, None]:
        # An object that cannot be saved is said before the first item, not after an hour.
        Encoder().encode(dict(self._state), "state")
        self._start = {**randomness.capture(), "generators": self._drawn()}
        done, items = self._resume()
        if self._positioned:
            Encoder().encode(self._iterable.state_dict(), "the iterable")  # type: ignore[attr-defined]
        length = _length(self._iterable)
        loop, prepared = Loop(self._checkpoints.name, done), False
        try:
            for item in items:
                if self._context is not None:
                    loop.step, loop.inner = done, 0
                    self._context.enter(loop)
                began = time.monotonic()
                try:
                    yield item
                finally:
                    if self._context is not None:
                        self._context.leave(loop)
                done += 1
                self._saver.ran(time.monotonic() - began)
                if not prepared:
                    # Only now is there all that an optimizer remembers.
                    prepared = True
                    self._checkpoints.prepare(self._state)
                # After the last item the save at the end follows at once.
                reason = self._saver.reason(done) if done != length else None
                if reason is not None:
                    self._save(done, reason)
        finally:
            self._saver.join()  # `break`: what was begun is committed when the loop is left
        if self._saver.saved is None or self._saver.saved < done:
            self._save(done, END)

    # --- beginning --------------------------------------------------------------------------------

    def _resume(self) -> tuple[int, Iterator[T]]:
        """Restore the newest step; returns it and an iterator over the items after it."""
        try:
            loaded = self._read()
        except errors.NoCheckpoint:
            return 0, iter(self._iterable)
        except errors.Damaged as error:
            newest = self._checkpoints.steps()[-1]
            warnings.warn(f"mlcloud.resumable: starting from the beginning: {error}", stacklevel=2)
            self._saver.report({"type": "fell_back", "from": newest, "to": 0, "why": str(error)})
            return 0, iter(self._iterable)
        step = loaded.info.step
        start = loaded.start or {}
        begun = {name: each for name, each in start.items() if name not in _OF_STEP}
        self._start = begun or self._start
        length = _length(self._iterable)
        if length is not None and step > length:
            warnings.warn(
                f"mlcloud.resumable: the checkpoint is at step {step}, but there are only {length} "
                "items; nothing is left to do",
                stacklevel=2,
            )
        ended = loaded.info.complete if length is None else step >= length
        items: Iterator[T] = iter(())
        if not ended and self._positioned and "position" in start:
            # Before: the state may hold the iterable too, whose iterator is made only once.
            apply(loaded, self._state, self._checkpoints.name)
            items = self._at(start)
            randomness.put_back(loaded.random)
        else:
            if not ended:
                items = self._after(step, start)
            # The state is restored after skipping: skipped items may have used what is in it.
            apply(loaded, self._state, self._checkpoints.name)
        self._put_drawn(start.get("generators_now"))
        self._saver.saved = step
        self._saver.report({"type": "resumed", "step": step, "bytes": loaded.info.bytes})
        return step, items

    def _read(self) -> Loaded:
        try:
            return self._checkpoints.read(only=self._state)
        except errors.NoCheckpoint:
            if self._parent is None:
                raise
            return self._parent.read(only=self._state)

    def _after(self, step: int, start: dict[str, Any]) -> Iterator[T]:
        if self._indexed:
            sequence: Any = self._iterable
            return (sequence[i] for i in range(step, len(sequence)))
        randomness.put_back(start)
        self._put_drawn(start.get("generators"))
        items = iter(self._iterable)
        next(itertools.islice(items, step, step), None)
        return items

    def _at(self, start: dict[str, Any]) -> Iterator[T]:
        """An iterator of an iterable that knows its position."""
        randomness.put_back(start)  # workers get the seeds that they had
        self._put_drawn(start.get("generators"))
        self._iterable.load_state_dict(start["position"])  # type: ignore[attr-defined]
        return iter(self._iterable)

    def _drawn(self) -> list[Any]:
        """The states of the generators that the iterable draws from, if it has its own."""
        return [randomness.state_of(each, kind) for each, kind in _generators(self._iterable)]

    def _put_drawn(self, states: list[Any] | None) -> None:
        for (each, kind), state in zip(_generators(self._iterable), states or [], strict=False):
            randomness.put_state(each, kind, plain(state))

    # --- saving -----------------------------------------------------------------------------------

    def _save(self, done: int, why: str) -> None:
        start = {**self._start, "generators_now": self._drawn()}
        if self._positioned:
            start["position"] = self._iterable.state_dict()  # type: ignore[attr-defined]
        self._saver.save(self._state, done, why, start=start)


def _length(iterable: Any) -> int | None:
    try:
        return len(iterable)
    except TypeError:
        return None


def _generators(iterable: Any) -> list[tuple[Any, str]]:
    """A loader's own generators, each with its kind; samplers may share the loader's."""
    batches = getattr(iterable, "batch_sampler", None)
    owners = [iterable, getattr(iterable, "sampler", None), batches]
    owners.append(getattr(batches, "sampler", None))
    found = {id(each): each for each in (getattr(owner, "generator", None) for owner in owners)}
    kinds = ((each, randomness.kind_of(each)) for each in found.values())
    return [(each, kind) for each, kind in kinds if kind is not None]
