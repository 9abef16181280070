"""A sharded step in one process: full tensors from all shards, by the names they were saved under.

`read` gives plain data. `stand_ins` lets `restore` put it into a live model and optimizer: what is
named by the model's names is given to torch's setters, which find the parameters again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from mlcloud import errors
from mlcloud.checkpoint import arrays, entries, regions
from mlcloud.checkpoint.codec import Decoder, ObjectState, plain
from mlcloud.checkpoint.regions import Region
from mlcloud.checkpoint.sharding import Item, Place, Sharded
from mlcloud.store import Store

#: Items that `Checkpoints.save` adds: all that has no shards, what each entry is, and each rank's
#: random generators.
OWN = "mlcloud:"
REST, ENTRIES, RANDOM = f"{OWN}rest", f"{OWN}entries", f"{OWN}random:"
#: How an entry is restored that is named by a model's names.
_NAMED = {"module", "optimizer"}


def read(
    store: Store, step: Sharded, only: Collection[Any] | None = None
) -> tuple[dict[Any, Any], dict[str, Any], Any]:
    """(state, random states, start) of a step, with `only` some entries of it. Raises Damaged."""
    keys = None if only is None else {str(key) for key in only}
    rest = value(store, step, REST) or {}
    about = value(store, step, ENTRIES) or {"kinds": [], "start": None}
    nested: dict[str, Any] = {}
    for name, item in _all(store, step, keys):
        set_element(nested, path_of(step, name), item)
    kinds = [(key, str(kind)) for key, kind in about["kinds"]]
    known = {str(key) for key, _ in kinds}
    kinds += [(name, "data") for name in nested if name not in known]
    state = {}
    for key, kind in kinds:
        if only is not None and key not in only:
            continue
        if kind == "rest":
            state[key] = rest[key]
            continue
        found = nested.get(str(key), {})
        if kind != "data":
            found = ObjectState(kind if kind in _NAMED else "state_dict", found)
        state[key] = found
    random = value(store, step, f"{RANDOM}0") if step.world == 1 else None
    return state, plain(random or {}), plain(about["start"])


def value(store: Store, step: Sharded, name: str) -> Any:
    """An item that is no tensor, decoded; None where there is none."""
    item = (step.metadata.storage_data or {}).get(MetadataIndex(name))
    if not isinstance(item, Item):
        return None
    memory = [torch.from_numpy(_numpy(arrays.allocate(blob.nbytes))) for blob in item.blobs]
    regions.read(
        store,
        step,
        (
            Region(blob, (0,), torch.uint8, into)
            for blob, into in zip(item.blobs, memory, strict=True)
        ),
    )
    return Decoder(lambda number: regions.memory(memory[number])).decode(item.tree)


def path_of(step: Sharded, name: str) -> tuple[Any, ...]:
    """Where an item lies in the nested state."""
    paths = step.metadata.planner_data
    path = paths.get(name) if isinstance(paths, dict) else None
    return tuple(path) if isinstance(path, list | tuple) and path else (name,)


def _all(store: Store, step: Sharded, keys: set[str] | None) -> Iterator[tuple[str, Any]]:
    places: dict[MetadataIndex, Place] = step.metadata.storage_data or {}
    made: dict[str, torch.Tensor] = {}
    names = [
        (name, what)
        for name, what in step.metadata.state_dict_metadata.items()
        if not name.startswith(OWN) and (keys is None or str(path_of(step, name)[0]) in keys)
    ]

    def wanted() -> Iterator[Region]:
        for name, what in names:
            if not isinstance(what, TensorStorageMetadata):
                continue
            dtype = what.properties.dtype
            made[name] = torch.empty(what.size, dtype=dtype)
            for shard in what.chunks:
                target = made[name]
                for dim, (at, size) in enumerate(zip(shard.offsets, shard.sizes, strict=True)):
                    target = target.narrow(dim, at, size)
                place = places[MetadataIndex(name, shard.offsets)]
                yield Region(place, [0] * len(shard.sizes), dtype, target)

    regions.read(store, step, wanted())
    for name, _ in names:
        yield name, made[name] if name in made else plain(value(store, step, name))


def _numpy(view: memoryview) -> Any:
    import numpy

    return numpy.frombuffer(view, numpy.uint8)


class _Named:
    """Stands for a module or optimizer whose saved state has a model's names."""

    def __init__(self, value: Any, state: dict[Any, Any]) -> None:
        self._value, self._state = value, state

    def state_dict(self) -> Any:
        return entries.named(self._value, self._state)

    def load_state_dict(self, saved: Any) -> None:
        entries.put(self._value, saved, self._state)


def stand_ins(state: dict[Any, Any], saved: dict[Any, Any], where: str) -> dict[Any, Any]:
    """`state` with stand-ins for what torch's setters restore. Prepares `saved` for them.

    Raises UsageError where a module is not the one that was saved.
    """
    made = dict(state)
    for key, live in state.items():
        found = saved.get(key)
        kind = entries.kind(live)
        if kind not in _NAMED or not isinstance(found, dict | ObjectState):
            continue
        if isinstance(found, ObjectState) and found.how not in _NAMED:
            continue  # saved by its own state_dict
        content = found.state if isinstance(found, ObjectState) else found
        if kind == "module":
            fit(f"state[{key!r}]", shapes(entries.named(live, state)), shapes(content), where)
        else:
            entries.model_of(live, state)
        made[key] = _Named(live, state)
        saved[key] = ObjectState("state_dict", content)
    return made


def shapes(names: dict[str, Any]) -> dict[str, tuple[int, ...] | None]:
    return {n: tuple(t.shape) if isinstance(t, torch.Tensor) else None for n, t in names.items()}


def fit(
    path: str,
    wanted: dict[str, tuple[int, ...] | None],
    saved: dict[str, tuple[int, ...] | None],
    where: str,
) -> None:
    """Raise UsageError where a module's names and shapes are not those that were saved."""
    for what, names in (
        (f"{where} has no", wanted.keys() - saved.keys()),
        (f"{path} has no place for", saved.keys() - wanted.keys()),
    ):
        if names:
            shown = ", ".join(sorted(names)[:5]) + (", …" if len(names) > 5 else "")
            raise errors.UsageError(f"{path} is another module than the saved one: {what} {shown}")
    for name, shape in wanted.items():
        if shape != saved[name]:
            raise errors.UsageError(
                f"{path}: {name} has the shape {shape}, but in {where} it has {saved[name]}"
            )
