"""A control plane of a cloud, played by this process over real HTTP on 127.0.0.1.

Subclasses answer `handle(method, path, query, body, headers)` with a status, a JSON value and
headers. Every request is kept in `requests`. `busy` answers that many requests with 503 first.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Answer = tuple[int, Any, dict[str, str]]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    body: Any


class ControlPlane:
    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.busy: list[int] = []  # the next answers' status codes
        self.lock = threading.RLock()
        plane = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # an answer in one piece: two would wait for each other's ACK

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                raw = self.rfile.read(length)
                url = urlsplit(self.path)
                query = dict(parse_qsl(url.query))
                body = json.loads(raw) if raw[:1] in b"{[" and raw else None
                request = Request(self.command, url.path, query, body)
                with plane.lock:
                    plane.requests.append(request)
                    if plane.busy:
                        status, value, headers = plane.busy.pop(0), {}, {"Retry-After": "0"}
                    else:
                        status, value, headers = plane.handle(request, self.headers)
                payload = b"" if value is None else json.dumps(value).encode()
                self.send_response(status)
                for name, each in headers.items():
                    self.send_header(name, each)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

            def log_message(self, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    def handle(self, request: Request, headers: Mapping[str, str]) -> Answer:
        raise NotImplementedError

    def sent(self, method: str, ending: str = "") -> list[Request]:
        with self.lock:
            return [r for r in self.requests if r.method == method and r.path.endswith(ending)]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
