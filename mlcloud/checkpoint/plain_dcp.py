"""Folders of `torch.distributed.checkpoint`: written by it, and read without trusting them.

    <folder>/.metadata         a pickle: which tensors there are, in which pieces, where
    <folder>/__<rank>_<n>.distcp   the pieces, each a small torch file of its own

DCP's own reader unpickles `.metadata` and every value that is no tensor, so a folder from elsewhere
could run code. Here `.metadata` may name DCP's own record classes and nothing else, values are read
by torch's safe unpickler, paths stay in the folder, and pieces must cover their tensors: where a
rank's file is missing, DCP's planner would leave memory as it was. DCP does all the rest (pieces of
any sharding, compressed files).
"""

from __future__ import annotations

import io
import math
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from mlcloud import errors
from mlcloud.checkpoint import safe_numpy

METADATA = ".metadata"
LONGEST = 2**20  # items of a list

_RECORDS = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "collections": {"OrderedDict"},
}


def write(state: dict[Any, Any], folder: Path) -> None:
    """Save `state` as DCP does in one process. Raises UsageError for names that collide."""
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        with _alone() as options:
            save(state, checkpoint_id=folder, **options)
    except ValueError as error:
        raise errors.UsageError(
            f"torch.distributed.checkpoint does not take this state: {error}; export one part, "
            "or to a .pt file"
        ) from error


def read(folder: Path) -> dict[str, Any]:
    """The whole state, on the CPU, nested as it was saved. Raises NotImportable."""
    import torch
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    metadata = _metadata(folder)
    state: dict[str, Any] = {}
    for name, record in metadata.state_dict_metadata.items():
        if isinstance(record, TensorStorageMetadata):
            state[name] = torch.empty(tuple(record.size), dtype=record.properties.dtype)
        else:
            state[name] = None

    class Reader(FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            return metadata

    class Planner(DefaultLoadPlanner):
        def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
            self.state_dict[read_item.dest_index.fqn] = load_safely(
                value, f"{read_item.dest_index.fqn!r}: "
            )

    with _alone() as options:
        load(
            state,
            storage_reader=Reader(folder),
            planner=Planner(flatten_state_dict=False, flatten_sharded_tensors=False),
            **options,
        )
    whole: dict[str, Any] = _repair(_nest(state, metadata.planner_data))
    return whole


def load_safely(file: Any, where: str, **options: Any) -> Any:
    """`torch.load` of nothing but tensors and plain data. Raises NotImportable for more."""
    import torch

    with safe_numpy.readable():
        try:
            found = torch.load(file, map_location="cpu", weights_only=True, **options)
            return safe_numpy.plain(found)
        except pickle.UnpicklingError as error:
            wanted, why = _wanted(file), error
    if not wanted:
        raise why
    raise errors.NotImportable(
        f"{where}it holds more than tensors and plain data ({', '.join(wanted)}), and to read that "
        "is to run code of whoever wrote it. If you trust it: load it yourself with "
        "torch.load(..., weights_only=False) and save() what you need, or allow just these classes "
        "with torch.serialization.add_safe_globals"
    ) from why


def _wanted(file: Any) -> list[str]:
    """What a torch file needs that the safe unpickler does not know, as far as can be told."""
    import torch

    tell = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
    if tell is None:
        return ["classes of its own"]
    try:
        if hasattr(file, "seek"):
            file.seek(0)
        return sorted(tell(file))
    except Exception:  # it is damaged, or of the old format
        return []


@contextmanager
def _alone() -> Iterator[dict[str, Any]]:
    """Options for DCP in this process alone, also where it is a rank of several; its own errors."""
    import torch.distributed as dist
    from torch.distributed.checkpoint.api import CheckpointException

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield {"no_dist": True} if dist.is_available() and dist.is_initialized() else {}
        except CheckpointException as error:  # a BaseException around what each rank raised
            for cause, _ in error.failures.values():
                raise cause from None
            raise


# --- the metadata ---------------------------------------------------------------------------------


class _Unpickler(pickle.Unpickler):
    """Finds DCP's record classes, torch's dtypes, and nothing that does anything."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if name in _RECORDS.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.startswith("pathlib") and name.endswith("Path"):
            return PurePath
        if (module, name) == ("builtins", "getattr"):  # how Python 3.11 pickled an Enum for a while
            return _member
        raise errors.NotImportable(
            f"its {METADATA} names {module}.{name}, which no checkpoint of "
            "torch.distributed.checkpoint needs"
        )


def _member(kind: Any, name: str) -> Any:
    from torch.distributed.checkpoint import metadata

    return metadata._MEM_FORMAT_ENCODING[name] if kind is metadata._MEM_FORMAT_ENCODING else None


def _metadata(folder: Path) -> Any:
    """The folder's metadata, checked against its files."""
    from torch.distributed.checkpoint import metadata as records

    with (folder / METADATA).open("rb") as file:
        found = _Unpickler(file).load()
    if not isinstance(found, records.Metadata) or not isinstance(found.storage_data, dict):
        raise errors.NotImportable(f"its {METADATA} is none of torch.distributed.checkpoint")
    pieces: dict[str, int] = {}
    for index, info in found.storage_data.items():
        pieces[index.fqn] = pieces.get(index.fqn, 0) + 1
        _check_file(folder, index.fqn, info)
    for name, record in found.state_dict_metadata.items():
        chunks = getattr(record, "chunks", None)
        if pieces.get(name, 0) < (1 if chunks is None else len(chunks)):
            raise errors.NotImportable(f"it says not where all of {name!r} lies")
        if chunks is not None:
            _check_pieces(name, record)
    return found


def _check_file(folder: Path, name: str, info: Any) -> None:
    relative = PurePath(info.relative_path)
    if relative.is_absolute() or ".." in relative.parts:
        raise errors.NotImportable(f"{name!r} lies outside the folder: {info.relative_path!r}")
    file = folder / relative
    if not file.is_file():
        raise errors.NotImportable(f"the file {relative} with {name!r} is missing")
    size = file.stat().st_size
    if info.offset < 0 or info.length < 0 or info.offset + info.length > size:
        raise errors.NotImportable(
            f"the file {relative} is cut short: {name!r} needs {info.offset + info.length} bytes "
            f"of it, and it has {size}"
        )


def _check_pieces(name: str, record: Any) -> None:
    covered = 0
    for chunk in record.chunks:
        sides = list(zip(chunk.offsets, chunk.sizes, record.size, strict=True))
        if any(start < 0 or size < 0 or start + size > whole for start, size, whole in sides):
            raise errors.NotImportable(f"a piece of {name!r} lies outside of it")
        covered += math.prod(chunk.sizes)
    if covered != math.prod(record.size):
        raise errors.NotImportable(
            f"its pieces of {name!r} have {covered} elements of {math.prod(record.size)}; "
            "were the files of all ranks copied?"
        )


# --- the shape ------------------------------------------------------------------------------------


def _nest(flat: dict[str, Any], paths: Any) -> dict[str, Any]:
    """Dicts and lists again, from names joined by dots; `paths` is what DCP noted of each."""
    nested: dict[Any, Any] = {}
    for name, value in flat.items():
        path = paths.get(name, (name,)) if isinstance(paths, dict) else (name,)
        place = nested
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = value
    made: dict[str, Any] = _lists(nested)
    return made


def _lists(value: Any) -> Any:
    """Dicts whose keys are whole numbers become lists: DCP writes a dict's own keys as text.

    What it leaves out of a list are empty dicts.
    """
    if not isinstance(value, dict):
        return value
    made = {key: _lists(item) for key, item in value.items()}
    if made and all(type(key) is int and 0 <= key < LONGEST for key in made):
        return [made.get(index, {}) for index in range(max(made) + 1)]
    return made


def _repair(value: Any) -> Any:
    """Optimizers as `load_state_dict` takes them: DCP turned their whole numbers into text.

    Without this, torch would take the momenta of `"0"` for those of no parameter, in silence. An
    empty `state`, which DCP leaves out, comes back.
    """
    if isinstance(value, list):
        return [_repair(item) for item in value]
    if not isinstance(value, dict):
        return value
    made = {key: _repair(item) for key, item in value.items()}
    groups, state = made.get("param_groups"), made.get("state", {})
    if isinstance(groups, list) and all(isinstance(each, dict) for each in groups):
        numbers = [number for each in groups for number in each.get("params", ())]
        if numbers and isinstance(state, dict) and all(type(each) is int for each in numbers):
            known = {str(number): number for number in numbers}
            made["state"] = {known.get(key, key): item for key, item in state.items()}
    return made
