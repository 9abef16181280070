"""A remote cell's error, raised here as it was there.

The exception itself travels where it can be pickled, so `except KeyError` catches a remote
KeyError; its rendering is the remote traceback, with the cell's own lines. Errors of mlcloud's own
come back as their classes, without a traceback nobody needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlcloud import errors


class RemoteError(Exception):
    """Stands in for an exception whose class does not exist here; its name is the remote one."""


def rebuilt(content: dict[str, Any], load: Callable[[], Any]) -> BaseException:
    """The exception of a `done` event. `load` gives the remote exception itself, if it came."""
    name, message = content.get("ename", "Error"), content.get("evalue", "")
    own = getattr(errors, name, None)
    if isinstance(own, type) and issubclass(own, errors.MLCloudError):
        return own(message)
    if name == "KeyboardInterrupt":
        return _with_traceback(KeyboardInterrupt(message), content)
    try:
        error = load()
    except Exception:  # its class cannot be imported here, or its constructor wants other arguments
        error = None
    if not isinstance(error, BaseException) or type(error).__name__ != name:
        error = type(name, (RemoteError,), {"__module__": "remote"})(message)
    return _with_traceback(error, content)


def _with_traceback(error: BaseException, content: dict[str, Any]) -> BaseException:
    """IPython shows what `_render_traceback_` returns instead of the frames of this library."""
    lines = list(content.get("traceback") or [f"{content.get('ename')}: {content.get('evalue')}"])
    error._render_traceback_ = lambda: lines  # type: ignore[attr-defined]
    return error
