"""`python -m mlcloud.gateway`: the gateway's process. Started by `mlcloud.connect()`, or by the
keeper of a head.

It holds a file lock for its whole life, so that one home has one gateway however many notebooks
race to start it, and writes the connection file (0600) once it listens: on loopback by plain HTTP,
and where the home has a `head.json` also on the head's private address, by TLS. The token of a head
outlives the process, since clients elsewhere keep it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from fastapi import FastAPI

from mlcloud.cluster import tls
from mlcloud.cluster.headspec import HeadSpec
from mlcloud.cluster.records import write_json
from mlcloud.config import ALREADY_RUNNING, Settings
from mlcloud.gateway.app import make_app
from mlcloud.gateway.core import Gateway

PORT_IN_USE = 4


class Server(uvicorn.Server):
    """Writes the connection file when it listens; what `down` removes is only our own. Who waits
    for news of a job is let go of at the end: cut off, it would read that the gateway failed."""

    def __init__(
        self,
        config: uvicorn.Config,
        settings: Settings,
        connection: dict[str, object],
        gateway: Gateway,
    ) -> None:
        super().__init__(config)
        self._settings = settings
        self._connection = connection
        self._gateway = gateway

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            write_json(self._settings.connection_file, self._connection)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._gateway.jobs.let_go()
        await super().shutdown(sockets)


def main() -> int:
    settings = Settings()
    settings.make_folders()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    lock = open(settings.lock_file, "w")  # noqa: SIM115 - held until this process ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another gateway already runs for this home", file=sys.stderr)
        return ALREADY_RUNNING

    # With the protocol named, asyncio turns Nagle's algorithm off; without, answers wait 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", settings.port))
    except OSError:
        print(
            f"port {settings.port} on 127.0.0.1 is in use; set MLCLOUD_PORT to another, or to 0 "
            "for any free one",
            file=sys.stderr,
        )
        return PORT_IN_USE
    port = listener.getsockname()[1]
    connection: dict[str, object] = {
        "url": f"http://127.0.0.1:{port}",
        "token": secrets.token_urlsafe(32),
        "pid": os.getpid(),
    }
    private: Private | None = None
    if settings.head_file is not None:
        # For who clears up after a head that could not (`bootstrap.ending`).
        (settings.home / "temporary").write_text(str(settings.ray_dir))
        try:
            private = Private.open(settings, HeadSpec.read(settings.head_file))
        except OSError as error:
            print(f"the head's private address cannot be listened on: {error}", file=sys.stderr)
            return PORT_IN_USE
        connection |= {
            "token": _kept_token(settings.home / "token"),
            "nodes_url": private.url,
            "fingerprint": private.fingerprint,
        }

    uvloop.install()  # what uvicorn's own command would do; this loop does the work of every cell
    asyncio.run(_serve(settings, listener, connection, private))
    return 0


@dataclass(frozen=True)
class Private:
    """Where nodes, and clients in the same network, reach the gateway by TLS."""

    listener: socket.socket
    url: str
    fingerprint: str
    key_file: Path
    certificate_file: Path

    @classmethod
    def open(cls, settings: Settings, spec: HeadSpec) -> Private:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((spec.address, spec.port))
        key, certificate = settings.home / "tls.key", settings.home / "tls.crt"
        url = f"https://{spec.address}:{spec.port}"
        return cls(listener, url, tls.ensure(key, certificate, spec.address), key, certificate)

    async def serve(self, app: FastAPI) -> None:
        """Until it is cancelled."""
        config = uvicorn.Config(
            app,
            lifespan="off",  # that of the server on loopback
            ssl_keyfile=self.key_file,
            ssl_certfile=self.certificate_file,
            **_OPTIONS,
        )
        await Beside(config).serve(sockets=[self.listener])


class Beside(uvicorn.Server):
    """A second server in one process: signals are the first one's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _kept_token(path: Path) -> str:
    if not path.exists():
        write_json(path, secrets.token_urlsafe(32))
    token: str = json.loads(path.read_text())
    return token


_OPTIONS: dict[str, Any] = {
    "log_level": "warning",
    "ws_max_size": 64 * 2**20,
    "ws_ping_interval": 20,
    "timeout_graceful_shutdown": 3,
}


async def _serve(
    settings: Settings,
    listener: socket.socket,
    connection: dict[str, object],
    private: Private | None,
) -> None:
    def stop() -> None:
        server.should_exit = True

    url, token = str(connection["url"]), str(connection["token"])
    gateway = Gateway(settings, url, token, on_idle=stop, nodes_url=private.url if private else "")
    app = make_app(gateway, stop=stop)
    server = Server(uvicorn.Config(app, lifespan="on", **_OPTIONS), settings, connection, gateway)
    beside = asyncio.create_task(private.serve(app)) if private else None
    await server.serve(sockets=[listener])
    if beside is not None:
        beside.cancel()
    settings.connection_file.unlink(missing_ok=True)
    logging.shutdown()
    # Ray's driver may still wait for its head in a thread that nothing can end, and asyncio would
    # wait for that thread.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
