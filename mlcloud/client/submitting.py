"""From a remote function and its arguments to a job: what `.submit`, `.map` and `.starmap` do.

Function, names, classes and local modules are packed anew for each job, so an edit is picked up by
the next one. Everything that cannot travel is refused here, before anything was sent.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mlcloud.client import environments
from mlcloud.client.api import default, owner
from mlcloud.client.jobs import Job, Peer, new_id, peer
from mlcloud.client.kept import KeptResult
from mlcloud.client.mapping import AHEAD, Feeder, Jobs, OnError
from mlcloud.client.remote_value import RemoteValue
from mlcloud.client.secrets import declared, find, missing_text
from mlcloud.cost.budgets import dollars
from mlcloud.errors import NotPicklable, SecretMissing, UsageError
from mlcloud.job_models import JobInfo, JobRequest
from mlcloud.values import packed, refs
from mlcloud.values.pickling import dump, holds_secret
from mlcloud.values.secrets import Secrets

if TYPE_CHECKING:
    from mlcloud.client.api import Client

#: What of a function's options a job has.
OPTIONS = (
    *("gpu", "cpus", "memory", "market", "max_workers", "retries", "deadline", "expect"),
    *("max_cost", "timeout", "keep", "every", "cron", "tags"),
)


def submit(
    function: Callable[..., Any],
    options: Mapping[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Job:
    """One call as a job. Raises `NotPicklable`, and what the gateway refuses."""
    client = default()
    to = peer(client)
    found = _secrets(to, options)
    code = _code(to, function)
    item = _item(to, function, code)((args, kwargs))
    named = refs.named(item.needs)
    body = {
        **opened(client, function, options, code, found, single=True),
        "items": [[item.wire, named] if named else [item.wire]],
        "needs": {0: refs.jobs_of(named)} if named else {},
        "last": True,
    }
    return Job(to, JobInfo.model_validate(to.send("POST", "/v1/jobs", body)))


def map_over(
    function: Callable[..., Any],
    options: Mapping[str, Any],
    calls: Iterable[tuple[tuple[Any, ...], dict[str, Any]]],
    *,
    on_error: OnError = "raise",
    ahead: int = AHEAD,
    quiet: bool = False,
) -> Jobs:
    """One call for each of `calls`, as a job. Raises as `submit`."""
    if on_error not in ("raise", "return", "skip"):
        raise UsageError(f"on_error is raise, return or skip, not {on_error!r}")
    if ahead < 1:
        raise UsageError(f"ahead={ahead}: at least one item must be under way")
    client = default()
    to = peer(client)
    found = _secrets(to, options)
    code = _code(to, function)
    body = opened(client, function, options, code, found, single=False)
    jobs = Jobs(to, JobInfo.model_validate(to.send("POST", "/v1/jobs", body)))
    jobs._on_error, jobs._quiet = on_error, quiet
    jobs._feeder = Feeder(to, jobs.id, calls, _item(to, function, code), ahead)
    jobs._feeder.start()
    return jobs


def _secrets(to: Peer, options: Mapping[str, Any]) -> dict[str, str]:
    """Values of the job's secrets that are kept here; from now on no job's code or arguments may
    hold them. Raises `SecretMissing`."""
    sources = declared(options.get("secrets") or ())
    values, reasons = find(sources)
    if reasons:
        raise SecretMissing(missing_text(reasons.values()))
    if values:
        to.classes.secrets = Secrets({**to.classes.secrets.values, **values})
    return values


def opened(
    client: Client,
    function: Callable[..., Any],
    options: Mapping[str, Any],
    code: packed.Packed,
    secrets: dict[str, str],
    *,
    single: bool,
) -> dict[str, Any]:
    """What makes the job."""
    body: dict[str, Any] = {
        "request": _request(client, function, options, single=single),
        "code": {"wire": code.wire, "needs": refs.named(code.needs)},
    }
    return {**body, "secrets": secrets} if secrets else body


def _code(to: Peer, function: Callable[..., Any]) -> packed.Packed:
    if not callable(function):
        raise UsageError(f"a job calls a function, and {function!r} is none")
    try:
        return packed.pack_code(function, to.namespace, to.classes, to.put)
    except NotPicklable as error:
        raise _not_sent(error, f"`{_title(function)}`", "leave it out of what that uses") from error


def _item(
    to: Peer, function: Callable[..., Any], code: packed.Packed
) -> Callable[[tuple[tuple[Any, ...], dict[str, Any]]], packed.Packed]:
    """Packs one call: (args, kwargs, names that functions among them use)."""
    title = f"arguments of {_title(function)}"
    namespace, classes = to.namespace, to.classes

    def pack(call: tuple[tuple[Any, ...], dict[str, Any]]) -> packed.Packed:
        try:
            return pack_call(*call)
        except NotPicklable:
            for name, value in _arguments(function, *call):
                try:
                    dump((value,), namespace, classes=classes, name=name, wrapped=True)
                except NotPicklable as error:
                    what = f"the argument `{name}` of `{_title(function)}`"
                    raise _not_sent(error, what, "pass what it is made of") from error
            raise

    def pack_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> packed.Packed:
        if any(isinstance(each, RemoteValue) for each in (*args, *kwargs.values())):
            args = tuple(map(_fetched, args))
            kwargs = {name: _fetched(value) for name, value in kwargs.items()}
        whole = (args, kwargs, None)
        if packed._is_plain(whole):
            found = packed.pack(whole, namespace, classes, to.put, name=title)
            if held := classes.secrets.held_by(found.wire):
                raise holds_secret(title, held)
            return found
        names, pickled = packed.with_names(whole, namespace, classes, title)
        if not names:
            # Once more, for the wire has the value alone.
            return packed.pack(whole, namespace, classes, to.put, name=title)
        _, rest = packed.split_imports(names, pickled, namespace)
        return packed.pack((args, kwargs, rest), namespace, classes, to.put, name=title)

    return pack


def _title(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _arguments(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    """By the names that they have in the function, where that can be known."""
    try:
        names = [*inspect.signature(function).bind_partial(*args).arguments]
    except (TypeError, ValueError):
        names = []
    for place, value in enumerate(args):
        yield (names[place] if place < len(names) else str(place)), value
    yield from kwargs.items()


def _not_sent(error: NotPicklable, what: str, instead: str) -> NotPicklable:
    """The same, in words for a job."""
    if not error.at:  # a secret: that says what to do
        return error
    where = "" if f"`{error.at}`" in what else f", at `{error.at}`,"
    found = NotPicklable(
        f"{what}{where} cannot travel to a worker: {error.holds}. Make it inside the function "
        f"instead, or {instead}."
    )
    found.holds, found.at = error.holds, error.at
    return found


def _fetched(value: Any) -> Any:
    """A session's object is fetched: a job's worker is elsewhere. One that a worker keeps is not:
    the call goes there."""
    is_here = not isinstance(value, RemoteValue) or isinstance(value, KeptResult)
    return value if is_here else value.get()


def _request(
    client: Client, function: Callable[..., Any], options: Mapping[str, Any], *, single: bool
) -> dict[str, Any]:
    if options.get("workers") not in (None, 1):
        raise UsageError(
            f"workers={options['workers']} is for calls, whose session has so many ranks; a job's "
            "items (.submit, .map, generators) run on one worker each. For a training there is "
            "mlcloud.train(fn, workers=(1, 4)); `%%remote --workers 4 --detach` runs on by itself"
        )
    wanted = {name: options[name] for name in OPTIONS if options.get(name) is not None}
    if "max_cost" in wanted:
        wanted["max_cost"] = str(dollars(wanted["max_cost"]))
    if options.get("secrets") is not None:  # none at all: nor those of the cluster
        wanted["secrets"] = declared(options["secrets"])
    if options.get("data") is not None:
        wanted["data"] = [{"path": str(p), "url": url} for p, url in options["data"].items()]
    streams = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    try:
        request = JobRequest.model_validate(
            {
                "id": new_id(),
                "name": str(getattr(function, "__qualname__", type(function).__name__))[:200],
                "single": single,
                "generator": streams,
                "source": _source(function),
                "owner": owner() or "",
                **wanted,
            }
        )
    except ValidationError as error:
        problems = "; ".join(f"{each['loc'][0]}: {each['msg']}" for each in error.errors())
        raise UsageError(f"no such job can be: {problems}") from None
    body = request.model_dump(mode="json", exclude_unset=True)
    if options.get("environment") is not None:
        body["environment"] = environments.spec(options["environment"], client._connection)
    return body


def _source(function: Callable[..., Any]) -> str:
    """Its text, for whoever reads years later what ran."""
    try:
        return inspect.getsource(inspect.unwrap(function))[:200_000]
    except (OSError, TypeError):
        return ""
