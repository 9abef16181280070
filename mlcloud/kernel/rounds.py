"""One cell on all ranks: who still runs it, who failed first, what is told of it; and which states
are whole.

    submit ─► Round: waits {0, 1, 2, 3} ─► ended(rank) … ─► waits {} ─► outcome, error, answer
              Saved: bodies of one cell's snapshots, by rank ─► all there ─► one body for the gang

The first rank that failed by itself is the cell's outcome: what the others raise when they are
interrupted for its sake says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from typing import Any

import msgpack

from mlcloud.kernel.folding import Folded

# Frames in which a rank waits for others.
_COLLECTIVE = re.compile(
    r"torch/distributed/|_engine_run_backward|torch/nn/parallel/distributed\.py"
)
_FRAME = re.compile(r'File "(.*)", line (\d+) in (.*)')
MOST_FRAMES = 6


class Round:
    """See the module. `send` hands the cell to a rank other than 0."""

    def __init__(self, execution_id: str, ranks: set[int], op: str = "cell") -> None:
        self.execution_id, self.ranks, self.op = execution_id, ranks, op
        self.waits: set[int] = {0}
        self.begun = False  # on the ranks beside 0
        self.send: Callable[[int], Any] = lambda rank: None
        self.errors: dict[int, dict[str, Any]] = {}
        self.returned: dict[int, dict[str, Any]] = {}
        self.stacks: dict[int, str] = {}  # where they were when somebody looked
        self.failed: int | None = None
        self.hung: set[int] = set()
        self.stopping = self.must = self.aborted = False
        self.showing: Any = None
        self._ends: dict[int, dict[str, Any]] = {}
        self._over = asyncio.Event()

    def ended(self, rank: int, content: dict[str, Any]) -> bool:
        """Whether it is the first that failed, by itself."""
        self._ends[rank] = content
        self.waits.discard(rank)
        failed = content.get("status") != "ok"
        first = failed and self.failed is None and not self.stopping and not self.hung
        if first:
            self.failed = rank
        if not self.waits:
            self.end()
        return first

    def end(self) -> None:
        self._over.set()

    async def over(self, seconds: float) -> bool:
        """Wait for its end for so long; whether it has ended."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._over.wait(), seconds)
        return self._over.is_set()

    def in_collectives(self) -> set[int]:
        """Ranks that wait for others there, where others have ended the cell."""
        return {n for n, text in self.stacks.items() if n in self.waits and _waits_in(text)}

    def hang(self, ranks: set[int]) -> None:
        self.hung = ranks

    def where(self) -> str:
        """Which ranks have not ended, and where they are."""
        return "; ".join(
            f"rank {n} is in {_place(self.stacks[n])}" if n in self.stacks else f"rank {n} is busy"
            for n in sorted(self.waits)
        )

    # --- what is told -----------------------------------------------------------------------------

    @property
    def _told(self) -> int:
        """The rank whose end is the cell's."""
        return self.failed or 0

    def _hanging(self) -> dict[str, Any]:
        """The error of a cell that some ranks could not end, since the others had."""
        ended = ", ".join(map(str, sorted(self.ranks - self.hung)))
        names = ", ".join(map(str, sorted(self.hung)))
        waits = "rank {} waits" if len(self.hung) == 1 else "ranks {} wait"
        text = (
            f"{waits.format(names)} in a collective operation that rank(s) {ended} will not join: "
            "they have ended the cell. Every rank must take part in it. "
            + "; ".join(f"rank {n}: {_place(self.stacks.get(n, ''))}" for n in sorted(self.hung))
        )
        trace = [f"rank {n} was in:\n{_shown(self.stacks.get(n, ''))}" for n in sorted(self.hung)]
        return {
            "status": "error",
            "ename": "RankHung",
            "evalue": text,
            "traceback": [*trace, f"RankHung: {text}"],
        }

    def outcome(self) -> dict[str, Any]:
        """The content of the gang's `finished`."""
        content = {**self._ends[0], **(self._hanging() if self.hung else {})}
        if self._told:
            theirs = self._ends[self._told]
            content.update({k: theirs[k] for k in ("status", "ename", "evalue") if k in theirs})
        elif not self.hung:
            bad = [n for n in sorted(self._ends) if self._ends[n].get("status") != "ok"]
            if bad:  # interrupted: perhaps not rank 0, which had ended
                theirs = self._ends[0] if 0 in bad else self._ends[bad[0]]
                content.update({k: theirs[k] for k in ("status", "ename", "evalue") if k in theirs})
        content["pending"] = sum(int(each.get("pending") or 0) for each in self._ends.values())
        missing, rebuilt = _merged(self._ends, "missing"), _merged(self._ends, "rebuilt")
        content.update({"missing": missing} if missing else {})
        content.update({"rebuilt": rebuilt} if rebuilt else {})
        if self.aborted:
            content["regroup"] = True
        if self.stacks:
            content["where"] = "; ".join(
                f"rank {n} was in {_place(text)}" for n, text in sorted(self.stacks.items())
            )
        return content

    def error(self) -> dict[str, Any] | None:
        """The error message to show: that of the rank which failed first, with its number."""
        if self.hung:
            content = {k: v for k, v in self._hanging().items() if k != "status"}
            return {"type": "error", "content": content, "metadata": {}, "buffers": []}
        rank = self._told
        if rank not in self.errors and self.failed is None:
            rank = min(self.errors, default=rank)
        found = self.errors.get(rank)
        alone = len(self.ranks) == 1 or not self.begun
        if found is None or alone or (rank == 0 and self.failed is None):
            return found
        trace = [f"rank {rank} of {len(self.ranks)}:", *found["content"].get("traceback", [])]
        return {**found, "content": {**found["content"], "traceback": trace}}

    def fold_errors(self, folded: Folded) -> None:
        """What the others raised is under their own output."""
        for rank, each in sorted(self.errors.items()):
            # Who was interrupted since another one failed has nothing to say.
            for_its_sake = self.failed is not None and (
                each["content"].get("ename") == "KeyboardInterrupt"
            )
            if (rank != self._told and not for_its_sake) or self.hung:
                folded.add(rank, "error", each["content"])

    def answer(self, returned: dict[str, Any] | None) -> dict[str, Any] | None:
        """What rank 0 returned, with the exception of the rank that failed."""
        if returned is None or not returned.get("buffers") or self._told == 0:
            return returned
        theirs = self.returned.get(self._told)
        answer = msgpack.unpackb(returned["buffers"][0], strict_map_key=False)
        for key in ("exception", "own", "rendered"):
            answer.pop(key, None)
        if theirs is not None and theirs.get("buffers"):
            other = msgpack.unpackb(theirs["buffers"][0], strict_map_key=False)
            answer.update({k: other[k] for k in ("exception", "own") if k in other})
        return {**returned, "buffers": [msgpack.packb(answer)]}

    def died(self, rank: int) -> dict[str, Any]:
        """What is known beside a dead kernel's report: why the gang ended it."""
        if self.hung:
            return {"why": self._hanging()["evalue"]}
        if self.failed is not None:
            error = self._ends[self.failed]
            return {
                "why": f"rank {self.failed} raised {error.get('ename')}: {error.get('evalue')}, "
                f"and rank {rank} did not yield to an interrupt"
            }
        return {}


class Saved:
    """Snapshots of a gang: each rank's of the same cell make one. What is older goes."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._bodies: dict[str, dict[int, dict[str, Any]]] = {}

    def add(self, rank: int, execution_id: str, body: dict[str, Any]) -> None:
        self._bodies.setdefault(execution_id, {})[rank] = body

    def complete(self, execution_id: str) -> tuple[str, dict[str, Any]] | None:
        """The gang's snapshot message of this cell, when every rank's is there."""
        found = self._bodies.get(execution_id, {})
        if len(found) < self._workers:
            return None
        while self._bodies:
            oldest = next(iter(self._bodies))
            del self._bodies[oldest]
            if oldest == execution_id:
                break
        contents = [found[rank]["content"] for rank in range(self._workers)]
        for rank, content in enumerate(contents):
            if content["status"] != "ok":
                text = f"rank {rank}: {content['evalue']}"
                return execution_id, {**found[0], "content": {**content, "evalue": text}}
        first, *others = [content["body"] for content in contents]
        body = {**first, "ranks": others}
        body["since"] = min(each.pop("since") for each in (body, *others))
        for key in ("bytes", "new_bytes"):
            body[key] = first[key] + sum(each[key] for each in others)
        return execution_id, {**found[0], "content": {**contents[0], "body": body}}


def per_rank(asked: dict[str, Any], request: bytes, workers: int) -> list[bytes]:
    """The request for each rank: a state that is restored is the rank's own."""
    if asked["op"] != "restore":
        return [request] * workers
    body = dict(asked["snapshot_body"])
    bodies = [body, *map(dict, body.pop("ranks", []))]
    if len(bodies) != workers:  # forked from a session of one kernel
        bodies = [dict(body) for _ in range(workers)]
    _in_lockstep(bodies)
    return [msgpack.packb({**asked, "snapshot_body": each}) for each in bodies]


def _in_lockstep(bodies: list[dict[str, Any]]) -> None:
    """Cells that one rank runs again run on all: there may be collectives in them."""
    steps: dict[str, dict[str, Any]] = {}
    effects: dict[str, list[str]] = {}
    for body in bodies:
        wanted = {str(n) for recipe in body.get("recipes", {}).values() for n in recipe["cells"]}
        for step, cell in body.get("cells", {}).items():
            if step in wanted:
                steps.setdefault(step, cell)
                effects.setdefault(step, []).extend(cell["effects"])
    for body in bodies:
        cells = {
            step: {
                **body.get("cells", {}).get(step, {**cell, "inputs": []}),
                "effects": effects[step],
            }
            for step, cell in steps.items()
        }
        body["cells"] = {**body.get("cells", {}), **cells}
        body["also"] = sorted(int(step) for step in steps if not effects[step])


def _merged(ends: dict[int, dict[str, Any]], key: str) -> dict[str, Any]:
    """By name: rank 0's, and what the others have beside it, as `name (rank n)`."""
    found = dict(ends[0].get(key) or {})
    for rank, end in sorted(ends.items()):
        for name, what in (end.get(key) or {}).items():
            if name not in found:
                found[f"{name} (rank {rank})"] = what
    return found


def _waits_in(stack: str) -> bool:
    """Whether the innermost frames are a collective operation's."""
    return any(_COLLECTIVE.search(line) for line in stack.splitlines()[:MOST_FRAMES])


def _place(stack: str) -> str:
    """In a few words: the innermost frame, and the cell's line."""
    frames = _FRAME.findall(stack)
    if not frames:
        return "code that could not be looked at"
    own = next((each for each in frames if "site-packages" not in each[0]), frames[0])
    inner = frames[0]
    text = f"{inner[2]}"
    return text if own is inner else f"{text}, called by line {own[1]} of {_short(own[0])}"


def _short(file: str) -> str:
    return file if len(file) < 60 else f"…{file[-56:]}"


def _shown(stack: str) -> str:
    lines = [line for line in stack.splitlines() if line.strip().startswith("File")]
    return "\n".join(lines[:12])
