"""Saved state back into the live objects of the user's state, in place.

The user's variables, not just the state dict, must hold what was saved: `model` is given to
`load_state_dict`, a list keeps its identity and gets its old items (`x[:] = saved`), arrays and
tensors are copied into, a dataclass gets its attributes. Only what cannot change in place (numbers,
strings, tuples, frozen dataclasses) is put back into the container that held it. An object that
stands in several places of the live state still does so afterwards, if what was saved there is the
same.

`check` comes first and touches nothing: a checkpoint that does not fit is refused whole. Large
arrays may have been read to where they belong before `restore` is asked (`places`).
"""

from __future__ import annotations

import copy
import math
import sys
from typing import Any

from mlcloud import errors
from mlcloud.checkpoint import estimators, listing, objects, randomness
from mlcloud.checkpoint.arrays import is_array, sparse_parts, takes
from mlcloud.checkpoint.codec import ObjectState, plain, same_tuple
from mlcloud.checkpoint.places import is_loaded
from mlcloud.checkpoint.step import Loaded

#: By the id of a live object: what was saved of it, and what stands in its place now.
_Applied = dict[int, tuple[Any, Any]]


def apply(loaded: Loaded, state: dict[Any, Any], name: str) -> None:
    """Put a step that was read into the objects of `state`, and the random generators back."""
    where, targets = f"step {loaded.info.step} of {name!r}", state
    if loaded.sharded:
        from mlcloud.checkpoint import whole

        targets = whole.stand_ins(state, loaded.state, where)
    live = dict(targets)
    restore(targets, loaded.state, where)
    state.update({key: value for key, value in targets.items() if live[key] is not value})
    randomness.put_back(loaded.random)


def restore(state: dict[Any, Any], saved: dict[Any, Any], where: str) -> None:
    """Put `saved` (decoded) into the objects of `state`. Entries only `saved` has are left out.

    Raises UsageError, before anything is changed, when the two do not fit.
    """
    check(state, saved, where)
    applied: _Applied = {}
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


def _check(target: Any, saved: Any, path: str, where: str) -> None:
    how = _how_of(target)
    if (how is not None) != isinstance(saved, ObjectState) and not _takes_dict(target, saved):
        has = "an object's state" if isinstance(saved, ObjectState) else type(saved).__name__
        raise errors.UsageError(f"{path} is a {type(target).__name__}, but {where} has {has} there")
    if isinstance(saved, ObjectState):
        if how != saved.how:
            raise errors.UsageError(
                f"{path} is a {type(target).__name__}, but {where} has the state of another kind "
                f"of object there ({saved.how})"
            )
        _check_object(target, saved, path, where)
    if is_array(target) and is_array(saved) and not takes(target, saved):
        if tuple(target.shape) != tuple(saved.shape):
            raise errors.UsageError(
                f"{path} has the shape {tuple(target.shape)}, but in {where} it has "
                f"{tuple(saved.shape)}"
            )
        raise errors.UsageError(
            f"{path} is a {_kind(target)}, and cannot hold the {_kind(saved)} of {where} exactly"
        )
    if isinstance(target, dict) and isinstance(saved, dict):
        for key, value in target.items():
            if key in saved and (_is_object(value) or isinstance(saved[key], ObjectState)):
                _check(value, saved[key], f"{path}[{key!r}]", where)
            elif key not in saved and _is_object(value):
                raise errors.UsageError(f"{where} has no {path}[{key!r}]")
    elif isinstance(target, (list, tuple)) and isinstance(saved, (list, tuple)):
        found = any(map(_is_object, target)) or any(isinstance(x, ObjectState) for x in saved)
        if found and len(target) != len(saved):
            raise errors.UsageError(
                f"{path} has {len(target)} items, but in {where} it has {len(saved)}"
            )
        if found:
            for i, (one, other) in enumerate(zip(target, saved, strict=True)):
                _check(one, other, f"{path}[{i}]", where)


def _check_object(target: Any, saved: ObjectState, path: str, where: str) -> None:
    try:
        if saved.how in ("dataclass", "enum"):
            name, kind = saved.state["class"], type(target).__qualname__
            if name != kind:
                raise errors.UsageError(f"a {kind}, but a {name} was saved")
        if saved.how == "enum":
            objects.member(target, saved.state)
        elif saved.how in estimators.KINDS:
            # All that can go wrong with it does so here.
            if saved.made is None:
                saved.made = estimators.prepare(target, saved.how, plain(saved.state))
        elif saved.how not in ("state_dict", "dataclass"):
            randomness.check_state(target, saved.how, saved.state)
    except errors.UsageError as error:
        raise errors.UsageError(f"{path} does not fit {where}: {error}") from error
    if saved.how == "dataclass":
        old, new = objects.fields(target), saved.state["fields"]
        for name, value in old.items():
            if name not in new:
                raise errors.UsageError(f"{where} has no {path}.{name}")
            if _is_object(value) or isinstance(new[name], ObjectState):
                _check(value, new[name], f"{path}.{name}", where)


def _put(target: Any, saved: Any, applied: _Applied) -> Any:
    """Restore in place where that is possible; returns what belongs in the target's place."""
    if _takes_dict(target, saved):
        target.load_state_dict(plain(saved))
        return target
    # One live object may stand where several saved ones did (`[t, t]`): only the first is copied
    # into it, and others that are not the same take places of their own.
    if id(target) in applied and not isinstance(saved, ObjectState):
        first, result = applied[id(target)]
        return result if _alike(first, saved) else plain(saved)
    applied[id(target)] = saved, target
    result = _put_first(target, saved, applied)
    applied[id(target)] = saved, result
    return result


def _put_first(target: Any, saved: Any, applied: _Applied) -> Any:
    if isinstance(saved, ObjectState):
        return _put_object(target, saved, applied)
    if is_array(target) and type(saved).__module__.partition(".")[0] in ("torch", "numpy"):
        return _put_array(target, saved)
    if isinstance(target, dict) and isinstance(saved, dict):
        new = {
            key: _put(target[key], value, applied) if key in target else plain(value)
            for key, value in saved.items()
        }
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
        items = [_put(one, other, applied) for one, other in zip(target, saved, strict=True)]
        named = getattr(target, "_fields", None) == getattr(saved, "_fields", None)
        return same_tuple(target if named else saved, items)
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


def _put_object(target: Any, saved: ObjectState, applied: _Applied) -> Any:
    if saved.how == "state_dict":
        state = plain(saved.state)
        if not is_loaded(target, state):
            target.load_state_dict(state)
    elif saved.how == "enum":
        return objects.member(target, saved.state)
    elif saved.how == "dataclass":
        old = objects.fields(target)
        if objects.is_frozen(target):
            target = copy.copy(target)
        for name, value in saved.state["fields"].items():
            new = _put(old[name], value, applied) if name in old else plain(value)
            objects.set_field(target, name, new)
    elif saved.how in estimators.KINDS:
        estimators.put_state(target, saved.how, saved.made)
    else:
        randomness.put_state(target, saved.how, plain(saved.state))
    return target


def _put_array(target: Any, saved: Any) -> Any:
    if not is_array(saved) or not takes(target, saved):
        return saved  # inside a container: it takes the place of the old one
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(target, torch.Tensor):
        return _put_tensor(torch, target, saved)
    if not target.flags.writeable:
        return saved
    if target.ctypes.data != saved.ctypes.data:  # else it was read to where it belongs
        target[...] = saved
    return target


def _put_tensor(torch: Any, target: Any, saved: Any) -> Any:
    if target.layout not in (torch.strided, torch.sparse_coo):
        # copy_ wants as many elements as there were.
        ours, theirs = sparse_parts(target), sparse_parts(saved)
        if [part.shape for part in ours] != [part.shape for part in theirs]:
            return saved
        for one, other in zip(ours, theirs, strict=True):
            one.copy_(other)
        return target
    if target.layout is torch.strided:
        # Expanded: many elements are the same memory, which is written once.
        for dim, (size, stride) in enumerate(zip(target.shape, target.stride(), strict=True)):
            if size > 1 and stride == 0:
                first = saved.narrow(dim, 0, 1)
                if not listing.same(first.expand_as(saved), saved):
                    return saved
                made = _put_tensor(torch, target.detach().narrow(dim, 0, 1), first)
                return saved if made is first else target
    if target.layout is not torch.strided or target.data_ptr() != saved.data_ptr():
        with torch.no_grad():
            target.copy_(saved)
    return target


def _kind(value: Any) -> str:
    library = type(value).__module__.partition(".")[0]
    return f"{library} {str(value.dtype).removeprefix('torch.')}"


def _alike(one: Any, other: Any) -> bool:
    """Whether two saved values are equal in every bit."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, ObjectState):
        return one.how == other.how and _alike(one.state, other.state)
    if isinstance(one, dict):
        return _alike(list(one.items()), list(other.items()))
    if isinstance(one, (list, tuple)) or hasattr(one, "maxlen"):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    return bool(listing.same(one, other))


def _how_of(value: Any) -> str | None:
    if is_array(value) or type(value) in (dict, list, tuple, set, str, int, float):
        return None
    return objects.how_of(value)


def _is_object(value: Any) -> bool:
    return _how_of(value) is not None


def _takes_dict(target: Any, saved: Any) -> bool:
    """Whether `saved` is a state dict, as imported ones are, for the object `target`."""
    return isinstance(saved, dict) and _how_of(target) == "state_dict"
