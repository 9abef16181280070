"""Who may call: one bearer token for the user, one for each node's agent. Compared in constant
time."""

from __future__ import annotations

import secrets

from fastapi import HTTPException, Request, WebSocket, status
from starlette.requests import HTTPConnection

from mlcloud.errors import AuthenticationFailed

#: A request with this header only looks: it does not count as use, and an idle gateway ends.
GLANCE = "mlcloud-glance"


def bearer(connection: HTTPConnection) -> str:
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else ""


def matches(given: str, expected: str) -> bool:
    return bool(given) and secrets.compare_digest(given.encode(), expected.encode())


def require_user(request: Request) -> None:
    """A route dependency. Raises 401."""
    if not matches(bearer(request), request.app.state.token):
        raise AuthenticationFailed(
            "the gateway did not accept the token; pass the one from its connection file, or "
            "`mlcloud.connect(url, token=…)`"
        )
    if GLANCE not in request.headers:
        request.app.state.used()


async def accepted(socket: WebSocket) -> bool:
    """Accept an authenticated WebSocket; close any other with 401 before it is open."""
    if matches(bearer(socket), socket.app.state.token):
        await socket.accept()
        if GLANCE not in socket.headers:
            socket.app.state.used()
        return True
    raise HTTPException(status.HTTP_401_UNAUTHORIZED)
