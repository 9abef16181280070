"""TLS in front of a gateway that has none, for one elsewhere, whose certificate is pinned.

with Relay(folder, "http://127.0.0.1:1234") as relay:
    relay.url, relay.fingerprint, relay.taken      taken: how many connections it has had
    relay.close(); relay.open()                    gone, and there again at the same port
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from pathlib import Path

from mlcloud.cluster import tls


class Relay:
    def __init__(self, folder: Path, gateway: str) -> None:
        key, certificate = folder / "tls.key", folder / "tls.crt"
        self.fingerprint = tls.ensure(key, certificate, "127.0.0.1")
        self.taken = 0
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(certificate, key)
        host, port = gateway.removeprefix("http://").split(":")
        self._gateway = host, int(port)
        self._port = 0
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        return f"https://{self.place}"

    def open(self) -> None:
        async def begin() -> None:
            self._server = await asyncio.start_server(
                self._opened, "127.0.0.1", self._port, ssl=self._context
            )
            self._port = self._server.sockets[0].getsockname()[1]

        asyncio.run_coroutine_threadsafe(begin(), self._loop).result(10)

    def close(self) -> None:
        async def end() -> None:
            if self._server is not None:
                self._server.close()
            for each in self._pipes:
                each.cancel()
            await asyncio.gather(*self._pipes, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)

    async def _opened(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken += 1
        there = await asyncio.open_connection(*self._gateway)
        for each in (_pipe(reader, there[1]), _pipe(there[0], writer)):
            task = asyncio.ensure_future(each)
            self._pipes.add(task)
            task.add_done_callback(self._pipes.discard)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()
