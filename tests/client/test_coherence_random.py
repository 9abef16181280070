"""Whatever runs in one plain namespace gives the same with every mixture of local and remote cells.

The machine draws statements: mutations in place, rebinding, aliases, views of arrays, functions
with globals and closures, classes defined again and again, deletions. `World.step` compares.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.client.worlds import NAMES, STATEMENTS, World

name = st.sampled_from(NAMES)
quick = settings(
    max_examples=80,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
long = settings(quick, max_examples=2_000, stateful_step_count=40, derandomize=False)


class Coherence(RuleBasedStateMachine):
    """One notebook, one session, and the namespace that both pretend to be."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(
        statement=st.sampled_from(STATEMENTS),
        x=name,
        y=name,
        z=name,
        t=st.integers(0, 8),
        remote=st.booleans(),
    )
    def step(self, statement: str, x: str, y: str, z: str, t: int, remote: bool) -> None:
        self.world.step(statement.format(x=x, y=y, z=z, t=t), remote)


def test_mixed_cells_give_what_one_namespace_gives() -> None:
    run_state_machine_as_test(Coherence, settings=quick)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_mixed_cells_give_what_one_namespace_gives_at_length() -> None:
    run_state_machine_as_test(Coherence, settings=long)


# What the machine found, one by one, in the order it found them.
FOUND = {
    "equal content, bound again, after a deletion here": [
        ("e = {}", True), ("del e", False), ("e = {}", True),
    ],
    "the same number, bound again, after a change here": [
        ("k = 7", True), ("k = 1", False), ("k = 7", True),
    ],
    "a name bound to another object leaves its old aliases": [
        ("e = []; a = []; f = a", False), ("f = e", True),
    ],
    "equal content, but another object's alias": [
        ("a = [1]", False), ("e = [v for v in a]", True), ("d = [1]", False), ("e = d", True),
    ],
    "a class attribute that is a name's object": [
        ("d = pd.DataFrame({'c': [1]})", False), ("class C:\n    kept = d", True),
        ("d['n'] = C.kept is d", True),
    ],
    "a function is itself, as an alias and as a key": [
        ("def f(): return 1\nc = f; d = {f: 2}", False),
        ("e = f", True),
        ("a = d[f], c is f", True),
    ],
    "an alias here no more, there still": [
        ("c = [1]", False), ("b = c", True), ("c = 5; a = [2]", False), ("b.append(a)", True),
    ],
    "equal, but no longer aliases": [
        ("b = [1]", False), ("d = {'k': b}", True), ("b = [v for v in b]", False),
        ("b.append(2)", True), ("d['k'].append(3)", True),
    ],
    "changed back to what was sent first": [
        ("a = [1]", False), ("a.append(2)", True), ("a.pop()", False), ("b = len(a)", True),
    ],
    "aliases of aliases": [
        ("e = object(); a = {1}; b = (a, [e])", False), ("a = {'k': a}", True),
    ],
    "a name deleted here that a function binds": [
        ("c = 1", True), ("def f():\n    global c\n    c = [2]\ndel c", False), ("a = f()", True),
    ],
    "another object of equal content inside a function": [
        ("def f(): return 1\nb = [1]; c = [1]; f.calls = b", False), ("f.calls = c", True),
        ("c.append(2)", False), ("a = f.calls", True),
    ],
    "a dataclass with and without defaults": [
        ("@dataclasses.dataclass\nclass D:\n    v: list\n    n: int = 1", True),
        ("@dataclasses.dataclass\nclass D(D):\n    m: int = 2", False), ("a = D()", True),
        ("a = D([1])", True), ("b = D(v=[2], m=3)", False),
    ],
    "a class that only shares an object with what is sent": [
        ("a = []\nclass C: n = 3\nC.attr = a", False), ("b = a", True),
    ],
    "a former alias of what is sent, when a cell fails to bind it": [
        ("def f(): return k", False), ("a = f", True), ("a = []", False), ("b = f", False),
        ("b = b", True), ("a = nowhere", True),
    ],
    "two that only a third one joined, when that is bound to something else": [
        ("b = []\ndef f(): return k", False), ("a = functools.partial(f, b)", True),
        ("class C: kept = a", False), ("a = []", False), ("a = []", True),
    ],
    "the same, and the third one's alias is bound here": [
        ("c = []", False), ("def f():\n    global k\n    k += 1\n    return k", False),
        ("a = f", False), ("b = functools.partial(f, c)", True),
        ("a = []", False), ("b = []", True), ("a = a", True),
    ],
    "two views of one array, swapped here": [
        ("b = np.arange(6.0)", False), ("a = b.T", False), ("c = a", True),
        ("a, b = b, a", False), ("a = a[1:4]", True),
    ],
    "equal contents of two that a third one joins, swapped here": [
        ("a = [[]]; b = [[]]; c = [a[0], b[0]]", False), ("d = 1", True), ("e = c", True),
        ("a[0], b[0] = b[0], a[0]", False), ("a[0].append(1)", True),
    ],
    "the same, swapped there": [
        ("a = [[]]; b = [[]]; c = [a[0], b[0]]", False), ("d = c", True),
        ("a[0], b[0] = b[0], a[0]", True), ("a[0].append(1)", False), ("e = len(c[1])", True),
    ],
}  # fmt: skip


@pytest.mark.parametrize("title", FOUND)
def test_found(title: str) -> None:
    world = World()
    for code, remote in FOUND[title]:
        world.step(code, remote)


def test_what_was_called_is_gone_when_its_cell_has_ended() -> None:
    """The object that came in with the cell is rebound by it, and had changed another name."""
    world = World()
    lines = ["class C:", "    def bump(self):", "        global k", "        k += 1"]
    world.step("\n".join([*lines, "        return [k]"]), remote=False)
    world.step("a = C()", remote=False)
    world.step("k = 0", remote=True)
    world.step("a = a.bump()", remote=True)
    world.step("def f():\n    global k\n    k += 1\n    return k", remote=False)
    world.step("f = f()", remote=True)
