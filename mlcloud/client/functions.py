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

`.submit(0.1)` and `.map(rates)` make jobs of calls (`submitting`): these run on workers, detached
from the notebook. Of a class, an object lives in the session (`remote_class`).
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload
from uuid import uuid4

from mlcloud.errors import MLCloudError, UsageError

if TYPE_CHECKING:
    from mlcloud.client.jobs import Job
    from mlcloud.client.mapping import Jobs
    from mlcloud.client.remote_class import RemoteClass

__all__ = ["RemoteFunction", "remote"]

P = ParamSpec("P")
R = TypeVar("R")

RESOURCES = (
    *("gpu", "cpus", "memory", "market", "idle_timeout", "workers", "environment"),
    *("secrets", "data"),
)
JOBS = ("retries", "deadline", "expect", "max_workers", "keep", "every", "cron", "tags")
_LITERALS = (int, float, str, bool, type(None))


@overload
def remote(function: type[R], /) -> RemoteClass[R]: ...  # type: ignore[overload-overlap]
@overload
def remote(function: Callable[P, R], /) -> RemoteFunction[P, R]: ...
@overload
def remote(**options: Any) -> Callable[[Callable[P, R]], RemoteFunction[P, R]]: ...
def remote(function: Callable[P, R] | None = None, /, **options: Any) -> Any:
    """Run a function's calls in a session: `@mlcloud.remote` or `@mlcloud.remote(gpu="A10G:1")`.

    `gpu` is `NAME:COUNT`, `cpus` vCPUs, `memory` a size such as `8GB`, `market` `spot` or
    `on-demand`, `idle_timeout` a duration, `workers` how many ranks run each call (rank 0's result
    comes back), `secrets` and `data` as for `mlcloud.session`; `session` a session's name, or the
    `Session` itself. Without any, calls run in this notebook's own session; with resources alone,
    in a session of this notebook that is made for them. `timeout` (a duration) interrupts a call,
    `quiet` hides its footer, `max_cost` (dollars) interrupts a call that has cost so much.
    `retries`: so often a call that raised is tried again; a node that is taken away does not count.

    For jobs (`.submit`, `.map`) also: `max_workers` (8) processes at once, `environment` as for
    `mlcloud.session`, `deadline` (a duration: spot as long as that ends in time, then on demand;
    `expect`, how long the work takes, if it never ran before), `tags`, and a schedule, `every="1d"`
    or `cron="0 6 * * *"` (UTC). `timeout` is each item's, `max_cost` the whole job's. A result that
    cannot be pickled stays in its worker and comes as a `RemoteValue`, to be an argument of other
    jobs: until no notebook refers to it, and `keep` (15m) after its last use at the latest.

    A class becomes one whose objects live in a session (`RemoteClass`).

    Raises `UsageError` for an option that it does not know.
    """
    known = (*RESOURCES, *JOBS, "session", "timeout", "max_cost", "quiet")
    if unknown := sorted(options.keys() - set(known)):
        raise UsageError(
            f"@mlcloud.remote: unknown option {unknown[0]}; there are {', '.join(known)}"
        )
    if function is None:
        return lambda each: _made(each, options)
    return _made(function, options)


def _made(function: Any, options: dict[str, Any]) -> Any:
    if isinstance(function, type) and function.__module__ != "builtins":
        from mlcloud.client.remote_class import RemoteClass

        return RemoteClass(function, options)
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
        streams = inspect.isgeneratorfunction(self._function)
        if streams or self._options.get("deadline") is not None:
            found: R = self._as_job(streams, *args, **kwargs)
            return found
        for _ in range(self._options.get("retries") or 0):
            try:
                return self._call(args, kwargs)
            except MLCloudError:
                raise  # ours: it would be so again, or was tried already
            except Exception as error:
                print(f"{type(error).__name__}: {error}; trying again", file=sys.stderr)
        return self._call(args, kwargs)

    def _as_job(self, streams: bool, *args: Any, **kwargs: Any) -> Any:
        """Where a session cannot do it: what it yields as it comes, or its output and its end."""
        job = self._submit(args, kwargs)
        if streams:
            return iter(job)
        try:
            job.logs(follow=True)
            return job.result()
        except KeyboardInterrupt:
            job.cancel()
            raise

    def _call(self, args: Any, kwargs: Any) -> R:
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

    # --- jobs -------------------------------------------------------------------------------------

    def options(self, **options: Any) -> RemoteFunction[P, R]:
        """The same function with other options: `train.options(gpu="A10G:1").submit(0.1)`."""
        made: RemoteFunction[P, R] = remote(**{**self._options, **options})(self._function)
        return made

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Run a call as a job, which goes on when the notebook is closed. Returns at once.

        A `Job` among the arguments stands for its result, and is waited for on the cluster. Raises
        `NotPicklable` where the function or an argument cannot travel, naming what and why.
        """
        return self._submit(args, kwargs)

    def _submit(self, args: Any, kwargs: Any) -> Job:
        from mlcloud.client import submitting

        _refuse_in_session("submit")
        return submitting.submit(self._function, self._options, args, kwargs)

    def map(self, *iterables: Iterable[Any], on_error: Any = "raise", **options: Any) -> Jobs:
        """A job of one call for each item of the iterables (as `map`), on up to `max_workers`.

        Iterating gives the results in order, `as_completed()` as they end, `result()` all. What has
        a length is sent at once; anything else is pulled by a thread, `ahead` (2,000) items ahead
        of who reads the results. `on_error`: `raise` what an item raised, `return` it, or `skip`.
        """
        if not iterables:
            raise UsageError("map needs something to go over: train.map([0.1, 0.2])")
        return self._map(_Calls(iterables), on_error=on_error, **options)

    def starmap(self, calls: Iterable[Iterable[Any]], **options: Any) -> Jobs:
        """As `map`, of items that are arguments: `train.starmap([(0.1, 3), {"lr": 0.2, "k": 5}])`,
        by their places or by their names."""
        return self._map(_Calls((calls,), star=True), **options)

    def _map(self, calls: Iterable[Any], **options: Any) -> Jobs:
        from mlcloud.client import submitting

        _refuse_in_session("map")
        if unknown := sorted(options.keys() - {"on_error", "ahead", "quiet"}):
            raise UsageError(
                f"map has no option {unknown[0]}; there are on_error, ahead and quiet. An argument "
                f"of the function goes with each item: starmap([{{{unknown[0]!r}: …, …}}, …])"
            )
        options.setdefault("quiet", bool(self._options.get("quiet", False)))
        return submitting.map_over(self._function, self._options, calls, **options)


def _refuse_in_session(what: str) -> None:
    if in_session():
        raise UsageError(
            f"{what} starts jobs from the notebook: in a session or a job, call the function itself"
        )


class _Calls:
    """Calls, (args, kwargs) each; as many as there are, where that is known."""

    def __init__(self, iterables: tuple[Iterable[Any], ...], *, star: bool = False) -> None:
        for each in iterables:
            if not hasattr(each, "__iter__") and not hasattr(each, "__getitem__"):
                raise UsageError(f"map goes over iterables, and {type(each).__name__} is none")
        # A list that is changed meanwhile would give other items.
        self._iterables = tuple(list(e) if isinstance(e, list) else e for e in iterables)
        self._star = star

    def __len__(self) -> int:
        return min(len(each) for each in self._iterables)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        if self._star:
            return (
                ((), dict(each)) if isinstance(each, Mapping) else (tuple(each), {})
                for each in self._iterables[0]
            )
        return ((each, {}) for each in zip(*self._iterables, strict=False))


def in_session() -> bool:
    """Whether this Python is a session's kernel, or a job's worker."""
    return not {"mlcloud.kernel.kernel", "mlcloud.kernel.job_actor"}.isdisjoint(sys.modules)


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
