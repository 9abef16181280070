"""An exception, taken apart and put together: what a user would ask of it is still there."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mlcloud.values.exceptions import MOST, BaseExceptionGroup, RemoteError, pack, unpack

needs_groups = pytest.mark.skipif(sys.version_info < (3, 11), reason="ExceptionGroup is of 3.11")


class Odd(Exception):
    """Its `__init__` wants other arguments than `args`, so that pickle alone cannot load it."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__(f"{left}-{right}")
        self.left = left


class Slotted(Exception):
    __slots__ = ("place",)


class Reducing(Exception):
    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return Reducing, (self.number,)


class Both(KeyError, OSError):
    pass


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def raised(action: Callable[[], Any]) -> BaseException:
    try:
        action()
    except BaseException as error:
        return error
    raise AssertionError("it did not raise")


def there(error: BaseException, load: Callable[[Any], Any] = pickle.loads) -> BaseException:
    return unpack(pack(error, pickle.dumps), load)


def nothing_is_here(_: Any) -> Any:
    raise ModuleNotFoundError("only_there")


def missing_classes(data: Any) -> Any:
    """Loads values, and finds no class."""
    value = pickle.loads(data)
    return nothing_is_here(data) if isinstance(value, type) else value


@pytest.mark.parametrize(
    "error",
    [
        KeyError("k"),
        Odd(1, 2),
        Reducing(4),
        SystemExit(3),
        StopIteration("value"),
        raised(lambda: open("/nowhere/at/all")),  # noqa: SIM115 - it raises
        raised(lambda: b"\xff".decode()),
        raised(lambda: __import__("there_is_no_such_module")),
        raised(lambda: exec("if")),
        raised(lambda: exec("undefined_name")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_type_args_text_and_fields(error: BaseException) -> None:
    again = there(error)
    assert type(again) is type(error)
    assert again.args == error.args
    assert str(again) == str(error)
    for field in ("errno", "filename", "name", "lineno", "offset", "code", "value", "reason"):
        assert getattr(again, field, None) == getattr(error, field, None), field
    assert vars(again) == vars(error)


def test_slots() -> None:
    error = Slotted("x")
    error.place = 5
    again = there(error)
    assert isinstance(again, Slotted)
    assert again.place == 5


def test_causes_contexts_and_from_none() -> None:
    def caused() -> None:
        try:
            raise Odd(1, 2)
        except Odd as error:
            raise KeyError("k") from error

    def in_context() -> None:
        try:
            caused()
        except KeyError:
            raise ValueError("v")  # noqa: B904  # the context is what is tested

    def alone() -> None:
        try:
            raise Odd(1, 2)
        except Odd:
            raise ValueError("v") from None

    again = there(raised(in_context))
    assert isinstance(again.__context__, KeyError)
    assert again.__cause__ is None
    assert isinstance(again.__context__.__cause__, Odd)
    assert again.__context__.__cause__.left == 1
    assert there(raised(alone)).__suppress_context__


def test_a_ring_of_contexts_ends() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__context__, other.__context__ = other, one
    again = there(one)
    assert str(again.__context__) == "other"
    assert again.__context__ is not None
    assert again.__context__.__context__ is again


def test_a_long_chain_is_cut() -> None:
    first = error = ValueError("0")
    for number in range(10 * MOST):
        error.__context__ = ValueError(str(number))
        error = error.__context__
    assert len(pack(first, pickle.dumps)) == MOST


@needs_groups
def test_groups_with_their_members_causes() -> None:
    inner = KeyError("k")
    inner.__cause__ = Odd(1, 2)
    again = there(BaseExceptionGroup("g", [ValueError(1), BaseExceptionGroup("h", [inner])]))
    assert isinstance(again, BaseExceptionGroup)
    assert again.message == "g"
    found, rest = again.split(KeyError)
    assert found is not None
    assert isinstance(found.exceptions[0].exceptions[0].__cause__, Odd)
    assert [type(each) for each in rest.exceptions] == [ValueError]


def test_what_cannot_travel_is_left_out() -> None:
    error = ValueError("text", threading.Lock())
    error.good, error.bad = 1, threading.Lock()  # type: ignore[attr-defined]
    again = there(error)
    assert vars(again) == {"good": 1}
    assert again.args[0] == "text"
    assert "lock" in again.args[1], "an argument that cannot travel is its repr"


def test_a_stand_in_keeps_name_text_and_builtin_bases() -> None:
    again = there(Odd(1, 2), missing_classes)
    assert isinstance(again, RemoteError)
    assert type(again).__name__ == "Odd"
    assert str(again) == "1-2"
    assert vars(again) == {"left": 1}
    assert isinstance(there(Both(2, "no"), missing_classes), (KeyError, OSError))


def test_nothing_can_be_loaded() -> None:
    again = there(Odd(1, 2), nothing_is_here)
    assert type(again).__name__ == "Odd"
    assert str(again) == "1-2"


def test_an_error_without_words() -> None:
    again = there(Mute("x"))
    assert isinstance(again, Mute)
    assert again.args == ("x",)
