"""Where large arrays may be read to at once: the memory of what lives there.

    outline of the saved state ─┐
    live state ─────────────────┴─► places() ─► blob ─► the memory it belongs to
                                                           │ read, verified
    the module holds it already ◄─ is_loaded() ◄─ decoded ◄┘

So a weight is read from the disk into the weight, and memory for a second copy of the state, whose
pages the system would have to find first, is not needed.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any

from mlcloud.checkpoint import arrays
from mlcloud.checkpoint.codec import ObjectState


def places(
    state: dict[Any, Any], outline: dict[Any, Any], numbers: dict[int, int]
) -> dict[int, memoryview]:
    """Where blobs may be read to at once, by their number: what lives there is their counterpart.

    `outline` is the saved state as `codec.Outline` decodes it, with its `numbers`. Memory that two
    blobs would be read to is left out, and what is not plain memory of this machine.
    """
    found: dict[int, memoryview] = {}
    owners: dict[int, set[int]] = {}
    for live, saved in _pairs(state, outline):
        memory = arrays.memory_of(live, saved)
        number = numbers.get(id(saved))
        if memory is None or number is None:
            continue
        owners.setdefault(arrays.address(memory), set()).add(number)
        found.setdefault(number, memory)
    spans = sorted((arrays.address(view), view.nbytes, number) for number, view in found.items())
    for (at, size, number), (following, _, other) in itertools.pairwise(spans):
        if at + size > following:
            found.pop(number, None)
            found.pop(other, None)
    return {n: view for n, view in found.items() if len(owners[arrays.address(view)]) == 1}


def _pairs(target: Any, saved: Any) -> Iterator[tuple[Any, Any]]:
    """Live arrays and what was saved of them, where the live ones are what will be written."""
    torch = sys.modules.get("torch")
    if isinstance(saved, ObjectState):
        if torch is not None and isinstance(target, torch.nn.Module | torch.optim.Optimizer):
            yield from _pairs(target.state_dict(), saved.state)
    elif arrays.is_array(target):
        yield target, saved
    elif isinstance(target, dict) and isinstance(saved, dict):
        for key, value in target.items():
            if key in saved:
                yield from _pairs(value, saved[key])
    elif isinstance(target, list | tuple) and isinstance(saved, list | tuple):
        for one, other in zip(target, saved, strict=False):
            yield from _pairs(one, other)


def is_loaded(target: Any, state: Any) -> bool:
    """Whether a module holds the state already, read to where its own tensors are.

    Only of modules that load their tensors as torch's own do: another may do more with them.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(target, torch.nn.Module) or not isinstance(state, dict):
        return False
    base = torch.nn.Module
    for each in target.modules():
        own = type(each).__module__.startswith("torch.nn.modules.")
        if not own and (
            type(each).load_state_dict is not base.load_state_dict
            or type(each)._load_from_state_dict is not base._load_from_state_dict
        ):
            return False
        hooks = ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
        if any(getattr(each, name, None) for name in hooks):
            return False
    live = target.state_dict()
    return live.keys() == state.keys() and all(
        isinstance(value, torch.Tensor)
        and isinstance(state[name], torch.Tensor)
        and value.data_ptr() == state[name].data_ptr()
        and value.shape == state[name].shape
        and value.numel() > 0
        for name, value in live.items()
    )
