"""Small values that JSON has no word for: paths, times, exact numbers, ranges.

Each is spelled in its type's own exact text form. Only the very types below are known: a subclass
may hold more than its text.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import (
    Path,
    PosixPath,
    PurePath,
    PurePosixPath,
    PureWindowsPath,
    WindowsPath,
)
from typing import Any
from zoneinfo import ZoneInfo

from mlcloud import errors

_PATHS: dict[type, str] = {
    PosixPath: "path",
    WindowsPath: "path",
    PurePosixPath: "posix",
    PureWindowsPath: "windows",
}
#: What may also be a dict's key or be in a set.
HASHABLE = frozenset(
    [*_PATHS, datetime, date, time, timedelta, timezone, ZoneInfo, Decimal, Fraction, uuid.UUID]
)

Refuse = Callable[[str], errors.NotCheckpointable]


def encode(value: Any, refuse: Refuse) -> dict[str, Any] | None:
    """The node of one of these values, or None when it is none of them."""
    kind = type(value)
    if kind in _PATHS:
        return {"$": "path", "of": _PATHS[kind], "v": str(value)}
    if kind in (datetime, time):
        text = value.replace(tzinfo=None).isoformat()
        zone = None if value.tzinfo is None else encode(value.tzinfo, refuse)
        if value.tzinfo is not None and zone is None:
            raise refuse(f"has the time zone {value.tzinfo!r}; use datetime.timezone or ZoneInfo")
        return {"$": kind.__name__, "v": text, "fold": value.fold, "tz": zone}
    if kind is date:
        return {"$": "date", "v": value.isoformat()}
    if kind is timedelta:
        return {"$": "timedelta", "v": [value.days, value.seconds, value.microseconds]}
    if kind is timezone:
        # (offset,) or (offset, name): a timezone's own arguments
        offset, *name = value.__getinitargs__()
        return {"$": "timezone", "offset": encode(offset, refuse), "name": name}
    if kind is ZoneInfo and value.key is not None:
        return {"$": "zone", "v": value.key}
    if kind is Decimal:
        return {"$": "decimal", "v": str(value)}
    if kind is Fraction:
        return {"$": "fraction", "v": [hex(value.numerator), hex(value.denominator)]}
    if kind is uuid.UUID:
        return {"$": "uuid", "v": value.hex}
    if kind in (range, slice):
        parts = [value.start, value.stop, value.step]
        if any(part is not None and type(part) is not int for part in parts):
            raise refuse("has bounds that are not whole numbers")
        return {"$": kind.__name__, "v": [None if p is None else hex(p) for p in parts]}
    return None


def decode(node: dict[str, Any]) -> Any:
    """The value of a node that `encode` made."""
    return TAGS[node["$"]](node)


def _path(node: dict[str, Any]) -> PurePath:
    kinds = {"path": Path, "posix": PurePosixPath, "windows": PureWindowsPath}
    made: PurePath = kinds[node["of"]](node["v"])
    return made


def _moment(kind: type[datetime] | type[time], node: dict[str, Any]) -> datetime | time:
    zone = None if node["tz"] is None else decode(node["tz"])
    return kind.fromisoformat(node["v"]).replace(tzinfo=zone, fold=node["fold"])


def _bounds(node: dict[str, Any]) -> list[int | None]:
    return [None if part is None else int(part, 16) for part in node["v"]]


TAGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "path": _path,
    "datetime": lambda node: _moment(datetime, node),
    "time": lambda node: _moment(time, node),
    "date": lambda node: date.fromisoformat(node["v"]),
    "timedelta": lambda node: timedelta(*node["v"]),
    "timezone": lambda node: timezone(decode(node["offset"]), *node["name"]),
    "zone": lambda node: ZoneInfo(node["v"]),
    "decimal": lambda node: Decimal(node["v"]),
    "fraction": lambda node: Fraction(*(int(part, 16) for part in node["v"])),
    "uuid": lambda node: uuid.UUID(hex=node["v"]),
    "range": lambda node: range(*_bounds(node)),  # type: ignore[arg-type]
    "slice": lambda node: slice(*_bounds(node)),
}
