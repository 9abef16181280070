"""A value that stayed in the session: the notebook holds its preview and its address.

A `RemoteValue` takes the place of a name whose value is too large to come back, or cannot travel.
In the next `%%remote` cell it *is* the object, under this name or any other it was given
(`values.pickling` writes it as a reference). Here it can be looked at, and fetched with `.get()`;
anything else says so instead of acting on the wrong object.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any, NoReturn

from mlcloud import errors
from mlcloud.values.messages import RemoteInfo

Fetch = Callable[[str, int], Any]


class RemoteValue:
    """The address and preview of a value in a session. `fetch(name, binding)` brings it here.

    `session` is the session's id, the address; `place` is what the user calls it, only shown.
    """

    __slots__ = ("__weakref__", "_fetch", "_info", "_place", "_session")
    _fetch: Fetch | None
    _info: RemoteInfo
    _place: str
    _session: str

    def __init__(
        self,
        info: RemoteInfo,
        session: str,
        fetch: Fetch | None = None,
        *,
        place: str | None = None,
    ) -> None:
        object.__setattr__(self, "_info", info)
        object.__setattr__(self, "_session", session)
        object.__setattr__(self, "_fetch", fetch)
        object.__setattr__(self, "_place", session if place is None else place)

    @property
    def __mlcloud_ref__(self) -> tuple[str, str, int]:
        """(session, name there, which binding of that name)."""
        return self._session, self._info.name, self._info.binding

    @property
    def name(self) -> str:
        """Its name in the session."""
        return self._info.name

    @property
    def type(self) -> str:
        """Its type, as text."""
        return self._info.type

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Its shape, for arrays, tensors and tables."""
        return None if self._info.shape is None else tuple(self._info.shape)

    @property
    def dtype(self) -> str | None:
        """Its element type, as text."""
        return self._info.dtype

    @property
    def nbytes(self) -> int | None:
        """Its size in bytes, where it is known."""
        return self._info.nbytes

    @property
    def place(self) -> str:
        """The session it lives in, by its name where that is known."""
        return self._place

    def get(self) -> Any:
        """Fetch the value into the notebook, whatever its size. It is a copy."""
        if self._fetch is None:
            raise errors.NotFound(f"`{self.name}` lives in session {self.place}, not open here")
        return self._fetch(self._info.name, self._info.binding)

    # --- shown

    def _facts(self) -> str:
        shape = None if self.shape is None else "×".join(map(str, self.shape))
        size = None if self.nbytes is None else _bytes(self.nbytes)
        return " ".join(part for part in (self.type, shape, self.dtype, size) if part)

    def __repr__(self) -> str:
        why = f" ({self._info.why})" if self._info.why else ""
        head = f"<remote {self.name}: {self._facts()}, in session {self.place}{why}>"
        return f"{head}\n{self._info.text}"

    def _repr_html_(self) -> str:
        head = html.escape(f"{self.name}: {self._facts()}, in session {self.place}")
        body = self._info.html or f"<pre>{html.escape(self._info.text)}</pre>"
        return f"<div><div><b>remote</b> {head}</div>{body}</div>"

    # --- not the object itself

    def _hint(self) -> str:
        return (
            f"`{self.name}` ({self.type}) lives in session {self.place}: use it in a %%remote "
            f"cell, or fetch it with `{self.name}.get()`"
        )

    def __getattr__(self, attribute: str) -> NoReturn:
        if attribute.startswith("_"):  # Python and IPython asking what this object can do
            raise AttributeError(attribute)
        raise AttributeError(f"no `.{attribute}` here. {self._hint()}.")

    def __setattr__(self, attribute: str, value: Any) -> NoReturn:
        raise AttributeError(f"`.{attribute}` cannot be set here. {self._hint()}.")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise errors.NotPicklable(f"A RemoteValue cannot be pickled. {self._hint()}.")

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(f"{self._hint()}.")

    __call__ = __len__ = __iter__ = __bool__ = __array__ = __index__ = __float__ = __int__ = _refuse
    __getitem__ = __setitem__ = __delitem__ = __contains__ = __enter__ = __exit__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = _refuse
    __rtruediv__ = __matmul__ = __rmatmul__ = __pow__ = __neg__ = __lt__ = __gt__ = _refuse
    __le__ = __ge__ = __mod__ = __floordiv__ = __and__ = __or__ = __invert__ = _refuse


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
