"""Saved state back into the live objects of the user's state, in place.

The user's variables, not just the state dict, must hold what was saved: `model` is given to
`load_state_dict`, a list keeps its identity and gets its old items (`x[:] = saved`), arrays and
tensors are copied into. Only what cannot change in place (numbers, strings, tuples) is put back
into the container that held it.

`check` comes first and touches nothing: a checkpoint that does not fit is refused whole. Large
arrays may have been read to where they belong before this is asked (`places`).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any

from mlcloud import errors
from mlcloud.checkpoint import arrays, randomness
from mlcloud.checkpoint.codec import ObjectState, has_state_dict, plain


def restore(state: dict[Any, Any], saved: dict[Any, Any], where: str) -> None:
    """Put `saved` (decoded) into the objects of `state`. Entries only `saved` has are left out.

    Raises UsageError, before anything is changed, when the two do not fit.
    """
    check(state, saved, where)
    applied: dict[int, int] = {}
    for key, target in state.items():
        state[key] = _put(target, saved[key], applied)


def check(state: dict[Any, Any], saved: dict[Any, Any], where: str) -> None:
    """Raise UsageError when a part of `state` has no counterpart in `saved`."""
    for key, target in state.items():
        path = f"state[{key!r}]"
        if key not in saved:
            raise errors.UsageError(
                f"{where} has no {path} (it has {', '.join(map(repr, saved)) or 'nothing'}); "
                "leave it out of the state, or save under another name"
            )
        _check(target, saved[key], path, where)


def places(
    state: dict[Any, Any], outline: dict[Any, Any], numbers: dict[int, int]
) -> dict[int, memoryview]:
    """Where blobs may be read to at once, by their number: what lives there is their counterpart.

    `outline` is the saved state as `codec.Outline` decodes it, with its `numbers`. Memory that two
    blobs would be read to is left out, and what is not plain memory of this machine.
    """
    found: dict[int, memoryview] = {}
    owners: dict[int, set[int]] = {}
    for live, saved in _pairs(state, {key: outline[key] for key in state}):
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
    elif _is_array(target):
        yield target, saved
    elif isinstance(target, dict) and isinstance(saved, dict):
        for key, value in target.items():
            if key in saved:
                yield from _pairs(value, saved[key])
    elif isinstance(target, list | tuple) and isinstance(saved, list | tuple):
        for one, other in zip(target, saved, strict=False):
            yield from _pairs(one, other)


def _check(target: Any, saved: Any, path: str, where: str) -> None:
    stateful = _is_object(target)
    if stateful != isinstance(saved, ObjectState) and not _takes(target, saved):
        has = "an object's state" if isinstance(saved, ObjectState) else type(saved).__name__
        raise errors.UsageError(f"{path} is a {type(target).__name__}, but {where} has {has} there")
    if _is_array(target) and _is_array(saved) and tuple(target.shape) != tuple(saved.shape):
        raise errors.UsageError(
            f"{path} has the shape {tuple(target.shape)}, but in {where} it has "
            f"{tuple(saved.shape)}"
        )
    if isinstance(target, dict) and isinstance(saved, dict):
        for key, value in target.items():
            if key in saved and (_is_object(value) or isinstance(saved[key], ObjectState)):
                _check(value, saved[key], f"{path}[{key!r}]", where)
            elif key not in saved and _is_object(value):
                raise errors.UsageError(f"{where} has no {path}[{key!r}]")
    elif isinstance(target, (list, tuple)) and isinstance(saved, (list, tuple)):
        objects = any(map(_is_object, target)) or any(isinstance(x, ObjectState) for x in saved)
        if objects and len(target) != len(saved):
            raise errors.UsageError(
                f"{path} has {len(target)} items, but in {where} it has {len(saved)}"
            )
        if objects:
            for i, (one, other) in enumerate(zip(target, saved, strict=True)):
                _check(one, other, f"{path}[{i}]", where)


def _put(target: Any, saved: Any, applied: dict[int, int]) -> Any:
    """Restore in place where that is possible; returns what belongs in the target's place."""
    if _takes(target, saved):
        target.load_state_dict(plain(saved))
        return target
    # One live object may stand where several saved ones did (`[t, t]`): only the first is copied
    # into it, the others take places of their own.
    if not isinstance(saved, ObjectState):
        first = applied.setdefault(id(target), id(saved))
        if first != id(saved):
            return plain(saved)
    else:
        if saved.how == "state_dict":
            state = plain(saved.state)
            if not _is_loaded(target, state):
                target.load_state_dict(state)
        else:
            randomness.put_state(target, saved.how, plain(saved.state))
        return target
    if _is_array(target) and type(saved).__module__.partition(".")[0] in ("torch", "numpy"):
        return _put_array(target, saved)
    if isinstance(target, dict) and isinstance(saved, dict):
        new = {key: _put(target.get(key), value, applied) for key, value in saved.items()}
        target.clear()
        target.update(new)
        return target
    if isinstance(target, list) and isinstance(saved, list):
        count = len(target)
        target[:] = [
            _put(target[i], value, applied) if i < count else plain(value)
            for i, value in enumerate(saved)
        ]
        return target
    if isinstance(target, tuple) and isinstance(saved, tuple) and len(target) == len(saved):
        return tuple(_put(one, other, applied) for one, other in zip(target, saved, strict=True))
    if isinstance(target, (set, bytearray)) and type(target) is type(saved):
        if isinstance(target, set):
            target.clear()
            target.update(saved)
        else:
            target[:] = saved
        return target
    if type(target) is type(saved) and hasattr(target, "maxlen"):  # deque
        target.clear()
        target.extend(plain(saved))
        return target
    return plain(saved)


def _is_loaded(target: Any, state: Any) -> bool:
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


def _put_array(target: Any, saved: Any) -> Any:
    torch = sys.modules.get("torch")
    if not _is_array(saved) or tuple(target.shape) != tuple(saved.shape):
        return saved  # inside a container: it takes the place of the old one
    if torch is not None and isinstance(target, torch.Tensor) and isinstance(saved, torch.Tensor):
        if target.data_ptr() != saved.data_ptr() or target.device != saved.device:
            with torch.no_grad():
                target.copy_(saved)
        return target
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(target, numpy.ndarray) and target.dtype == saved.dtype:
        numpy.copyto(target, saved)
        return target
    return saved


def _is_object(value: Any) -> bool:
    if _is_array(value) or type(value) in (dict, list, tuple, set, str, int, float):
        return False
    return randomness.state_of(value) is not None or has_state_dict(value)


def _takes(target: Any, saved: Any) -> bool:
    """Whether `saved` is a state dict, as imported ones are, for the object `target`."""
    return isinstance(saved, dict) and _is_object(target) and has_state_dict(target)


def _is_array(value: Any) -> bool:
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    return (torch is not None and isinstance(value, torch.Tensor)) or (
        numpy is not None and isinstance(value, numpy.ndarray)
    )
