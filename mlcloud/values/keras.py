"""Keras objects as what they are made of, so that layers, variables and optimizers stay shared.

Keras pickles a model as its own file in a byte string: another model that shares its layers, a
layer or an optimizer that has a name of its own would come back as copies. Here an object is
written by its attributes, as any other. What is made anew by itself is left out: the functions that
`fit` compiles. An optimizer finds its slots by variables' ids, which are others after reading.

Everything named here is referenced by pickles.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

Reduced = tuple[Any, ...]
# Compiled by the first `fit`, `evaluate`, `predict`: for the functions of one process.
_COMPILED = ("train_function", "test_function", "predict_function")
_NODE = "_ib-"  # between an operation's id and a number (`keras.src.ops.function`)
_TRACKED: dict[str, Any] = {
    "TrackedList": list,
    "TrackedDict": dict,
    "TrackedOrderedDict": OrderedDict,
    "TrackedSet": set,
}


def way(kind: type) -> Callable[[Any], Reduced] | None:
    """How objects of this type are taken apart; None: it is none of Keras's."""
    saving = sys.modules.get("keras.src.saving.keras_saveable")
    if saving is None:
        return None
    if issubclass(kind, saving.KerasSaveable):
        return object_parts
    if kind.__module__ != "keras.src.utils.tracking":
        return None
    return tracker_parts if kind.__name__ == "Tracker" else tracked_parts


def object_parts(obj: Any) -> Reduced:
    """A layer, a model, an optimizer, a metric, …: its attributes."""
    state: dict[str, Any] = {
        name: None if name in _COMPILED else value for name, value in obj.__dict__.items()
    }
    # TensorFlow's lists of what is to be saved with it.
    if (named := state.get("_self_unconditional_dependency_names")) is not None:
        kept = {name: value for name, value in named.items() if name not in _COMPILED}
        state["_self_unconditional_dependency_names"] = kept
    if (listed := state.get("_self_unconditional_checkpoint_dependencies")) is not None:
        names = [each for each in listed if each.name not in _COMPILED]
        state["_self_unconditional_checkpoint_dependencies"] = names
    if "_distribution_strategy" in state:  # TensorFlow's own, each process has it
        state["_distribution_strategy"] = None
    if "_nodes" in state and "_operations" in state:  # keys made of their operations' ids
        found = [each.split(_NODE) for each in state["_nodes"]]
        state["_nodes"] = [
            (operation, at)
            for operation in state["_operations"]
            for at in sorted(int(at) for of, at in found if of == str(id(operation)))
        ]
    return build, (type(obj),), state, None, None, fill


def build(kind: type) -> Any:
    """An object without any attribute: `__new__` would ask for arguments, and note them."""
    return object.__new__(kind)


def fill(obj: Any, state: dict[str, Any]) -> None:
    """Second phase: the attributes, as they were, past `__setattr__`, which tracks them."""
    obj.__dict__.update(state)
    if "_distribution_strategy" in state:
        obj._distribution_strategy = sys.modules["tensorflow"].distribute.get_strategy()
    if hasattr(obj, "_trainable_variables_indices"):
        obj._trainable_variables_indices = {
            obj._var_key(variable): index for index, variable in enumerate(obj._trainable_variables)
        }
    if "_nodes" in state and "_operations" in state:
        obj._nodes = {f"{id(of)}{_NODE}{at}" for of, at in state["_nodes"]}


def tracker_parts(tracker: Any) -> Reduced:
    """What fills a layer's lists of variables, layers, …; it knows these by their ids."""
    stored = {name: tuple(store) for name, (_, store) in tracker.config.items()}
    return build, (type(tracker),), (tracker.__dict__, stored), None, None, fill_tracker


def fill_tracker(tracker: Any, state: tuple[dict[str, Any], dict[str, tuple[Any, ...]]]) -> None:
    """Second phase: what it watches for, and what it has found."""
    attributes, stored = state
    tracker.__dict__.update(attributes)
    tracker.stored_ids = {name: set(map(id, found)) for name, found in stored.items()}


def tracked_parts(obj: Any) -> Reduced:
    """A container that tells its owner of what it gets: not while it is read."""
    plain = _TRACKED[type(obj).__name__](obj)
    return build_tracked, (type(obj),), (obj.__dict__, plain), None, None, fill_tracked


def build_tracked(kind: type) -> Any:
    """An empty one."""
    return _TRACKED[kind.__name__].__new__(kind)


def fill_tracked(obj: Any, state: tuple[dict[str, Any], Any]) -> None:
    """Second phase: what it tells, and what is in it."""
    attributes, items = state
    obj.__dict__.update(attributes)
    plain = _TRACKED[type(obj).__name__]
    (plain.extend if plain is list else plain.update)(obj, items)
