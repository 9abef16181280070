"""A step's tensors in a file of another format: safetensors, or torch's own `.pt`.

The file appears whole or not at all. safetensors holds named tensors and nothing else, so what is
no tensor is left out; `.pt` holds the state dicts as they are (and is a pickle: that is its
format).
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlcloud import errors


def export(state: dict[Any, Any], path: Path, part: str | None) -> Path:
    """Write `state` (plain data), or its entry `part`, to `path`; returns the path."""
    value: Any = state
    if part is not None:
        if part not in state:
            raise errors.UsageError(
                f"the checkpoint has no part {part!r}; it has {', '.join(map(repr, state))}"
            )
        value = state[part]
    temp = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        if path.suffix == ".safetensors":
            try:
                from safetensors.torch import (  # type: ignore[import-not-found, unused-ignore]
                    save_file,
                )
            except ImportError as error:
                raise errors.UsageError(
                    "export to .safetensors needs safetensors and torch: pip install safetensors"
                ) from error
            # Each its own memory: the format refuses tensors that share.
            tensors = {name: tensor.clone() for name, tensor in _tensors(value, "")}
            if not tensors:
                raise errors.UsageError("there is no tensor to export")
            save_file(tensors, temp)
        elif path.suffix in (".pt", ".pth"):
            import torch

            torch.save(value, temp)
        else:
            raise errors.UsageError(f"export knows .safetensors, .pt and .pth, not {path.name!r}")
        os.replace(temp, path)
    except OSError as error:
        raise errors.StoreError(f"could not export to {path}: {error}") from error
    finally:
        temp.unlink(missing_ok=True)
    return path


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value.contiguous()
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _tensors(item, f"{name}.{i}" if name else str(i))
