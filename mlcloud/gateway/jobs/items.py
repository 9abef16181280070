"""What a job knows of its items, and the rows in which they and their results are.

    add ─► waiting ─ take ─► out ─ end ─► ended        (a byte each)
              ▲               │
              └── put_back ◄──┘  its worker is gone, or it raised and may be tried again

Items themselves stay in the table: only the row that is being handed out is in memory.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections import deque
from functools import lru_cache
from typing import Any

import msgpack
from sqlalchemy import Engine, insert, select

from mlcloud.gateway import db
from mlcloud.gateway.jobs import tables

WAITING, OUT, DONE, FAILED = range(4)
ROWS_KEPT = 8

_RESULT = db.insert_into(tables.results, "job_id", "number", "ends", "entries", "logs")


class Items:
    """Of one job."""

    def __init__(self, engine: Engine, job_id: str) -> None:
        self._engine = engine
        self.job_id = job_id
        self.states = bytearray()
        self.out: dict[int, str] = {}  # the worker that has it
        self.again: deque[int] = deque()  # to be handed out before others
        self.alone: set[int] = set()  # to be run by itself: one of them ended its worker
        self.needs: dict[int, set[str]] = {}  # jobs that it waits for
        self.refers: set[str] = set()  # jobs whose results are in any of them
        self.pins: dict[int, str] = {}  # the one worker that can run it
        self._pinned: dict[str, deque[int]] = {}  # by that worker, those that wait
        self.done = self.failed = 0
        self.rows = 0  # of results
        self.parts: dict[int, int] = {}
        self._next = 0
        self._firsts: list[int] = []
        self._where: array[int] = array("L")  # the row of each item's end
        self._read_input = lru_cache(ROWS_KEPT)(self._input_row)
        self._read_result = lru_cache(ROWS_KEPT)(self._result_row)

    def load(self) -> None:
        """From the tables, after a restart."""
        with self._engine.connect() as connection:
            ours = tables.inputs.c.job_id == self.job_id
            query = select(tables.inputs.c.first, tables.inputs.c.count, tables.inputs.c.needs)
            for row in connection.execute(query.where(ours).order_by(tables.inputs.c.first)):
                self._added(row.first, row._mapping["count"], json.loads(row.needs))
            query_ends = (
                select(tables.results.c.number, tables.results.c.ends)
                .where(tables.results.c.job_id == self.job_id)
                .order_by(tables.results.c.number)
            )
            for told in connection.execute(query_ends):
                self.rows = told.number
                for item, kind, more in msgpack.unpackb(told.ends):
                    self._note(item, kind, more, told.number)

    # --- in ---------------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        return len(self.states)

    @property
    def waiting(self) -> int:
        return self.total - self.ended - len(self.out)

    @property
    def ended(self) -> int:
        return self.done + self.failed

    def add(self, first: int, items: list[Any], needs: dict[int, list[str]]) -> None:
        """The batch that begins with item `first` == `total`."""
        row = {
            "job_id": self.job_id,
            "first": first,
            "count": len(items),
            "wires": msgpack.packb(items),
            "needs": json.dumps(needs) if needs else "{}",
        }
        with db.writing(self._engine) as connection:
            connection.execute(insert(tables.inputs).values(row))
        self._added(first, len(items), needs)

    def _added(self, first: int, count: int, needs: dict[Any, list[str]]) -> None:
        self._firsts.append(first)
        self.states.extend(bytes(count))
        self._where.extend([0] * count)
        for item, jobs in needs.items():
            self.needs[int(item)] = set(jobs)
            self.refers |= set(jobs)

    def wire(self, item: int) -> Any:
        """The item as it was sent."""
        first = self._firsts[bisect_right(self._firsts, item) - 1]
        return self._read_input(first)[item - first]

    def _input_row(self, first: int) -> list[Any]:
        query = select(tables.inputs.c.wires).where(
            tables.inputs.c.job_id == self.job_id, tables.inputs.c.first == first
        )
        with self._engine.connect() as connection:
            return list(msgpack.unpackb(connection.execute(query).scalar_one()))

    # --- handing out ------------------------------------------------------------------------------

    def pin(self, item: int, worker: str) -> None:
        """Only this worker has what the item needs."""
        self.pins[item] = worker
        self._pinned.setdefault(worker, deque()).append(item)

    def pinned(self) -> dict[str, deque[int]]:
        """What waits for one worker alone, by worker."""
        return {worker: items for worker, items in self._pinned.items() if items}

    def unpin(self, worker: str) -> list[int]:
        """That worker is gone: what waited for it."""
        return list(self._pinned.pop(worker, ()))

    def take(self, most: int, worker: str, *, pinned_only: bool = False) -> list[int]:
        """Up to so many items for a worker; one that is to be alone comes alone."""
        found: list[int] = []
        blocked: list[int] = []
        own = self._pinned.get(worker, deque())
        while own and len(found) < most:
            waits = own.popleft()
            if self.states[waits] == WAITING:
                found.append(waits)
        while len(found) < most and not pinned_only:
            item = self._peek()
            if item is None:
                break
            if self.needs.get(item):
                self._drop()
                blocked.append(item)
                continue
            if item in self.pins:
                self._drop()
                continue
            if item in self.alone and found:
                break
            self._drop()
            found.append(item)
            if item in self.alone:
                break
        self.again.extend(blocked)
        for item in found:
            self.states[item] = OUT
            self.out[item] = worker
        return found

    def _peek(self) -> int | None:
        while self.again:
            if self.states[self.again[0]] == WAITING:
                return self.again[0]
            self.again.popleft()
        while self._next < self.total and self.states[self._next] != WAITING:
            self._next += 1
        return self._next if self._next < self.total else None

    def _drop(self) -> None:
        if self.again:
            self.again.popleft()
        else:
            self._next += 1

    def put_back(self, item: int, *, alone: bool = False) -> None:
        if self.states[item] in (DONE, FAILED):
            return
        self.out.pop(item, None)
        self.states[item] = WAITING
        if item in self.pins:
            self._pinned.setdefault(self.pins[item], deque()).append(item)
            return
        if alone:
            self.alone.add(item)
        self.again.append(item)

    def of_worker(self, worker: str) -> list[int]:
        """What it has, in the order in which it was given."""
        return [item for item, name in self.out.items() if name == worker]

    # --- out --------------------------------------------------------------------------------------

    def is_ended(self, item: int) -> bool:
        return self.states[item] in (DONE, FAILED)

    def commit(self, entries: list[list[Any]], logs: list[list[Any]]) -> None:
        """In one transaction: ends of items (`ok`, `error`), what they yielded (`part`) or measured
        (`report`), what they printed.

        Ends of items that have ended, and parts that were told before, are left out.
        """
        new: list[list[Any]] = []
        ended: set[int] = set()
        parts = dict(self.parts)
        for entry in entries:
            item, kind = entry[0], entry[1]
            if item >= self.total or self.is_ended(item) or item in ended:
                continue
            if kind == "report":
                pass
            elif kind == "part":
                if entry[3][0] < parts.get(item, 0):
                    continue
                parts[item] = entry[3][0] + 1
            else:
                ended.add(item)
            new.append(entry)
        if not new and not logs:
            return
        number = self.rows + 1
        ends = [[e[0], e[1], e[3][0] if e[1] in ("part", "report") else 0] for e in new]
        row = {
            "job_id": self.job_id,
            "number": number,
            "ends": msgpack.packb(ends),
            "entries": msgpack.packb(new),
            "logs": msgpack.packb(logs),
        }
        with db.writing(self._engine) as connection:
            _RESULT.run(connection, row)
        self.rows = number
        for item, kind, more in ends:
            self._note(item, kind, more, number)

    def _note(self, item: int, kind: str, more: int, number: int) -> None:
        if kind == "report":
            return
        if kind == "part":
            self.parts[item] = max(self.parts.get(item, 0), more + 1)
            return
        if self.is_ended(item):
            return
        self.out.pop(item, None)
        self.alone.discard(item)
        self.parts.pop(item, None)
        self._where[item] = number
        self.states[item] = DONE if kind == "ok" else FAILED
        if kind == "ok":
            self.done += 1
        else:
            self.failed += 1

    def result(self, item: int) -> list[Any] | None:
        """The end of an item, None while there is none."""
        if item >= self.total or not self.is_ended(item):
            return None
        return self._read_result(self._where[item])[2].get(item)

    def in_order(self, after: int, most_bytes: int) -> list[list[Any]]:
        """The ends of items `after`, `after` + 1, … up to the first that has none."""
        found: list[list[Any]] = []
        size, item = 0, after
        while item < self.total and self.is_ended(item) and size < most_bytes:
            entry = self.result(item)
            if entry is None:
                break
            found.append(entry)
            size += _size(entry)
            item += 1
        return found

    def as_told(self, after: int, most_bytes: int) -> tuple[int, list[list[Any]]]:
        """(the number of the last row, what was told in those after row `after`)."""
        found: list[list[Any]] = []
        size, number = 0, after
        while number < self.rows and size < most_bytes:
            number += 1
            for entry in self._read_result(number)[0]:
                found.append(entry)
                size += _size(entry)
        return number, found

    def logs(self, after: int, most: int) -> tuple[int, list[list[Any]]]:
        """The same of what was printed: [row, item, stream, text]."""
        found: list[list[Any]] = []
        number = after
        while number < self.rows and len(found) < most:
            number += 1
            found += [[number, *piece] for piece in self._read_result(number)[1]]
        return number, found

    def failures(self, most: int = 0) -> list[int]:
        found = [item for item, state in enumerate(self.states) if state == FAILED]
        return found[:most] if most else found

    def _result_row(
        self, number: int
    ) -> tuple[list[list[Any]], list[list[Any]], dict[int, list[Any]]]:
        """(what was told, what was printed, the ends by item)."""
        query = select(tables.results.c.entries, tables.results.c.logs).where(
            tables.results.c.job_id == self.job_id, tables.results.c.number == number
        )
        with self._engine.connect() as connection:
            row = connection.execute(query).one()
        entries = msgpack.unpackb(row.entries, strict_map_key=False)
        logs = msgpack.unpackb(row.logs, strict_map_key=False)
        return entries, logs, {e[0]: e for e in entries if e[1] in ("ok", "error")}


def _size(entry: list[Any]) -> int:
    value = entry[2]
    if isinstance(value, bytes):
        return len(value) + 20
    if isinstance(value, (list, tuple)):
        return sum(_size([0, 0, each]) for each in value) + 20
    return 200
