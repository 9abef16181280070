"""`@mlcloud.remote`: a function whose calls run in a session, as the same line in a cell would.

    train(0.1, data=df)
      └► cell   _mlcloud_result_… = train(0.1, data=df)       arguments that are a name's value by
           │                                                  that name, others as temporary names
           ├► Session.call: names there, output here, errors as in a cell
           └► the result: its value up to the limit, else a RemoteValue

So a call follows the rules of `%%remote` and has none of its own: the function goes with all it
refers to and again when it was edited, an argument changed in place is changed here, a RemoteValue
is the object itself in the session. In a session a call is a plain call, so remote functions call
each other.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar, overload
from uuid import uuid4

from mlcloud.errors import UsageError

__all__ = ["RemoteFunction", "remote"]

P = ParamSpec("P")
R = TypeVar("R")

RESOURCES = ("gpu", "cpus", "memory", "market", "idle_timeout", "workers")
LATER = {
    "retries": "jobs",
    "deadline": "jobs with a deadline",
}
_LITERALS = (int, float, str, bool, type(None))


@overload
def remote(function: Callable[P, R], /) -> RemoteFunction[P, R]: ...
@overload
def remote(**options: Any) -> Callable[[Callable[P, R]], RemoteFunction[P, R]]: ...
def remote(function: Callable[P, R] | None = None, /, **options: Any) -> Any:
    """Run a function's calls in a session: `@mlcloud.remote` or `@mlcloud.remote(gpu="A10G:1")`.

    `gpu` is `NAME:COUNT`, `cpus` vCPUs, `memory` a size such as `8GB`, `market` `spot` or
    `on-demand`, `idle_timeout` a duration, `workers` how many ranks run each call (rank 0's result
    comes back); `session` a session's name, or the `Session` itself.
    Without any, calls run in this notebook's own session; with resources alone, in a session of
    this notebook that is made for them. `timeout` (a duration) interrupts a call, `quiet` hides its
    footer, `max_cost` (dollars) interrupts a call that has cost so much.

    Raises `UsageError` for an option that it does not know.
    """
    for name in options:
        if name in LATER:
            raise UsageError(f"@mlcloud.remote: {name} ({LATER[name]}) is not in this version yet")
    known = (*RESOURCES, "session", "timeout", "max_cost", "quiet")
    if unknown := sorted(options.keys() - set(known)):
        raise UsageError(
            f"@mlcloud.remote: unknown option {unknown[0]}; there are {', '.join(known)}"
        )
    if function is None:
        return lambda each: RemoteFunction(each, options)
    return RemoteFunction(function, options)


class RemoteFunction(Generic[P, R]):
    """A function that runs in a session when it is called. `local(…)` runs it here."""

    def __init__(self, function: Callable[P, R], options: dict[str, Any]) -> None:
        if not callable(function) or isinstance(function, (type, staticmethod, classmethod)):
            raise UsageError(
                f"@mlcloud.remote is for functions, not for {type(function).__name__} objects: "
                "write a function that uses it"
            )
        self._function = function
        self._options = options
        functools.update_wrapper(self, function)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self._options.items())
        return f"<remote function {getattr(self, '__qualname__', self._function)}({options})>"

    @property
    def local(self) -> Callable[P, R]:
        """The function itself: calls of it run here."""
        return self._function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it in its session. Raises what it raised there."""
        if in_session():
            return self._function(*args, **kwargs)
        from mlcloud.client.session import main_namespace
        from mlcloud.units import parse_duration

        session = self._session()
        code, temporary, result = call_text(self, args, kwargs, main_namespace())
        timeout = self._options.get("timeout")
        value: R = session.call(
            code,
            temporary,
            result,
            timeout=None if timeout is None else parse_duration(timeout).total_seconds(),
            max_cost=self._options.get("max_cost"),
            quiet=self._options.get("quiet", False),
        )
        return value

    def _session(self) -> Any:
        from mlcloud.client.api import default
        from mlcloud.client.session import Session

        named = self._options.get("session")
        if isinstance(named, Session):
            return named
        wanted = {name: self._options[name] for name in RESOURCES if name in self._options}
        client = default()
        if named is None and wanted:
            named = client.name_for(wanted)
        known = client.known(named)
        return known if known is not None and not wanted else client.session(named, **wanted)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A module's remote function travels by its name, the notebook's by its function."""
        module = sys.modules.get(self.__module__)
        name: str = getattr(self, "__qualname__", "")
        if self.__module__ != "__main__" and getattr(module, name, None) is self:
            return name
        options = dict(self._options)
        if "session" in options and not isinstance(options["session"], str):
            options["session"] = options["session"].name
        return RemoteFunction, (self._function, options)

    def _later(self, *_: Any, **__: Any) -> NoReturn:
        raise UsageError(
            "jobs (.submit, .map) are not in this version yet: call the function, and it runs in "
            "its session while this cell waits"
        )

    submit = map = _later


def in_session() -> bool:
    """Whether this Python is a session's kernel."""
    return "mlcloud.kernel.kernel" in sys.modules


def call_text(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], namespace: dict[str, Any]
) -> tuple[str, dict[str, Any], str]:
    """(the call as a cell, the names it needs besides the notebook's, its result's name).

    What is the very object of a name goes by that name, as in a cell: sent only if it changed.
    """
    mark = uuid4().hex[:8]
    temporary: dict[str, Any] = {}
    names: dict[int, str] = {id(value): name for name, value in reversed(list(_own(namespace)))}

    def text(value: Any) -> str:
        if type(value) in _LITERALS and value == value and len(repr(value)) <= 40:
            return repr(value) if value not in (float("inf"), -float("inf")) else named(value)
        return named(value)

    def named(value: Any) -> str:
        if id(value) in names:
            return names[id(value)]
        name: str = f"_mlcloud_{mark}_{len(temporary)}"
        names[id(value)] = name
        temporary[name] = value
        return name

    words = [text(value) for value in args]
    for name, value in kwargs.items():
        words.append(
            f"{name}={text(value)}" if name.isidentifier() else f"**{{{name!r}: {text(value)}}}"
        )
    result = f"_mlcloud_result_{mark}"
    return f"{result} = {named(function)}({', '.join(words)})", temporary, result


def _own(namespace: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    from mlcloud.values.userdata import is_hidden

    for name, value in namespace.items():
        if name.isidentifier() and not is_hidden(name, value):
            yield name, value
