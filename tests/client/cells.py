"""Random cells over a small vocabulary, and what running one really read.

`cell()` draws a program of any statement kind Python has. Its truth is `outside_reads`: the cell
runs in a namespace that notes each global read which found the value that was there *before* the
cell, or nothing. Every value is a `Thing`: it can be called, iterated, entered, indexed, compared
and added, and a stream of random decisions says whether it is true, how many items it has, whether
it raises and whether it swallows an exception, so control flow takes every turn.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import random
import signal
import sys
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

NAMES = ("a", "b", "c", "d", "f", "g", "K", "x")
MODULES = ("math", "json", "os.path", "collections.abc")
LONGEST_S = 1.0
STEPS = 400  # loops and calls of one run, at most


class Stop(BaseException):
    """The cell ran long enough."""


class Oops(Exception):
    """What a `Thing` raises."""


class Thing:
    """A value that can do everything, as the decisions have it."""

    decide = random.Random(0)
    left = STEPS

    @classmethod
    def start(cls, seed: int) -> None:
        cls.decide = random.Random(seed)
        cls.left = STEPS

    @classmethod
    def step(cls) -> None:
        cls.left -= 1
        if cls.left < 0:
            raise Stop
        if cls.decide.random() < 0.04:
            raise Oops

    def __bool__(self) -> bool:
        self.step()
        return self.decide.random() < 0.6

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.step()
        for arg in args:
            if type(arg).__name__ == "function" and self.decide.random() < 0.5:
                arg()
        # As a decorator or a base it hands back what it was given.
        return args[0] if args and self.decide.random() < 0.7 else Thing()

    def __iter__(self) -> Any:
        self.step()
        return iter([Thing() for _ in range(self.decide.randrange(4))])

    def __aiter__(self) -> Any:
        return self._items()

    async def _items(self) -> Any:
        for item in self:
            yield item

    def __await__(self) -> Any:
        self.step()
        yield from ()
        return Thing()

    def __enter__(self) -> Any:
        self.step()
        return Thing()

    def __exit__(self, *_: Any) -> bool:
        return self.decide.random() < 0.5

    async def __aenter__(self) -> Any:
        return self.__enter__()

    async def __aexit__(self, *_: Any) -> bool:
        return self.__exit__()

    def keys(self) -> list[str]:
        return []

    def __getitem__(self, key: Any) -> Any:
        self.step()
        return Thing()

    def __setitem__(self, key: Any, value: Any) -> None:
        self.step()

    def __delitem__(self, key: Any) -> None:
        self.step()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Thing()

    def __setattr__(self, name: str, value: Any) -> None:
        self.step()

    def __delattr__(self, name: str) -> None:
        self.step()

    def __mro_entries__(self, bases: Any) -> tuple[Any, ...]:
        return ()

    def __contains__(self, item: Any) -> bool:
        return bool(self)

    def __format__(self, spec: str) -> str:
        self.step()
        return "thing"

    def __add__(self, other: Any) -> Any:
        self.step()
        return Thing()

    __radd__ = __sub__ = __rsub__ = __mul__ = __matmul__ = __or__ = __lt__ = __iadd__ = __add__

    def __eq__(self, other: Any) -> Any:
        return self.decide.random() < 0.5

    def __hash__(self) -> int:
        return id(self)


class Watched(dict):  # type: ignore[type-arg]
    """A namespace that notes the reads that got what was there before, or nothing."""

    def __init__(self, before: dict[str, Any]) -> None:
        super().__init__(before)
        self.before = before
        self.outside: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        Thing.left -= 1  # functions that call each other end, too
        if Thing.left < 0:
            raise Stop
        try:
            value = super().__getitem__(name)
        except KeyError:
            if not hasattr(builtins, name):
                self.outside.add(name)
            raise
        if name in self.before and value is self.before[name]:
            self.outside.add(name)
        return value


def outside_reads(cell: str, seed: int, absent: frozenset[str] = frozenset()) -> set[str]:
    """The names this cell read before it bound them, in one of its possible runs.

    `absent` are not in the namespace: reading one is a read too, and ends in NameError.
    """
    Thing.start(seed)
    before: dict[str, Any] = {name: Thing() for name in NAMES if name not in absent}
    namespace = Watched(before)
    dict.update(namespace, {"__name__": "__main__", "__builtins__": builtins})
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code = compile(cell, "<cell>", "exec", flags, dont_inherit=True)
    with contextlib.suppress(Stop), _stopped_after(LONGEST_S):
        _run(code, namespace)
    return namespace.outside & set(NAMES)


def _run(code: Any, namespace: Watched) -> None:
    try:
        result = eval(code, namespace)
        if result is not None:
            asyncio.run(_finished(result))
    except (Stop, Exception):
        # What a later cell calls of what is there, that cell's own text tells.
        return
    # What it leaves behind is used by the cells after it: functions that it defined are called.
    for value in list(namespace.values()):
        if type(value).__name__ == "function" and value.__module__ == "__main__":
            Thing.left = STEPS
            try:
                result = value(*[Thing()] * value.__code__.co_argcount)
                if hasattr(result, "close"):
                    list(result)
            except (Stop, Exception):
                pass


@contextlib.contextmanager
def _stopped_after(seconds: float) -> Iterator[None]:
    """Raises `Stop` in what takes so much processor time, again and again: a loop over locals has
    no `Thing` in it that counts, and a bare `except` may take the first one."""

    def stop(*_: Any) -> None:
        raise Stop

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, seconds / 4)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


async def _finished(coroutine: Any) -> None:
    await coroutine


# --- drawing cells --------------------------------------------------------------------------------

Draw = Any
names = st.sampled_from(NAMES)


class _Writer:
    """Draws statements as lines of text, knowing where it is: what may stand there follows."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.budget = draw(st.integers(3, 22))

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def name(self) -> str:
        return str(self.draw(names))

    def chance(self) -> bool:
        return bool(self.draw(st.booleans()))

    # --- expressions

    def expr(self, depth: int = 2, *, walrus: bool = True, wait: bool = False) -> str:
        if depth == 0:
            return self.pick(self.name(), self.name(), self.name(), "1", "len")
        kinds = ["name", "name", "call", "bin", "attr", "item", "lambda", "comp", "bool", "if"]
        kinds += ["fstring", "star", "compare", "slice", "dict"]
        kinds += ["walrus"] if walrus else []
        kinds += ["await"] if wait else []
        match self.pick(*kinds):
            case "name":
                return self.name()
            case "call":
                return f"{self.name()}({self.expr(depth - 1, walrus=walrus, wait=wait)})"
            case "bin":
                left = self.expr(depth - 1, walrus=walrus, wait=wait)
                right = self.expr(depth - 1, walrus=walrus, wait=wait)
                return f"({left} + {right})"
            case "attr":
                return f"{self.name()}.attr"
            case "item":
                return f"{self.name()}[{self.expr(depth - 1, walrus=walrus, wait=wait)}]"
            case "slice":
                return f"{self.name()}[{self.name()}:{self.name()}]"
            case "star":
                return f"[*{self.name()}, {self.name()}]"
            case "dict":
                return f"{{1: {self.name()}, 2: {self.expr(depth - 1, walrus=walrus, wait=wait)}}}"
            case "compare":
                return f"({self.name()} < {self.name()} < {self.expr(depth - 1, walrus=walrus)})"
            case "lambda":
                bound = self.name()
                default = f"={self.name()}" if self.chance() else ""
                body = self.expr(depth - 1)
                return f"(lambda {bound}{default}: {body})"
            case "comp":
                return self.comprehension(depth - 1, walrus)
            case "bool":
                word = self.pick("and", "or")
                left = self.expr(depth - 1, walrus=walrus, wait=wait)
                return f"({left} {word} {self.expr(depth - 1, walrus=walrus, wait=wait)})"
            case "if":
                parts = [self.expr(depth - 1, walrus=walrus, wait=wait) for _ in range(3)]
                return f"({parts[0]} if {parts[1]} else {parts[2]})"
            case "fstring":
                inner = self.expr(0)
                return self.pick(
                    f"f'{{{inner}}}'",
                    f"f'{{{inner}=}}'",
                    f"f'{{{inner}!r:>{{{self.name()}}}}}'",
                    f"f'{{{self.name()}:{{{self.name()}}}}} {{f\"{{{inner}}}\"}}'",
                )
            case "walrus":
                value = self.expr(depth - 1, walrus=walrus, wait=wait)
                return f"({self.name()} := {value})"
            case "await":
                return f"(await {self.name()})"
        raise AssertionError

    def comprehension(self, depth: int, walrus: bool) -> str:
        target, source = self.name(), self.expr(max(depth - 1, 0), walrus=False)
        clauses = f"for {target} in {source}"
        if self.chance():
            clauses += f" if {self.expr(max(depth - 1, 0), walrus=False)}"
        if self.chance():
            clauses += f" for {self.name()} in {self.name()}"
        element = self.expr(depth, walrus=False)
        if walrus and self.chance():
            bound = self.name()
            if f"for {bound} in" not in clauses:
                element = f"({bound} := {element})"
        return self.pick(
            f"[{element} {clauses}]",
            f"{{{element} {clauses}}}",
            f"{{{element}: {self.expr(0)} {clauses}}}",
            f"list({element} {clauses})",
            f"({element} {clauses})",
        )

    def target(self) -> str:
        name, other = self.name(), self.name()
        return self.pick(
            name, name, f"{name}, {other}", f"[{name}, *{other}]", f"{name}.attr",
            f"{name}[{other}]", f"({name}, ({other}, *{self.name()}))",
        )  # fmt: skip

    # --- statements

    def block(self, depth: int, where: frozenset[str]) -> list[str]:
        lines: list[str] = []
        for _ in range(self.draw(st.integers(1, 3))):
            if self.budget <= 0:
                break
            self.budget -= 1
            lines += self.statement(depth, where)
        return lines or ["pass"]

    def indented(self, depth: int, where: frozenset[str]) -> list[str]:
        return [f"    {line}" for line in self.block(depth, where)]

    def statement(self, depth: int, where: frozenset[str]) -> list[str]:
        simple = ["expr", "assign", "assign", "assign", "chain", "aug", "ann", "del", "raise"]
        simple += ["import", "from", "assert", "pass", "name", "name", "string annotation"]
        compound = ["if", "for", "while", "try", "with", "match", "def", "class", "try star"]
        kinds = simple + (compound * 2 if depth else [])
        wait = "async" in where
        kinds += ["await", "async for", "async with"] if wait and depth else []
        kinds += ["async def"] if depth else []
        kinds += ["break", "continue"] if "loop" in where else []
        kinds += ["return", "yield"] if "def" in where else []
        inside = where - {"star"}
        match self.pick(*kinds):
            case "expr":
                return [self.expr(wait=wait)]
            case "name":
                return [self.name()]
            case "assign":
                return [f"{self.target()} = {self.expr(wait=wait)}"]
            case "chain":
                return [f"{self.name()} = {self.target()} = {self.expr()}"]
            case "aug":
                target = self.pick(self.name(), f"{self.name()}.attr", f"{self.name()}[1]")
                return [f"{target} += {self.expr()}"]
            case "ann":
                value = f" = {self.expr()}" if self.chance() else ""
                target = self.pick(self.name(), f"({self.name()})", f"{self.name()}.attr")
                return [f"{target}: {self.expr(1, walrus=False)}{value}"]
            case "string annotation":
                return [f"{self.name()}: '{self.name()}' = {self.name()}"]
            case "del":
                return [f"del {self.pick(self.name(), self.name() + '[1]', self.name() + '.q')}"]
            case "raise":
                return [self.pick("raise ValueError", f"raise {self.name()}", "raise KeyError(1)")]
            case "assert":
                return [f"assert {self.expr(1)}, {self.expr(1)}"]
            case "pass":
                return ["pass"]
            case "import":
                alias = f" as {self.name()}" if self.chance() else ""
                return [f"import {self.pick(*MODULES)}{alias}"]
            case "from":
                if "def" not in where and "class" not in where and self.chance():
                    return ["from math import *"]
                return [f"from math import pi as {self.name()}"]
            case "return":
                return [f"return {self.expr(1)}"]
            case "yield":
                return [f"yield {self.expr(1)}"] if "async" not in where else ["pass"]
            case "break":
                return ["break"] if "star" not in where else ["pass"]
            case "continue":
                return ["continue"] if "star" not in where else ["pass"]
            case "await":
                return [f"{self.name()} = await {self.name()}"]
            case "if":
                lines = [f"if {self.expr(wait=wait)}:", *self.indented(depth - 1, where)]
                if self.chance():
                    lines += [f"elif {self.expr(1)}:", *self.indented(depth - 1, where)]
                if self.chance():
                    lines += ["else:", *self.indented(depth - 1, where)]
                return lines
            case "for" | "async for" as kind:
                word = "async for" if kind == "async for" else "for"
                body = self.indented(depth - 1, inside | {"loop"})
                lines = [f"{word} {self.target()} in {self.name()}:", *body]
                return lines + self.orelse(depth, where)
            case "while":
                body = self.indented(depth - 1, inside | {"loop"})
                return [f"while {self.name()}:", *body, *self.orelse(depth, where)]
            case "with" | "async with" as kind:
                word = "async with" if kind == "async with" else "with"
                item = f"{self.expr(1)} as {self.target()}" if self.chance() else self.expr(1)
                more = f", {self.name()} as {self.name()}" if self.chance() else ""
                return [f"{word} {item}{more}:", *self.indented(depth - 1, where)]
            case "try":
                return self.try_(depth, where, "except")
            case "try star":
                if sys.version_info < (3, 11):
                    return ["pass"]
                return self.try_(depth, where | {"star"}, "except*")
            case "match":
                return self.match(depth, where)
            case "def" | "async def" as kind:
                return self.function(depth, where, kind)
            case "class":
                return self.class_(depth, where)
        raise AssertionError

    def orelse(self, depth: int, where: frozenset[str]) -> list[str]:
        return ["else:", *self.indented(depth - 1, where)] if self.chance() else []

    def try_(self, depth: int, where: frozenset[str], word: str) -> list[str]:
        body = where if word == "except" else where - {"star"}
        lines = ["try:", *self.indented(depth - 1, body)]
        inner = where - {"loop", "def"} if word == "except*" else where
        handlers = self.draw(st.integers(0, 2))
        for _ in range(handlers):
            kind = self.pick("Exception", "ValueError", "(KeyError, TypeError)", "NameError")
            alias = f" as {self.name()}" if self.chance() else ""
            lines += [f"{word} {kind}{alias}:", *self.indented(depth - 1, inner)]
        if handlers and self.chance():
            lines += ["else:", *self.indented(depth - 1, body)]
        if not handlers or self.chance():
            lines += ["finally:", *self.indented(depth - 1, body - {"loop"})]
        return lines

    def match(self, depth: int, where: frozenset[str]) -> list[str]:
        lines = [f"match {self.expr(1)}:"]
        for _ in range(self.draw(st.integers(1, 2))):
            one, other = self.draw(st.lists(names, min_size=2, max_size=2, unique=True))
            pattern = self.pick(
                "1", f"[{one}, *{other}]", f"{{'k': {one}, **{other}}}", f"{one}.attr",
                f"int({one})", f"[{one}] | ({one}, 1)", f"(1 as {one})", "_ ",
            )  # fmt: skip
            guard = f" if {self.expr(1)}" if self.chance() or pattern == "_ " else ""
            lines += [f"    case {pattern}{guard}:"]
            lines += [f"    {line}" for line in self.indented(depth - 1, where)]
        if self.chance():
            lines += [f"    case {self.pick('_', self.name())}:"]
            lines += [f"    {line}" for line in self.indented(depth - 1, where)]
        return lines

    def function(self, depth: int, where: frozenset[str], kind: str) -> list[str]:
        parameters = self.draw(st.lists(names, max_size=2, unique=True))
        signature = []
        for number, each in enumerate(parameters):
            annotation = self.pick("", "", f": {self.name()}", f": '{self.name()}'")
            default = f" = {self.name()}" if number == len(parameters) - 1 and self.chance() else ""
            signature.append(each + annotation + default)
        returns = f" -> {self.name()}" if self.chance() and self.chance() else ""
        inside = frozenset({"def", "async"} if kind == "async def" else {"def"})
        body = self.indented(depth - 1, inside)
        lines = [f"{kind} {self.name()}({', '.join(signature)}){returns}:"]
        # `global` must stand before any use, and must not name a parameter.
        declared = [each for each in (self.name(),) if each not in parameters and self.chance()]
        lines += [f"    global {each}" for each in declared]
        if self.chance() and self.chance():
            lines.insert(0, f"@{self.name()}")
        return [*lines, *body]

    def class_(self, depth: int, where: frozenset[str]) -> list[str]:
        bases = f"({self.pick(self.name(), 'object', f'{self.name()}, metaclass=type')})"
        lines = [f"class {self.name()}{bases}:"]
        lines += self.indented(depth - 1, frozenset({"class"}))
        if self.chance():
            lines += ["    def method(self):"]
            lines += [f"    {line}" for line in self.indented(depth - 1, frozenset({"def"}))]
        if self.chance() and self.chance():
            lines.insert(0, f"@{self.name()}")
        return lines


@st.composite
def cell(draw: Draw) -> str:
    """A cell that compiles."""
    writer = _Writer(draw)
    lines = []
    if draw(st.integers(0, 9)) == 0:
        lines.append("from __future__ import annotations")
    while writer.budget > 0:
        lines += writer.block(3, frozenset({"async"}))
    source = "\n".join(lines)
    try:
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        compile(source, "<cell>", "exec", flags, dont_inherit=True)
    except SyntaxError:
        # `global` after a use, a walrus over a loop's name, …: rules the writer does not know.
        from hypothesis import reject

        reject()
    return source
