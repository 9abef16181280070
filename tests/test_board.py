"""Items that change: a follower has all of the latest state, however slowly it reads."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mlcloud.board import Board

ITEMS = st.dictionaries(st.sampled_from("abcde"), st.integers(0, 3), max_size=5)


@given(st.lists(st.tuples(ITEMS, st.booleans()), max_size=12))
def test_followers_come_to_what_is(steps: list[tuple[dict[str, int], bool]]) -> None:
    async def run() -> None:
        board = Board()
        frames = board.follow()
        seen: dict[str, Any] = {}

        async def read() -> None:
            frame = await asyncio.wait_for(frames.__anext__(), 5)
            if frame.whole:
                seen.clear()
            assert set(frame.set).isdisjoint(frame.gone)
            seen.update(frame.set)
            for key in frame.gone:
                del seen[key]

        await read()
        for items, reads in steps:
            board.replace(items)
            if reads and items != seen:
                await read()
                assert seen == items
        if board.items != seen:
            await read()
        assert seen == board.items

    asyncio.run(run())


async def test_what_is_the_same_is_no_change() -> None:
    board = Board()
    board.put({"a": 1})
    frames = board.follow()
    first = await frames.__anext__()
    assert (first.whole, first.set, first.gone) == (True, {"a": 1}, [])
    board.put({"a": 1}, ["nothing"])
    following = asyncio.ensure_future(frames.__anext__())
    await asyncio.sleep(0)
    assert not following.done()
    board.put({"b": 2}, ["a"])
    frame = await following
    assert (frame.whole, frame.set, frame.gone) == (False, {"b": 2}, ["a"])
