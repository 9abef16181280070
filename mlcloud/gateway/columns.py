"""A year of settled days in memory: columns of whole numbers, grouped and summed exactly.

    a day's rows ─ pack ─► bytes in the table `settled` ─ Columns.add ─► arrays ─► groups()

A million rows are some 60 MB and are summed in a tenth of a second; what a row is about are numbers
here, by which the names are found. Sums are of 64-bit integers: whole microseconds and the rest
apart, so that none can overflow below a million years of nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple

import msgpack
import numpy as np
import numpy.typing as npt

#: Above this, parts are summed one by one, as numbers of any length.
MOST_PARTS = 10**12
_SMALL = 4_000_000
_KEYS = ("day", "node_id", "session_id")

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

    def totals(
        self,
        columns: Iterable[str],
        since: int | None,
        until: int,
    ) -> tuple[int, int, Iterator[tuple[Any, ...]]]:
        """Sums of those days by `columns` alone, whatever the prices: the parts of a dollar and of
        an hour, then the values, dollars, on demand, idle, microseconds as whole numbers of them.

        Rows with parts above `MOST_PARTS` are not in it: `odd`.
        """
        wanted = list(columns)
        data = self._chosen(since, until, None)
        if not data.shape[1]:
            return 1, 1, iter(())
        day, node, session, price, parts, busy = data[:6]
        combined = (price * len(self._codes[3]) + parts) * 2 + busy
        combined, combination = _numbered(combined, len(self._codes[2]) * len(self._codes[3]) * 2)
        prices = [
            tuple(Decimal(each).as_integer_ratio() for each in text.split(" "))
            for text in self._codes[2]
        ]
        parts_of = list(self._codes[3])
        kinds = []  # of each combination: its prices, parts, and whether something ran
        for each in combined.tolist():
            of_price, of_parts = divmod(each // 2, len(parts_of))
            kinds.append((*prices[of_price], parts_of[of_parts], each % 2))
        hour = math.lcm(*{many for _, _, many, _ in kinds})
        dollar = hour * math.lcm(*{of for kind in kinds for _, of in kind[:2]})
        factors = np.empty((4, len(kinds)), dtype=object)
        for n, ((usd, of), (listed, of_listed), many, ran) in enumerate(kinds):
            factors[0, n] = usd * (dollar // (of * many))
            factors[1, n] = listed * (dollar // (of_listed * many))
            factors[2, n] = 0 if ran else factors[0, n]
            factors[3, n] = hour // many
        places = [_KEYS.index(each) for each in wanted]
        first = int(day.min())
        keys = [(day - first, node, session)[place] for place in places] + [combination]
        found, sizes, sums = _grouped(keys, data, np.array(parts_of, dtype=np.int64))
        which, kind = np.divmod(found, sizes[-1])
        many = np.array(parts_of, dtype=object)[
            np.array([parts_of.index(each[2]) for each in kinds])[kind]
        ]
        paid, paid_rest, needed, needed_rest = (each.astype(object) for each in sums)
        paid, needed = paid * many + paid_rest, needed * many + needed_rest
        starts = np.flatnonzero(np.concatenate([[True], which[1:] != which[:-1]]))
        amounts = [
            np.add.reduceat(each * factors[n][kind], starts).tolist()
            for n, each in enumerate((paid, needed, paid, paid))
        ]
        read = self._read(places, which[starts], sizes[:-1], first)
        return dollar, hour, zip(*read, *amounts, strict=True)

    def odd(self, columns: Iterable[str], since: int | None, until: int) -> Iterator[Any]:
        """Rows that `totals` leaves out, as `groups` has them."""
        wanted = list(columns)
        for row in self._odd_rows(since, until):
            values = [row[_KEYS.index(each)] for each in wanted]
            yield (*values, *row[3].split(" "), row[4], *row[6:], row[5])

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
                values = [row[_KEYS.index(each)] for each in wanted]
                yield (*values, *row[3].split(" "), row[4], *row[6:], row[5])
        data = self._chosen(since, until, session_id)
        if data.shape[1]:
            yield from self._summed(wanted, data)

    def _chosen(self, since: int | None, until: int, session_id: str | None) -> Ints:
        if self._whole is None:
            empty = np.empty((_WIDTH + 1, 0), dtype=np.int64)
            self._whole = np.concatenate([empty, *self._days.values()], axis=1)
        data = self._whole
        chosen = data[0] < until
        if since is not None:
            chosen &= data[0] >= since
        if session_id is not None:
            chosen &= data[2] == self._codes[1].get(session_id, -1)
        return data if chosen.all() else data[:, chosen]

    def _odd_rows(self, since: int | None, until: int) -> Iterator[tuple[Any, ...]]:
        for day, rows in self._odd.items():
            if day < until and (since is None or day >= since):
                yield from rows

    def _summed(self, wanted: list[str], data: Ints) -> Iterator[tuple[Any, ...]]:
        places = [_KEYS.index(each) for each in wanted]
        day, node, session, price, parts, busy = data[:6]
        first = int(day.min())
        keys = [(day - first, node, session)[place] for place in places] + [price, parts, busy]
        found, sizes, sums = _grouped(keys, data, np.array(list(self._codes[3]), dtype=np.int64))
        found, ran = np.divmod(found, sizes[-1])
        found, of = np.divmod(found, sizes[-2])
        found, cost = np.divmod(found, sizes[-3])
        names = [list(codes) for codes in self._codes]
        prices = [tuple(text.split(" ")) for text in names[2]]
        read = self._read(places, found, sizes[:-3], first)
        rest_of = zip(cost.tolist(), of.tolist(), ran.tolist(), *map(_listed, sums), strict=True)
        keys_of: Iterable[tuple[Any, ...]] = (
            zip(*read, strict=True) if read else ((),) * len(sums[0])
        )
        for key_values, (p, n, b, whole, part, whole_needed, part_needed) in zip(
            keys_of, rest_of, strict=True
        ):
            many = names[3][n]
            amounts = whole * many + part, whole_needed * many + part_needed
            yield (*key_values, *prices[p], many, *amounts, bool(b))

    def _read(self, places: list[int], found: Ints, sizes: list[int], first: int) -> list[Any]:
        """The values of each column, from the code of all of them."""
        values: list[list[int]] = []
        for size in reversed(sizes):
            found, rest = np.divmod(found, size)
            values.insert(0, rest.tolist())
        names = [list(codes) for codes in self._codes]
        return [
            [first + v for v in column] if place == 0 else [names[place - 1][v] for v in column]
            for place, column in zip(places, values, strict=True)
        ]


def _listed(numbers: Ints) -> list[int]:
    found: list[int] = numbers.tolist()
    return found


def _numbered(code: Ints, space: int) -> tuple[Ints, Ints]:
    """As `numpy.unique` with its inverse; quicker where few numbers are possible."""
    if space >= _SMALL:
        found, place = np.unique(code, return_inverse=True)
        return found, place
    found = np.flatnonzero(np.bincount(code, minlength=space))
    into = np.zeros(space, dtype=np.int64)
    into[found] = np.arange(len(found))
    return found, into[code]


def _grouped(keys: list[Ints], data: Ints, parts_of: Ints) -> tuple[Ints, list[int], list[Ints]]:
    """The codes of the groups in order, how many values each key may have, and the sums: paid and
    needed, each as whole microseconds and the rest."""
    parts, paid, needed = data[4], data[6], data[7]
    sizes = [int(key.max()) + 1 for key in keys]
    code = np.zeros(data.shape[1], dtype=np.int64)
    space = 1
    for key, size in zip(keys, sizes, strict=True):
        code = code * size + key
        space *= size
    found, place = _numbered(code, space)
    of = parts_of[parts]
    sums = []
    for each in (paid // of, paid % of, needed // of, needed % of):
        total = np.zeros(len(found), dtype=np.int64)
        np.add.at(total, place, each)
        sums.append(total)
    return found, sizes, sums
