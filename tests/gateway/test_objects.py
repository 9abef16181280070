"""Objects at the gateway's door: only whole, only what they are named after, only for its user."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import uvicorn
from blake3 import blake3
from fastapi import FastAPI

from mlcloud.client.api import Client
from mlcloud.gateway import objects
from mlcloud.gateway.app import STATUS
from mlcloud.store import CHUNK_BYTES, Store
from mlcloud.values import digests
from tests.live import Embedded, until

pytestmark = pytest.mark.cluster


@pytest.fixture
def http(client: Client, cluster: Embedded) -> Iterator[httpx.Client]:
    with cluster.http() as http:
        yield http


def put(http: httpx.Client, data: bytes, name: str | None = None) -> httpx.Response:
    return http.put(f"/v1/objects/{name or blake3(data).hexdigest()}", content=data)


def missing(http: httpx.Client, *names: str) -> list[str]:
    answer = http.post("/v1/objects/missing", json={"names": list(names)})
    assert answer.status_code == 200, answer.text
    found: list[str] = answer.json()["names"]
    return found


def name_of(data: bytes) -> str:
    return f"{blake3(data).hexdigest()}:{len(data)}"


def partial_put(cluster: Embedded, name: str, announced: int, body: bytes) -> socket.socket:
    """A PUT whose body has not all come yet."""
    connection = cluster.connection
    parts = urlsplit(connection["url"])
    link = socket.create_connection((parts.hostname, parts.port), timeout=10)
    head = (
        f"PUT /v1/objects/{name} HTTP/1.1\r\nHost: x\r\nContent-Length: {announced}\r\n"
        f"Authorization: Bearer {connection['token']}\r\n\r\n"
    )
    link.sendall(head.encode() + body)
    return link


def test_client_and_store_cut_alike() -> None:
    assert digests.CHUNK_BYTES == CHUNK_BYTES


def test_what_was_put_is_there_and_comes_back(http: httpx.Client) -> None:
    data, other = os.urandom(100_000), os.urandom(10)
    assert missing(http, name_of(data), name_of(other)) == [name_of(data), name_of(other)]
    assert put(http, data).status_code == 204
    assert missing(http, name_of(data), name_of(other)) == [name_of(other)]
    digest = blake3(data).hexdigest()
    assert http.head(f"/v1/objects/{digest}").status_code == 200
    assert http.get(f"/v1/objects/{digest}").content == data
    assert put(http, data).status_code == 204  # again: nothing changes
    absent = http.get(f"/v1/objects/{'0' * 64}")
    assert (absent.status_code, absent.json()["code"]) == (404, "NotFound")


def test_a_chunk_that_was_cut_short_on_the_disk_counts_as_missing(
    http: httpx.Client, cluster: Embedded
) -> None:
    data = os.urandom(5_000)
    put(http, data)
    digest = blake3(data).hexdigest()
    file = cluster.home / "store" / "chunks" / digest[:2] / digest
    file.write_bytes(data[:100])
    assert missing(http, name_of(data)) == [name_of(data)]
    assert put(http, data).status_code == 204
    assert http.get(f"/v1/objects/{digest}").content == data


@pytest.mark.parametrize("token", ["", "wrong"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/objects/missing"),
        ("PUT", f"/v1/objects/{'0' * 64}"),
        ("GET", f"/v1/objects/{'0' * 64}"),
        ("HEAD", f"/v1/objects/{'0' * 64}"),
    ],
)
def test_without_the_token_nothing_is_answered_or_taken(
    client: Client, cluster: Embedded, method: str, path: str, token: str
) -> None:
    with cluster.http(token=token) as http:
        assert http.request(method, path).status_code == 401


def test_content_that_does_not_match_its_name_is_never_visible(http: httpx.Client) -> None:
    data, name = os.urandom(2_000_000), blake3(b"something else").hexdigest()
    refused = put(http, data, name)
    assert refused.status_code == 422
    assert "does not match its name" in refused.json()["message"]
    assert http.head(f"/v1/objects/{name}").status_code == 404
    assert missing(http, name_of(data)) == [name_of(data)]


@pytest.mark.parametrize("how", ["announced", "chunked"])
def test_a_body_that_is_too_large_is_refused(http: httpx.Client, how: str) -> None:
    data = os.urandom(CHUNK_BYTES + 1)
    name = blake3(data).hexdigest()
    content = (
        data if how == "announced" else (data[at : at + 2**20] for at in range(0, len(data), 2**20))
    )
    refused = http.put(f"/v1/objects/{name}", content=content)
    assert refused.status_code == 422
    assert str(CHUNK_BYTES) in refused.json()["message"]
    assert http.head(f"/v1/objects/{name}").status_code == 404


def test_the_largest_body_is_taken(http: httpx.Client) -> None:
    data = os.urandom(CHUNK_BYTES)
    assert put(http, data).status_code == 204
    assert http.get(f"/v1/objects/{blake3(data).hexdigest()}").content == data


def test_bodies_that_break_off_leave_nothing_and_hold_nothing(
    http: httpx.Client, cluster: Embedded
) -> None:
    data = os.urandom(1_000_000)
    name = blake3(data).hexdigest()
    temp = cluster.home / "store" / "tmp"
    others = set(temp.glob("*"))  # of a process that was killed there
    for _ in range(3 * objects.BUFFERS):  # more than there are buffers to receive into
        partial_put(cluster, name, len(data), data[:-1]).close()
    assert http.head(f"/v1/objects/{name}").status_code == 404
    assert put(http, data).status_code == 204
    assert http.get(f"/v1/objects/{name}").content == data
    until(lambda: not set(temp.glob("*")) - others, "nothing is left of them")


def test_many_at_once_are_all_stored_in_bounded_memory(
    http: httpx.Client, cluster: Embedded
) -> None:
    gateway = psutil.Process(cluster.connection["pid"])
    put(http, os.urandom(CHUNK_BYTES))
    before = gateway.memory_info().rss
    some = [os.urandom(4 * 2**20) for _ in range(48)]
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda data: put(http, data).status_code, some))
    assert set(answers) == {204}
    assert missing(http, *map(name_of, some)) == []
    assert gateway.memory_info().rss - before < (objects.BUFFERS + 12) * CHUNK_BYTES


@pytest.mark.parametrize("name", ["short:1", f"{'0' * 64}", f"{'g' * 64}:1", f"{'0' * 64}:-1", 7])
def test_names_that_are_none_are_refused(http: httpx.Client, name: object) -> None:
    answer = http.post("/v1/objects/missing", json={"names": [name]})
    assert (answer.status_code, answer.json()["code"]) == (422, "UsageError")
    assert http.get(f"/v1/objects/{name}").status_code in (404, 422)
    assert http.get("/v1/objects/..%2f..%2fstore.key").status_code in (404, 422)


# --- alone, with its clock in our hands -----------------------------------------------------------


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """The object routes in a server of their own, that gives up on a body after 0.3 s."""
    from fastapi.responses import JSONResponse

    from mlcloud.errors import MLCloudError

    monkeypatch.setattr(objects, "STALLED_S", 0.3)
    monkeypatch.setattr(objects, "BUFFERS", 2)
    app = FastAPI()
    app.include_router(objects.routes(Store(str(tmp_path / "store"))), prefix="/v1")

    @app.exception_handler(MLCloudError)
    async def _(_: object, error: MLCloudError) -> JSONResponse:
        code = next((status for kind, status in STATUS if isinstance(error, kind)), 500)
        return JSONResponse({"code": type(error).__name__, "message": str(error)}, code)

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    until(lambda: server.started, "the server listens")
    yield listener.getsockname()
    server.should_exit = True
    thread.join(10)


def test_a_body_that_stalls_gives_its_place_to_the_next(door: tuple[str, int]) -> None:
    stalled = []
    head = f"PUT /v1/objects/{'0' * 64} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
    for _ in range(2):  # as many as there are buffers
        link = socket.create_connection(door)
        link.sendall(head.encode() + b"123")
        stalled.append(link)
    time.sleep(0.1)
    data = b"in time"
    url = f"http://{door[0]}:{door[1]}/v1/objects/{blake3(data).hexdigest()}"
    assert httpx.put(url, content=data, trust_env=False, timeout=10).status_code == 204
    for link in stalled:
        answer = b""
        while b"nothing of the body came" not in answer:
            piece = link.recv(4096)
            assert piece, answer
            answer += piece
        link.close()
