"""The hosts of a gang's ranks: what the leader asks of each, beside what is asked of any host.

gloo's own abort does not wake who waits in it (torch 2.13), and no signal does: the connections
between the ranks are cut. They are those of which two ranks hold an end each.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Any

import psutil

from mlcloud.kernel import rendezvous
from mlcloud.kernel.host import Host
from mlcloud.kernel.ranks import STACKS

ABORT_S = 2.0

Connection = tuple[str, str]  # two ends, `address:port`


class Member(Host):
    """The host of any rank."""

    async def place(self) -> dict[str, Any]:
        return rendezvous.place()

    async def told(self) -> int:
        """The number of the last of its events."""
        return self._events.number()

    async def sigint(self) -> None:
        self._live().interrupt()

    async def connections(self) -> list[Connection]:
        """The kernel's TCP connections: its own end, and the other one."""
        with contextlib.suppress(psutil.Error):
            found = psutil.Process(self._live().pid).net_connections(kind="tcp")
            return [(_end(c.laddr), _end(c.raddr)) for c in found if c.raddr]
        return []

    async def abort_groups(self, among: list[Connection]) -> bool:
        """End what waits in a collective, by cutting these connections of the kernel's. Whether
        there was a process group."""
        return bool(await self._request("mlcloud_abort", {"connections": among}, ABORT_S))

    async def stack(self) -> str:
        """Where the kernel's main thread is; empty where it does not tell."""
        kernel = self._live()
        file = kernel.folder / STACKS
        before = file.stat().st_size
        os.kill(kernel.pid, signal.SIGUSR1)
        for _ in range(20):
            await asyncio.sleep(0.02)
            with file.open(encoding="utf-8", errors="replace") as found:
                found.seek(before)
                if text := found.read():
                    return text
        return ""


class Peer(Member):
    """The host of a rank other than 0."""

    async def begin(
        self, secrets: dict[str, str] | None, variables: dict[str, str]
    ) -> dict[str, Any]:
        self._variables = variables
        self._printed.keep_none()  # the session's log is rank 0's
        if variables["LOCAL_RANK"] != "0":  # one working directory a node, saved once
            self._kernel_options = {**self._kernel_options, "keep_files": 0}
        return await self.start(secrets)

    async def stop_kernel(self) -> None:
        await self._close_kernel()


class Rank:
    """What the leader knows of another rank."""

    def __init__(self, handle: Any, facts: dict[str, Any]) -> None:
        self.handle, self.facts = handle, facts
        self.number = 0  # of its last event that was handled
        self.pump: asyncio.Task[None] | None = None


async def recruit(
    workers: int, arguments: dict[str, Any], options: dict[str, Any], first: str
) -> list[Rank]:
    """The hosts of ranks 1 …, in the placement group of who calls this, which is on the node
    `first`. Ranks of one node are neighbours."""
    import ray
    from ray.util.placement_group import get_current_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = get_current_placement_group()
    handles = [
        ray.remote(Peer)
        .options(
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=bundle
            ),
            **options,
        )
        .remote(**arguments)
        for bundle in range(1, workers)
    ]
    places = await asyncio.gather(*(handle.place.remote() for handle in handles))
    ranks = [Rank(*each) for each in zip(handles, places, strict=True)]
    nodes = [first, *(rank.facts["node_id"] for rank in ranks)]
    return sorted(ranks, key=lambda rank: nodes.index(rank.facts["node_id"]))


def among(ranks: list[list[Connection]]) -> list[Connection]:
    """Of the ranks' connections those with each other."""
    held = {(mine, other) for each in ranks for mine, other in each}
    return sorted(one for one in held if (one[1], one[0]) in held)


def _end(address: Any) -> str:
    return f"{address.ip.removeprefix('::ffff:')}:{address.port}"
