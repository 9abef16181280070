"""EC2's instance metadata service, version 2, as a process of one machine.

    python imds.py FILE ADDRESS PORT     FILE: JSON, {path: text}, read at each request

What it answers is what EC2 does, to the byte: no token is 401, nothing to say is 404, a lifetime
of a token that cannot be is 400. Standard library alone.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-returns.html
"""

from __future__ import annotations

import json
import secrets
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "X-aws-ec2-metadata-token"
TTL = f"{TOKEN}-ttl-seconds"
DATA = "/latest/meta-data/"
REASONS = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}
PAGE = """<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
\t"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>{0}</title>
 </head>
 <body>
  <h1>{0}</h1>
 </body>
</html>
"""


def handler(file: Path) -> type[BaseHTTPRequestHandler]:
    tokens: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def version_string(self) -> str:
            return "EC2ws"

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            ttl = self.headers.get(TTL) or ""
            if self.path != "/latest/api/token":
                self._refuse(404)
            elif "X-Forwarded-For" in self.headers:
                self._refuse(403)
            elif not ttl.isdigit() or not 1 <= int(ttl) <= 21600:
                self._refuse(400)
            else:
                token = secrets.token_urlsafe(32)
                tokens.add(token)
                self._say(200, token, "text/plain", {TTL: ttl})

        def do_GET(self) -> None:
            said = json.loads(file.read_text())
            if self.headers.get(TOKEN) not in tokens:
                self._refuse(401)
            elif self.path.removeprefix(DATA) not in said:
                self._refuse(404)
            else:
                self._say(200, said[self.path.removeprefix(DATA)], "text/plain", {})

        def _refuse(self, status: int) -> None:
            self._say(status, PAGE.format(f"{status} - {REASONS[status]}"), "text/html", {})

        def _say(self, status: int, text: str, kind: str, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    return Handler


if __name__ == "__main__":
    ThreadingHTTPServer((sys.argv[2], int(sys.argv[3])), handler(Path(sys.argv[1]))).serve_forever()
