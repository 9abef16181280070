"""EC2, IAM, SSM and STS for tests: moto's server, behind a door that plays what moto does not.

    with ec2.door() as aws: …   # aws.url is the endpoint

The door writes down each request, keeps EC2's promise about client tokens (moto launches again)
and finds by them, lists no placement groups (moto has none), and answers what a test tells it to:
an error as EC2 writes it, a line that breaks before or after.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

ERROR = """<?xml version="1.0" encoding="UTF-8"?>
<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>
<RequestID>ea966190-f9aa-478e-9ede-example</RequestID></Response>"""
# Moto's own list of images takes seconds to load, after each reset.
IMAGES = [
    {
        "ami_id": image,
        "owner_id": "099720109477",
        "name": f"ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-{day}",
        "creation_date": f"{day[:4]}-{day[4:6]}-{day[6:]}T00:00:00.000Z",
        "root_device_name": "/dev/sda1",
        "root_device_type": "ebs",
        "architecture": "x86_64",
        "virtualization_type": "hvm",
        "image_type": "machine",
        "state": "available",
        "public": True,
        "platform": None,
        "description": "",
        "hypervisor": "xen",
        "sriov": "simple",
    }
    for image, day in (("ami-0000000000000new", "20260301"), ("ami-0000000000000old", "20260101"))
]
NO_PLACEMENT_GROUPS = """<DescribePlacementGroupsResponse
xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>x</requestId><placementGroupSet/>
</DescribePlacementGroupsResponse>"""

MOTO = "from moto.server import main; main()"

# What a call is answered with: status and body, or None for a line that breaks.
Answer = tuple[int, bytes] | None
# Gets a way to ask moto, and answers.
Play = Callable[[Callable[[], Answer]], Answer]
# Hears of each call what was asked, and what moto answered.
Listener = Callable[[str, dict[str, str], bytes], None]


def refuse(code: str, message: str = "told so", status: int = 400) -> Play:
    """EC2's error, as its documentation shows it."""
    return lambda _: (status, ERROR.format(code=code, message=message).encode())


def lose_answer(ask: Callable[[], Answer]) -> Answer:
    """The request arrives, its answer does not."""
    ask()
    return None


def break_line(_: Callable[[], Answer]) -> Answer:
    return None


def with_spot_request(ask: Callable[[], Answer]) -> Answer:
    """The launch tells its spot request, as EC2's does and moto's does not."""
    answer = ask()
    assert answer is not None
    tag = b"<spotInstanceRequestId>sir-77</spotInstanceRequestId><instanceId>"
    return answer[0], answer[1].replace(b"<instanceId>", tag, 1)


class Door:
    """What tests see: `seen` requests as (action, fields), and `plays` to come for an action."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.plays: defaultdict[str, list[Play]] = defaultdict(list)
        self.tokens: dict[str, tuple[dict[str, str], Answer]] = {}
        self.listeners: list[Listener] = []
        self.signed: list[tuple[str, str]] = []  # access key and action of each request
        self.moto = ""  # its own URL, for what the door does not pass on (S3's headers)

    def calls(self, action: str) -> list[dict[str, str]]:
        return [fields for name, fields in self.seen if name == action]

    def reset(self) -> None:
        self.seen.clear()
        self.plays.clear()
        self.tokens.clear()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/moto-api/reset", method="POST"))
        self.seen.clear()


@contextlib.contextmanager
def door(host: str = "127.0.0.1", start: str = MOTO) -> Iterator[Door]:
    """A door before a moto server of its own, both on `host`. `start` is what runs moto."""
    with tempfile.TemporaryDirectory() as folder, _moto(folder, host, start) as behind:
        made = Door("")
        server = ThreadingHTTPServer((host, 0), _handler(made, host, behind))
        server.daemon_threads = True
        made.url = f"http://{host}:{server.server_address[1]}"
        made.moto = f"http://{host}:{behind}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            server.server_close()


def _handler(made: Door, host: str, behind: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fields = dict(parse_qsl(body.decode("latin-1")))
            action = fields.get("Action") or self.headers.get("X-Amz-Target", "").split(".")[-1]
            made.seen.append((action, fields))
            key = re.search(r"Credential=(\w+)/", self.headers.get("Authorization", ""))
            made.signed.append((key[1] if key else "", action))

            def ask() -> Answer:
                if action == "DescribePlacementGroups":
                    return 200, NO_PLACEMENT_GROUPS.encode()
                if fields.get("Filter.1.Name") == "client-token":
                    _, answer = made.tokens[fields["Filter.1.Value.1"]]
                    launched = re.search(rb"<instanceId>(i-\w+)", answer[1] if answer else b"")
                    assert launched is not None
                    known = {"Filter.1.Name": "instance-id", "Filter.1.Value.1": launched[1]}
                    return self._forward(urlencode({**fields, **known}).encode())
                token = fields.get("ClientToken")
                if token is None or action != "RunInstances":
                    return self._forward(body)
                if token not in made.tokens:
                    made.tokens[token] = (fields, self._forward(body))
                before, answer = made.tokens[token]
                if before != fields:
                    text = ERROR.format(code="IdempotentParameterMismatch", message="differs")
                    return 400, text.encode()
                return answer

            plays = made.plays[action]
            answer = plays.pop(0)(ask) if plays else ask()
            for each in made.listeners if answer is not None and answer[0] == 200 else ():
                each(action, fields, answer[1])
            self._answer(answer)

        do_GET = do_POST

        def _forward(self, body: bytes) -> Answer:
            connection = http.client.HTTPConnection(host, behind, timeout=60)
            try:
                headers = {**self.headers, "Content-Length": str(len(body))}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                return answer.status, answer.read()
            finally:
                connection.close()

        def _answer(self, answer: Answer) -> None:
            if answer is None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(answer[1])))
            self.end_headers()
            self.wfile.write(answer[1])

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextlib.contextmanager
def _moto(folder: str, host: str, start: str) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = int(probe.getsockname()[1])
    images = Path(folder) / "images.json"
    images.write_text(json.dumps(IMAGES))
    server = subprocess.Popen(
        [sys.executable, "-c", start, "-H", host, "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={
            **os.environ,
            "MOTO_AMIS_PATH": str(images),
            "MOTO_ENABLE_AMI_VALIDATION": "true",
            "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION": "true",
        },
    )
    try:
        for _ in range(600):
            assert server.poll() is None, "moto's server ended"
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://{host}:{port}/moto-api/", timeout=1).close()
                break
            time.sleep(0.05)
        yield port
    finally:
        server.kill()
        server.wait()
