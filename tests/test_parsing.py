"""Parsing while other threads do."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from mlcloud import parsing

# Finalizers that the collector runs in the middle of a tree, and threads that wait to go on.
_THREADS = """
import ast, gc, sys, threading, time
from mlcloud import parsing

sys.setswitchinterval(1e-6)
gc.set_threshold(200, 2, 2)
SOURCE = "f(" * 30 + ")" * 30 + "\\n" + "\\n".join(
    f"def g{i}(a): return [x + {i} for x in a if (x * 2) > 1]" for i in range(30)
)
WANTED = ast.dump(ast.parse(SOURCE))
wrong = []

class Waste:
    def __init__(self):
        self.itself = self

    def __del__(self):
        for _ in range(50):
            pass

def work(depth):
    if depth:
        return work(depth - 1)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        [Waste() for _ in range(5)]
        try:
            if ast.dump(parsing.parse(SOURCE)) != WANTED:
                wrong.append("another tree")
        except BaseException as error:
            wrong.append(repr(error))

threads = [threading.Thread(target=work, args=(depth,)) for depth in (5, 60)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(wrong), wrong[:3])
"""


def test_threads_that_parse_do_not_disturb_each_other() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _THREADS], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "0 []"


def test_a_disturbed_tree_is_made_again() -> None:
    tries = iter(["recursion depth mismatch (before=1, after=2)"] * 3)

    def disturbed() -> ast.Module:
        if (text := next(tries, None)) is not None:
            raise SystemError(f"AST constructor {text}")
        return ast.parse("x = 1")

    assert ast.unparse(parsing.undisturbed(disturbed)) == "x = 1"


@pytest.mark.parametrize("error", [SystemError("something else"), SyntaxError("no"), ValueError()])
def test_what_is_wrong_is_told_at_once(error: Exception) -> None:
    count = 0

    def wrong() -> ast.Module:
        nonlocal count
        count += 1
        raise error

    with pytest.raises(type(error)):
        parsing.undisturbed(wrong)
    assert count == 1


def test_expressions() -> None:
    assert isinstance(parsing.expression("a + b"), ast.BinOp)
    with pytest.raises(SyntaxError):
        parsing.expression("a = b")
