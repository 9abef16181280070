"""Prices, the meter, budgets and reports; and, called, `mlcloud.cost()` itself.

Importing any module of this package makes `mlcloud.cost` the package. So the package can be called,
and is the public function then.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        # By its name: nothing in this package depends on the notebook's side.
        return import_module("mlcloud.client.api").cost(*args, **options)


sys.modules[__name__].__class__ = _Callable
