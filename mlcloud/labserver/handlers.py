"""The routes, behind the Jupyter server's own checks: authentication, authorization, origin, XSRF.

`forward` hands a request on to a gateway: method, path, query and JSON body; of the page's headers
and cookies nothing, of the gateway's answer its status, body and content type.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import httpx
from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import authorized, ws_authenticated
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from jupyter_server.utils import url_path_join
from tornado import web, websocket

from mlcloud.board import Board
from mlcloud.client.connection import Address
from mlcloud.errors import ConnectionFailed, MLCloudError, NotFound, UsageError
from mlcloud.labserver import places
from mlcloud.labserver.hub import GLANCE, Hub

RESOURCE = "mlcloud"
#: A session that resumes waits for its node.
ANSWER_S = 600.0
SAFE_PATH = re.compile(r"(?:[A-Za-z0-9_~:@,=+-]|\.(?!\.)|%(?!2[eEfF])[0-9A-Fa-f]{2}|/)*")
STATUS = {NotFound: 404, UsageError: 422, ConnectionFailed: 503}


def routes(base_url: str, hub: Hub) -> list[tuple[str, type[web.RequestHandler], dict[str, Any]]]:
    given = {"hub": hub}
    name = r"([^/]+)"
    return [
        (url_path_join(base_url, "mlcloud", path), handler, given)
        for path, handler in [
            ("clusters", Known),
            (f"clusters/{name}/(up|down)", Acting),
            (f"clusters/{name}/dismiss", Dismissing),
            (f"clusters/{name}/v1/(.*)", Forwarding),
            ("events", Events),
        ]
    ]


class Handler(APIHandler):
    auth_resource = RESOURCE

    def initialize(self, hub: Hub) -> None:
        self.hub = hub

    def refuse(self, error: MLCloudError) -> None:
        """Answer as a gateway would."""
        self.set_status(next((s for kind, s in STATUS.items() if isinstance(error, kind)), 500))
        self.finish(json.dumps({"code": type(error).__name__, "message": str(error)}))

    def say_begun(self, name: str, begun: bool) -> None:
        self.set_status(202 if begun else 409)
        body = {} if begun else {"code": "Conflict", "message": f"{name}: another window was first"}
        self.finish(json.dumps(body))


class Known(Handler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        there = places.places(self.hub.settings)
        self.finish(json.dumps([{"name": each.name, "kind": each.kind} for each in there]))


class Acting(Handler):
    """`up` and `down` take minutes, and a proxy's patience is shorter: what comes of them is told
    by the events."""

    @web.authenticated
    @authorized
    async def post(self, name: str, what: str) -> None:
        call, doing = {
            "up": (places.up, "coming up"),
            "down": (places.down, "going down"),
        }[what]
        try:
            begun = self.hub.act(name, call, doing)
        except MLCloudError as error:
            self.refuse(error)
            return
        self.say_begun(name, begun)


class Dismissing(Handler):
    @web.authenticated
    @authorized
    async def post(self, name: str) -> None:
        self.hub.dismiss(name)
        self.set_status(204)
        self.finish()


class Forwarding(Handler):
    clients: dict[Address, httpx.AsyncClient] = {}  # noqa: RUF012 - one for all requests

    async def forward(self, name: str, path: str) -> None:
        if SAFE_PATH.fullmatch(path) is None:
            self.refuse(UsageError(f"{path[:200]!r} is no path of a gateway"))
            return
        try:
            answer = await self._ask(name, path)
        except MLCloudError as error:
            self.refuse(error)
            return
        if answer.status_code == 401:
            self.hub.ways.forget(name)
            self.hub.hasten(name)
            message = "the gateway does not take this server's token: it is looked for anew"
            self.refuse(ConnectionFailed(message))
            return
        self.set_status(answer.status_code)
        self.set_header("Content-Type", answer.headers.get("content-type", "application/json"))
        if answer.status_code == 204:
            self.clear_header("Content-Type")
        self.finish(answer.content or None)

    get = post = put = delete = web.authenticated(authorized(forward))

    async def _ask(self, name: str, path: str) -> httpx.Response:
        try:
            try:
                return await self._send(await self.hub.ways.reach(name), path)
            except httpx.ConnectError:  # nothing was sent: it may be elsewhere by now
                self.hub.ways.forget(name)
                return await self._send(await self.hub.ways.reach(name), path)
        except httpx.HTTPError as error:
            raise ConnectionFailed(f"its gateway does not answer ({error!r})") from error

    async def _send(self, address: Address, path: str) -> httpx.Response:
        client = self.clients.get(address)
        if client is None:
            client = self.clients[address] = httpx.AsyncClient(
                timeout=httpx.Timeout(ANSWER_S, connect=5.0),
                verify=address.tls or True,
                trust_env=False,
            )
        headers = dict(address.headers)
        if self.request.method == "GET":
            headers |= GLANCE
        if self.request.body:
            headers["Content-Type"] = "application/json"
        query = f"?{self.request.query}" if self.request.query else ""
        url = f"{address.url}/v1/{path}{query}"
        return await client.request(
            self.request.method or "GET", url, content=self.request.body, headers=headers
        )


class Events(WebSocketMixin, websocket.WebSocketHandler, JupyterHandler):
    """`{clusters: [...]}` and `{cluster, whole, set, gone}`; nothing the other way."""

    auth_resource = RESOURCE

    def initialize(self, hub: Hub) -> None:
        self.hub = hub
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._entered = False

    @ws_authenticated
    async def get(self, *args: Any, **kwargs: Any) -> None:
        user = self.current_user
        allowed = await ensure_async(
            self.authorizer.is_authorized(self, user, "execute", self.auth_resource)
        )
        if not allowed:
            raise web.HTTPError(403)
        await super().get(*args, **kwargs)

    def get_compression_options(self) -> dict[str, Any]:
        return {}  # compressed: a first frame may have hundreds of sessions

    def open(self, *args: Any, **kwargs: Any) -> None:
        super().open(*args, **kwargs)
        self._entered = True
        self.hub.enter()
        self._tasks[""] = asyncio.create_task(self._follow_known())

    def on_message(self, message: str | bytes) -> None:
        """Nothing is asked this way."""

    def on_close(self) -> None:
        super().on_close()
        for task in self._tasks.values():
            task.cancel()
        if self._entered:
            self._entered = False
            self.hub.leave()

    async def _follow_known(self) -> None:
        async for _ in self.hub.known.follow():
            clusters = list(self.hub.known.items.values())
            if not await self._write({"clusters": clusters}):
                return
            for each in clusters:
                name = each["name"]
                if name not in self._tasks:
                    board = self.hub.board(name)
                    self._tasks[name] = asyncio.create_task(self._follow(name, board))

    async def _follow(self, name: str, board: Board) -> None:
        async for frame in board.follow():
            if not await self._write({"cluster": name, **frame.plain()}):
                return

    async def _write(self, frame: dict[str, Any]) -> bool:
        try:
            await self.write_message(json.dumps(frame))
        except websocket.WebSocketClosedError:
            return False
        return True
