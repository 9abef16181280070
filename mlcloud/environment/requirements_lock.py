"""A lock in a requirements file, as `pip freeze`, `pip-compile` and `uv export` write it: every
package with its version, and with hashes if it has them.

    lock.txt ─► read_lock() ─► what `POST /v1/sessions` takes as an environment: pins, and the same
                               again by name, so that what the lock has forgotten is found too

Nodes cache what they make of it by its content.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from mlcloud.environment.lock import CLUSTERS_OWN, without_hashes
from mlcloud.errors import UsageError

_FIELD = "environment.lock"


def read_lock(path: Path) -> dict[str, Any]:
    """Raises `UsageError`, naming the line, for what is no pin."""
    try:
        text = path.expanduser().read_text()
    except OSError as error:
        raise UsageError(f"{_FIELD}: {path} cannot be read ({error.strerror})") from None
    pins, hashed = [], 0
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if not line:
            continue
        name = _pinned(line, path)
        if name not in CLUSTERS_OWN:
            pins.append(" ".join(line.split()))
            hashed += "--hash" in line
    if not pins:
        raise UsageError(f"{_FIELD}: {path} names no package")
    if hashed not in (0, len(pins)):
        raise UsageError(
            f"{_FIELD}: {path} has hashes for {hashed} of {len(pins)} packages: for all or for none"
        )
    return {
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "pins": pins,
        # With hashes it is complete, and nothing else may come.
        "requirements": [] if hashed else pins,
        "summary": f"{len(pins)} packages of {path.name}",
    }


def _pinned(line: str, path: Path) -> str:
    """The package's name."""
    if line.startswith("-"):
        hint = " (write indexes under environment.index_urls)" if "index" in line else ""
        raise UsageError(
            f"{_FIELD}: {path}: {line.split()[0]!r} is an option of pip's, not a package{hint}"
        )
    try:
        need = Requirement(without_hashes(line))
    except InvalidRequirement as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{_FIELD}: {path}: {line!r} is no requirement: {reason}") from None
    exact = [each for each in need.specifier if each.operator in ("==", "===")]
    if not need.url and not (exact and not exact[0].version.endswith("*")):
        raise UsageError(
            f"{_FIELD}: {path}: {need.name} has no version: a lock says which, {need.name}==…; "
            "`uv pip compile` and `pip freeze` write one"
        )
    return re.sub(r"[-_.]+", "-", need.name).lower()
