"""An exception as plain data, and the same exception again on the other side.

    pack(error, dump, frames) ─► [record, …] ══ msgpack ══► unpack(records, load, trace) ─► error

Pickle alone loses too much of an exception: its cause and context, those of a group's members, and
the whole of it when one attribute cannot be pickled, or when its `__init__` wants other arguments
than `args`. So an exception is taken apart here, each part is pickled by itself, and it is put
together without calling its `__init__`:

    class        by name or, for a notebook's class, by value; where it cannot be had: a stand-in
                 of the same name, that derives from the builtin classes it derives from
    args         one by one; what cannot travel becomes its repr
    attributes   one by one (`__notes__` are among them); what cannot travel is left out
    fields       what builtin exceptions keep outside of `__dict__`: `errno`, `filename`, `name`, …
    family       cause, context and members, as numbers of other records
    frames       of its traceback, as far as `frames` gives them

An exception class with a `__reduce__` of its own knows better how it travels, and is asked first.
"""

from __future__ import annotations

import builtins
import contextlib
import copyreg
import sys
import types
from collections.abc import Callable
from typing import Any

if sys.version_info >= (3, 11):
    BaseExceptionGroup = builtins.BaseExceptionGroup
else:
    from exceptiongroup import BaseExceptionGroup as BaseExceptionGroup

Dump = Callable[[Any], Any]  # a value to plain data; raises where it cannot
Load = Callable[[Any], Any]
Record = dict[str, Any]

MOST = 50  # exceptions of one family
# Kept by Python itself, by the records, or (an AttributeError's object) too large to send unasked.
_NOT_FIELDS = frozenset({"args", "obj", "message", "exceptions", "characters_written"})
_SHOWING = frozenset({"_render_traceback_"})  # how it was shown, if it was remote once
_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType)
_REDUCES = frozenset(
    kind.__reduce__
    for kind in vars(builtins).values()
    if isinstance(kind, type) and issubclass(kind, BaseException)
)


class RemoteError(Exception):
    """Stands in for an exception whose class does not exist here; its name is the remote one."""


# --- taking apart ---------------------------------------------------------------------------------


def pack(
    error: BaseException,
    dump: Dump,
    frames: Callable[[types.TracebackType | None], list[Any]] = lambda _: [],
) -> list[Record]:
    """The exception and its family as plain data; the first record is its own. Never raises."""
    family: list[BaseException] = [error]
    numbers = {id(error): 0}

    def number(other: BaseException | None) -> int | None:
        if other is None or (id(other) not in numbers and len(family) >= MOST):
            return None
        if id(other) not in numbers:
            numbers[id(other)] = len(family)
            family.append(other)
        return numbers[id(other)]

    records = []
    for each in family:  # grows while we look
        records.append(
            {
                **_own_parts(each, dump),
                "cause": number(each.__cause__),
                "context": number(each.__context__),
                "suppress": each.__suppress_context__,
                "members": _members(each, number),
                "frames": frames(each.__traceback__),
            }
        )
    return records


def _members(error: BaseException, number: Callable[[BaseException], int | None]) -> Any:
    if not isinstance(error, BaseExceptionGroup):
        return None
    found = [number(member) for member in error.exceptions]
    return [each for each in found if each is not None]


def _own_parts(error: BaseException, dump: Dump) -> Record:
    kind = type(error)
    args = (error.message,) if isinstance(error, BaseExceptionGroup) else error.args
    return {
        "name": kind.__name__,
        "module": kind.__module__,
        "text": _text(error),
        "bases": [base.__name__ for base in kind.__mro__ if base.__module__ == "builtins"],
        "class": _or_none(dump, kind),
        "whole": _or_none(dump, error) if _reduces_itself(kind) else None,
        "args": [_arg(dump, value) for value in args],
        "attributes": _each(dump, {k: v for k, v in error.__dict__.items() if k not in _SHOWING}),
        "fields": _each(dump, _fields(error)),
    }


def _reduces_itself(kind: type[BaseException]) -> bool:
    own = kind.__reduce__ not in _REDUCES or kind.__reduce_ex__ is not object.__reduce_ex__
    return (own or kind in copyreg.dispatch_table) and not issubclass(kind, BaseExceptionGroup)


def _fields(error: BaseException) -> dict[str, Any]:
    """What is kept in C fields and slots, and is not None."""
    found: dict[str, Any] = {}
    for kind in type(error).__mro__:
        for name, descriptor in vars(kind).items():
            special = name.startswith("__") or name in _NOT_FIELDS
            if isinstance(descriptor, _DESCRIPTORS) and not special:
                value = getattr(error, name, None)
                if value is not None and name not in found:
                    found[name] = value
    return found


def _each(dump: Dump, values: dict[str, Any]) -> dict[str, Any]:
    packed = {name: _or_none(dump, value) for name, value in values.items()}
    return {name: data for name, data in packed.items() if data is not None}


def _arg(dump: Dump, value: Any) -> Any:
    data = _or_none(dump, value)
    if data is None:
        data = dump(_repr(value))
    return data


def _or_none(dump: Dump, value: Any) -> Any:
    try:
        return dump(value)
    except Exception:  # somebody's __reduce__ raises, or it is too large: it stays
        return None


def _text(error: BaseException) -> str:
    try:
        return str(error)[:10_000]
    except Exception as failure:
        return f"<its __str__ failed: {type(failure).__name__}>"


def _repr(value: Any) -> str:
    try:
        return repr(value)[:1_000]
    except Exception as failure:
        return f"<{type(value).__name__}; its __repr__ failed: {type(failure).__name__}>"


# --- putting together -----------------------------------------------------------------------------


def unpack(
    records: list[Record],
    load: Load,
    trace: Callable[[list[Any]], types.TracebackType | None] = lambda _: None,
) -> BaseException:
    """The exception again, with its family. `trace` makes a traceback of a record's frames."""
    made: dict[int, BaseException] = {}

    def make(number: int) -> BaseException:
        if number not in made:
            record = records[number]
            members = [make(member) for member in record["members"] or ()]
            made[number] = _rebuilt(record, load, members)
        return made[number]

    for number, record in enumerate(records):
        error = make(number)
        error.__cause__ = None if record["cause"] is None else make(record["cause"])
        error.__context__ = None if record["context"] is None else make(record["context"])
        error.__suppress_context__ = record["suppress"]
        error.__traceback__ = trace(record["frames"])
    return made[0]


def _rebuilt(record: Record, load: Load, members: list[BaseException]) -> BaseException:
    if record["whole"] is not None:
        with contextlib.suppress(Exception):  # it is the class's own code; the parts are there too
            whole = load(record["whole"])
            if isinstance(whole, BaseException):
                return whole
    args = [_loaded(load, data) for data in record["args"]]
    for kind in (_class(record, load), _stand_in(record)):
        error = None if kind is None else _instance(kind, args, members)
        if error is not None:
            break
    else:
        error = _instance(type(record["name"], (RemoteError,), {}), [record["text"]], [])
        assert error is not None
    for name, data in {**record["fields"], **record["attributes"]}.items():
        with contextlib.suppress(Exception):  # a field that this Python does not have
            setattr(error, name, load(data))
    return error


def _loaded(load: Load, data: Any) -> Any:
    try:
        return load(data)
    except Exception as failure:  # a package that is not here, or its other version
        return f"<it could not be loaded here: {type(failure).__name__}: {failure}>"


def _class(record: Record, load: Load) -> type[BaseException] | None:
    if record["class"] is None:
        return None
    try:
        kind = load(record["class"])
    except Exception:  # its module is not here: there is a stand-in
        return None
    return kind if isinstance(kind, type) and issubclass(kind, BaseException) else None


def _stand_in(record: Record) -> type[BaseException]:
    """A class of that name, which `except` finds by the builtin classes it derives from."""
    found = [getattr(builtins, name, None) for name in record["bases"]]
    bases = [each for each in found if isinstance(each, type) and issubclass(each, BaseException)]
    text = record["text"]
    body = {"__module__": record["module"], "__str__": lambda _: text}
    ways = [(RemoteError, bases[0]), (RemoteError,)] if Exception in bases else [(bases[0],)]
    for way in ways:
        with contextlib.suppress(TypeError):  # RemoteError before its own base, say
            return type(record["name"], way, body)
    return type(record["name"], (RemoteError,), body)


def _instance(
    kind: type[BaseException], args: list[Any], members: list[BaseException]
) -> BaseException | None:
    """An instance, made by the builtin classes it derives from, without its own `__init__`."""
    if issubclass(kind, BaseExceptionGroup):
        args = [*(args or [""]), members]
    for base in kind.__mro__:
        if base.__module__ not in ("builtins", "exceptiongroup") or base is object:
            continue
        try:
            error: BaseException = base.__new__(kind, *args)
            base.__init__(error, *args)  # type: ignore[misc]  # it is a builtin class's
            if not issubclass(kind, BaseExceptionGroup):
                error.args = tuple(args)  # several builtin bases make something else of them
        except (TypeError, ValueError):  # not safe for this class, or too few members
            continue
        return error
    return None
