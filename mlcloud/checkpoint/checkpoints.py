"""Checkpoints: named series of training states in a store, saved whole and restored in place.

    save     state ─ codec ─► tree + blobs ─ packing ─► segments ─ committing ─► chunks, manifest
    restore  newest manifest ─► chunks, all read and verified ─► codec ─► into the live objects
    steps    which there are, which may go          export, import_from    other tools' files

A damaged step is passed over for the one before it, with a warning. Of the user's state nothing is
touched before it is clear that the step is there and fits; then large arrays are read to where they
belong, and everything is verified. A step's manifest body:

    {"format": 2, "segments": [["blake3:<hash>:<size>", …], …], "content": {…} or ["blake3:…", …],
     "digest": "…", "bytes": …, "new_bytes": …, "seconds": …, "metric": …, "extra": …,
     "complete": …}

`content` holds `tree`, `random` (and `start`, for loops), `blobs`, the places of the blobs in the
segments, and `xxh3`, the digests of the segments' blocks (not in format 1); it moves into chunks of
its own when it is long. `digest` is over content and segments: two saves of one step with equal
digests saved the same, and the second is no error.
"""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from mlcloud import errors
from mlcloud.checkpoint import context, packing, randomness, staging
from mlcloud.checkpoint.codec import Encoder, plain
from mlcloud.checkpoint.committing import Committer
from mlcloud.checkpoint.keep import Keep, rule
from mlcloud.checkpoint.listing import Difference, Row, differences, rows
from mlcloud.checkpoint.reading import Reader
from mlcloud.checkpoint.restore import apply
from mlcloud.checkpoint.saving import Saving, await_series
from mlcloud.checkpoint.segments import Known
from mlcloud.checkpoint.staging import Stage
from mlcloud.checkpoint.step import KIND, CheckpointInfo, Loaded, Target, encode_note, info_of
from mlcloud.checkpoint.steps import Steps
from mlcloud.store import Store, residency
from mlcloud.widgets.series import Series

if TYPE_CHECKING:
    from mlcloud.checkpoint.distributed import StoreReader, StoreWriter


class Checkpoints(Steps):
    """A series of checkpoints.

    Args:
        store: a Store or its URL.
        name: tells series in one store apart; may have parts, `"exp/run-3"`.
        keep: which steps stay after each save, a number of the newest or a `Keep`; None: all.
        verify: by which hashes what is read is checked: blake3, by which it is named, or xxh3,
            several times as fast, which damage does not escape but a forger could.
        report: gets the events `fell_back` (see `context.RunContext`); by default they go to the
            remote cell that runs here, if any.

    One writer per series is assumed. A second one is not dangerous, since a step is committed once
    and never replaced, but the two would interleave their steps.
    """

    def __init__(
        self,
        store: str | Store,
        name: str = "checkpoints",
        *,
        keep: int | Keep | None = None,
        verify: Literal["blake3", "xxh3"] = "blake3",
        report: context.Report | None = None,
    ) -> None:
        if isinstance(store, str):
            residency.refuse_outside(store, "checkpoints")
        if verify not in ("blake3", "xxh3"):
            raise errors.UsageError(f"verify is 'blake3' or 'xxh3', not {verify!r}")
        super().__init__(
            Store(store) if isinstance(store, str) else store,
            name,
            None if keep is None else rule(keep),
            report,
        )
        self._verify_by = verify
        self._known = Known(self.store)
        self._committer = Committer(self.store, name, self._known)
        self._stage = Stage()
        self._pending: Saving | None = None

    def __repr__(self) -> str:
        return f"Checkpoints({self.store.url!r}, {self.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # It is a place, not what lies there: a notebook's variable comes back with its session.
        if not self.store.by_url:
            return self.store.__reduce__()  # refused: it may hold a key
        return _again, (self.store.url, self.name, self.keep, self._verify_by)

    # --- saving -----------------------------------------------------------------------------------

    @overload
    def save(
        self,
        state: dict[Any, Any],
        step: int,
        *,
        metric: float | None = None,
        extra: dict[str, Any] | None = None,
        wait: Literal[True] = True,
    ) -> CheckpointInfo: ...

    @overload
    def save(
        self,
        state: dict[Any, Any],
        step: int,
        *,
        metric: float | None = None,
        extra: dict[str, Any] | None = None,
        wait: Literal[False],
    ) -> Saving: ...

    def save(
        self,
        state: dict[Any, Any],
        step: int,
        *,
        metric: float | None = None,
        extra: dict[str, Any] | None = None,
        wait: bool = True,
    ) -> CheckpointInfo | Saving:
        """Commit the state as `step`.

        The values of `state` are objects with `state_dict()`/`load_state_dict()`, tensors, arrays,
        generators, or plain data; else NotCheckpointable names the place. `extra` is small plain
        data to remember with the step.

        `wait=False` returns as soon as the state is copied, and a thread writes it: what the
        training does next is not in it. A `Saving` tells when it is committed, or raises what went
        wrong. The next save waits for it; so does the end of the process.

        Saving a step again with the same content is no error; with another content it raises
        StepExists, and the committed one stays. A committed step that is damaged is replaced.

        In a `torch.distributed` group, a state that holds shards (FSDP2 models and their
        optimizers, DTensors; as entries of the state, not deeper) is saved by all ranks together:
        each has to call. What has no shards is rank 0's. A state without shards (DDP) is saved by
        who calls, so call on one rank. Where all ranks save, `wait=False` waits too.
        """
        saving = self.begin_save(state, step, metric=metric, extra=extra, wait=wait)
        return saving.result() if wait else saving

    def begin_save(
        self,
        state: dict[Any, Any],
        step: int,
        *,
        metric: float | None = None,
        extra: dict[str, Any] | None = None,
        complete: bool = False,
        start: dict[str, Any] | None = None,
        random: dict[str, Any] | None = None,
        wait: bool = False,
    ) -> Saving:
        """`save` for `resumable`: also whether the loop ended, and how its random state began.

        `random`: the states of the global generators; None: those of now.
        """
        began = time.monotonic()
        step, metric = int(step), None if metric is None else float(metric)
        note = {
            "metric": encode_note(metric, "metric"),
            "extra": encode_note(extra, "extra"),
            "complete": complete,
        }
        if _in_shards(state):
            from mlcloud.checkpoint import collective

            self._await_pending()
            together = partial(collective.save, self, state, step, note, start, random)
            return self._start(step, together, began, here=True)
        if not isinstance(state, dict):
            raise errors.NotCheckpointable(
                f"state is a {type(state).__name__}; it has to be a dict, such as "
                '{"model": model, "opt": opt}'
            )
        self._await_pending()
        encoder = Encoder()
        content = {
            "tree": encoder.encode(dict(state), "state"),
            "random": encoder.encode(randomness.capture() if random is None else random, "random"),
            "start": encoder.encode(start, "start"),
        }
        layout = packing.plan(encoder.blobs)
        content["blobs"] = layout.places
        buffers: Callable[[], Iterable[memoryview]]
        here = wait or not self._stage.fits(staging.size_of(layout))
        if here:
            buffers = partial(packing.buffers, layout, encoder.blobs)
        else:
            staged = self._stage.stage(layout, encoder.blobs)
            encoder.blobs.clear()

            def buffers() -> Iterable[memoryview]:
                return staged

        def write() -> CheckpointInfo:
            with self._lock:
                made, new_bytes = self._committer.commit(
                    step, content, buffers, note, began, beside=not here
                )
                self.tidy()
                seconds = time.monotonic() - began
                return replace(info_of(made), new_bytes=new_bytes, seconds=seconds)

        return self._start(step, write, began, here=here)

    def prepare(self, state: dict[Any, Any]) -> None:
        """Get the memory for saves of such a state ready, in the background.

        Else the first `save(…, wait=False)` does, while the training waits.
        """
        encoder = Encoder()
        encoder.encode(dict(state), "state")
        size = staging.size_of(packing.plan(encoder.blobs))
        if self._stage.fits(size):
            self._stage.prepare(size, pinned=staging.on_gpu(encoder.blobs))

    def wait(self) -> None:
        """Until what was begun by `save(…, wait=False)` is committed. Raises what went wrong."""
        pending = self._pending
        if pending is not None:
            pending.result()

    def _start(
        self, step: int, write: Callable[[], CheckpointInfo], began: float, *, here: bool
    ) -> Saving:
        saving = Saving((self.store.url, self.name), step, write)
        if not here:
            self._pending = saving
        saving.start(here=here)
        saving.stall_s = time.monotonic() - began
        return saving

    def _await_pending(self) -> None:
        """Let the save before this one end. What went wrong with it is said, if nobody was told."""
        self._ended()
        pending, self._pending = self._pending, None
        if pending is None:
            return
        error = pending.exception()
        if error is not None and not pending.told:
            warnings.warn(
                f"checkpoint {self.name!r}: step {pending.step} was not saved: {error}",
                stacklevel=4,
            )

    @contextlib.contextmanager
    def alone(self) -> Iterator[Known]:
        """For a save that does not go by `begin_save`: no other writes meanwhile."""
        with self._lock:
            yield self._known

    # --- torch.distributed.checkpoint -------------------------------------------------------------

    def writer(
        self, step: int, *, metric: float | None = None, extra: dict[str, Any] | None = None
    ) -> StoreWriter:
        """`dcp.save(state, storage_writer=checkpoints.writer(step))`, on every rank.

        What is no tensor has to be plain data. dcp raises CheckpointException on all ranks when one
        fails; nothing is committed then.
        """
        from mlcloud.checkpoint.distributed import StoreWriter

        note = {"metric": encode_note(metric, "metric"), "extra": encode_note(extra, "extra")}
        return StoreWriter(self.store, self.name, step, note=note, committed=self.tidy)

    def reader(self, step: int | None = None) -> StoreReader:
        """`dcp.load(state, storage_reader=checkpoints.reader())`, on every rank.

        With None, the newest step. Where it is damaged dcp raises CheckpointException on all ranks,
        and the tensors in `state` are partly overwritten: load an older step into them. (`restore`
        does that by itself.)
        """
        from mlcloud.checkpoint.distributed import StoreReader

        return StoreReader(self.store, self.name, step)

    # --- loading ----------------------------------------------------------------------------------

    def restore(self, state: dict[Any, Any], step: int | None = None) -> int:
        """Put a step into the objects of `state`, in place; returns the step.

        With `step=None`, the newest that loads completely: a damaged one is passed over, with a
        warning. What `state` does not name stays in the store. The global random generators are
        set to where they were.

        Raises NoCheckpoint, UsageError when `state` does not fit, Damaged when chunks are missing
        or cut short: then nothing was changed. Large arrays are read to where they belong and
        checked there; when one turns out to be damaged and no other step loads either, Damaged
        says that the state was partly overwritten.

        In a `torch.distributed` group, each rank has to call for a state that holds shards, and
        all come to the same step or the same error; nothing is overwritten then before all ranks
        have all of it. Any number of ranks can restore a step; the random generators go on where
        there are as many ranks as saved it.
        """
        if _in_shards(state):
            from mlcloud.checkpoint import collective

            self._ended()
            return collective.load(self, state, step)
        target = Target(state)
        try:
            loaded = self._find(step, partial(self._read, only=state, into=target))
        except errors.Damaged as error:
            if not target.touched:
                raise
            raise errors.Damaged(
                f"{error}. Arrays of the state hold parts of it now: make the state anew before "
                "you go on with it"
            ) from error
        apply(loaded, state, self.name)
        return loaded.info.step

    def load(self, step: int | None = None) -> dict[Any, Any]:
        """A step as plain data: state dicts where objects stood, tensors on the CPU."""
        state: dict[Any, Any] = plain(self.read(step).state)
        return state

    def read(self, step: int | None = None, *, only: Collection[Any] | None = None) -> Loaded:
        """A step, verified and decoded. With None, the newest that is undamaged.

        `only`: these entries of the state; what belongs to others alone is not read.
        """
        return self._find(step, partial(self._read, only=only))

    def _ended(self) -> None:
        """Let a save that goes on end, whoever began it: what was just saved is the newest."""
        await_series((self.store.url, self.name))

    def _find(self, step: int | None, read: Callable[[int], Loaded]) -> Loaded:
        self._ended()
        return read(step) if step is not None else self.newest(self.steps(), read)

    def _read(
        self, step: int, only: Collection[Any] | None = None, into: Target | None = None
    ) -> Loaded:
        since = self.store.begin()
        made = self.store.manifest(KIND, self.name, step)
        loaded, segments = Reader(self.store, self._verify_by).read(made, only, into)
        if segments:
            with self._lock:
                # A step from before the key was given, or changed, is not what new ones rest on.
                if made.sealed == self.store.sealed:
                    self._known.learn(segments, since)
                else:
                    self._known.forget()
        return loaded

    # --- looking ----------------------------------------------------------------------------------

    def overview(self, last: int | None = 20) -> Series:
        """The newest `last` steps (None: all) with sizes, what was new, age and metric.

        A table in a notebook, and by `print`; a step whose manifest cannot be read is one of its
        lines. Of a long series the metric's curve takes a sample, so that few manifests are read.
        """
        from mlcloud.checkpoint.overview import overview

        return overview(self, last)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        try:
            series = self.overview()
        except errors.MLCloudError as error:  # a cell's end is no place to fail
            return {"text/plain": f"{self!r}\n{type(error).__name__}: {error}"}
        return {"text/plain": repr(series), "text/html": series._repr_html_()}

    def show(self, step: int | None = None) -> list[Row]:
        """What a step has in it: a line for each tensor, array and plain value."""
        return rows(self.load(step))

    def diff(self, before: int, after: int) -> list[Difference]:
        """The names whose values differ between two steps, and by how much at most."""
        return differences(self.load(before), self.load(after))

    # --- other tools' files -----------------------------------------------------------------------

    def export(
        self,
        path: str | Path,
        step: int | None = None,
        *,
        part: str | None = None,
        format: Literal["safetensors", "pt", "dcp"] | None = None,
    ) -> Path:
        """Write a step for other tools; returns the path, where it appears whole or not at all.

        `.safetensors` takes its tensors and arrays, `.pt` and `.pth` its state dicts (a pickle, as
        torch makes it), and a path without suffix becomes a folder that
        `torch.distributed.checkpoint.load` reads; `format` says so where the name does not. `part`
        takes one entry of the state, `part="model"`; without it names are dotted,
        `model.layer.weight`. A file is replaced, a folder that holds something never.
        """
        from mlcloud.checkpoint.export import export

        loaded = self.read(step)
        notes = {"step": str(loaded.info.step)}
        if loaded.info.metric is not None:
            notes["metric"] = repr(loaded.info.metric)
        return export(plain(loaded.state), path, part, format, notes)

    def import_from(
        self,
        path: str | Path,
        step: int | None = None,
        *,
        part: str | None = None,
        metric: float | None = None,
        extra: dict[str, Any] | None = None,
        format: Literal["safetensors", "pt", "dcp"] | None = None,
    ) -> CheckpointInfo:
        """Commit as a step what another tool wrote: a `.safetensors` file, a `.pt` file, a folder
        of `torch.distributed.checkpoint`, or one of Hugging Face's safetensors.

        `part="model"` makes it that entry of the state, for `restore({"model": model})`; without it
        the file's own entries are the state's. `step` and `metric` are those that an export noted
        in the file; else the step after the newest, and none. Random generators are left alone when
        it is restored.

        No code of the file's is run: a `.pt` file that needs more than torch's safe unpickler
        knows is refused. Raises NotImportable for what is damaged, or is none of these, and
        StepExists; then nothing was committed.
        """
        from mlcloud.checkpoint.importing import read

        found = read(path, part, format)
        if step is None:
            step = found.step if found.step is not None else max(self.steps(), default=-1) + 1
        if metric is None:
            metric = found.metric
        saving = self.begin_save(
            found.state, step, metric=metric, extra=extra, random={}, wait=True
        )
        return saving.result()


def _again(url: str, name: str, keep: Keep | None, verify: Any) -> Checkpoints:
    return Checkpoints(url, name, keep=keep, verify=verify)


def _in_shards(state: Any) -> bool:
    """Whether this process is one of several that save the state together."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available():
        return False
    if not torch.distributed.is_initialized():
        return False
    from mlcloud.checkpoint import collective

    return collective.concerns(state)
