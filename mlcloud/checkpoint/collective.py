"""`Checkpoints.save` and `restore` on every rank of a group, for a state that holds shards.

    save      names of models and optimizers ─┐
              all else, by rank 0 ────────────┼─ dcp.save ─► the store, one manifest
              each rank's random generators ──┘
    restore   newest step, the same on all ranks ─► read and verified, beside the live state
              ─► all ranks have theirs? ─► into the live objects;  else the step before, on all

All ranks come to the same end: whatever one of them meets is raised on all, so that none goes on
with half a state or waits for one that has left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from mlcloud import errors
from mlcloud.checkpoint import entries, randomness, restore, whole
from mlcloud.checkpoint.codec import plain
from mlcloud.checkpoint.distributed import StoreReader, StoreWriter, sharded
from mlcloud.checkpoint.items import Value
from mlcloud.checkpoint.segments import Known
from mlcloud.checkpoint.sharding import Sharded
from mlcloud.checkpoint.step import CheckpointInfo, info_of
from mlcloud.checkpoint.whole import ENTRIES, OWN, RANDOM, REST

if TYPE_CHECKING:
    from mlcloud.checkpoint.checkpoints import Checkpoints

T = TypeVar("T")


def concerns(state: Any) -> bool:
    """Whether a state is saved and restored by all ranks together: whether it holds shards."""
    return isinstance(state, dict) and any(map(entries.is_sharded, state.values()))


# --- saving ---------------------------------------------------------------------------------------


def save(
    checkpoints: Checkpoints,
    state: dict[Any, Any],
    step: int,
    note: dict[str, Any],
    start: dict[str, Any] | None,
    random: dict[str, Any] | None,
) -> CheckpointInfo:
    """Commit the state as `step`; called on every rank. `note` and `start` are rank 0's."""
    with checkpoints.alone() as known:
        return _save(checkpoints, state, step, note, start, random, known)


def _save(
    checkpoints: Checkpoints,
    state: dict[Any, Any],
    step: int,
    note: dict[str, Any],
    start: dict[str, Any] | None,
    random: dict[str, Any] | None,
    known: Known,
) -> CheckpointInfo:
    still: set[str] = set()

    def prepare() -> dict[str, Any]:
        made: dict[str, Any] = {}
        kinds: list[tuple[Any, str]] = []
        rest: dict[Any, Any] = {}
        for key, value in state.items():
            if not entries.is_sharded(value):
                kinds.append((key, "rest"))
                rest[key] = value
                continue
            name = str(key)
            if name in made or name.startswith(OWN):
                raise errors.NotCheckpointable(f"state[{key!r}]: another entry has this name")
            made[name] = entries.named(value, state)
            if isinstance(value, torch.nn.Module):
                still.update(f"{name}.{each}" for each in entries.frozen(value, made[name]))
            kinds.append((key, entries.kind(value)))
        if dist.get_rank() == 0:
            made[REST] = Value(rest, "state")
            made[ENTRIES] = Value({"kinds": kinds, "start": start}, "state")
        made[f"{RANDOM}{dist.get_rank()}"] = Value(
            randomness.capture() if random is None else random, "random"
        )
        return made

    content = together(prepare)

    def write() -> StoreWriter:
        writer = StoreWriter(
            checkpoints.store,
            checkpoints.name,
            step,
            note=note,
            frozen=frozenset(still),
            known=known,
            committed=checkpoints.tidy,
        )
        with agreed():
            dcp_save(content, storage_writer=writer)
        return writer

    try:
        writer = write()
    except errors.Collected:  # on all ranks: what is missing goes again
        known.forget()
        writer = write()
    writer.learn()

    def info() -> CheckpointInfo:
        assert writer.made is not None
        return replace(info_of(writer.made), new_bytes=writer.new_bytes)

    return first(info)


# --- restoring ------------------------------------------------------------------------------------


def load(checkpoints: Checkpoints, state: dict[Any, Any], step: int | None) -> int:
    """Put a step into the state; called on every rank. Returns the step."""

    def read(each: int) -> int:
        _restore(checkpoints, state, each)
        return each

    return read(step) if step is not None else checkpoints.newest(first(checkpoints.steps), read)


def _restore(checkpoints: Checkpoints, state: dict[Any, Any], step: int) -> None:
    store, name = checkpoints.store, checkpoints.name
    where = f"step {step} of {name!r}"
    undo: list[Callable[[], object]] = []

    def prepare() -> tuple[Sharded, dict[str, Any], dict[Any, Any], Any]:
        described = sharded(store, name, step)
        rest = whole.value(store, described, REST) or {}
        targets = _targets(state, rest, described, where, undo)
        restore.check({k: v for k, v in state.items() if str(k) not in targets}, rest, where)
        random = None
        if described.world == dist.get_world_size():
            random = whole.value(store, described, f"{RANDOM}{dist.get_rank()}")
        return described, targets, rest, random

    try:
        described, targets, rest, random = together(prepare)
        planner = Staging()
        reader = StoreReader(store, name, step, described=described)
        with agreed():
            dcp_load(targets, storage_reader=reader, planner=planner)
    except BaseException:
        for each in undo:
            each()
        raise
    # Everything is here, on all ranks.
    loaded = planner.commit()
    for key, value in state.items():
        if str(key) in targets:
            state[key] = entries.put(value, loaded[str(key)], state)
    others = {key: value for key, value in state.items() if str(key) not in targets}
    restore.restore(others, rest, where)
    state.update(others)
    if random is not None:
        randomness.put_back(plain(random))


def _targets(
    state: dict[Any, Any],
    rest: dict[Any, Any],
    described: Sharded,
    where: str,
    undo: list[Callable[[], object]],
) -> dict[str, Any]:
    """Where the entries with shards are loaded into, by name. Raises UsageError."""
    saved: dict[str, dict[tuple[Any, ...], Any]] = {}
    for fqn, what in described.metadata.state_dict_metadata.items():
        place = whole.path_of(described, fqn)
        saved.setdefault(str(place[0]), {})[place[1:]] = what
    made: dict[str, Any] = {}
    for key, value in state.items():
        name, path = str(key), f"state[{key!r}]"
        if key in rest:
            if entries.is_sharded(value):
                raise errors.UsageError(f"{path} is sharded, but in {where} it is not")
            continue
        if name not in saved:
            known = ", ".join(map(repr, [*saved, *rest]))
            raise errors.UsageError(f"{where} has no {path} (it has {known})")
        if isinstance(value, torch.optim.Optimizer):
            if not value.state:
                undo.append(value.state.clear)
            model = entries.model_of(value, state)
            made[name] = entries.optimizer_target(value, model, saved[name])
            continue
        made[name] = entries.named(value, state)
        if isinstance(value, torch.nn.Module):
            there = {".".join(map(str, at)): _shape(what) for at, what in saved[name].items()}
            whole.fit(path, whole.shapes(made[name]), there, where)
    return made


def _shape(what: Any) -> tuple[int, ...] | None:
    return tuple(what.size) if isinstance(what, TensorStorageMetadata) else None


class Staging(DefaultLoadPlanner):
    """Loads beside the live state, in the host's memory; `commit` puts it in."""

    def __init__(self) -> None:
        super().__init__()
        self._tensors: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._values: list[tuple[ReadItem, Any]] = []

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        target = super().resolve_tensor(read_item).detach()
        staged = torch.empty(target.shape, dtype=target.dtype)
        self._tensors.append((target, staged))
        return staged

    def load_value(self, read_item: ReadItem, value: Any) -> None:
        self._values.append((read_item, value))

    def commit(self) -> dict[str, Any]:
        """Copy everything to its place; returns the state that was loaded into."""
        while self._tensors:
            target, staged = self._tensors.pop()
            target.copy_(staged)
        made: dict[str, Any] = self.original_state_dict
        for item, value in self._values:
            *path, last = entries.keys(made, self.mappings[item.dest_index.fqn])
            entries.element(made, path)[last] = value
        return made


# --- together -------------------------------------------------------------------------------------


def together(call: Callable[[], T]) -> T:
    """Call on every rank; raises on all what is raised on one."""
    result: Any = None
    error: BaseException | None = None
    try:
        result = call()
    except BaseException as raised:
        error = raised
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, error)
    failures = {rank: each for rank, each in enumerate(found) if each is not None}
    if failures:
        _raise(failures, error)
    made: T = result
    return made


def first(call: Callable[[], T]) -> T:
    """What it returns on rank 0, on every rank."""
    made: list[Any] = [None]

    def on_first() -> None:
        if dist.get_rank() == 0:
            made[0] = call()

    together(on_first)
    dist.broadcast_object_list(made, src=0)
    result: T = made[0]
    return result


@contextmanager
def agreed() -> Iterator[None]:
    """Raise our own error for dcp's, the same on all ranks."""
    try:
        yield
    except CheckpointException as error:
        failures = {rank: pair[0] for rank, pair in error.failures.items()}
        _raise(failures, failures.get(dist.get_rank()))


def _raise(failures: dict[int, BaseException], own: BaseException | None) -> NoReturn:
    """One error for all ranks: the first that tells what to do."""
    if own is not None and not isinstance(own, Exception):
        raise own  # an interrupt here
    ours = {rank: e for rank, e in failures.items() if isinstance(e, errors.MLCloudError)}
    if not ours:
        rank, other = min(failures.items(), key=lambda pair: pair[0])
        raise errors.StoreError(f"rank {rank} failed: {type(other).__name__}: {other}") from other
    # Damage first: who meets it goes back a step.
    rank, error = min(ours.items(), key=lambda p: (not isinstance(p[1], errors.Damaged), p[0]))
    raise type(error)(f"{error} (rank {rank})") from error
