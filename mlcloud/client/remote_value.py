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

# JupyterLab's own colours, so that it fits each theme; elsewhere those of the text around it.
_BOX = (
    "border:1px solid var(--jp-border-color2,rgba(128,128,128,.4));"
    "border-radius:var(--jp-border-radius,2px);padding:6px 10px;margin:2px 0;max-width:100%;"
    "overflow-x:auto;color:var(--jp-ui-font-color1,inherit);"
    "font-family:var(--jp-ui-font-family,system-ui,sans-serif);"
    "font-size:var(--jp-ui-font-size1,13px)"
)
_QUIET = "color:var(--jp-ui-font-color2,inherit);font-size:var(--jp-ui-font-size1,13px);opacity:.85"
_TEXT = (
    "margin:4px 0 0;padding:0;background:none;color:inherit;white-space:pre-wrap;"
    "font-family:var(--jp-code-font-family,monospace);font-size:var(--jp-code-font-size,13px)"
)


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
            what = f"`{self._label}`" if self._label else f"This {self.type}"
            raise errors.NotFound(f"{what} lives in session {self.place}, not open here")
        return self._fetch(self._info.name, self._info.binding)

    # --- shown

    @property
    def _label(self) -> str:
        """Its name, if the user gave it one."""
        return "" if self.name.startswith("_mlcloud") else self.name

    def _where(self) -> str:
        return f"in session {self.place}"

    def _facts(self) -> str:
        shape = None if self.shape is None else "×".join(map(str, self.shape))
        size = None if self.nbytes is None else _bytes(self.nbytes)
        return " ".join(part for part in (self.type, shape, self.dtype, size) if part)

    def _more(self) -> list[str]:
        return [f"{label} {text}" for label, text in self._info.facts]

    def __repr__(self) -> str:
        why = f" ({self._info.why})" if self._info.why else ""
        name = f" {self._label}" if self._label else ""
        head = f"<remote{name}: {self._facts()}, {self._where()}{why}>"
        more = " · ".join(self._more())
        return "\n".join(part for part in (head, more, self._info.text) if part)

    def _repr_html_(self) -> str:
        title = f"<b>{html.escape(self._label)}</b> " if self._label else ""
        facts = [f"{html.escape(each)}" for each in self._more()]
        facts += [html.escape(self._info.why)] if self._info.why else []
        more = f'<div style="{_QUIET}">{" · ".join(facts)}</div>' if facts else ""
        text = f'<pre style="{_TEXT}">{html.escape(self._info.text)}</pre>'
        return (
            f'<div style="{_BOX}"><div>{title}{html.escape(self._facts())} '
            f'<span style="{_QUIET}">{html.escape(self._where())}</span></div>'
            f"{more}{self._info.html or text}</div>"
        )

    # --- not the object itself

    def _hint(self) -> str:
        what = f"`{self._label}` ({self.type})" if self._label else f"This {self.type}"
        get = f"{self._label}.get()" if self._label else ".get()"
        return (
            f"{what} lives in session {self.place}: use it in a %%remote cell, or fetch it with "
            f"`{get}`"
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
    __le__ = __ge__ = __mod__ = __floordiv__ = __and__ = __or__ = __xor__ = __invert__ = _refuse
    __rmod__ = __rfloordiv__ = __rpow__ = __rand__ = __ror__ = __rxor__ = __pos__ = __abs__ = (
        _refuse
    )
    __iadd__ = __isub__ = __imul__ = __itruediv__ = __imatmul__ = __ior__ = __iand__ = _refuse
    __lshift__ = __rshift__ = __round__ = __divmod__ = __rdivmod__ = __complex__ = _refuse


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
