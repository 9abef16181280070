"""`python -m mlcloud.gateway`: the embedded gateway's process. Started by `mlcloud.connect()`.

It holds a file lock for its whole life, so that one home has one gateway however many notebooks
race to start it, and writes the connection file (0600) once it listens.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
import socket
import sys

import uvicorn
import uvloop

from mlcloud.cluster.records import write_json
from mlcloud.config import ALREADY_RUNNING, Settings
from mlcloud.gateway.app import make_app
from mlcloud.gateway.core import Gateway

PORT_IN_USE = 4


class Server(uvicorn.Server):
    """Writes the connection file when it listens; what `down` removes is only our own."""

    def __init__(self, config: uvicorn.Config, settings: Settings, connection: dict[str, object]):
        super().__init__(config)
        self._settings = settings
        self._connection = connection

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            write_json(self._settings.connection_file, self._connection)


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
    token = secrets.token_urlsafe(32)
    connection: dict[str, object] = {
        "url": f"http://127.0.0.1:{port}",
        "token": token,
        "pid": os.getpid(),
    }

    uvloop.install()  # what uvicorn's own command would do; this loop does the work of every cell
    asyncio.run(_serve(settings, listener, connection))
    return 0


async def _serve(
    settings: Settings, listener: socket.socket, connection: dict[str, object]
) -> None:
    def stop() -> None:
        server.should_exit = True

    url, token = str(connection["url"]), str(connection["token"])
    gateway = Gateway(settings, url, token, on_idle=stop)
    config = uvicorn.Config(
        make_app(gateway, stop=stop),
        log_level="warning",
        lifespan="on",
        ws_max_size=64 * 2**20,
        ws_ping_interval=20,
        timeout_graceful_shutdown=3,
    )
    server = Server(config, settings, connection)
    await server.serve(sockets=[listener])
    settings.connection_file.unlink(missing_ok=True)
    logging.shutdown()
    # Ray's driver may still wait for its head in a thread that nothing can end, and asyncio would
    # wait for that thread.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
