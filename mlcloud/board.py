"""Items that change, and whoever follows them: each gets the latest of each item, in its own time.

    board.put({"session/exp": {...}}) ─► follower: {"whole", "set": {key: value}, "gone": [key]}

The first frame has everything. Who is slow misses steps between, never the last state.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Frame:
    """What has changed; with `whole`, all there is."""

    whole: bool
    set: dict[str, Any]
    gone: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        return {"whole": self.whole, "set": self.set, "gone": self.gone}


class Board:
    """Belongs to one event loop. Values are JSON's, and are not changed once they are put."""

    def __init__(self) -> None:
        self.items: dict[str, Any] = {}
        self._versions: dict[str, int] = {}
        self._version = 0
        self._changed = asyncio.Event()

    def put(self, items: Mapping[str, Any], gone: tuple[str, ...] | list[str] = ()) -> None:
        """Set these items and remove those; what is the same already is no change."""
        version = self._version + 1
        for key, value in items.items():
            if key not in self.items or self.items[key] != value:
                self.items[key], self._versions[key] = value, version
                self._version = version
        for key in gone:
            if self.items.pop(key, None) is not None:
                del self._versions[key]
                self._version = version
        if self._version == version:
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    def replace(self, items: Mapping[str, Any]) -> None:
        """These are all there are."""
        self.put(items, [key for key in self.items if key not in items])

    async def follow(self) -> AsyncIterator[Frame]:
        """What there is, then what changes, for ever."""
        seen: dict[str, int] = {}
        whole = True
        while True:
            changed = self._changed
            found = {key: at for key, at in self._versions.items() if seen.get(key) != at}
            gone = [key for key in seen if key not in self._versions]
            if whole or found or gone:
                seen = dict(self._versions)
                frame = Frame(whole, {key: self.items[key] for key in found}, gone)
                whole = False
                yield frame
            else:
                await changed.wait()
