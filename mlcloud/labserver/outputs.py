"""What an execution has shown and shows, for a page that was loaded again.

    GET mlcloud/outputs/<session>/<execution>[?cluster=NAME]   a message of Jupyter's a line (JSON),
                                                               the last one `mlcloud_end`

Nothing is started for it: where the cluster does not answer, 503 says so.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado import web
from tornado.iostream import StreamClosedError

from mlcloud import errors
from mlcloud.client import embedded
from mlcloud.client.connection import Address, Connection
from mlcloud.client.replay import Message, Replay
from mlcloud.config import Settings
from mlcloud.labserver.handlers import RESOURCE
from mlcloud.labserver.places import EMBEDDED, place, places

Connect = Callable[[str], Connection]
SPEC = r"(?P<session>[A-Za-z0-9_.-]+)/(?P<execution>[A-Za-z0-9_-]+)"


class OutputsHandler(APIHandler):
    """One execution, as long as it runs and the page is there."""

    auth_resource = RESOURCE

    def initialize(self, connect: Connect) -> None:
        self._connect = connect
        self._replay: Replay | None = None

    @web.authenticated
    @authorized
    async def get(self, session: str, execution: str) -> None:
        loop = asyncio.get_running_loop()
        lines: asyncio.Queue[list[Message] | errors.MLCloudError | None] = asyncio.Queue()

        def put(item: list[Message] | errors.MLCloudError | None) -> None:
            loop.call_soon_threadsafe(lines.put_nowait, item)

        def read(replay: Replay) -> None:
            try:
                for batch in replay:
                    put(batch)
            except errors.MLCloudError as error:
                put(error)
            put(None)

        try:
            cluster = self.get_query_argument("cluster", "")
            replay = await asyncio.to_thread(
                lambda: Replay(self._connect(cluster), session, execution)
            )
        except errors.MLCloudError as error:
            self._refuse(error)
            return
        self._replay = replay
        self.set_header("Content-Type", "application/x-ndjson")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Accel-Buffering", "no")  # a proxy must not wait for the end
        threading.Thread(target=read, args=(replay,), name="mlcloud-outputs", daemon=True).start()
        try:
            while isinstance(batch := await lines.get(), list):
                self.write("".join(f"{json.dumps(each, default=str)}\n" for each in batch))
                await self.flush()
        except StreamClosedError:  # the page is gone
            replay.close()
        await self.finish()

    def on_connection_close(self) -> None:
        if self._replay is not None:
            self._replay.close()

    def _refuse(self, error: errors.MLCloudError) -> None:
        self.set_status(404 if isinstance(error, errors.NotFound) else 503)
        self.finish(json.dumps({"code": type(error).__name__, "message": str(error)}))


def connect(cluster: str) -> Connection:
    """The gateway of this cluster; empty: the one that a notebook finds by itself.

    Raises `NotFound`, `ConnectionFailed`.
    """
    settings = Settings()
    if not cluster:
        by_url = [each.name for each in places(settings) if each.kind == "url"]
        cluster = by_url[0] if by_url else EMBEDDED
    found = place(cluster, settings)

    def look() -> Address:
        address = embedded.running(settings) if found.kind == "embedded" else found.look()
        if address is None:
            raise errors.ConnectionFailed(f"the cluster {cluster!r} is not running")
        return address

    return Connection(look, embedded=found.kind == "embedded", look=look)


def routes(base_url: str) -> list[tuple[str, Any, dict[str, Any]]]:
    """For `web_app.add_handlers`."""
    from jupyter_server.utils import url_path_join

    path = url_path_join(base_url, "mlcloud", "outputs", SPEC)
    return [(path, OutputsHandler, {"connect": connect})]
