"""A private package index: PEP 503's pages and wheels, for who has the password; and a look at
where that password is seen."""

from __future__ import annotations

import base64
import contextlib
import threading
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil


class Index:
    """Wheels of a folder at `{url}/simple/`, until `close`. `asked` has the paths that were
    answered, `refused` those that came without the password."""

    def __init__(self, wheels: Path, user: str, password: str, host: str = "127.0.0.1") -> None:
        self.asked: list[str] = []
        self.refused: list[str] = []
        self.wheels = wheels
        self._right = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self.host = f"{host}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        if request.headers.get("Authorization") != self._right:
            self.refused.append(request.path)
            request.send_response(401)
            request.send_header("WWW-Authenticate", 'Basic realm="wheels"')
            request.end_headers()
            return
        self.asked.append(request.path)
        kind, _, name = request.path.strip("/").partition("/")
        body: bytes | None = None
        if kind == "simple":
            there = sorted(p.name for p in self.wheels.glob(f"{name.replace('-', '_')}-*.whl"))
            links = "".join(f'<a href="/files/{each}">{escape(each)}</a>' for each in there)
            body = f"<!DOCTYPE html><html><body>{links}</body></html>".encode() if there else None
        elif kind == "files" and (self.wheels / name).is_file():
            body = (self.wheels / name).read_bytes()
        request.send_response(404 if body is None else 200)
        request.send_header("Content-Type", "text/html" if kind == "simple" else "application/zip")
        request.send_header("Content-Length", str(len(body or b"")))
        request.end_headers()
        request.wfile.write(body or b"")


class CommandLines:
    """While it is entered: which processes have a text on their command line."""

    def __init__(self, *texts: str) -> None:
        self._texts = texts
        self.found: list[list[str]] = []
        self.seen = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.2):
            for each in psutil.process_iter(["cmdline"]):
                words = each.info["cmdline"] or []
                self.seen += "pip" in words
                if any(text in word for word in words for text in self._texts):
                    self.found.append(words)


def found_in(*folders: Path, of: str) -> list[Path]:
    """The files that have this text in them."""
    found = []
    for path in (path for folder in folders for path in folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(FileNotFoundError):  # of a process that ends
                if of.encode() in path.read_bytes():
                    found.append(path)
    return found
