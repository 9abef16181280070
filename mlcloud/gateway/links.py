"""The gateway's end of the hosts' links: their methods, called over one WebSocket each.

    offer() ─► address, token ─► Ray ─► host dials ─► serve() ─► Link.call()

See `kernel/link.py`. A token opens one link, once.
"""

from __future__ import annotations

import asyncio
import secrets
from itertools import count
from typing import Any

import msgpack
from fastapi import HTTPException, WebSocket, WebSocketDisconnect, status

from mlcloud.gateway import auth


class LinkLost(Exception):
    """The link is closed; whether the host got the call is not known."""


class HostError(Exception):
    """What the host's method raised, in words."""


class Link:
    """One host's link, once it has dialled."""

    def __init__(self) -> None:
        self._socket: WebSocket | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._numbers = count()

    @property
    def open(self) -> bool:
        return self._socket is not None

    async def call(self, method: str, *arguments: Any) -> Any:
        """Raises `LinkLost`, and `HostError` with what the method raised."""
        if self._socket is None:
            raise LinkLost
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            try:
                await self._socket.send_bytes(msgpack.packb([number, method, arguments]))
            except (WebSocketDisconnect, RuntimeError) as error:
                raise LinkLost from error
            return await answer
        finally:
            self._waiting.pop(number, None)

    async def serve(self, socket: WebSocket) -> None:
        """Until the host closes it, or is gone."""
        self._socket = socket
        try:
            while True:
                number, good, result = msgpack.unpackb(
                    await socket.receive_bytes(), strict_map_key=False
                )
                answer = self._waiting.get(number)
                if answer is None or answer.done():
                    continue  # who asked does not wait any more
                if good:
                    answer.set_result(result)
                else:
                    answer.set_exception(HostError(result))
        except (WebSocketDisconnect, RuntimeError):  # starlette's, for a socket that is closed
            pass
        finally:
            self.close()

    def close(self) -> None:
        """Nothing is called any more over this link."""
        self._socket = None
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(LinkLost())


class Links:
    """What hosts may dial. `url` is this gateway's, as its nodes reach it."""

    def __init__(self, url: str) -> None:
        self._url = url.replace("http", "ws", 1)
        self._offered: dict[str, tuple[str, Link]] = {}

    def offer(self) -> tuple[str, str, Link]:
        """An address, the token that opens it once, and the link that it will be."""
        name, token, link = secrets.token_hex(8), secrets.token_urlsafe(32), Link()
        self._offered[name] = token, link
        return f"{self._url}/v1/links/{name}", token, link

    def withdraw(self, url: str) -> None:
        self._offered.pop(url.rpartition("/")[2], None)

    async def serve(self, socket: WebSocket, name: str) -> None:
        """A host dials. Anybody else gets 401 before the socket is open."""
        token, link = self._offered.get(name, ("", None))
        if link is None or not auth.matches(auth.bearer(socket), token):
            raise HTTPException(status.HTTP_401_UNAUTHORIZED)
        del self._offered[name]
        await socket.accept()
        await link.serve(socket)
