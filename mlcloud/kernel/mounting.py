"""The data folders that a session was promised, on the node that it has come to.

    mount(workspace, "/data", cached)   ─► /data is a link to the cache's folder (`store/mounts.py`)

A link, since a bind mount needs root, and FUSE a device that containers do not have. A relative
path is one in the working directory. What is there already and no link of ours stays.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import time
from collections.abc import Callable
from pathlib import Path

from mlcloud.errors import UsageError
from mlcloud.store.mounts import Mount
from mlcloud.units import format_bytes

TELL_S = 0.5


def mount(workspace: Path, path: str, source: Path) -> None:
    """Raises `UsageError` where `path` cannot be a link to `source`, and why."""
    place = workspace / path
    if place.is_symlink():
        target = Path(os.readlink(place))
        if target == source:
            return
        other = Mount.of(target.parent / "index.json")
        if other is None or other.is_used():
            what = "leads elsewhere" if other is None else f"is {other.url} in another session here"
            raise UsageError(f"{path} {what}: choose another path for the data")
    elif place.exists():
        raise UsageError(
            f"{path} is there already on this node, and is no data of a session: choose another "
            "path"
        )
    new = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        new.symlink_to(source)
        os.replace(new, place)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be made by {getpass.getuser()} on this node ({error.strerror}): choose "
            "a path that this user may make, such as `data` (in the working directory), or make "
            "its folder in `setup`"
        ) from error


def teller(url: str, tell: Callable[[str, bool], None]) -> Callable[[int, int], None]:
    """For `data(tell=…)`: a line now and then, after the first half second."""
    told = time.monotonic()

    def told_of(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told >= TELL_S:
            told = time.monotonic()
            tell(f"reading {url}: {format_bytes(done)} of {format_bytes(total)}", False)

    return told_of
