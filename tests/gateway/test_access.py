"""Who may speak to the gateway, and how several do: one door, one token, one truth."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgpack
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as websocket

import mlcloud
from mlcloud import errors
from mlcloud.client.api import Client
from mlcloud.client.session import Session
from tests.live import Embedded, Running, events, start_python, until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def shared(cluster: Embedded) -> Iterator[Session]:
    session = cluster.connect().session("access", namespace={})
    yield session
    session.close()


def test_the_connection_file_is_the_owners_alone(client: Client, cluster: Embedded) -> None:
    facts = os.stat(cluster.settings.connection_file)
    assert stat.S_IMODE(facts.st_mode) == 0o600
    assert facts.st_uid == os.getuid()
    assert stat.S_IMODE(os.stat(cluster.home).st_mode) & 0o077 == 0


def test_it_listens_on_this_machine_alone(client: Client, cluster: Embedded) -> None:
    import psutil

    for process in cluster.processes():
        try:
            sockets = psutil.Process(process.pid).net_connections("tcp")
        except psutil.Error:
            continue
        for each in sockets:
            if each.status == psutil.CONN_LISTEN:
                # Ray's processes name it as IPv6 does: ::ffff:127.0.0.1
                address = each.laddr.ip.removeprefix("::ffff:")
                assert address.startswith("127."), f"{process.command} listens on {each}"


def test_nothing_secret_is_in_a_command_line(client: Client, cluster: Embedded) -> None:
    token = cluster.connection["token"]
    assert not [each for each in cluster.processes() if token in each.command]
    assert token not in repr(client)


@pytest.mark.parametrize("token", ["wrong", "", "ü".encode().decode("latin-1")])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/sessions"),
        ("GET", "/v1/cluster"),
        ("POST", "/v1/sessions"),
        ("GET", "/v1/sessions/none/events"),
        ("PUT", "/v1/objects/00"),
        ("POST", "/v1/nodes/i-0/preempt"),
        ("POST", "/v1/nodes/i-0/heartbeat"),
        ("POST", "/v1/down"),
    ],
)
def test_a_wrong_token_is_refused(
    client: Client, cluster: Embedded, method: str, path: str, token: str
) -> None:
    with cluster.http(token="") as http:
        headers = {"Authorization": f"Bearer {token}".encode("latin-1")} if token else {}
        answer = http.request(method, path, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["code"] == "AuthenticationFailed"


def test_a_wrong_token_opens_no_websocket(shared: Session, cluster: Embedded) -> None:
    url = cluster.connection["url"].replace("http", "ws")
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        with (
            pytest.raises(InvalidStatus) as refused,
            websocket(f"{url}/v1/sessions/access/channel", additional_headers=headers),
        ):
            pass
        assert refused.value.response.status_code in (401, 403)


def test_python_says_what_is_wrong_with_a_token(client: Client, cluster: Embedded) -> None:
    with pytest.raises(errors.AuthenticationFailed, match="token"):
        mlcloud.connect(cluster.connection["url"], token="wrong")
    with pytest.raises(errors.AuthenticationFailed):
        mlcloud.connect(cluster.connection["url"])


def test_by_url_and_token_it_is_the_same_gateway(shared: Session, cluster: Embedded) -> None:
    connection = cluster.connection
    by_url = mlcloud.connect(connection["url"], token=connection["token"])
    assert "access" in [each.name for each in by_url.sessions()]
    mlcloud.connect()


def test_health_needs_no_token_and_tells_no_secret(client: Client, cluster: Embedded) -> None:
    with cluster.http(token="") as http:
        body = http.get("/healthz").json()
    assert body["status"] == "ok"
    assert body["pid"] == cluster.connection["pid"]
    assert cluster.connection["token"] not in json.dumps(body)


def test_two_processes_share_one_gateway(shared: Session, cluster: Embedded) -> None:
    other = start_python(
        cluster,
        "import mlcloud\ns = mlcloud.attach('access')\n"
        "s.run('shared = 40 + 2', quiet=True)\nprint(mlcloud.connect().url)",
    )
    out, err = other.communicate(timeout=60)
    assert out.split()[-1] == cluster.connection["url"], err
    assert shared["shared"] == 42


def test_an_execution_id_runs_once(shared: Session, cluster: Embedded) -> None:
    shared.run("count = 0", quiet=True)
    path = "/v1/sessions/access/executions"
    with cluster.http() as http:
        for _ in range(5):
            answer = http.post(path, json={"id": "same-id-0001", "code": "count += 1"})
            assert answer.json()["id"] == "same-id-0001"
        until(
            lambda: http.get(f"{path}/same-id-0001").json()["state"] == "safe", "the cell is safe"
        )
        http.post(path, json={"id": "same-id-0001", "code": "count += 1"}).raise_for_status()
        assert http.get(f"{path}/same-id-0001").json()["runs"] == 1
    assert shared["count"] == 1


def test_an_execution_id_of_another_session_is_refused(
    shared: Session, session: Callable[..., Session], cluster: Embedded
) -> None:
    other = session()
    body = {"id": "same-id-0002", "code": "1"}
    with cluster.http() as http:
        http.post("/v1/sessions/access/executions", json=body).raise_for_status()
        answer = http.post(f"/v1/sessions/{other.name}/executions", json=body)
    assert answer.status_code == 409
    assert answer.json()["code"] == "Conflict"


def test_events_after_a_cursor_come_in_order_and_once(shared: Session, cluster: Embedded) -> None:
    before = shared.info.last_event
    shared.run("for i in range(400):\n    print(i, flush=True)", quiet=True)
    last = shared.info.last_event
    whole = events(shared)
    assert [each["seq"] for each in whole] == list(range(1, len(whole) + 1))
    assert len(whole) >= last
    for after in (0, before, before + 1, (before + last) // 2, last - 1):
        assert events(shared, after)[: last - after] == whole[after:last]
    assert shared.events(after=10**9) == []

    connection = cluster.connection
    url = connection["url"].replace("http", "ws")
    for after in (0, before, last - 3):
        seen: list[int] = []
        with websocket(
            f"{url}/v1/sessions/access/channel?after={after}",
            additional_headers={"Authorization": f"Bearer {connection['token']}"},
        ) as socket:
            while not seen or seen[-1] < last:
                seen += [row[0] for row in msgpack.unpackb(socket.recv(timeout=10))["events"]]
        assert seen[: last - after] == list(range(after + 1, last + 1))


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/sessions", {"name": "../etc"}, 422),
        ("POST", "/v1/sessions", {"name": "x" * 64}, 422),
        ("POST", "/v1/sessions", {"name": "x", "cpus": 0}, 422),
        ("POST", "/v1/sessions", {"name": "x", "cpus": "NaN"}, 422),
        ("POST", "/v1/sessions", {"name": "x", "memory": "much"}, 422),
        ("POST", "/v1/sessions", {"name": "x", "idle_timeout": "soon"}, 422),
        ("POST", "/v1/sessions", {"name": "x", "gpu": "A10G:none"}, 422),
        ("POST", "/v1/sessions", {"name": "x", "surprise": 1}, 422),
        ("POST", "/v1/sessions", {"name": "access", "cpus": 2}, 409),
        ("GET", "/v1/sessions/nobody", None, 404),
        ("POST", "/v1/sessions/nobody/park", None, 404),
        ("GET", "/v1/sessions/nobody/events", None, 404),
        ("GET", "/v1/sessions/access/events?after=-1", None, 422),
        ("GET", "/v1/sessions/access/events?after=x", None, 422),
        ("POST", "/v1/sessions/access/executions", {"id": "short", "code": ""}, 422),
        ("GET", "/v1/sessions/access/executions/nothing-such", None, 404),
        ("POST", "/v1/nodes/i-none/preempt", {"notice_s": 1}, 404),
        ("POST", "/v1/nodes/access/preempt", {"notice_s": -1}, 422),
        ("GET", "/v1/objects/..%2F..%2Fgateway.json", None, 404),
        ("GET", "/v1/objects/zz", None, 422),
        ("GET", f"/v1/objects/{'0' * 64}", None, 404),
        ("PUT", f"/v1/objects/{'0' * 64}", None, 422),
    ],
)
def test_bad_requests_get_a_clear_answer(
    shared: Session, cluster: Embedded, method: str, path: str, body: object, status: int
) -> None:
    with cluster.http() as http:
        answer = http.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()
    assert set(error) == {"code", "message"}
    assert issubclass(getattr(errors, error["code"]), errors.MLCloudError)
    assert error["message"]


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        msgpack.packb(1),
        msgpack.packb({"op": "execute"}),
        msgpack.packb({"op": "?"}),
        msgpack.packb({"op": "execute", "id": 1, "options": 3}),
        "text",
    ],
    ids=repr,
)
def test_a_bad_frame_does_not_break_the_session(
    shared: Session, cluster: Embedded, frame: bytes
) -> None:
    connection = cluster.connection
    url = connection["url"].replace("http", "ws")
    log = cluster.settings.log_file
    size = log.stat().st_size
    with websocket(
        f"{url}/v1/sessions/access/channel?after={shared.info.last_event}",
        additional_headers={"Authorization": f"Bearer {connection['token']}"},
    ) as socket:
        socket.send(frame)
        answer: dict[str, Any] = {}
        while "error" not in answer:  # events of the cell before may still come
            answer = msgpack.unpackb(socket.recv(timeout=10), strict_map_key=False)
        assert answer["error"]["code"] == "UsageError"
    shared.run("1", quiet=True)
    assert b"Traceback" not in log.read_bytes()[size:]


def test_a_running_cell_is_seen_by_all(shared: Session, client: Client) -> None:
    cell = Running(shared, "print('ready')\nimport time; time.sleep(30)", quiet=True)
    cell.printed("ready")
    info = next(each for each in client.sessions() if each.name == "access")
    assert info.state.value == "busy"
    assert info.running
    assert info.node
    assert "access" in repr(client.cluster.status())
    shared.interrupt()
    assert isinstance(cell.error(), KeyboardInterrupt)


def test_a_dead_address_is_said_to_be_dead() -> None:
    with pytest.raises(errors.ConnectionFailed, match="no gateway answers"):
        mlcloud.connect("http://127.0.0.1:9", token="x")
    with pytest.raises((errors.ConnectionFailed, errors.UsageError)):
        mlcloud.connect("http://", token="x")
    with pytest.raises(errors.NotFound, match="no cluster 'my-cluster' was brought up from here"):
        mlcloud.connect("my-cluster")


def test_a_page_that_is_no_gateway() -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(errors.MLCloudError):
            mlcloud.connect(f"http://127.0.0.1:{server.server_port}", token="x")
    finally:
        server.shutdown()
        server.server_close()
    assert httpx  # a real server answered, with an error of its own
