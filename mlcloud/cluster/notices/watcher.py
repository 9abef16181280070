"""Looks at all sources, a thread each, and passes on what is new: each notice once.

    look ─► new? ─► tell ─ refused ─► again, every RETRY_S, until it is told or not true any more
              └─ gone before it started ─► tell that it is withdrawn

A source that does not answer is said so once, and asked again: at its pace once it has answered
before, more slowly where it never has, since there may be no such service here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mlcloud.cluster.notices.notice import WITHDRAWN, Notice, Source

RETRY_S = 0.25
SLOWEST = 5  # times `poll_s`, where nobody has ever answered

#: Gets a notice and the seconds that are left now; False to be asked again.
Tell = Callable[[Notice, float | None], bool]


@dataclass
class _Seen:
    notice: Notice
    at: float
    told: bool = False

    @property
    def left(self) -> float | None:
        if self.notice.seconds is None:
            return None
        return max(0.0, self.notice.seconds - (time.monotonic() - self.at))


class Watcher:
    """Runs until `stop`, or with the process."""

    def __init__(
        self, sources: Iterable[Source], tell: Tell, log: Callable[[str], None] = print
    ) -> None:
        self._sources = list(sources)
        self._tell, self._log = tell, log
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        for source in self._sources:
            name = f"notices: {source.name}"
            thread = threading.Thread(target=self._follow, args=(source,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self, timeout: float | None = None) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(timeout)

    def _follow(self, source: Source) -> None:
        seen: dict[str, _Seen] = {}
        silent = ""
        answered = False
        pause = source.poll_s
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                found = source.look()
            except Exception as error:  # whatever a strange answer leads to, the watch goes on
                if not silent:
                    silent = f"{type(error).__name__}: {error}"
                    self._log(f"{source.name} cannot be read, trying on: {silent}")
                if not answered:
                    pause = min(2 * pause, SLOWEST * source.poll_s)
            else:
                if silent:
                    self._log(f"{source.name} answers")
                silent, answered, pause = "", True, source.poll_s
                self._take_in(source, found, seen)
            self._pass_on(seen, began + pause)

    def _take_in(self, source: Source, found: list[Notice], seen: dict[str, _Seen]) -> None:
        now = time.monotonic()
        for notice in found:
            known = seen.get(notice.key)
            if known is None or known.notice.kind == WITHDRAWN:
                seen[notice.key] = _Seen(notice, now)
            elif notice.started:
                known.notice = notice
        if source.final:
            return
        for key in seen.keys() - {notice.key for notice in found}:
            known = seen[key]
            if known.notice.kind == WITHDRAWN:
                continue
            if known.told and not known.notice.started:
                seen[key] = _Seen(Notice(key, WITHDRAWN, None), now)
            else:
                del seen[key]

    def _is_told(self, each: _Seen) -> bool:
        try:
            return self._tell(each.notice, each.left)
        except Exception as error:  # a thread that ends here would watch no more
            self._log(f"{each.notice.kind} could not be passed on: {type(error).__name__}: {error}")
            return False

    def _pass_on(self, seen: dict[str, _Seen], until: float) -> None:
        """Tell what is not told, and wait until it is time to look again."""
        while True:
            for each in seen.values():
                if not each.told:
                    each.told = self._is_told(each)
            left = until - time.monotonic()
            if left <= 0:
                return
            waits = any(not each.told for each in seen.values())
            if self._stopped.wait(min(left, RETRY_S) if waits else left):
                return
