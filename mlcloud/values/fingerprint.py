"""Whether a value that cannot be pickled is as it was: its pickle, with stand-ins where that fails.

    fingerprint(value) ─► hash     generators by where they stand, files by their position, …
                       └► None     something in it has a state that cannot be seen

Equal hashes of one object, taken in one process, mean that nothing visible of it has changed.
"""

from __future__ import annotations

import _thread
import io
import pickle
import types
import weakref
from collections.abc import Callable
from typing import Any

from blake3 import blake3

from mlcloud.values.pickling import GuardedPickler
from mlcloud.values.reducers import Classes


def fingerprint(value: Any, namespace: dict[str, Any], classes: Classes) -> str | None:
    """A hash of all that can be seen of `value`, or None where that is not all there is."""
    file, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    pickler = _Pickler(file, namespace, classes, None, (), buffers)
    try:
        pickler.write(value)
    except Exception:  # whatever a type's own code raises
        return None
    hasher = blake3(file.getvalue())
    for buffer in buffers:
        hasher.update(buffer.raw())
    return hasher.hexdigest()


class _Pickler(GuardedPickler):
    """Writes what cannot be pickled as its type and its state."""

    def reducer_override(self, obj: Any) -> Any:
        for kind, state in _STATES:
            if isinstance(obj, kind):
                return stand_in, (type(obj).__qualname__,), state(obj)
        return super().reducer_override(obj)


def stand_in(kind: str) -> Any:
    """Only named in a pickle that nobody loads."""
    raise pickle.UnpicklingError(f"a fingerprint holds no {kind}")


def _frame_state(prefix: str) -> Callable[[Any], Any]:
    def state(obj: Any) -> Any:
        frame = getattr(obj, f"{prefix}_frame")
        return None if frame is None else (frame.f_lasti, dict(frame.f_locals))

    return state


def _file_state(file: Any) -> Any:
    if file.closed:
        return "closed"
    position = file.tell() if file.seekable() else id(file)
    return str(getattr(file, "name", "")), str(getattr(file, "mode", "")), position


_FILES = (
    *(io.TextIOWrapper, io.FileIO, io.BufferedReader, io.BufferedWriter, io.BufferedRandom),
    io.BufferedRWPair,
)
_STATES: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (types.GeneratorType, _frame_state("gi")),
    (types.CoroutineType, _frame_state("cr")),
    (types.AsyncGeneratorType, _frame_state("ag")),
    (_FILES, _file_state),
    (_thread.LockType, lambda lock: lock.locked()),
    (type(_thread.RLock()), repr),
    (weakref.ReferenceType, lambda reference: (reference(),)),
    (types.MappingProxyType, dict),
    ((type({}.keys()), type({}.values()), type({}.items())), list),
)
