"""The host's end of its link: a WebSocket to the gateway, over which its methods are called.

    [number, method, arguments] ─►  host  ─► [number, true, result]
                                         └─► [number, false, "what was raised"]

The gateway hands out address and token with `Host.dial`, a call of Ray's. Beside a cell an actor
call through Ray costs milliseconds on both ends; this costs a tenth of that. What is called here
may also be called by Ray: the link is a faster way, never the only one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgpack
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from mlcloud.cluster import nodefile

OPEN_S = 10.0

Method = Callable[..., Coroutine[Any, Any, Any]]


async def dial(url: str, token: str) -> ClientConnection:
    """Raises OSError, also where the gateway refuses."""
    try:
        return await connect(
            url,
            additional_headers={"Authorization": f"Bearer {token}"},
            compression=None,
            max_size=None,
            open_timeout=OPEN_S,
            close_timeout=0.5,
            proxy=None,
            ssl=_pinned() if url.startswith("wss:") else None,
        )
    except (InvalidHandshake, TimeoutError) as error:
        raise OSError(f"the gateway does not take the link: {error}") from error


def _pinned() -> ssl.SSLContext:
    """TLS to who has the gateway's certificate, which the node's agent put on its disk."""
    return nodefile.trusting(os.environ["MLCLOUD_GATEWAY_CERTIFICATE"])


async def serve(connection: ClientConnection, methods: Mapping[str, Method]) -> None:
    """Answer calls, each in a task of its own, begun in their order; until the link is closed."""
    tasks: set[asyncio.Task[None]] = set()
    try:
        async for frame in connection:
            assert isinstance(frame, bytes)
            number, name, arguments = msgpack.unpackb(frame, strict_map_key=False)
            task = asyncio.create_task(_answer(connection, number, methods, name, arguments))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    except ConnectionClosed:
        pass
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(ConnectionClosed, OSError):
            await connection.close()


async def _answer(
    connection: ClientConnection,
    number: int,
    methods: Mapping[str, Method],
    name: str,
    arguments: list[Any],
) -> None:
    try:
        answer = [number, True, await methods[name](*arguments)]
    except Exception as error:
        answer = [number, False, f"{type(error).__name__}: {error}"]
    with contextlib.suppress(ConnectionClosed):
        await connection.send(msgpack.packb(answer, default=str))
