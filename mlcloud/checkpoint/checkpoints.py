"""Checkpoints: named series of training states in a store, saved whole and restored in place.

    save     state ─ codec ─► tree + blobs ─ packing ─► segments ─ store ─► chunks, then manifest
    restore  newest manifest ─► chunks, all read and verified ─► codec ─► into the live objects

Nothing of the user's state is touched before a whole step has been read and verified; a damaged
step is passed over for the one before it, with a warning. A step's manifest body:

    {"format": 1, "segments": [["blake3:<hash>:<size>", …], …], "content": {…} or ["blake3:…", …],
     "digest": "…", "bytes": …, "new_bytes": …, "seconds": …, "metric": …, "extra": …,
     "complete": …}

`content` holds `tree`, `random` (and `start`, for loops) and `blobs`, the places of the blobs in
the segments; it moves into chunks of its own when it is long. `digest` is over content and
segments: two saves of one step with equal digests saved the same, and the second is no error.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from mlcloud import errors
from mlcloud.checkpoint import arrays, context, packing, randomness, restore
from mlcloud.checkpoint.codec import Decoder, Encoder, plain
from mlcloud.checkpoint.keep import Keep, rule
from mlcloud.checkpoint.listing import Difference, Row, differences, rows
from mlcloud.store import ChunkRef, Store, chunks_of
from mlcloud.store.manifest import Manifest, canonical

if TYPE_CHECKING:
    from mlcloud.checkpoint.distributed import StoreReader, StoreWriter

KIND = "checkpoint"
FORMAT = 1
SHARDED = 2  # a step that several ranks wrote, or `torch.distributed.checkpoint`: `sharding`
#: Content longer than this lies in chunks: a manifest stays small enough to list and read many.
INLINE = 64 * 1024


@dataclass(frozen=True)
class CheckpointInfo:
    """A committed step. `new_bytes` is what had to be uploaded of `bytes`."""

    step: int
    bytes: int
    new_bytes: int
    seconds: float
    created: datetime
    metric: float | None = None
    extra: dict[str, Any] | None = None
    complete: bool = False


@dataclass
class Loaded:
    """A step read and verified, decoded, and not yet put anywhere."""

    info: CheckpointInfo
    state: dict[Any, Any]
    random: dict[str, Any]
    start: dict[str, Any] | None
    sharded: bool = False


class Checkpoints:
    """A series of checkpoints.

    Args:
        store: a Store or its URL.
        name: tells series in one store apart; may have parts, `"exp/run-3"`.
        keep: which steps stay after each save, a number of the newest or a `Keep`; None: all.
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
        report: context.Report | None = None,
    ) -> None:
        self.store = Store(store) if isinstance(store, str) else store
        self.name = name
        self.keep = None if keep is None else rule(keep)
        self._report = report
        self._lock = threading.Lock()
        self.store.steps(KIND, name)  # a wrong name or URL is found here, not after hours

    def __repr__(self) -> str:
        return f"Checkpoints({self.store.url!r}, {self.name!r})"

    # --- saving -----------------------------------------------------------------------------------

    def save(
        self,
        state: dict[Any, Any],
        step: int,
        *,
        metric: float | None = None,
        extra: dict[str, Any] | None = None,
    ) -> CheckpointInfo:
        """Commit the state as `step`.

        The values of `state` are objects with `state_dict()`/`load_state_dict()`, tensors, arrays,
        generators, or plain data; else NotCheckpointable names the place. `extra` is small plain
        data to remember with the step.

        Saving a step again with the same content is no error; with another content it raises
        StepExists, and the committed one stays. A committed step that is damaged is replaced.

        In a `torch.distributed` group, a state that holds shards (FSDP2 models and their
        optimizers, DTensors; as entries of the state, not deeper) is saved by all ranks together:
        each has to call. What has no shards is rank 0's. A state without shards (DDP) is saved by
        who calls, so call on one rank.
        """
        return self.save_loop(state, step, metric=metric, extra=extra)

    def save_loop(
        self,
        state: dict[Any, Any],
        step: int,
        *,
        metric: float | None = None,
        extra: dict[str, Any] | None = None,
        complete: bool = False,
        start: dict[str, Any] | None = None,
    ) -> CheckpointInfo:
        """`save` for `resumable`: also whether the loop ended, and how its random state began."""
        began = time.monotonic()
        step, metric = int(step), None if metric is None else float(metric)
        note = {"metric": _encode_note(metric, "metric"), "extra": _encode_note(extra, "extra")}
        if _in_shards(state):
            from mlcloud.checkpoint import collective

            with self._lock:
                return collective.save(self, state, step, {**note, "complete": complete}, start)
        if not isinstance(state, dict):
            raise errors.NotCheckpointable(
                f"state is a {type(state).__name__}; it has to be a dict, such as "
                '{"model": model, "opt": opt}'
            )
        with self._lock:
            encoder = Encoder()
            content = {
                "tree": encoder.encode(dict(state), "state"),
                "random": encoder.encode(randomness.capture(), "random"),
                "start": encoder.encode(start, "start"),
            }

            def write() -> tuple[Manifest, int]:
                since = self.store.begin()
                body = self._write(encoder, content)
                new = body["new_bytes"]
                body |= {**note, "complete": complete, "seconds": time.monotonic() - began}
                try:
                    return self.store.commit(KIND, self.name, step, body, since=since), new
                except errors.StepExists:
                    return self._settle(step, body["digest"]), 0

            try:
                try:
                    made, new_bytes = write()
                except errors.Collected:  # a prune came in between: what is missing goes again
                    made, new_bytes = write()
            except errors.Damaged:
                # The committed step cannot be loaded: ours takes its place.
                self.store.discard(KIND, self.name, step)
                made, new_bytes = write()
            self.tidy()
        return info_of(made, new_bytes, time.monotonic() - began)

    def tidy(self) -> None:
        """Remove what `keep` does not want."""
        if self.keep is not None:
            self._remove(self.keep)

    def _write(self, encoder: Encoder, content: dict[str, Any]) -> dict[str, Any]:
        """Upload the chunks; returns the body that names them."""
        layout = packing.plan([blob.nbytes for blob in encoder.blobs])
        refs = self.store.put_buffers(packing.buffers(layout, encoder.blobs))
        segments, taken = [], 0
        for segment in layout.segments:
            count = chunks_of(segment.size)
            segments.append([str(ref) for ref in refs[taken : taken + count]])
            taken += count
        text = canonical({**content, "blobs": layout.places})
        digest = blake3(canonical([segments, blake3(text).hexdigest()])).hexdigest()
        inline: Any = {**content, "blobs": layout.places}
        if len(text) > INLINE:
            content_refs = self.store.put_buffers([text])
            refs = refs + content_refs
            inline = [str(ref) for ref in content_refs]
        return {
            "format": FORMAT,
            "segments": segments,
            "content": inline,
            "digest": digest,
            "bytes": sum(ref.size for ref in refs),
            # The same content twice in one state is uploaded once.
            "new_bytes": sum({ref.hash: ref.size for ref in refs if ref.new}.values()),
        }

    def _settle(self, step: int, digest: str) -> Manifest:
        """The step that was committed first, if it holds the same; StepExists if it does not.

        Raises Damaged when it cannot be loaded.
        """
        found = self.store.manifest(KIND, self.name, step)
        problems = self.store.verify(KIND, self.name, step)
        if problems:
            raise errors.Damaged(problems[0])
        if found.body.get("digest") == digest:
            return found
        raise errors.StepExists(
            f"step {step} of {self.name!r} in the store at {self.store.url} was committed before, "
            "with another state; the committed one is kept. Save a later step, or use another name"
        )

    # --- torch.distributed.checkpoint -------------------------------------------------------------

    def writer(
        self, step: int, *, metric: float | None = None, extra: dict[str, Any] | None = None
    ) -> StoreWriter:
        """`dcp.save(state, storage_writer=checkpoints.writer(step))`, on every rank.

        What is no tensor has to be plain data. dcp raises CheckpointException on all ranks when one
        fails; nothing is committed then.
        """
        from mlcloud.checkpoint.distributed import StoreWriter

        note = {"metric": _encode_note(metric, "metric"), "extra": _encode_note(extra, "extra")}
        return StoreWriter(self.store, self.name, step, note=note, committed=lambda _: self.tidy())

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
        set to where they were. Raises NoCheckpoint, Damaged, or UsageError when `state` does not
        fit, and then nothing was changed.

        In a `torch.distributed` group, each rank has to call for a state that holds shards, and
        all come to the same step or the same error. Any number of ranks can restore a step; the
        random generators go on where there are as many ranks as saved it.
        """
        if _in_shards(state):
            from mlcloud.checkpoint import collective

            return collective.load(self, state, step)
        loaded = self.read(step)
        apply(loaded, state, self.name)
        return loaded.info.step

    def load(self, step: int | None = None) -> dict[Any, Any]:
        """A step as plain data: state dicts where objects stood, tensors on the CPU."""
        state: dict[Any, Any] = plain(self.read(step).state)
        return state

    def read(self, step: int | None = None) -> Loaded:
        """A step, verified and decoded. With None, the newest that is undamaged."""
        if step is not None:
            return self._read(step)
        steps = self.steps()
        if not steps:
            raise errors.NoCheckpoint(f"no step of {self.name!r} in the store at {self.store.url}")
        why: list[str] = []
        for candidate in reversed(steps):
            try:
                loaded = self._read(candidate)
            except (errors.Damaged, errors.NoCheckpoint) as error:
                why.append(str(error))
                continue
            if why:
                self.fell_back(steps[-1], candidate, why[0])
            return loaded
        raise errors.Damaged(
            f"none of the {len(steps)} steps of {self.name!r} in the store at {self.store.url} can "
            f"be loaded; the newest: {why[0]}"
        )

    def fell_back(self, newest: int, step: int, why: str) -> None:
        """Tell that the newest step was passed over."""
        warnings.warn(
            f"checkpoint {self.name!r}: step {newest} cannot be loaded ({why}); "
            f"going back to step {step}",
            stacklevel=4,
        )
        context.report({"type": "fell_back", "from": newest, "to": step, "why": why}, self._report)

    def _read(self, step: int) -> Loaded:
        made = self.store.manifest(KIND, self.name, step)
        info = info_of(made)
        if made.body["format"] == SHARDED:
            return self._read_sharded(made, info)
        try:
            segments = [[ChunkRef.parse(text) for text in refs] for refs in made.body["segments"]]
            content = made.body["content"]
            if isinstance(content, list):
                text = self.store.get_buffer([ChunkRef.parse(ref) for ref in content])
                content = json.loads(bytes(text))
            places = [(int(s), int(o), int(n)) for s, o, n in content["blobs"]]
            memory = [self._segment(refs) for refs in segments]

            def blob(number: int) -> memoryview:
                segment, offset, size = places[number]
                part = memory[segment][offset : offset + size]
                if part.nbytes != size:
                    raise ValueError(f"blob {number} ends outside its segment")
                # A packed one gets memory of its own, or it would hold the whole slab.
                if size < packing.SMALL:
                    own = arrays.allocate(size)
                    own[:] = part
                    return own
                return part

            decoder = Decoder(blob)
            tree, random = decoder.decode(content["tree"]), decoder.decode(content["random"])
            return Loaded(info, tree, plain(random), plain(decoder.decode(content.get("start"))))
        except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
            raise errors.Damaged(
                f"step {step} of {self.name!r} in the store at {self.store.url} is no checkpoint "
                f"that this mlcloud reads: {type(error).__name__}: {error}"
            ) from error

    def _read_sharded(self, made: Manifest, info: CheckpointInfo) -> Loaded:
        from mlcloud.checkpoint import whole
        from mlcloud.checkpoint.sharding import parse

        where = f"step {made.step} of {made.name!r} in the store at {self.store.url}"
        state, random, start = whole.read(self.store, parse(self.store, made.body, where))
        return Loaded(info, state, random, start, sharded=True)

    def _segment(self, refs: list[ChunkRef]) -> memoryview:
        return self.store.get_buffer(refs, into=arrays.allocate(_size(refs)))

    # --- looking and tidying ----------------------------------------------------------------------

    def steps(self) -> list[int]:
        """The committed steps, in order."""
        return self.store.steps(KIND, self.name)

    def info(self) -> list[CheckpointInfo]:
        """The committed steps with sizes, times and metrics, in order, without damaged ones."""
        return list(self._infos())

    def _infos(self) -> Iterator[CheckpointInfo]:
        for step in self.steps():
            try:
                yield info_of(self.store.manifest(KIND, self.name, step))
            except (errors.Damaged, errors.NoCheckpoint) as error:
                warnings.warn(f"checkpoint {self.name!r}: {error}", stacklevel=3)

    def verify(self, step: int | None = None) -> list[str]:
        """Read every chunk of a step, or of all; returns what is wrong, in words."""
        steps = self.steps() if step is None else [step]
        return [
            f"step {number}: {problem}"
            for number in steps
            for problem in self.store.verify(KIND, self.name, number)
        ]

    def prune(self, keep: int | Keep = 5, *, sweep: bool = False) -> list[int]:
        """Remove all steps but those to `keep`, a number of the newest or a `Keep`; returns the
        removed ones. Steps whose manifests cannot be read stay, unless they are older than the
        newest `keep`.

        Refused unless one of the kept steps can be loaded (the newest is read and verified).

        This removes manifests; their chunks go with the store's next `prune`. `sweep=True` removes
        every chunk of the store at once that no manifest names: whoever is saving to it meanwhile
        may have to upload once more.
        """
        wanted = rule(keep)
        with self._lock:
            removed = self._remove(wanted, verify=True)
            if sweep:
                self.store.prune(grace_s=0)
        return removed

    def _remove(self, keep: Keep, *, verify: bool = False) -> list[int]:
        steps = self.steps()
        if keep.looks:
            infos = list(self._infos())
            kept = keep.of(infos)
            removed = [each.step for each in infos if each.step not in kept]
        else:  # no manifest need be read
            kept = set(steps[-keep.last :])
            removed = steps[: -keep.last]
        if verify and removed and all(self.verify(step) for step in sorted(kept, reverse=True)):
            raise errors.Damaged(
                f"no step of {self.name!r} that would be kept in the store at "
                f"{self.store.url} can be loaded, so the others are kept too"
            )
        for step in removed:
            self.store.discard(KIND, self.name, step)
        return removed

    def show(self, step: int | None = None) -> list[Row]:
        """What a step has in it: a line for each tensor, array and plain value."""
        return rows(self.load(step))

    def diff(self, before: int, after: int) -> list[Difference]:
        """The names whose values differ between two steps, and by how much at most."""
        return differences(self.load(before), self.load(after))

    def export(self, path: str | Path, step: int | None = None, *, part: str | None = None) -> Path:
        """Write the tensors of a step to a `.safetensors` or `.pt` file for other tools.

        `part` takes one entry of the state, `part="model"`; without it names are dotted,
        `model.layer.weight`. A `.pt` file is a pickle, as torch makes it.
        """
        from mlcloud.checkpoint.export import export

        return export(self.load(step), Path(path), part)


def apply(loaded: Loaded, state: dict[Any, Any], name: str) -> None:
    """Put a step that was read into the objects of `state`, and the random generators back."""
    where, targets = f"step {loaded.info.step} of {name!r}", state
    if loaded.sharded:
        from mlcloud.checkpoint import whole

        targets = whole.stand_ins(state, loaded.state, where)
    live = dict(targets)
    restore.restore(targets, loaded.state, where)
    state.update({key: value for key, value in targets.items() if live[key] is not value})
    randomness.put_back(loaded.random)


def _in_shards(state: Any) -> bool:
    """Whether this process is one of several that save the state together."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available():
        return False
    if not torch.distributed.is_initialized():
        return False
    from mlcloud.checkpoint import collective

    return collective.concerns(state)


def info_of(
    made: Manifest, new_bytes: int | None = None, seconds: float | None = None
) -> CheckpointInfo:
    """What a manifest says. `new_bytes` and `seconds` where this process knows better."""
    body = made.body
    if isinstance(body.get("format"), int) and body["format"] > SHARDED:
        raise errors.StoreError(
            f"step {made.step} of {made.name!r} was saved by a newer mlcloud (format "
            f"{body['format']}, this one reads up to {SHARDED}): upgrade mlcloud"
        )
    try:
        decoder = Decoder(_no_blobs)
        return CheckpointInfo(
            made.step,
            int(body["bytes"]),
            int(body["new_bytes"]) if new_bytes is None else new_bytes,
            float(body["seconds"]) if seconds is None else seconds,
            made.created,
            decoder.decode(body["metric"]),
            plain(decoder.decode(body["extra"])),
            bool(body["complete"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise errors.Damaged(f"step {made.step} of {made.name!r} is no checkpoint") from error


def _encode_note(value: Any, path: str) -> Any:
    encoder = Encoder()
    node = encoder.encode(value, path)
    if encoder.blobs:
        raise errors.NotCheckpointable(
            f"{path} is too large or holds arrays: put them in the state"
        )
    return node


def _no_blobs(number: int) -> memoryview:
    raise KeyError(number)


def _size(refs: list[ChunkRef]) -> int:
    return sum(ref.size for ref in refs)
