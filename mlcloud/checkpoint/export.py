"""A step in another tool's format: safetensors, torch's own `.pt`, or a plain DCP folder.

    .safetensors   named tensors and nothing else: what is no tensor or array is left out; the
                   step and its metric stand in the file's metadata
    .pt, .pth      the state dicts as they are (a pickle: that is torch's format)
    a folder       what `torch.distributed.checkpoint.load` reads, on any number of ranks

The file or folder appears whole or not at all: it is written beside its place, made durable, and
renamed. A killed process leaves a hidden `.<name>.<random>` there, and nothing under the name.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlcloud import errors

FORMATS = ("safetensors", "pt", "dcp")
_SUFFIXES = {".safetensors": "safetensors", ".pt": "pt", ".pth": "pt"}


def export(
    state: dict[Any, Any],
    path: str | Path,
    part: str | None,
    format: str | None,
    metadata: dict[str, str],
) -> Path:
    """Write `state` (plain data), or its entry `part`, to `path`; returns the path.

    `metadata` goes into a safetensors file.
    """
    to = Path(path)
    kind = _kind(path, to, format)
    value: Any = state
    if part is not None:
        if part not in state:
            raise errors.UsageError(
                f"the checkpoint has no part {part!r}; it has {', '.join(map(repr, state))}"
            )
        value = state[part]
    if kind == "dcp":
        if to.exists() and not (to.is_dir() and not any(to.iterdir())):
            raise errors.UsageError(
                f"{to} is there already, and a folder is not replaced: name a new one"
            )
        _place(to, lambda temp: _dcp(value if isinstance(value, dict) else {part: value}, temp))
    elif to.is_dir():
        raise errors.UsageError(f"{to} is a folder: name a file in it")
    elif kind == "pt":
        _place(to, lambda temp: _torch(value, temp))
    else:
        _place(to, lambda temp: _safetensors(value, temp, metadata))
    return to


def _kind(path: str | Path, to: Path, format: str | None) -> str:
    if format is not None:
        if format not in FORMATS:
            raise errors.UsageError(
                f"export knows the formats {', '.join(FORMATS)}, not {format!r}"
            )
        return format
    if str(path).endswith(("/", os.sep)) or not to.suffix or to.is_dir():
        return "dcp"
    if to.suffix not in _SUFFIXES:
        raise errors.UsageError(
            f"export knows .safetensors, .pt and .pth, not {to.name!r}; "
            "a folder for torch.distributed.checkpoint has no suffix, or is asked for by "
            "format='dcp'"
        )
    return _SUFFIXES[to.suffix]


def _place(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file or folder beside `path`, and give it that name when it is whole."""
    temp = path.absolute().with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write(temp)
        for each in [*(temp.rglob("*") if temp.is_dir() else ()), temp]:
            _sync(each)
        os.replace(temp, path)
        _sync(path.absolute().parent)
    except errors.MLCloudError:
        raise
    except Exception as error:  # each library has its own for a full disk
        raise errors.StoreError(
            f"could not export to {path}: {type(error).__name__}: {error}"
        ) from error
    finally:
        if temp.is_dir():
            shutil.rmtree(temp, ignore_errors=True)
        else:
            temp.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _torch(value: Any, path: Path) -> None:
    import torch

    torch.save(value, path)


def _dcp(value: dict[Any, Any], path: Path) -> None:
    from mlcloud.checkpoint import plain_dcp

    plain_dcp.write(value, path)


def _safetensors(value: Any, path: Path, metadata: dict[str, str]) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise errors.UsageError(
            "export to .safetensors needs safetensors and torch: pip install safetensors"
        ) from error
    tensors: dict[str, Any] = {}
    memory = set[int]()
    for name, tensor in _tensors(value, ""):
        if name in tensors:
            raise errors.UsageError(
                f"two tensors of the checkpoint are called {name!r} when their names are joined by "
                "dots; export one part, or to another format"
            )
        whole = tensor.resolve_conj().resolve_neg().contiguous()
        # The format refuses tensors that share memory: tied weights are written once a name, so
        # that a reader finds each.
        place = whole.untyped_storage().data_ptr()
        tensors[name] = whole.clone() if place in memory else whole
        memory.add(place)
    if not tensors:
        raise errors.UsageError("there is no tensor to export")
    try:
        save_file(tensors, path, metadata={"format": "pt", **metadata})
    except (KeyError, ValueError, TypeError) as error:
        kinds = sorted({str(each.dtype) for each in tensors.values()})
        raise errors.UsageError(
            f"safetensors does not take this ({type(error).__name__}: {error}; the tensors are "
            f"{', '.join(kinds)}); export to .pt or to a folder"
        ) from error


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    import numpy
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, numpy.ndarray):
        try:
            yield name, torch.from_numpy(value)
        except TypeError:  # texts and times have no tensor
            return
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _tensors(item, f"{name}.{i}" if name else str(i))
