"""The key of a sealed store: made once, kept by the user, and never beside the data.

    new_key("~/.config/mlcloud/exp.key")                # once; keep a copy elsewhere
    Store(url, key="~/.config/mlcloud/exp.key")         # a file
    Store(url, key="env:EXP_KEY")                       # an environment variable
    Store(url, key=lambda: vault.read("exp"))           # whatever gives the 32 bytes
    Store(url, key=[new, old])                          # writes with the first, reads both

A file or variable holds the 32 bytes in base64 (`openssl rand -base64 32`) or hex; a file may hold
them raw, and a variable may name a file. Whoever loses the key loses the data: there is no other
way in.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from mlcloud import errors
from mlcloud.store.sealing import KEY_BYTES, Key, Keys
from mlcloud.store.signing import read_private, write_private

One: TypeAlias = "bytes | str | os.PathLike[str] | Callable[[], bytes | str] | Key"
KeySource: TypeAlias = "One | Sequence[One]"

WHAT = "the store's key"
_TEXT = re.compile(r"[0-9a-fA-F]{64}|[A-Za-z0-9+/_-]{43}=?")


def new_key(path: str | os.PathLike[str]) -> str:
    """Make a key in a file (mode 0600) and return its fingerprint, which tells nothing of it.

    Raises UsageError where the file exists: what was sealed with the key in it would be lost.
    """
    file = Path(path).expanduser()
    if not write_private(file, base64.b64encode(secrets.token_bytes(KEY_BYTES)) + b"\n", WHAT):
        raise errors.UsageError(
            f"{file} exists, and it is not replaced: what was sealed with it would be lost"
        )
    return load_key(file).fingerprint


def load_key(source: One) -> Key:
    """A key from its bytes, a file, `env:VARIABLE`, or a function that gives it.

    Raises UsageError or StoreError, which never show what might be a key.
    """
    if isinstance(source, Key):
        return source
    if isinstance(source, bytes | bytearray):
        return Key(bytes(source))
    if callable(source):
        found = source()
        if isinstance(found, str):
            return Key(_decoded(found.encode(), "what the function gives"))
        return Key(bytes(found))
    if isinstance(source, str) and source.startswith("env:"):
        return _from_variable(source.removeprefix("env:"))
    if not isinstance(source, str | os.PathLike):
        raise errors.UsageError(
            f"a store's key is {KEY_BYTES} bytes, a file, env:VARIABLE or a function, "
            f"not a {type(source).__name__}"
        )
    if _TEXT.fullmatch(str(source)) and not Path(source).exists():
        raise errors.UsageError(
            "this looks like a key itself. Text is the name of a file: put the key into one "
            "(mode 0600), or into an environment variable and pass env:VARIABLE"
        )
    file = Path(source).expanduser()
    return Key(_decoded(read_private(file, WHAT), str(file)))


def load_keys(source: KeySource) -> Keys:
    """The keys of a store; the first one seals."""
    if isinstance(source, list | tuple):
        return Keys([load_key(one) for one in source])
    return Keys([load_key(source)])  # type: ignore[arg-type]


def _from_variable(name: str) -> Key:
    value = os.environ.get(name, "").strip()
    if not value:
        raise errors.UsageError(f"{WHAT} shall be in the variable {name}, which is not set")
    if _TEXT.fullmatch(value):
        return Key(_decoded(value.encode(), f"the variable {name}"))
    file = Path(value).expanduser()
    if not file.is_file():  # perhaps a key that was cut short: its text is not shown
        raise errors.UsageError(
            f"the variable {name} holds neither {KEY_BYTES} bytes in base64 nor the name of a file"
        )
    return Key(_decoded(read_private(file, WHAT), str(file)))


def _decoded(data: bytes, where: str) -> bytes:
    if len(data) == KEY_BYTES:
        return data
    text = data.decode("ascii", errors="replace").strip()
    try:
        if _TEXT.fullmatch(text):
            if len(text) == 2 * KEY_BYTES:
                return bytes.fromhex(text)
            text = text.translate({ord("-"): "+", ord("_"): "/"})
            return base64.b64decode(text.rstrip("=") + "=", validate=True)
    except (binascii.Error, ValueError):
        pass
    raise errors.UsageError(f"{where} is no key: {KEY_BYTES} bytes, raw or in base64 or hex")
