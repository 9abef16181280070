"""A few lines about a value that stays where it is: type, shape, bytes, and its beginning.

    describe(name, value) ─► RemoteInfo: type, shape, dtype, nbytes, facts, text, html

Each kind of value says what its users look for: an array its range, a table its first rows and
column types, a tensor its device, a model its parameters. All of it must be quick and must not
fail, whatever the value is. These are somebody else's properties and somebody else's `__repr__`:
an error in one is shown instead of raised, what takes longer than `SECONDS` is stopped, and what is
longer than fits is cut. Nothing looks at every element of something large.
"""

from __future__ import annotations

import contextlib
import reprlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from mlcloud.values.messages import RemoteInfo

T = TypeVar("T")

TEXT = 2048  # characters of `text`
HTML = 64 * 1024  # characters of `html`; longer HTML is left out
SECONDS = 1.0  # for all that is asked of a value
RANGE_BYTES = 64 * 2**20  # of an array whose range is worked out
ROWS = 5
SAMPLE = 1000  # rows of a table whose texts are measured
COLUMNS = 8  # named with their types
_CONTAINERS = (str, bytes, bytearray, list, tuple, dict, set, frozenset)

_short = reprlib.Repr()
_short.maxlist = _short.maxtuple = _short.maxset = _short.maxdict = 20
_short.maxstring = _short.maxother = 400


class _TooLong(BaseException):
    """Past `SECONDS`. No Exception: a `__repr__` that swallows those is stopped too."""


def describe(name: str, value: Any, *, binding: int, nbytes: int | None, why: str) -> RemoteInfo:
    """What the notebook shows for `value`. `nbytes`: its pickled size, where that is known."""
    info = RemoteInfo(name, binding, _type(type(value)), "", nbytes=nbytes, why=why)
    try:
        with _limited(SECONDS):
            _fill(info, value)
    except _TooLong:
        info.text = info.text or f"<its repr took longer than {SECONDS:g} s>"
    return info


def _type(kind: type) -> str:
    label = kind.__qualname__
    if kind.__module__ not in ("builtins", "__main__", None):
        label = f"{kind.__module__.partition('.')[0]}.{label}"
    return label


def _fill(info: RemoteInfo, value: Any) -> None:
    info.nbytes = _size(value) or info.nbytes
    info.shape = _ask(lambda: [int(side) for side in value.shape])
    dtype = _ask(lambda: getattr(value, "dtype", None))
    info.dtype = None if dtype is None else _ask(lambda: str(dtype))
    with contextlib.suppress(Exception):
        for label, text in _facts(value):
            info.facts.append([label, text])
    info.html = _html(value)
    info.text = _text(value)


def _facts(value: Any) -> Iterator[tuple[str, str]]:
    """(label, text) of what users of this kind of value look for."""
    root = str(type(value).__module__).partition(".")[0]
    if _is(value, "numpy", "ndarray"):
        yield from _range(value)
    elif _is(value, "torch", "Tensor"):
        yield "device", str(value.device)
        if value.requires_grad:
            yield "requires_grad", "True"
        if value.device.type == "cpu" and not value.is_sparse:
            yield from _range(value.detach().numpy() if value.dtype.is_floating_point else value)
    elif _is(value, "torch.nn", "Module"):
        yield from _module(value)
    elif _is(value, "pandas", "DataFrame"):
        yield "rows × columns", f"{len(value):,} × {len(value.columns):,}"
        types = [f"{name} {kind}" for name, kind in value.dtypes.iloc[:COLUMNS].items()]
        yield "columns", _listed(types, len(value.columns))
    elif _is(value, "pandas", "Series"):
        yield "rows", f"{len(value):,}"
    elif root == "polars" and hasattr(value, "schema"):
        yield "rows × columns", f"{value.height:,} × {value.width:,}"
        types = [f"{name} {kind}" for name, kind in list(value.schema.items())[:COLUMNS]]
        yield "columns", _listed(types, value.width)
    elif root == "pyarrow" and hasattr(value, "schema"):
        yield "rows × columns", f"{value.num_rows:,} × {value.num_columns:,}"
        types = [f"{field.name} {field.type}" for field in list(value.schema)[:COLUMNS]]
        yield "columns", _listed(types, value.num_columns)
    elif hasattr(type(value), "get_params") and hasattr(type(value), "fit"):
        fitted = sorted(
            name for name in vars(value) if name.endswith("_") and not name.startswith("_")
        )
        yield "fitted", "yes" if fitted else "no"
        if (features := getattr(value, "n_features_in_", None)) is not None:
            yield "features", str(features)
    elif isinstance(value, _CONTAINERS):
        yield "length", f"{len(value):,}"


def _is(value: Any, module: str, name: str) -> bool:
    """Whether it is one of these, without importing anything."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def _range(array: Any) -> Iterator[tuple[str, str]]:
    import numpy as np

    array = np.asarray(array)
    if array.dtype.kind not in "iuf" or not array.size or array.nbytes > RANGE_BYTES:
        return
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        others = int(array.size - np.count_nonzero(finite))
        if others:
            yield "not finite", f"{others:,}"
            array = array[finite]
            if not array.size:
                return
    yield "min", f"{array.min():.6g}"
    yield "max", f"{array.max():.6g}"
    yield "mean", f"{array.mean(dtype='float64'):.6g}"


def _module(model: Any) -> Iterator[tuple[str, str]]:
    parameters = list(model.parameters())
    count = sum(each.numel() for each in parameters)
    trained = sum(each.numel() for each in parameters if each.requires_grad)
    yield "parameters", f"{count:,}" + ("" if trained == count else f" ({trained:,} trainable)")
    if devices := sorted({str(each.device) for each in parameters}):
        yield "device", ", ".join(devices)
    if types := sorted({str(each.dtype) for each in parameters}):
        yield "dtype", ", ".join(types)
    yield "mode", "training" if model.training else "evaluation"


def _listed(parts: list[str], count: int) -> str:
    more = f", … {count - len(parts)} more" if count > len(parts) else ""
    return ", ".join(parts) + more


# --- size, text and HTML --------------------------------------------------------------------------


def _size(value: Any) -> int | None:
    """Its bytes, texts in tables included (estimated from `SAMPLE` rows)."""
    if _is(value, "pandas", "DataFrame") or _is(value, "pandas", "Series"):
        return _ask(lambda: _table_bytes(value))
    if _is(value, "torch.nn", "Module"):
        parts = (*value.parameters(), *value.buffers())
        return _ask(lambda: sum(int(part.nbytes) for part in parts))
    if str(type(value).__module__).partition(".")[0] == "polars":
        return _ask(lambda: int(value.estimated_size()))
    if isinstance(value, str | bytes | bytearray):
        return len(value)  # of a text about
    size = _ask(lambda: int(value.nbytes))
    return size if size is None or size >= 0 else None


def _table_bytes(table: Any) -> int:
    def total(usage: Any) -> int:
        return int(usage if isinstance(usage, int) else usage.sum())

    rows = len(table)
    if rows <= SAMPLE:
        return total(table.memory_usage(deep=True))
    sample = table.iloc[:: max(1, rows // SAMPLE)]
    texts = total(sample.memory_usage(deep=True, index=False))
    texts -= total(sample.memory_usage(deep=False, index=False))
    return total(table.memory_usage(deep=False)) + texts * rows // len(sample)


def _text(value: Any) -> str:
    try:
        text = _short.repr(value) if isinstance(value, _CONTAINERS) else repr(value)
        text = str(text)
    except Exception as error:
        failed = error
        words = _ask(lambda: str(failed)) or ""
        return f"<its repr failed: {type(failed).__name__}: {words}>"[:TEXT]
    return text if len(text) <= TEXT else text[: TEXT - 1] + "…"


def _html(value: Any) -> str | None:
    """The head of a table; other HTML may be anything.

    Not an estimator's diagram: it reads docstrings, and asks a forest for all its samples.
    """
    html = None
    if _is(value, "pandas", "Series"):
        html = _ask(lambda: value.head(ROWS).to_frame()._repr_html_())
    elif _ask(lambda: callable(type(value).head) and callable(type(value)._repr_html_)):
        html = _ask(lambda: value.head(ROWS)._repr_html_())
    return html if isinstance(html, str) and len(html) <= HTML else None


def _ask(question: Callable[[], T]) -> T | None:
    """What `question()` says, or None if it fails: these are somebody else's properties."""
    try:
        return question()
    except Exception:
        return None


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise `_TooLong` inside after this long, where that can be done: on the main thread.

    A timer that somebody else has set, and that is due later, is set again for what is left of it.
    """
    can = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    due, interval = signal.getitimer(signal.ITIMER_REAL) if can else (0.0, 0.0)
    if not can or 0 < due <= seconds:
        yield
        return

    def stop(*_: Any) -> None:
        raise _TooLong

    began = time.monotonic()
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if due:
            left = max(due - (time.monotonic() - began), 0.001)
            signal.setitimer(signal.ITIMER_REAL, left, interval)
