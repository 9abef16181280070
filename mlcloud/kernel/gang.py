"""A gang's leader: the host of rank 0, with the hosts of the other ranks behind it.

    gateway ── submit ──► Gang (rank 0) ── submit ──► Host of rank 1 … n-1     placement group:
            ◄─ events ──      ▲  └ kernel                 └ kernel              all of them or none
                              └── events ─────────────────┘

To the gateway it is one host with one kernel: `finished` comes when every rank has ended
(`rounds`), a snapshot when every rank has one of the same cell, and `kernel_died` when any kernel
died. What the other ranks show is folded (`folding`). The other hosts are actors of the leader's:
Ray ends them with it. A rank whose host is gone is told as `mlcloud_lost`.

What ends a cell on all ranks, whoever began it: SIGINT to each; for those that sit in a collective,
which no signal reaches, their process groups are aborted; then, if the cell must end, their kernels
are ended. A gang whose groups were aborted is made anew by the gateway, with its saved state
(`regroup`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import msgpack

from mlcloud.kernel import members, rendezvous
from mlcloud.kernel.events import Event
from mlcloud.kernel.folding import Folded
from mlcloud.kernel.members import Member, Rank
from mlcloud.kernel.rounds import Round, Saved, per_rank

log = logging.getLogger(__name__)

ALONE = ("get", "debug")  # operations of rank 0
BRINGS = ("cell", "load")  # that may be refused by rank 0, before anything is done
INTERRUPTS = 5
STACK_S = 3.0
AGAIN_S = 1.0
SHOW_S = 0.5  # between two updates of what is folded
FOLD_AFTER_S = 1.5  # a cell that has ended by then shows the others' output under its own


class Gang(Member):
    """See the module. Started as `ray.remote(Gang).options(...)`; see `gateway/gangs.py`."""

    def __init__(
        self, *, workers: int, rank_options: dict[str, Any], look_s: float, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self._arguments, self._rank_options = arguments, rank_options
        self._workers, self._look_s = workers, look_s
        self._ranks: list[Rank] = []  # 1 … n-1
        self._own: dict[str, Any] = {}
        self._round: Round | None = None
        self._folded: Folded | None = None
        self._saved = Saved(workers)
        self._dead = False  # one of the kernels
        self._lost = False

    # --- its life ---------------------------------------------------------------------------------

    async def start(self, secrets: dict[str, str] | None = None) -> dict[str, Any]:
        """Start (or restart) the kernels of all ranks."""
        if not self._ranks:
            self._own = rendezvous.place()
            self._ranks = await members.recruit(
                self._workers, self._arguments, self._rank_options, self._own["node_id"]
            )
        for rank in self._ranks:
            if rank.pump is not None:
                rank.pump.cancel()
        await asyncio.gather(
            self._close_kernel(), *(rank.handle.stop_kernel.remote() for rank in self._ranks)
        )
        self._round, self._dead, self._saved = None, False, Saved(self._workers)
        places = [self._own, *(rank.facts for rank in self._ranks)]
        self._variables, *others = rendezvous.variables(places, rendezvous.free_port(self._own))
        begun = await asyncio.gather(
            super().start(secrets),
            *(
                rank.handle.begin.remote(secrets, variables)
                for rank, variables in zip(self._ranks, others, strict=True)
            ),
        )
        for rank, facts in zip(self._ranks, begun[1:], strict=True):
            rank.facts = {**rank.facts, **facts}
            rank.number = await rank.handle.told.remote()
            rank.pump = self._spawn(self._read(rank))
        return self.facts()

    def facts(self) -> dict[str, Any]:
        facts = super().facts()
        keys = ("instance", "node_id", "pid", "kernel_pid")
        every = [facts, *(rank.facts for rank in self._ranks)]
        return {**facts, "ranks": [{key: each.get(key) for key in keys} for each in every]}

    async def status(self) -> dict[str, Any]:
        status = await super().status()
        running = self._round.execution_id if self._round is not None else status["running"]
        alive = status["alive"] and not self._dead and not self._lost
        return {**status, "running": running, "alive": alive}

    async def stop(self) -> None:
        for rank in self._ranks:
            with contextlib.suppress(Exception):  # it is gone, or goes with this one
                rank.handle.stop.remote()
        await super().stop()

    # --- requests to all --------------------------------------------------------------------------

    async def submit(
        self,
        request: bytes,
        code: str,
        execution_id: str,
        allow_stdin: bool = False,
        burst: int = 0,
        port: int = 0,
    ) -> None:
        if execution_id in self._submitted:
            return
        if self._lost:
            raise RuntimeError("one of its ranks is lost")
        asked = msgpack.unpackb(request, strict_map_key=False)
        ranks = {0} if asked["op"] in ALONE else set(range(self._workers))
        if asked["op"] == "mount":  # to a node's working directory, once
            ranks -= {n for n in ranks if n and self._ranks[n - 1].facts["local_rank"]}
        requests = per_rank(asked, request, self._workers)
        self._round = Round(execution_id, ranks, asked["op"])
        self._folded = Folded(execution_id, self._workers)
        if 1 in ranks:
            port = rendezvous.free_port(self._own)
        self._round.send = lambda rank: self._ranks[rank - 1].handle.submit.remote(
            requests[rank], code, execution_id, False, 0, port
        )
        await super().submit(requests[0], code, execution_id, allow_stdin, burst, port)
        if asked["op"] not in BRINGS:
            self._send_others(execution_id)

    def _send_others(self, execution_id: str) -> None:
        """Rank 0 takes it: now the others."""
        current = self._round
        if current is None or current.execution_id != execution_id or current.begun:
            return
        if not current.stopping:
            current.begun, current.waits = True, set(current.ranks)
            for rank in sorted(current.ranks - {0}):
                self._spawn(self._handed(rank, current.send(rank)))

    def _save_others(self, current: Round) -> None:
        """Of a cell that rank 0 refused there is a state as well: the others have theirs."""
        request = msgpack.packb({"op": "save", "execution_id": current.execution_id})
        for rank, each in enumerate(self._ranks, 1):
            call = each.handle.submit.remote(request, "", current.execution_id, False, 0)
            self._spawn(self._handed(rank, call))

    async def _handed(self, rank: int, call: Any) -> None:
        try:
            await call
        except Exception as error:  # Ray's kinds of gone
            self._is_lost(rank, error)

    async def notice(self, in_s: float | None) -> None:
        await self._to_all("notice", in_s)

    async def save_now(self) -> None:
        await self._to_all("save_now")

    async def secrets(self, values: dict[str, str]) -> bool:
        return all(await self._to_all("secrets", values))

    async def ask(self, question: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Of the names of rank 0; what runs beside the cells, on any rank."""
        if question["what"] != "activity":
            return await super().ask(question, timeout_s)
        answers = await self._to_all("ask", question, timeout_s)
        busy = [f"rank {n}: {a['busy']}" for n, a in enumerate(answers) if a.get("busy")]
        doubtful = any(answer.get("doubtful") for answer in answers)
        return {"busy": "; ".join(busy), "doubtful": doubtful} if all(answers) else {}

    async def _to_all(self, method: str, *arguments: Any) -> list[Any]:
        calls = [getattr(rank.handle, method).remote(*arguments) for rank in self._ranks]
        return await asyncio.gather(getattr(super(), method)(*arguments), *calls)

    # --- ending a cell everywhere -----------------------------------------------------------------

    async def interrupt(self, execution_id: str) -> None:
        current = self._round
        if current is not None and current.execution_id == execution_id:
            self._spawn(self._stop(current, must=False))

    async def kill_kernel(self) -> None:
        await self._end_kernels(range(self._workers))

    async def _stop(self, current: Round, *, must: bool) -> None:
        """Interrupt who still runs it; `must`: it does not go on, whatever that takes."""
        current.must |= must
        if current.stopping:
            return
        current.stopping = True
        await self._look(current)
        for again in range(INTERRUPTS):
            await self._each("sigint", current.waits)
            if await current.over(AGAIN_S):
                return
            if not current.aborted:
                await self._look(current)
                # A collective waits for ranks that may never come; no signal ends it.
                if current.in_collectives() or again == INTERRUPTS - 2:
                    await self._abort(current)
        current.stopping = False
        stuck = sorted(current.waits)
        if current.must:
            await self._end_kernels(stuck)
        else:
            await self._look(current)
            self._say(current, f"not interrupted yet: {current.where()}")

    async def _abort(self, current: Round) -> None:
        ends = await self._each("connections", current.ranks)
        among = members.among([each or [] for each in ends.values()])
        aborted = await self._each("abort_groups", current.waits, among)
        current.aborted |= any(aborted.values())

    async def _end_kernels(self, ranks: Any) -> None:
        for rank in ranks:
            if rank:
                with contextlib.suppress(Exception):  # it is gone
                    await self._ranks[rank - 1].handle.kill_kernel.remote()
            else:
                await super().kill_kernel()

    async def _look(self, current: Round) -> None:
        """Where the ranks are that still run it."""
        found = await self._each("stack", current.waits)
        current.stacks = {rank: text for rank, text in found.items() if text}

    async def _each(self, method: str, ranks: set[int], *arguments: Any) -> dict[int, Any]:
        """Call a method of these ranks' hosts; None where that failed."""
        wanted = sorted(ranks)
        own = getattr(super(), method)
        calls = [
            getattr(self._ranks[rank - 1].handle, method).remote(*arguments)
            if rank
            else own(*arguments)
            for rank in wanted
        ]

        async def answer(call: Any) -> Any:
            with contextlib.suppress(Exception):
                return await asyncio.wait_for(asyncio.ensure_future(_awaited(call)), STACK_S)
            return None

        return dict(zip(wanted, await asyncio.gather(*map(answer, calls)), strict=True))

    async def _watch_stragglers(self, current: Round) -> None:
        """Some have ended, and who sits in a collective waits for them in vain."""
        stuck: set[int] = set()
        while not await current.over(self._look_s):
            await self._look(current)
            before, stuck = stuck, current.in_collectives()
            if again := before & stuck:
                current.hang(again)
                await self._stop(current, must=True)
                return

    # --- what the ranks tell ----------------------------------------------------------------------

    async def _read(self, rank: Rank) -> None:
        from ray.exceptions import RayError

        while True:
            try:
                events: list[Event] = await rank.handle.events.remote(rank.number)
            except RayError as error:
                self._is_lost(self._ranks.index(rank) + 1, error)
                return
            number = self._ranks.index(rank) + 1
            for at, execution_id, kind, blob in events:
                rank.number = at
                body = msgpack.unpackb(blob, strict_map_key=False)
                self._heard(number, execution_id, kind, body)

    def _heard(self, rank: int, execution_id: str, kind: str, body: dict[str, Any]) -> None:
        current, content = self._round, body["content"]
        if kind == "mlcloud_snapshot":
            self._took(rank, execution_id, body)
        elif kind == "kernel_died":
            self._died(rank, content)
        elif current is None or execution_id != current.execution_id:
            return  # of an earlier cell's threads
        elif kind == "error":
            current.errors[rank] = body
        elif kind == "mlcloud_return":
            current.returned[rank] = body
        elif kind == "finished":
            self._ended(rank, execution_id, content)
        elif kind == "mlcloud_effect":
            self._events.add(execution_id, kind, body)
        elif self._folded is not None:
            new = self._folded.add(rank, kind, content)
            if new and current.showing is None:
                current.showing = self._spawn(self._show(current, self._folded))

    async def _show(self, current: Round, folded: Folded) -> None:
        """Keep what is folded up to date, while the cell runs."""
        if await current.over(FOLD_AFTER_S):
            return
        while True:
            self._tell_folded(folded)
            if await current.over(SHOW_S):
                return

    def _tell_folded(self, folded: Folded) -> None:
        message = folded.message()
        if message is not None:
            self._events.add(folded.execution_id, *message)

    def _say(self, current: Round, text: str) -> None:
        self._emit(current.execution_id, "stream", {"name": "stderr", "text": f"{text}\n"})

    # Rank 0 tells the same by these.

    def _on_message(self, message: dict[str, Any]) -> None:
        kind = message["header"]["msg_type"]
        parent = message["parent_header"].get("msg_id", "")
        current = self._round
        if kind == "mlcloud_loaded":
            self._send_others(parent)
        elif kind == "error" and current is not None and parent == current.execution_id:
            self._masking.flush()
            content = self._masking.secrets.masked(message["content"])
            current.errors[0] = {"type": kind, "content": content, "metadata": {}, "buffers": []}
        else:
            super()._on_message(message)

    def _tell_finished(self, execution_id: str, content: dict[str, Any]) -> None:
        self._ended(0, execution_id, content)

    def _tell_snapshot(self, execution_id: str, body: dict[str, Any]) -> None:
        self._took(0, execution_id, body)

    def _tell_died(self, execution_id: str, report: dict[str, Any]) -> None:
        self._died(0, report)

    # --- barriers ---------------------------------------------------------------------------------

    def _ended(self, rank: int, execution_id: str, content: dict[str, Any]) -> None:
        """A rank has ended the cell; with the last of them, the gang has."""
        current = self._round
        if current is None or current.execution_id != execution_id:
            if rank == 0:
                super()._tell_finished(execution_id, content)
            return
        failed = current.ended(rank, content)
        if not current.waits:
            self._close(current)
        elif failed:
            self._spawn(self._stop(current, must=True))
        elif len(current.waits) == len(current.ranks) - 1:
            self._spawn(self._watch_stragglers(current))

    def _close(self, current: Round) -> None:
        self._round = None
        if not current.begun and current.op in BRINGS:
            self._save_others(current)
        if self._folded is not None:
            current.fold_errors(self._folded)
            self._tell_folded(self._folded)
        if (error := current.error()) is not None:
            self._events.add(current.execution_id, "error", error, wake=False)
        if (returned := current.answer(self._returned.get(current.execution_id))) is not None:
            self._returned[current.execution_id] = returned
        super()._tell_finished(current.execution_id, current.outcome())
        self._tell_saved(self._saved.complete(current.execution_id))

    def _took(self, rank: int, execution_id: str, body: dict[str, Any]) -> None:
        """A rank has put its state into the store; the gang's is there with the last of them."""
        self._saved.add(rank, execution_id, body)
        if self._round is None or self._round.execution_id != execution_id:
            self._tell_saved(self._saved.complete(execution_id))

    def _tell_saved(self, saved: tuple[str, dict[str, Any]] | None) -> None:
        if saved is not None:
            self._events.add(saved[0], "mlcloud_snapshot", saved[1])

    def _died(self, rank: int, report: dict[str, Any]) -> None:
        """A kernel is gone: so is the cell, on all ranks. The gateway starts them anew."""
        if self._dead or self._lost:
            return
        self._dead = True
        current, self._round = self._round, None
        if current is not None and self._folded is not None:
            self._tell_folded(self._folded)
        for other in self._ranks:
            if other.pump is not None:
                other.pump.cancel()
        self._spawn(self._end_kernels(set(range(self._workers)) - {rank}))
        hung = {} if current is None else current.died(rank)
        execution_id = current.execution_id if current is not None else self._running or ""
        super()._tell_died(execution_id, {**report, "rank": rank, **hung})
        if current is not None:
            current.end()

    def _is_lost(self, rank: int, error: Exception) -> None:
        if not self._lost and not self._dead:
            self._lost = True
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._emit("", "mlcloud_lost", {"why": f"rank {rank} of {self._workers}: {first}"})


async def _awaited(call: Any) -> Any:
    return await call
