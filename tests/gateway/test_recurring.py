"""What the gateway does now and then goes on, whatever a round raises."""

from __future__ import annotations

import asyncio
import logging

import pytest

from mlcloud.errors import Conflict, StoreError
from mlcloud.gateway.recurring import recurring

log = logging.getLogger("rounds")


def test_a_round_that_fails_is_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    raised = [Conflict("another's turn"), StoreError("no answer"), ValueError("a fault"), None]
    over = asyncio.Event()

    async def once() -> None:
        error = raised.pop(0)
        if not raised:
            over.set()
        if error is not None:
            raise error

    async def run() -> None:
        rounds = asyncio.create_task(recurring(once, log, "not done", every_s=1e-3, first_s=9))
        await asyncio.wait_for(over.wait(), 10)
        rounds.cancel()

    with caplog.at_level(logging.INFO, "rounds"):
        asyncio.run(run())
    assert [each.levelname for each in caplog.records] == ["INFO", "WARNING", "ERROR"]
    assert caplog.messages == [
        "not done now: another's turn",
        "not done, it is tried again later: no answer",
        "not done, it is tried again later",
    ]


def test_never_is_never() -> None:
    async def once() -> None:
        pytest.fail("it was to be never")

    asyncio.run(recurring(once, log, "", every_s=0, first_s=0))
