"""One cell on all ranks: what its end is, and when the gang's state is whole."""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack
import pytest

from mlcloud.kernel.folding import Folded
from mlcloud.kernel.rendezvous import variables
from mlcloud.kernel.rounds import Round, Saved, per_rank

BARRIER = """Current thread 0x00007fa0 (most recent call first):
  File "/v/site-packages/torch/distributed/distributed_c10d.py", line 5270 in barrier
  File "/tmp/ipykernel/cell.py", line 3 in <module>
"""
SLEEP = """Current thread 0x00007fa0 (most recent call first):
  File "/tmp/ipykernel/cell.py", line 2 in evaluate
"""


def ok() -> dict[str, Any]:
    return {"status": "ok", "pending": 5}


def bad(name: str) -> dict[str, Any]:
    return {"status": "error", "ename": name, "evalue": "why", "pending": 1}


def a_round(workers: int) -> Round:
    made = Round("x", set(range(workers)))
    made.begun, made.waits = True, set(made.ranks)
    return made


def test_the_first_that_fails_is_the_cells_end_and_those_it_stopped_are_not() -> None:
    current = a_round(3)
    assert not current.ended(0, ok())
    assert current.ended(2, bad("ValueError"))
    current.stopping = True
    assert not current.ended(1, bad("KeyboardInterrupt"))
    outcome = current.outcome()
    assert (outcome["status"], outcome["ename"], outcome["pending"]) == ("error", "ValueError", 7)
    trace = {"content": {"traceback": ["Traceback of 2"]}}
    current.errors = {1: {"content": {"traceback": ["of 1"]}}, 2: trace}
    error = current.error()
    assert error is not None
    assert error["content"]["traceback"] == ["rank 2 of 3:", "Traceback of 2"]
    # Nor are they shown, but for what they raised by themselves.
    content = {"ename": "KeyboardInterrupt", "traceback": ["of 1"]}
    current.errors = {0: {"content": {"ename": "KeyError", "traceback": ["of 0"]}}, 2: trace}
    current.errors[1] = {"content": content}
    folded = Folded("x", 3)
    current.fold_errors(folded)
    assert folded._texts == {0: "of 0\n"}


def test_an_exception_comes_from_the_rank_that_raised_it_and_names_from_rank_0() -> None:
    current = a_round(2)
    current.ended(0, ok())
    current.ended(1, bad("ValueError"))
    theirs = msgpack.packb({"exception": ["theirs"], "own": False, "names": "of 1"})
    current.returned[1] = {"buffers": [theirs]}
    mine = {"content": {}, "buffers": [msgpack.packb({"names": "of 0", "exception": ["mine"]})]}
    answer = current.answer(mine)
    assert answer is not None
    assert msgpack.unpackb(answer["buffers"][0]) == {
        "names": "of 0",
        "exception": ["theirs"],
        "own": False,
    }


def test_who_waits_for_ranks_that_have_left_is_found_and_named() -> None:
    current = a_round(3)
    current.ended(0, ok())
    current.stacks = {1: BARRIER, 2: SLEEP}
    assert current.in_collectives() == {1}
    current.hang({1})
    current.ended(1, bad("KeyboardInterrupt"))
    current.ended(2, ok())
    outcome, error = current.outcome(), current.error()
    assert outcome["ename"] == "RankHung"
    assert "rank 1 waits" in outcome["evalue"]
    assert "barrier" in outcome["evalue"]
    assert "line 3" in outcome["evalue"]
    assert error is not None
    assert "rank 1 was in" in error["content"]["traceback"][0]


def snapshot(step: str, since: int = 1, status: str = "ok") -> dict[str, Any]:
    body = {"groups": step, "since": since, "bytes": 10, "new_bytes": 1}
    content = {"status": status, "body": body, "execution_id": step}
    if status != "ok":
        content = {"status": status, "ename": "StoreFull", "evalue": "no room"}
    return {"type": "mlcloud_snapshot", "content": content}


def test_a_state_is_whole_when_every_rank_has_one_of_the_same_cell() -> None:
    saved = Saved(2)
    saved.add(0, "a", snapshot("a"))
    assert saved.complete("a") is None
    saved.add(1, "b", snapshot("b", since=3))
    assert saved.complete("b") is None
    saved.add(0, "b", snapshot("b", since=7))
    found = saved.complete("b")
    assert found is not None
    body = found[1]["content"]["body"]
    assert (body["groups"], [each["groups"] for each in body["ranks"]]) == ("b", ["b"])
    assert (body["since"], body["bytes"]) == (3, 20)
    saved.add(1, "a", snapshot("a"))  # too late: a newer one is there
    assert saved.complete("a") is None


def test_a_state_that_one_rank_could_not_save_is_not_whole() -> None:
    saved = Saved(2)
    saved.add(0, "a", snapshot("a"))
    saved.add(1, "a", snapshot("a", status="error"))
    found = saved.complete("a")
    assert found is not None
    assert found[1]["content"]["status"] == "error"
    assert found[1]["content"]["evalue"] == "rank 1: no room"


def test_cells_that_one_rank_runs_again_run_on_all_of_them() -> None:
    cell = {"run": "blake3:1", "inputs": ["of rank 1"], "ambient": "", "effects": []}
    writes = {**cell, "effects": ["wrote a file"]}
    bodies = [
        {"recipes": {"w": {"cells": [5]}}, "cells": {"5": writes}},
        {"recipes": {"g": {"cells": [4]}}, "cells": {"4": cell}},
    ]
    body = {**bodies[0], "ranks": [bodies[1]]}
    asked = {"op": "restore", "snapshot_body": body}
    first, second = [msgpack.unpackb(each)["snapshot_body"] for each in per_rank(asked, b"", 2)]
    assert first["also"] == second["also"] == [4]
    assert first["cells"]["4"]["inputs"] == []
    assert second["cells"]["4"]["inputs"] != []
    # A cell that reached outside on one rank is run again on none.
    assert first["cells"]["5"]["effects"] == second["cells"]["5"]["effects"] == ["wrote a file"]


def test_ranks_of_one_node_are_told_apart_and_see_each_others_gpus() -> None:
    places = [
        {"node_id": node, "ip": ip, "gpus": [gpu]}
        for node, ip, gpu in (("a", "10.0.0.1", 1), ("a", "10.0.0.1", 0), ("b", "10.0.0.2", 0))
    ]
    first, second, third = variables(places, 4242)
    assert [each["RANK"] for each in (first, second, third)] == ["0", "1", "2"]
    keys = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK")
    assert [second[key] for key in keys] == ["1", "2", "0"]
    assert [third[key] for key in keys] == ["0", "1", "1"]
    assert {each["MASTER_ADDR"] for each in (first, second, third)} == {"10.0.0.1"}
    assert first["CUDA_VISIBLE_DEVICES"] == second["CUDA_VISIBLE_DEVICES"] == "1,0"
    assert third["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_round_is_over_with_its_last_rank() -> None:
    async def wait() -> list[bool]:
        current = a_round(2)
        before = await current.over(0.01)
        current.ended(0, ok())
        current.ended(1, ok())
        return [before, await current.over(5)]

    assert asyncio.run(wait()) == [False, True]


@pytest.mark.parametrize("workers", [2, 3])
def test_a_request_other_than_a_restore_is_the_same_for_all(workers: int) -> None:
    assert per_rank({"op": "cell"}, b"request", workers) == [b"request"] * workers
