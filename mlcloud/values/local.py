"""Local modules: files beside the notebook that no node has, sent as their source.

    sources(names) ─► {module: [is a package, file, text]} ══► install(…) ─► import finds them there

Local is what lies in no folder of installed packages and not in Python's own. Their text is read
anew each time, so an edited file is picked up by the next call. What they import is followed by
their `import` statements, also where that is done inside a function.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import linecache
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlcloud import parsing

Sources = dict[str, list[Any]]

_OWN = {"mlcloud", "ray", "__main__", "__mp_main__"}
_INSTALLED = ("site-packages", "dist-packages")
MOST_BYTES = 5_000_000  # of one file


def sources(names: Iterable[str]) -> Sources:
    """The local ones of these modules, and the local modules that they import."""
    found: Sources = {}
    waiting = [name for name in names if name]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or name.partition(".")[0] in _OWN | set(sys.stdlib_module_names):
            continue
        seen.add(name)
        path = _file(name)
        if path is None:
            continue
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError):
            continue
        is_package = path.name == "__init__.py"
        found[name] = [is_package, str(path), text]
        parent = name.rpartition(".")[0]
        if parent:
            waiting.append(parent)
        waiting += _imports(text, name, is_package)
    return dict(sorted(found.items()))


def _file(name: str) -> Path | None:
    """A local module's file."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    if spec is None:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError):
            return None
    origin = getattr(spec, "origin", None)
    if not origin or not str(origin).endswith(".py"):
        return None
    path = Path(origin)
    if any(part in _INSTALLED for part in path.parts) or not path.is_file():
        return None
    for key in ("stdlib", "platstdlib"):
        if path.is_relative_to(sysconfig.get_path(key)):
            return None
    return path if path.stat().st_size <= MOST_BYTES else None


def _imports(text: str, name: str, is_package: bool) -> Iterator[str]:
    try:
        tree = parsing.parse(text)
    except SyntaxError:
        return
    package = name if is_package else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                above = parts[: len(parts) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            if base:
                yield base
                yield from (f"{base}.{each.name}" for each in node.names if each.name != "*")


# --- on the worker --------------------------------------------------------------------------------


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of the job that runs now, before any file of the same name."""

    def __init__(self) -> None:
        self.sources: Sources = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self.sources:
            return None
        is_package, file, _ = self.sources[name]
        spec = importlib.machinery.ModuleSpec(name, self, origin=file, is_package=is_package)
        spec.has_location = False
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        _, file, text = self.sources[module.__name__]
        module.__file__ = file
        linecache.cache[file] = (len(text), None, text.splitlines(True), file)
        exec(compile(text, file, "exec"), module.__dict__)


_finder = _Finder()


def install(modules: Sources) -> None:
    """From now on these are imported as they are given; others that were installed are gone."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    if modules != _finder.sources:
        for name in {*modules, *_finder.sources}:
            sys.modules.pop(name, None)
        _finder.sources = modules
