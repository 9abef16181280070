"""Which names of a namespace are the user's, and which values look like secrets.

A notebook's namespace also holds what IPython put there (`In`, `_`, `_i3`, `get_ipython`, …). Those
never travel: each side has its own.
"""

from __future__ import annotations

import functools
import io
import re
import sys
import types
from typing import Any

from mlcloud.values.modules import LaterModule

_INTERNAL = re.compile(
    r"In|Out|get_ipython|exit|quit|_+|_i{1,3}|_i\d+|_\d+|_(oh|dh|ih|exit_code|sh)|__\w+__"
    r"|_mlcloud_(?!result_)\w*"
)
_SECRET_NAME = re.compile(
    r"(^|_)(passw(or)?d|passphrase|pwd|secrets?|tokens?|credentials?|creds"
    r"|(api|access|private|secret|auth|account|encryption)_?keys?|bearer)($|_|\d)",
    re.IGNORECASE,
)
_NOT_SECRET_NAME = re.compile(r"^tokens$|^tokens_|_tokens$", re.IGNORECASE)  # a tokenizer's output
_SECRET_VALUE = re.compile(
    r"\s*(-----BEGIN [A-Z ]*PRIVATE KEY-----|(AKIA|ASIA)[0-9A-Z]{16}\b|gh[pousr]_\w{20}"
    r"|github_pat_\w{20}|hf_\w{20}|sk-[\w-]{20}|xox[abprs]-[\w-]{10}|AIza[\w-]{30}"
    r"|ey[\w-]{10,}\.ey[\w-]{10,}\.)"
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@functools.lru_cache(maxsize=2**14)  # a long session has one such name a cell
def _is_internal_name(name: str) -> bool:
    return _INTERNAL.fullmatch(name) is not None


def is_internal(name: str, value: Any = None) -> bool:
    """Whether IPython or Python put this name there, and not the user."""
    if _is_internal_name(name):
        return True
    # IPython puts its own `open` into the namespace.
    return name == "open" and (value is io.open or getattr(value, "__module__", "") == "io")


def is_hidden(name: str, value: Any = None) -> bool:
    """Whether a name that nobody mentioned is left alone: internals, and any with `_` in front."""
    return name.startswith("_") or is_internal(name, value)


def looks_secret(name: str, value: Any) -> bool:
    """Whether a name, or a string, looks like a password, a key or a token.

    A name counts only over a value that can hold text: `token = 5` and `import secrets` do not.
    """
    if isinstance(value, (str, bytes)):
        text = value[:200] if isinstance(value, str) else value[:200].decode("latin-1")
        if _SECRET_VALUE.match(text):
            return True
    elif not isinstance(value, (dict, list, tuple, set)):
        return False
    if not value or _NOT_SECRET_NAME.search(name):
        return False
    return _SECRET_NAME.search(_CAMEL.sub("_", name)) is not None


def import_path(module: types.ModuleType) -> str | None:
    """The dotted name by which another Python can import this module, or None."""
    import os

    if isinstance(module, LaterModule):
        return module.__name__
    if module is os.path:
        return "os.path"  # its own name, posixpath, is this system's
    spec = getattr(module, "__spec__", None)
    for path in (getattr(spec, "name", None), module.__name__):
        if isinstance(path, str) and path != "__main__" and sys.modules.get(path) is module:
            return path
    name = module.__name__.rpartition(".")[2]
    paths = [
        f"{parent}.{name}"
        for parent, holder in list(sys.modules.items())
        if parent != "__main__" and getattr(holder, "__dict__", {}).get(name) is module
    ]
    return min(paths, key=len, default=None)
