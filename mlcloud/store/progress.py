"""A bar for what takes longer than half a second, where somebody is looking.

tqdm's, so it looks as others do in a terminal, a notebook and a remote cell, and gives way to them.
Nothing is shown in other threads than the main one, or to a file.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

DELAY_S = 0.5
Told = Callable[[int], object]


@contextmanager
def shown(what: str, total: int) -> Iterator[Told]:
    """`what` is done to `total` bytes: call what this gives with those that are done."""
    if total <= 0 or not _is_watched():
        yield lambda done: None
        return
    from tqdm import tqdm

    with tqdm(
        total=total,
        desc=what,
        unit="B",
        unit_scale=True,
        unit_divisor=1000,
        delay=DELAY_S,
        leave=False,
        file=sys.stderr,
    ) as bar:
        yield bar.update


def _is_watched() -> bool:
    if threading.current_thread() is not threading.main_thread():
        return False
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        return True
    return sys.stderr is not None and sys.stderr.isatty()
