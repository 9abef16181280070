"""What came of pickling a value: its bytes, and what it reaches.

`ids` stay true while a `Pickled` lives, because it keeps the objects, the temporary ones too.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Collection, Iterable
from typing import Any

from blake3 import blake3

from mlcloud.values.digests import Chunks, Known, whole
from mlcloud.values.immutable import is_immutable
from mlcloud.values.owned import Owned

Ref = tuple[str, str, int]

_BUILT_IN = sys.stdlib_module_names | {"__main__", "__mp_main__", "mlcloud", "cloudpickle"}

_owned = Owned(is_immutable)


class Pickled:
    """A value as bytes. `digest` and `ids` are worked out when first asked for."""

    def __init__(
        self,
        payload: bytes,
        buffers: list[memoryview],
        *,
        keep: Any = None,
        visited: Iterable[int] = (),
        owners: Iterable[type] = (),
        memory: Iterable[int] = (),
        skip: Collection[int] = (),
        classes: dict[str, type] | None = None,
        devices: frozenset[str] = frozenset(),
        refs: frozenset[Ref] = frozenset(),
        codes: Iterable[types.CodeType] = (),
        annotated: Iterable[str] = (),
        kinds: Iterable[Any] = (),
    ) -> None:
        self.payload = payload
        self.buffers = buffers
        self.classes = classes or {}  # notebook classes named in here, which travel on their own
        self.devices = devices  # where its tensors live, other than "cpu"
        self.refs = refs  # the remote values named in here
        self.codes = tuple(codes)  # of the notebook's functions in here: what names they use
        self.annotated = frozenset(annotated)  # and those in their string annotations
        self.known = Known()  # what was hashed before; a scan gives all its pickles one
        self._kinds = kinds
        self._keep = keep  # holds the temporary objects too, so no id is used twice
        self._visited, self._owners = visited, owners
        self._memory, self._skip = memory, skip

    @property
    def size(self) -> int:
        """Bytes, payload and buffers."""
        return len(self.payload) + sum(buffer.nbytes for buffer in self.buffers)

    @functools.cached_property
    def chunks(self) -> list[Chunks]:
        """The names of the pieces of the payload and of each buffer (`values.digests`)."""
        return self.known.chunk_digests([self.payload, *self.buffers])

    @property
    def digests(self) -> list[str]:
        """The names of the payload and of each buffer."""
        return [whole(chunks) for chunks in self.chunks]

    @functools.cached_property
    def digest(self) -> str:
        """blake3 over all the parts."""
        digests = self.digests
        return digests[0] if len(digests) == 1 else blake3("".join(digests).encode()).hexdigest()

    @functools.cached_property
    def modules(self) -> frozenset[str]:
        """Where the types and functions in here are from: what must be importable to load it."""
        found = {
            getattr(kind, "__name__" if isinstance(kind, types.ModuleType) else "__module__", None)
            for kind in self._kinds
        }
        return frozenset(
            module
            for module in found
            if isinstance(module, str) and module.partition(".")[0] not in _BUILT_IN
        )

    @property
    def reached(self) -> list[int]:
        """As `ids`, in the order in which pickle met them, and as often."""
        skip = _owned.by(self._owners) | set(self._skip)
        return [each for each in (*self._visited, *self._memory) if each not in skip]

    @property
    def windows(self) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
        """Where in their memory its arrays are: offset, shape and strides of each."""
        return [
            (array.__array_interface__["data"][0] - address, array.shape, array.strides)
            for address, over in self._keep.arrays.items()
            for array in over.values()
            if hasattr(array, "__array_interface__")
        ]

    @functools.cached_property
    def ids(self) -> set[int]:
        """The mutable objects this value reaches, and the addresses of its arrays' memory."""
        found = set(self._memory)
        found.update(self._visited)
        found.difference_update(self._skip)
        found -= _owned.by(self._owners)
        return found
