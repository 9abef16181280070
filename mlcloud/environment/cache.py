"""The wheel cache: wheels by the blake3 of their content, and which source gave which wheel.

$MLCLOUD_HOME/wheels/<digest>/<name>.whl
$MLCLOUD_HOME/wheels/sources/<digest of the source>     names the wheel built from it
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from blake3 import blake3


def wheel_folder() -> Path:
    from mlcloud.config import Settings

    return Settings().home / "wheels"


def keep(wheel: Path, source: str) -> tuple[str, str]:
    """Put a wheel into the cache, as what `source` gave; its digest and its name."""
    data = wheel.read_bytes()
    digest = blake3(data).hexdigest()
    target = wheel_folder() / digest / wheel.name
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = target.with_name(f".{wheel.name}.{secrets.token_hex(4)}")
    temporary.write_bytes(data)
    os.replace(temporary, target)
    note = _note(source)
    note.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = note.with_name(f".{note.name}.{secrets.token_hex(4)}")
    temporary.write_text(json.dumps([digest, wheel.name]))
    os.replace(temporary, note)
    return digest, wheel.name


def kept(source: str) -> tuple[str, str] | None:
    """The wheel that was made of this source, if the cache still has it."""
    try:
        digest, name = json.loads(_note(source).read_text())
    except (OSError, ValueError):
        return None
    return (digest, name) if (wheel_folder() / digest / name).exists() else None


def _note(source: str) -> Path:
    return wheel_folder() / "sources" / source
