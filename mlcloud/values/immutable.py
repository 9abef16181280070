"""Which types' objects never change: to share one of these binds no names together."""

from __future__ import annotations

import datetime
import decimal
import enum
import pathlib
import re
import sys
import types
import uuid
import weakref

from mlcloud.values.reducers import Classes

# Objects that cannot change, or whose identity is not the user's: sharing them binds no names.
_IMMUTABLE = (
    *(type(None), bool, int, float, complex, str, bytes, tuple, frozenset, range, slice, type),
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.CodeType),
    *(types.ModuleType, types.MappingProxyType, types.GenericAlias, property, staticmethod),
    *(classmethod, enum.Enum, datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo),
    *(decimal.Decimal, uuid.UUID, pathlib.PurePath, re.Pattern, Classes),
)
_IMMUTABLE_BY_NAME = {
    "numpy": ("dtype", "generic", "ufunc"),
    "pandas": ("Index", "Timestamp", "Timedelta", "Interval", "Period"),
    "pandas.api.extensions": ("ExtensionDtype",),
    "torch": ("dtype", "device", "Size", "layout", "memory_format"),
    "tensorflow": ("DType", "TensorShape"),
}
_immutable_types: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()


def is_immutable(kind: type) -> bool:
    """Whether objects of this type never change, remembered per type."""
    if type(kind).__hash__ is None:
        return False
    verdict = _immutable_types.get(kind)
    if verdict is None and kind in (type(sys.stdout), type(sys.stderr)):
        verdict = _immutable_types[kind] = True  # travels by reference; what it holds is no value
    if verdict is None:
        known = list(_IMMUTABLE)
        for module_name, names in _IMMUTABLE_BY_NAME.items():
            if module := sys.modules.get(module_name):
                known += [found for name in names if (found := getattr(module, name, None))]
        by_reference = "function" in kind.__name__.lower()  # Cython's, numpy's dispatchers, …
        verdict = _immutable_types[kind] = by_reference or issubclass(kind, tuple(known))
    return verdict
