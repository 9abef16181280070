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
            frame = await socket.receive()
            if frame["type"] == "websocket.disconnect":
                return
            gateway.used()
            message = _read(frame.get("bytes"))
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


def _read(frame: bytes | None) -> dict[str, Any]:
    """The map in a frame; an empty one, which `_handle` refuses, for anything else."""
    try:
        message = msgpack.unpackb(frame or b"", strict_map_key=False)
    except (ValueError, msgpack.UnpackException):
        return {}
    return message if isinstance(message, dict) else {}


async def _handle(session: Session, message: dict[str, Any]) -> None:
    op, execution_id = message.get(Frame.OP), message.get("id")
    if op not in ("execute", "interrupt", "kill"):
        raise UsageError(
            f"a frame is a msgpack map whose op is execute, interrupt or kill, not {op!r}"
        )
    if op == "kill":
        await session.kill_kernel()
        return
    if not isinstance(execution_id, str) or not execution_id:
        raise UsageError("an execution needs an id of its own, a string")
    if op == "interrupt":
        await session.interrupt(execution_id)
        return
    kind, code = message.get("kind", "cell"), message.get("code", "")
    shipment, options = message.get("shipment"), message.get("options") or {}
    if kind not in OPERATIONS or not isinstance(code, str):
        raise UsageError(f"kind is one of {', '.join(sorted(OPERATIONS))}, and code a string")
    if not isinstance(options, dict) or not isinstance(shipment, (dict, type(None))):
        raise UsageError("shipment and options are maps")
    session.execute(execution_id, op=kind, code=code, shipment=shipment, options=options)


def _error(error: MLCloudError, execution_id: str | None) -> bytes:
    packed: bytes = msgpack.packb(
        {Frame.ERROR: {"code": type(error).__name__, "message": str(error)}, "id": execution_id}
    )
    return packed
