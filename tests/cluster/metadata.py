"""A metadata service that does whatever a test tells it to, well or badly.

Nasty(answer) ─ answer(request) gives a `Reply`, or one of the ways in which servers fail
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

DATE = "Date"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    at: float


@dataclass
class Reply:
    """`slow`: so many seconds between two bytes; `cut`: the connection is reset after the head."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hang_s: float = 0.0
    slow: float = 0.0
    cut: bool = False
    clock: float = 0.0  # seconds that its clock is ahead of this machine's
    dated: bool = True


class Nasty:
    """A server at `url` whose `answer` may be exchanged while it runs. `seen` are its requests."""

    def __init__(self, answer: Callable[[Request], Reply]) -> None:
        self.answer = answer
        self.seen: list[Request] = []
        self.ended = threading.Event()
        nasty = self

        class Handler(BaseHTTPRequestHandler):
            def handle_one_request(self) -> None:
                with contextlib.suppress(OSError):
                    super().handle_one_request()

            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers, time.monotonic())
                nasty.seen.append(request)
                reply = nasty.answer(request)
                nasty.ended.wait(reply.hang_s)
                self.close_connection = True
                date = formatdate(time.time() + reply.clock, usegmt=True)
                dated = {DATE: date} if reply.dated else {}
                body = reply.text.encode()
                lines = {**dated, "Content-Length": str(len(body)), **reply.headers}
                head = f"HTTP/1.1 {reply.status} said\r\n" + "".join(
                    f"{name}: {value}\r\n" for name, value in lines.items()
                )
                self.wfile.write(f"{head}\r\n".encode())
                if reply.cut:
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    return
                if not reply.slow:
                    self.wfile.write(body)
                    return
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    nasty.ended.wait(reply.slow)

            do_PUT = do_DELETE = do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Nasty:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()

    def endpoint(self) -> str:
        return self.url
