"""A module that a remote cell imported, as the notebook holds it: imported here when it is used.

    %%remote                      plt  ─► LaterModule("matplotlib.pyplot")
    import matplotlib.pyplot as plt       │ plt.plot(…)
                                          └─► imported, and the name holds the module itself

So `import torch` in a remote cell costs the notebook no seconds, and a package that only the
session has is missed where it is used, not where it was imported.
"""

from __future__ import annotations

import importlib
import types
from typing import Any

# What front ends and IPython look for on everything they show: no use of the module.
_LOOKED_FOR = ("_repr_", "_ipython_", "__wrapped__", "__mlcloud_")


def find(path: str) -> types.ModuleType:
    """The module of this path, imported. The last names may be attributes: the modules inside an
    extension (`tokenizers.trainers`) are in no file, and `import` does not find them."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        parent, _, name = path.rpartition(".")
        if error.name != path or not parent:
            raise
        found = getattr(find(parent), name, None)
        if not isinstance(found, types.ModuleType):
            raise
        return found


class LaterModule(types.ModuleType):
    """Stands for the module `path` under `name` in `namespace`, until somebody uses it."""

    def __init__(self, path: str, name: str, namespace: dict[str, Any]) -> None:
        super().__init__(path)
        self.__dict__["_mlcloud_later"] = (name, namespace)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith(_LOOKED_FOR):
            raise AttributeError(attribute)
        return getattr(self._module(), attribute)

    def __setattr__(self, attribute: str, value: Any) -> None:
        setattr(self._module(), attribute, value)

    def __dir__(self) -> list[str]:
        try:
            return dir(self._module())
        except ImportError:
            return []

    def _module(self) -> types.ModuleType:
        name, namespace = self.__dict__["_mlcloud_later"]
        try:
            module = find(self.__name__)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"`{name}` is the module {self.__name__!r}, imported in a remote cell, and this "
                f"notebook's Python has no package {error.name!r}: install it here, or use "
                f"`{name}` in %%remote cells only",
                name=error.name,
            ) from None
        if namespace.get(name) is self:
            namespace[name] = module
        return module
