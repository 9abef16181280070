"""A job's worker: a detached, async Ray actor, kept warm from item to item and from job to job.

    gateway ── work(job, items) ──► queue ─► Runner's thread
            ◄─ events(after) ─────  results, what was printed

One long poll is outstanding at any time; what is not acknowledged by the next `after` is kept, so a
gateway that is killed misses nothing: it finds the actor by its name, asks `status`, and reads on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from pathlib import Path
from typing import Any

import msgpack

from mlcloud.kernel.job_runner import Runner, Task
from mlcloud.kernel.mounting import mount
from mlcloud.store.mounts import data

KEPT_BATCHES = 256


class JobWorker:
    """Started by the gateway, as `ray.remote(JobWorker).options(…)`: see `gateway/jobs/crew.py`."""

    def __init__(self, store_url: str, folder: str) -> None:
        self._loop = asyncio.get_event_loop()
        self._news = asyncio.Event()
        self._number = 0
        self._kept: deque[tuple[int, bytes]] = deque()
        self._tasks: dict[str, Task] = {}
        self._batches: deque[str] = deque(maxlen=KEPT_BATCHES)
        place = os.path.join(os.environ.get("MLCLOUD_NODE_DIR", folder), "jobs", str(os.getpid()))
        os.makedirs(place, exist_ok=True)
        os.chdir(place)
        self._runner = Runner(store_url, self._wake)

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop ends, and the process with it
            self._loop.call_soon_threadsafe(self._news.set)

    async def facts(self, packages: bool = False) -> dict[str, Any]:
        """Where it is, and with which `packages`."""
        import sys

        from mlcloud.environment.facts import installed

        return {
            "packages": installed() if packages else None,
            "instance": os.environ.get("RAY_CLOUD_INSTANCE_ID", ""),
            "pid": os.getpid(),
            "python": ".".join(map(str, sys.version_info[:3])),
        }

    async def status(self) -> list[list[Any]]:
        """The items that it has, also those that have ended and of which no gateway has said that
        it heard: [job, item]."""
        held = self._runner.held()  # before: what ends in between is in both
        self._collect()
        for _, body in self._kept:
            told = msgpack.unpackb(body, strict_map_key=False)
            ended = (each[0] for each in told["results"] if each[1] in ("ok", "error"))
            held += [[told["job"], item] for item in ended]
        return held

    async def work(self, batch: str, task: bytes | None, job: str, items: bytes) -> bool:
        """Take items. False: it does not know that job, and needs `task` too. A batch that came
        already changes nothing."""
        if batch in self._batches:
            return True
        if task is not None and job not in self._tasks:
            self._tasks.clear()  # of a job before it
            self._tasks[job] = Task(**msgpack.unpackb(task, strict_map_key=False))
        known = self._tasks.get(job)
        if known is None:
            return False
        self._batches.append(batch)
        self._runner.put(known, msgpack.unpackb(items, strict_map_key=False))
        return True

    async def events(self, after: int, wait_s: float = 20.0) -> list[tuple[int, bytes]]:
        """What came after number `after`, as soon as there is any."""
        while self._kept and self._kept[0][0] <= after:
            self._kept.popleft()
        if not self._collect():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait(), wait_s)
            self._collect()
        return list(self._kept)

    def _collect(self) -> bool:
        self._news.clear()
        for told in self._runner.take():
            self._number += 1
            self._kept.append((self._number, msgpack.packb(told)))
        return bool(self._kept)

    async def prepare(self, secrets: dict[str, str], mounts: list[dict[str, Any]]) -> None:
        """Before a job's first item: what its code finds in its environment, and on its disk.

        Raises what `data` raises.
        """
        self._runner.give(secrets)
        for each in mounts:
            await asyncio.to_thread(self._mount, each)

    def _mount(self, wanted: dict[str, Any]) -> None:
        mount(Path.cwd(), wanted["path"], data(wanted["url"], cache=wanted["cache"]))

    async def held_secrets(self) -> dict[str, str]:
        """For a gateway that was started again, and has them no more."""
        return self._runner.secrets.values

    async def kept(self) -> list[list[Any]]:
        """The results that are here alone: [job, item]."""
        return self._runner.kept.listed()

    async def drop(self, keys: list[list[Any]]) -> None:
        """Of these, nothing is wanted any more."""
        self._runner.kept.drop(keys)

    async def give_back(self, job: str | None = None) -> list[int]:
        """Items that were not begun."""
        return self._runner.give_back(job)

    async def stop(self, job: str, item: int) -> None:
        """This trial is to stop at its next report."""
        self._runner.stop(job, item)

    async def notice(self, in_s: float | None) -> None:
        """The node goes away in so many seconds: loops save."""
        self._runner.noticed(in_s)
