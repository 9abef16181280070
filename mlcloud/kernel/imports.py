"""Modules among the session's names: they are imported where they are used, never pickled.

    Import (a name, a dotted path, submodules) ─► imported() ─► the module
    a name that holds a module ─► as_import() ─► Import, or None: no import leads to it

What a star import brought does not go back to the notebook either: it can import that itself.
"""

from __future__ import annotations

import importlib
import types
from typing import Any

from mlcloud import errors
from mlcloud.values import userdata
from mlcloud.values.messages import Import
from mlcloud.values.modules import find


def imported(entry: Import) -> types.ModuleType:
    """The module, and its submodules where they exist here.

    Raises `UsageError` if the package is missing here.
    """
    try:
        module = find(entry.module)
    except ModuleNotFoundError as error:
        raise errors.UsageError(
            f"`{entry.name}` is the module {entry.module!r} in the notebook, and the session has "
            f"no package {error.name!r}: install it there (`%pip install …` in a %%remote cell), "
            "then run the cell again. A module of your own comes along with a session made by "
            "mlcloud.session(NAME, environment=['./module.py'])."
        ) from error
    for submodule in entry.submodules:
        try:
            importlib.import_module(submodule)
        except ImportError:  # only guessed from the cell's text: the cell will say what it misses
            continue
    return module


def as_import(name: str, module: types.ModuleType) -> Import | None:
    """What another Python needs to bind `name` to this module, or None if it cannot."""
    path = userdata.import_path(module)
    return None if path is None else Import(name, path)


def is_importable(value: Any) -> bool:
    """Whether a star import may have brought this: something that lives in another module."""
    module = getattr(value, "__module__", None)
    return isinstance(module, str) and module != "__main__"
