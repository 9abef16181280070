"""The lines that travel with a function: its own, and not those beside it."""

from __future__ import annotations

import inspect
import linecache
import traceback
from typing import Any

import pytest

from mlcloud.values import sources
from mlcloud.values.pickling import dump, load

CELL = '''API_KEY = "sk-not-for-others"
class Thing:
    """Its doc."""
    password = "neither this"
    @property
    def part(self):
        return 1 / 0
    def use(self):
        return [x for x in (1,)]
def outer():
    hidden = "not mine"
    def inner():
        return hidden
    return inner
table = {"a": 1,
         "f": lambda x:
             1 / x}
def plain(): return 2
'''


@pytest.fixture
def cell(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the cell defines, as if a notebook had run it."""
    file = f"/nowhere/{request.node.name}.py"
    linecache.cache[file] = (len(CELL), None, CELL.splitlines(keepends=True), file)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(CELL, file, "exec"), namespace)
    return namespace


def texts(function: Any) -> str:
    found = sources.lines_of(function.__code__)
    assert found is not None
    return "".join(text for _, text in found[1])


def test_a_method_travels_with_the_head_of_its_class(cell: dict[str, Any]) -> None:
    assert texts(cell["Thing"].use) == (
        "class Thing:\n    def use(self):\n        return [x for x in (1,)]\n"
    )
    assert "@property" in texts(cell["Thing"].part.fget)


def test_an_inner_function_travels_without_its_surroundings(cell: dict[str, Any]) -> None:
    assert texts(cell["outer"]()) == ("def outer():\n    def inner():\n        return hidden\n")


def test_a_lambda_travels_with_its_statement(cell: dict[str, Any]) -> None:
    assert texts(cell["table"]["f"]).startswith('table = {"a": 1,')


@pytest.mark.parametrize("name", ["Thing", "outer", "plain"])
def test_the_rest_of_the_cell_stays(cell: dict[str, Any], name: str) -> None:
    pickled = dump(cell[name], cell)
    assert b"sk-not-for-others" not in pickled.payload


def test_the_other_side_shows_the_lines(cell: dict[str, Any]) -> None:
    pickled = dump((cell["table"]["f"], cell["plain"]), cell)
    file = cell["plain"].__code__.co_filename
    del linecache.cache[file]  # as in another process
    divide, plain = load(pickled.payload, [], {"__name__": "__main__"})
    assert inspect.getsource(plain) == "def plain(): return 2\n"
    try:
        divide(0)
    except ZeroDivisionError as error:
        shown = "".join(traceback.format_exception(error))
    assert f'File "{file}", line 17, in <lambda>' in shown
    assert "1 / x}" in shown


def test_a_file_that_is_known_is_left_alone(cell: dict[str, Any]) -> None:
    file = cell["plain"].__code__.co_filename
    sources.remember((file, ((1, "something else\n"),)))
    assert linecache.getline(file, 1).startswith("API_KEY")


def test_the_pickle_of_an_untouched_function_stays_the_same(cell: dict[str, Any]) -> None:
    before = dump(cell["plain"], cell).digest
    linecache.clearcache()
    assert dump(cell["plain"], cell).digest == before


def test_two_closures_of_one_function_share_nothing(cell: dict[str, Any]) -> None:
    one, other = dump(cell["outer"](), cell), dump(cell["outer"](), cell)
    assert not one.ids & other.ids
