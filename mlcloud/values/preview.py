"""A few lines about a value that stays where it is: type, shape, bytes, and its beginning.

It must be quick and must not fail, whatever the value is: containers are shown by their first
items, and an error inside somebody's `__repr__` is shown instead of raised.
"""

from __future__ import annotations

import reprlib
from typing import Any

from mlcloud.values.messages import RemoteInfo

TEXT = 2048  # characters of `text`
HTML = 16384  # characters of `html`; a longer table is left out
_CONTAINERS = (str, bytes, bytearray, list, tuple, dict, set, frozenset)

_short = reprlib.Repr()
_short.maxlist = _short.maxtuple = _short.maxset = _short.maxdict = 20
_short.maxstring = _short.maxother = 400


def describe(name: str, value: Any, *, binding: int, nbytes: int | None, why: str) -> RemoteInfo:
    """What the notebook shows for `value`. `nbytes`: its pickled size, where that is known."""
    kind = type(value)
    label = kind.__qualname__
    if kind.__module__ not in ("builtins", "__main__"):
        label = f"{kind.__module__.partition('.')[0]}.{label}"
    dtype = _quiet(lambda: getattr(value, "dtype", None))
    return RemoteInfo(
        name=name,
        binding=binding,
        type=label,
        text=_text(value),
        html=_html(value),
        shape=_quiet(lambda: [int(side) for side in value.shape]),
        dtype=None if dtype is None else str(dtype),
        nbytes=_nbytes(value) or nbytes,
        why=why,
    )


def _text(value: Any) -> str:
    try:
        text = _short.repr(value) if isinstance(value, _CONTAINERS) else repr(value)
    except Exception as error:
        return f"<its repr failed: {type(error).__name__}: {error}>"[:TEXT]
    return text if len(text) <= TEXT else text[: TEXT - 1] + "…"


def _html(value: Any) -> str | None:
    """The head of a table; other HTML may be anything, and may be large."""
    if not (hasattr(value, "head") and hasattr(value, "_repr_html_")):
        return None
    html = _quiet(lambda: value.head(5)._repr_html_())
    return html if isinstance(html, str) and len(html) <= HTML else None


def _nbytes(value: Any) -> int | None:
    size: int | None = _quiet(lambda: int(value.nbytes))
    if size is None and hasattr(value, "memory_usage"):
        usage = _quiet(lambda: value.memory_usage())
        size = _quiet(lambda: int(usage if isinstance(usage, int) else usage.sum()))
    if size is None and hasattr(value, "parameters") and hasattr(value, "buffers"):
        size = _quiet(lambda: sum(t.nbytes for t in (*value.parameters(), *value.buffers())))
    return size


def _quiet(ask: Any) -> Any:
    """What `ask()` says, or None if it fails: these are somebody else's properties."""
    try:
        return ask()
    except Exception:
        return None
