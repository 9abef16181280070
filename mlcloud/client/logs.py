"""What a cell printed, all of it: also what was too much to be shown under the cell.

for line in session.log(): …          line by line, fetched as it is read
str(session.log()); session.log().save("train.log")
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlcloud.client.connection import Connection
from mlcloud.models import LogPage

SHOWN_LINES = 100


class Log:
    """An execution's output as text. Each iteration reads it anew, a few megabytes at a time.

    Reading raises `NotFound` where there is no such execution, `Damaged` where the store is.
    """

    def __init__(self, connection: Connection, session: str, execution_id: str | None) -> None:
        self._connection = connection
        self._session = session
        self.execution_id = execution_id

    def pages(self) -> Iterator[str]:
        """The text in pieces as they were stored."""
        params: dict[str, Any] = {}
        if self.execution_id is not None:
            params["execution_id"] = self.execution_id
        while True:
            answer = self._connection.get(f"/v1/sessions/{self._session}/log", params=params)
            page = LogPage.model_validate(answer)
            if page.text:
                yield page.text
            if page.next is None:
                return
            # From the first page on it is this execution, whatever runs meanwhile.
            params = {"execution_id": page.execution_id, "cursor": page.next}

    def __iter__(self) -> Iterator[str]:
        """Its lines, each with its end."""
        begun = ""
        for page in self.pages():
            lines = (begun + page).splitlines(keepends=True)
            begun = lines.pop() if lines and not lines[-1].endswith("\n") else ""
            yield from lines
        if begun:
            yield begun

    def __str__(self) -> str:
        return "".join(self.pages())

    def __repr__(self) -> str:
        which = self.execution_id or "the last cell"
        return f"<log of {which} in session {self._session!r}: iterate, print, or .save(path)>"

    def tail(self, lines: int = SHOWN_LINES) -> tuple[str, int]:
        """The last lines, and how many came before them."""
        last: deque[str] = deque(maxlen=lines)
        total = 0
        for line in self:
            last.append(line)
            total += 1
        return "".join(last), total - len(last)

    def save(self, path: str | Path) -> Path:
        """Write it to a file, whose path is returned."""
        target = Path(path)
        with target.open("w", encoding="utf-8", newline="") as file:
            for page in self.pages():
                file.write(page)
        return target
