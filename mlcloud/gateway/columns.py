"""A year of settled days in memory: columns of whole numbers, grouped and summed exactly.

    a day's rows ─ pack ─► bytes in the table `settled` ─ Columns.add ─► arrays ─► groups()

A million rows are some 60 MB and are summed in a tenth of a second; what a row is about are numbers
here, by which the names are found. Sums are of 64-bit integers: whole microseconds and the rest
apart, so that none can overflow below a million years of nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgpack
import numpy as np
import numpy.typing as npt

#: Above this, parts are summed one by one, as numbers of any length.
MOST_PARTS = 10**12
_SMALL = 4_000_000

Ints = npt.NDArray[np.int64]
_NAMES = ("node_id", "session_id", "price", "parts")
_WIDTH = 7  # those, then busy, paid, needed


class Row(NamedTuple):
    """Of one day. `price`: dollars an hour, and on demand, with a space between."""

    node_id: str
    session_id: str
    price: str
    parts: int
    busy: bool
    paid: int
    needed: int


def pack(rows: Iterable[Row]) -> bytes:
    """A day as the table keeps it."""
    known: list[dict[Any, int]] = [{} for _ in _NAMES]
    plain: list[int] = []
    odd: list[list[Any]] = []
    for row in rows:
        if row.parts > MOST_PARTS:
            odd.append([*row[:3], str(row.parts), row.busy, str(row.paid), str(row.needed)])
            continue
        plain += [names.setdefault(row[i], len(names)) for i, names in enumerate(known)]
        plain += row[4:]
    data = np.array(plain, dtype="<i8").tobytes()
    packed: bytes = msgpack.packb([[list(names) for names in known], data, odd])
    return packed


class Columns:
    """Days in any order; each at most once."""

    def __init__(self) -> None:
        self._days: dict[int, Ints] = {}
        self._odd: dict[int, list[tuple[Any, ...]]] = {}
        self._codes: list[dict[Any, int]] = [{} for _ in _NAMES]
        self._whole: Ints | None = None

    def add(self, day: int, packed: bytes) -> None:
        names, data, odd = msgpack.unpackb(packed)
        rows: Ints = np.frombuffer(data, dtype="<i8").astype(np.int64).reshape(-1, _WIDTH)
        for i, (codes, own) in enumerate(zip(self._codes, names, strict=True)):
            to = np.array([codes.setdefault(name, len(codes)) for name in own], dtype=np.int64)
            if len(to):
                rows[:, i] = to[rows[:, i]]
        self._days[day] = np.column_stack([np.full(len(rows), day, dtype=np.int64), rows]).T
        self._odd[day] = [
            (day, *each[:3], int(each[3]), each[4], *map(int, each[5:])) for each in odd
        ]
        self._whole = None

    @property
    def days(self) -> Iterable[int]:
        return self._days

    def drop(self, since: int) -> None:
        """Forget that day and later ones."""
        for day in [each for each in self._days if each >= since]:
            del self._days[day], self._odd[day]
        self._whole = None

    def groups(
        self,
        columns: Iterable[str],
        since: int | None,
        until: int,
        session_id: str | None = None,
    ) -> Iterator[tuple[Any, ...]]:
        """Sums of the days from `since` to before `until`: of `columns` (`day`, `node_id`,
        `session_id`) the values, price, on-demand price, parts, paid, needed, busy."""
        wanted = list(columns)
        for row in self._odd_rows(since, until):
            if session_id is None or row[2] == session_id:
                values = [row[("day", "node_id", "session_id").index(each)] for each in wanted]
                yield (*values, *row[3].split(" "), row[4], *row[6:], row[5])
        if self._whole is None:
            empty = np.empty((_WIDTH + 1, 0), dtype=np.int64)
            self._whole = np.concatenate([empty, *self._days.values()], axis=1)
        data = self._whole
        chosen = data[0] < until
        if since is not None:
            chosen &= data[0] >= since
        if session_id is not None:
            chosen &= data[2] == self._codes[1].get(session_id, -1)
        if not chosen.all():
            data = data[:, chosen]
        if not data.shape[1]:
            return
        yield from self._summed(wanted, data)

    def _odd_rows(self, since: int | None, until: int) -> Iterator[tuple[Any, ...]]:
        for day, rows in self._odd.items():
            if day < until and (since is None or day >= since):
                yield from rows

    def _summed(self, wanted: list[str], data: Ints) -> Iterator[tuple[Any, ...]]:
        places = [("day", "node_id", "session_id").index(each) for each in wanted]
        day, node, session, price, parts, busy, paid, needed = data
        first = int(day.min())
        keys = [(day - first, node, session)[place] for place in places] + [price, parts, busy]
        sizes = [int(key.max()) + 1 for key in keys]
        code = np.zeros(len(day), dtype=np.int64)
        space = 1
        for key, size in zip(keys, sizes, strict=True):
            code = code * size + key
            space *= size
        if space < _SMALL:
            found: Ints = np.flatnonzero(np.bincount(code, minlength=space))
            into = np.zeros(space, dtype=np.int64)
            into[found] = np.arange(len(found))
            place = into[code]
        else:
            found, place = np.unique(code, return_inverse=True)
        of = np.array(list(self._codes[3]), dtype=np.int64)[parts]
        sums = []
        for each in (paid // of, paid % of, needed // of, needed % of):
            total = np.zeros(len(found), dtype=np.int64)
            np.add.at(total, place, each)
            sums.append(total.tolist())
        values: list[list[Any]] = []
        for size in reversed(sizes):
            found, rest = np.divmod(found, size)
            values.insert(0, rest.tolist())
        names = [list(codes) for codes in self._codes]
        prices = [tuple(text.split(" ")) for text in names[2]]
        read = [
            [first + v for v in column] if place == 0 else [names[place - 1][v] for v in column]
            for place, column in zip(places, values, strict=False)
        ]
        rest_of = zip(*values[len(places) :], *sums, strict=True)
        keys_of: Iterable[tuple[Any, ...]] = (
            zip(*read, strict=True) if read else ((),) * len(sums[0])
        )
        for key_values, (p, n, b, whole, part, whole_needed, part_needed) in zip(
            keys_of, rest_of, strict=True
        ):
            many = names[3][n]
            amounts = whole * many + part, whole_needed * many + part_needed
            yield (*key_values, *prices[p], many, *amounts, bool(b))
