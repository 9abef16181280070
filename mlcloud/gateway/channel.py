"""A session's WebSocket: executions in, events out, msgpack both ways.

◄─ {events: [[seq, execution id, kind, blob], …]}      everything after the cursor, in order, once
─► {op: "execute", id, kind, code, shipment, options}  idempotent by id
─► {op: "interrupt", id}    ─► {op: "kill", id}
◄─ {error: {code, message}, id}                        the request was refused, nothing ran
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgpack
from fastapi import WebSocket, WebSocketDisconnect

from mlcloud.errors import MLCloudError, UsageError
from mlcloud.gateway.core import Gateway
from mlcloud.gateway.session import Session
from mlcloud.models import Frame

OPERATIONS = {"cell", "get", "load"}


async def serve_channel(socket: WebSocket, gateway: Gateway, name: str, after: int) -> None:
    """Serve one client until it leaves."""
    try:
        session = gateway.sessions.get(name)
    except MLCloudError as error:
        await socket.send_bytes(_error(error, None))
        await socket.close(4404)
        return
    sender = asyncio.create_task(_send(socket, session, after))
    try:
        while True:
            message = msgpack.unpackb(await socket.receive_bytes(), strict_map_key=False)
            gateway.used()
            try:
                await _handle(session, message)
            except MLCloudError as error:
                await socket.send_bytes(_error(error, message.get("id")))
    except (WebSocketDisconnect, RuntimeError):  # starlette raises RuntimeError on a closed socket
        pass
    finally:
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)


async def _send(socket: WebSocket, session: Session, after: int) -> None:
    async for rows in session.journal.follow(after):
        await socket.send_bytes(msgpack.packb({Frame.EVENTS: rows}))


async def _handle(session: Session, message: dict[str, Any]) -> None:
    op = message.get(Frame.OP)
    if op == "execute":
        kind = message.get("kind", "cell")
        if kind not in OPERATIONS:
            raise UsageError(f"no operation {kind!r}")
        session.execute(
            str(message["id"]),
            op=kind,
            code=str(message.get("code", "")),
            shipment=message.get("shipment"),
            options=dict(message.get("options") or {}),
        )
    elif op == "interrupt":
        await session.interrupt(str(message["id"]))
    elif op == "kill":
        await session.kill_kernel()
    else:
        raise UsageError(f"no such request: {op!r}")


def _error(error: MLCloudError, execution_id: str | None) -> bytes:
    packed: bytes = msgpack.packb(
        {Frame.ERROR: {"code": type(error).__name__, "message": str(error)}, "id": execution_id}
    )
    return packed
