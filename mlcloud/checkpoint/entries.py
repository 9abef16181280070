"""What the entries of a state are to torch: modules, optimizers, and what else may hold shards.

A module's parameters and an optimizer's state are named by the module's own names, whatever they
are wrapped in and however they are sharded (`torch.distributed.checkpoint.state_dict`): that is
what lets another number of ranks, or one process, find them again.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from mlcloud import errors
from mlcloud.checkpoint.objects import has_state_dict

Kind = Literal["module", "optimizer", "object", "data"]


def kind(value: Any) -> Kind:
    if isinstance(value, torch.nn.Module):
        return "module"
    if isinstance(value, torch.optim.Optimizer):
        return "optimizer"
    if isinstance(value, torch.Tensor) or not has_state_dict(value):
        return "data"
    return "object"


def is_sharded(value: Any) -> bool:
    """Whether shards are in it, which only all ranks together can save."""
    if isinstance(value, torch.Tensor):
        return isinstance(value, DTensor)
    if isinstance(value, torch.nn.Module):
        tensors = itertools.chain(value.parameters(), value.buffers())
        return any(map(is_sharded, tensors)) or any(map(_is_fsdp, value.modules()))
    if isinstance(value, torch.optim.Optimizer):
        return any(is_sharded(p) for group in value.param_groups for p in group["params"])
    if isinstance(value, dict):
        return any(map(is_sharded, value.values()))
    if isinstance(value, list | tuple):
        return any(map(is_sharded, value))
    return has_state_dict(value) and is_sharded(value.state_dict())


def _is_fsdp(module: torch.nn.Module) -> bool:
    # The first FSDP: its parameters do not look like shards.
    return type(module).__name__ == "FullyShardedDataParallel"


def model_of(optimizer: torch.optim.Optimizer, state: dict[Any, Any]) -> torch.nn.Module:
    """The module in the state that has the optimizer's parameters. Raises NotCheckpointable."""
    wanted = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for value in state.values():
        if isinstance(value, torch.nn.Module) and wanted <= {id(p) for p in value.parameters()}:
            return value
    raise errors.NotCheckpointable(
        f"the {type(optimizer).__name__} cannot be checkpointed: no module in the state has all of "
        'its parameters, which give it its names; put it there, {"model": model, "opt": opt}'
    )


def named(value: Any, state: dict[Any, Any]) -> Any:
    """The plain data of an entry, by names; its tensors are the live ones."""
    if isinstance(value, torch.nn.Module):
        return get_model_state_dict(value)
    if isinstance(value, torch.optim.Optimizer):
        fresh = not value.state
        found = get_optimizer_state_dict(model_of(value, state), value)
        if fresh:  # torch has made a step without gradients, to have something to name
            value.state.clear()
            found["state"] = {}
        return found
    return copied(value.state_dict() if kind(value) == "object" else value)


def frozen(model: torch.nn.Module, names: dict[str, Any]) -> set[str]:
    """Those of its names whose parameters are not trained."""
    still = {_memory(p) for p in model.parameters() if not p.requires_grad}
    return {n for n, t in names.items() if isinstance(t, torch.Tensor) and _memory(t) in still}


def _memory(tensor: torch.Tensor) -> int:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).data_ptr()


def put(value: Any, loaded: Any, state: dict[Any, Any]) -> Any:
    """Put what was loaded under an entry's names back; returns what belongs in its place."""
    if isinstance(value, torch.nn.Module):
        set_model_state_dict(value, loaded)
    elif isinstance(value, torch.optim.Optimizer):
        # Not strict: a parameter that had no gradient yet has no state.
        options = StateDictOptions(strict=False)
        set_optimizer_state_dict(model_of(value, state), value, loaded, options=options)
    elif kind(value) == "object":
        value.load_state_dict(loaded)
    elif isinstance(value, dict) and isinstance(loaded, dict):
        new = {key: put(value.get(key), item, {}) for key, item in loaded.items()}
        value.clear()
        value.update(new)
    elif isinstance(value, list) and isinstance(loaded, list):
        value[:] = loaded
    else:
        return loaded
    return value


def optimizer_target(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module,
    saved: dict[tuple[Any, ...], Any],
) -> dict[str, Any]:
    """Where a saved optimizer is loaded into: the live tensors, and new ones where it has none.

    `saved`: what is saved, by path (`("state", name, "exp_avg")`). An optimizer without state gets
    some, as by a step without gradients.
    """
    live = get_optimizer_state_dict(model, optimizer)
    names: dict[str, Any] = dict(get_model_state_dict(model))
    made: dict[str, Any] = {"state": {}, "param_groups": []}
    groups = {path[1] for path in saved if path[0] == "param_groups"}
    if len(groups) != len(optimizer.param_groups):
        raise errors.UsageError(
            f"the {type(optimizer).__name__} has {len(optimizer.param_groups)} parameter groups, "
            f"the saved one {len(groups)}"
        )
    for path, what in saved.items():
        path = keys(live, path)
        value = element(live, path)
        if isinstance(what, TensorStorageMetadata):
            fits = isinstance(value, torch.Tensor) and value.size() == what.size
            if not fits and path[0] == "state":
                value = _like(names.get(path[1]), what)
            elif not fits:
                value = torch.empty(what.size, dtype=what.properties.dtype)
        set_element(made, path, value)
    return made


def _like(parameter: Any, what: TensorStorageMetadata) -> torch.Tensor:
    """A new tensor for what is saved; sharded as the parameter it belongs to."""
    dtype = what.properties.dtype
    if isinstance(parameter, torch.Tensor) and parameter.size() == what.size:
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(what.size, dtype=dtype)


def copied(value: Any) -> Any:
    """Containers anew, with the same things in them."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copied(item) for item in value]
    return value


def keys(value: Any, path: Sequence[Any]) -> tuple[Any, ...]:
    """A path with the keys that are there: dcp makes strings of them."""
    found = []
    for key in path:
        if isinstance(value, dict) and key not in value:
            key = next((each for each in value if str(each) == key), key)
        found.append(key)
        value = element(value, (key,))
    return tuple(found)


def element(value: Any, path: Sequence[Any]) -> Any:
    """What is at a path; None where it ends before."""
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value
