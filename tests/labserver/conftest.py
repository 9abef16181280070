"""A real Jupyter server with the extension, below a base URL as JupyterHub gives one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jupyter_server")
pytest.importorskip("playwright")

from websockets.sync.client import ClientConnection, connect

from tests.browser.lab import Lab
from tests.live import Embedded


class Server(Lab):
    base = "/user/me/"

    def get(self, path: str) -> Any:
        return self.http.get(f"/mlcloud/{path}")

    def events(self) -> Events:
        url = self.url.replace("http", "ws", 1)
        return Events(connect(f"{url}/mlcloud/events?token={self.token}", max_size=None))


class Events:
    """The page's end of the WebSocket: what it knows by now."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.texts: list[str] = []
        self.known: dict[str, dict[str, Any]] = {}
        self.items: dict[str, dict[str, Any]] = {}

    def until(self, condition: Callable[[], Any], what: str, timeout: float = 30.0) -> Any:
        end = time.monotonic() + timeout
        while not (found := condition()):
            left = end - time.monotonic()
            try:
                text = self.socket.recv(timeout=max(0.01, left))
            except TimeoutError:
                pytest.fail(f"not within {timeout:g} s: {what}; known: {self.known}")
            self.take(str(text))
        return found

    def take(self, text: str) -> None:
        self.texts.append(text)
        frame = json.loads(text)
        if "clusters" in frame:
            self.known = {each["name"]: each for each in frame["clusters"]}
            return
        items = self.items.setdefault(frame["cluster"], {})
        if frame["whole"]:
            items.clear()
        items.update(frame["set"])
        for key in frame["gone"]:
            items.pop(key, None)

    def item(self, key: str, cluster: str = "embedded") -> dict[str, Any] | None:
        return self.items.get(cluster, {}).get(key)

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


@pytest.fixture(scope="session")
def server(cluster: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"), cluster.environment)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[[Embedded], Server]]:
    made: list[Server] = []

    def make(cluster: Embedded) -> Server:
        folder = tmp_path / f"server-{len(made)}"
        folder.mkdir()
        made.append(Server(folder, cluster.environment))
        return made[-1]

    yield make
    for each in made:
        each.close()
