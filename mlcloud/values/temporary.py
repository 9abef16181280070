"""Which of the objects that pickle met were made on the way, and are gone when it is over.

A frame's `__reduce__` makes a dict for its state, a figure's artists thousands. To remember their
ids would find them again in whatever comes to lie where they were: names would seem to share.

They are told by their references: those that pickling itself has to an object that nobody else
holds, a number that is found by trying (`_alone`), or one more where what holds it was made, too.
"""

from __future__ import annotations

import functools
import gc
import io
import itertools
import pickle
import sys
from collections.abc import Sequence
from typing import Any


class Made:
    """What was made on the way. `met`: all that was met, which only it and the memo hold besides.

    `can_change` says of which of these the ids are wanted.
    """

    def __init__(self, met: Sequence[Any], can_change: Sequence[bool]) -> None:
        self._alone = alone = _alone()
        counts = list(map(sys.getrefcount, met))
        every = zip(met, counts, can_change, strict=True)
        made = {
            id(obj): obj
            for obj, _, changes in itertools.compress(every, map(alone.__ge__, counts))
            if changes or type(obj) is tuple
        }
        self._counts = dict(zip(map(id, met), counts, strict=True)) if made else {}
        waiting = list(made.values())
        while waiting:
            for child in gc.get_referents(waiting.pop()):
                if id(child) not in made and self._holders(child) <= 1:
                    made[id(child)] = child
                    waiting.append(child)
        self.ids = set(made)

    def _holders(self, obj: Any) -> int:
        """How many hold it besides; a large number where it was not met."""
        return self._counts.get(id(obj), sys.maxsize) - self._alone

    def is_array(self, obj: Any) -> bool:
        """Whether it is an array with memory of its own that was made on the way. One holds it."""
        plain = type(obj).__module__ == "numpy" and type(obj).__name__ == "ndarray"
        return plain and obj.flags.owndata and self._holders(obj) <= 1


class _Probe:
    def __reduce__(self) -> Any:
        return object, (), {}


@functools.cache
def _alone() -> int:
    """How many references are counted to what nobody but pickle, and the list of it, holds."""
    met: list[Any] = []

    class Pickler(pickle.Pickler):
        pass

    pickler = Pickler(io.BytesIO(), 5)
    pickler.persistent_id = met.append  # type: ignore[method-assign]
    pickler.dump(_Probe())
    counts = list(map(sys.getrefcount, met))
    return next(count for obj, count in zip(met, counts, strict=True) if type(obj) is dict)
