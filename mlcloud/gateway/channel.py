"""A session's WebSocket: executions in, events out, msgpack both ways.

◄─ {events: [[seq, execution id, kind, blob], …]}      everything after the cursor, in order, once
─► {op: "execute", id, kind, code, shipment, options}  idempotent by id
─► {op: "interrupt", id}    ─► {op: "kill", id}
─► {op: "input", id, request, value}                   the answer to an `input()`; null: its end
─► {op: "comm", id, message}                           a page's message for a widget, not journaled
◄─ {secrets: {name: source, …}}                        who has them is asked to `PUT` them
◄─ {error: {code, message}, id}                        the request was refused, nothing ran
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgpack
from fastapi import WebSocket, WebSocketDisconnect

from mlcloud.errors import MLCloudError, SessionFailed, UsageError
from mlcloud.gateway.core import Gateway
from mlcloud.gateway.session import Session
from mlcloud.gateway.traffic import Moved
from mlcloud.models import Frame

log = logging.getLogger(__name__)

OPS = ("execute", "interrupt", "kill", "input", "comm")
OPERATIONS = {"cell", "get", "load", "debug"}
COMMS = {"comm_open", "comm_msg", "comm_close"}


async def serve_channel(socket: WebSocket, gateway: Gateway, name: str, after: int) -> None:
    """Serve one client until it leaves."""
    try:
        session = gateway.sessions.get(name)
    except MLCloudError as error:
        await socket.send_bytes(_error(error, None))
        await socket.close(4404)
        return
    sender = asyncio.create_task(_send(socket, session, after))
    session.questions.clients += 1
    try:
        if missing := session.services.vault.missing(session):
            await socket.send_bytes(msgpack.packb({Frame.SECRETS: missing}))
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
            except Exception as error:  # a fault of ours: who sent it must not wait for ever
                log.exception("a frame could not be handled")
                failure = SessionFailed(f"gateway error: {error!r}; its log has more")
                await socket.send_bytes(_error(failure, message.get("id")))
    except (WebSocketDisconnect, RuntimeError):  # starlette raises RuntimeError on a closed socket
        pass
    finally:
        session.questions.clients -= 1
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)


async def _send(socket: WebSocket, session: Session, after: int) -> None:
    async for rows in session.journal.follow(after):
        frame = msgpack.packb({Frame.EVENTS: rows})
        session.services.traffic.add(session.id, Moved(out=len(frame)))
        await socket.send_bytes(frame)


def _read(frame: bytes | None) -> dict[str, Any]:
    """The map in a frame; an empty one, which `_handle` refuses, for anything else."""
    try:
        message = msgpack.unpackb(frame or b"", strict_map_key=False)
    except (ValueError, msgpack.UnpackException):
        return {}
    return message if isinstance(message, dict) else {}


async def _handle(session: Session, message: dict[str, Any]) -> None:
    op, execution_id = message.get(Frame.OP), message.get("id")
    if op not in OPS:
        raise UsageError(
            f"a frame is a msgpack map whose op is one of {', '.join(OPS)}, not {op!r}"
        )
    if op == "kill":
        await session.kill_kernel()
        return
    if not isinstance(execution_id, str) or not execution_id:
        raise UsageError("an execution needs an id of its own, a string")
    if op == "interrupt":
        await session.interrupt(execution_id)
        return
    if op == "input":
        request, value = message.get("request"), message.get("value")
        if not isinstance(request, str) or not isinstance(value, (str, type(None))):
            raise UsageError("an answer names its request, and its value is a string or null")
        await session.questions.answer(execution_id, request, value)
        return
    if op == "comm":
        await session.comm(execution_id, _comm(message.get("message")))
        return
    kind, code = message.get("kind", "cell"), message.get("code", "")
    shipment, options = message.get("shipment"), message.get("options") or {}
    if kind not in OPERATIONS or not isinstance(code, str):
        raise UsageError(f"kind is one of {', '.join(sorted(OPERATIONS))}, and code a string")
    if not isinstance(options, dict) or not isinstance(shipment, (dict, type(None))):
        raise UsageError("shipment and options are maps")
    session.execute(execution_id, op=kind, code=code, shipment=shipment, options=options)


def _comm(message: Any) -> dict[str, Any]:
    """A comm message as the host takes it. Raises `UsageError` for anything else."""
    if isinstance(message, dict) and message.get("type") in COMMS:
        content, metadata = message.get("content"), message.get("metadata") or {}
        buffers = message.get("buffers") or []
        plain = isinstance(content, dict) and isinstance(metadata, dict)
        if plain and all(isinstance(each, bytes) for each in buffers):
            return {
                "type": message["type"],
                "content": content,
                "metadata": metadata,
                "buffers": buffers,
            }
    raise UsageError("a comm message has a type (comm_open, comm_msg, comm_close) and content")


def _error(error: MLCloudError, execution_id: str | None) -> bytes:
    packed: bytes = msgpack.packb(
        {Frame.ERROR: {"code": type(error).__name__, "message": str(error)}, "id": execution_id}
    )
    return packed
