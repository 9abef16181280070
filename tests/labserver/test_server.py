"""The server's part with a real Jupyter server and a real cluster: who may ask, what is forwarded,
what is told, and that the gateway's token stays on the server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from mlcloud.client.functions import remote
from mlcloud.client.session import Session
from tests.labserver.conftest import Server
from tests.live import Embedded, until

pytestmark = pytest.mark.cluster


@pytest.fixture
def exp(session: Callable[..., Session]) -> Session:
    made = session("exp")
    made.run("x = list(range(1000))")
    return made


def test_nobody_asks_without_the_servers_token(server: Server, cluster: Embedded) -> None:
    cluster.connect()
    for path in ("clusters", "clusters/embedded/v1/cluster", "files"):
        assert httpx.get(f"{server.url}/mlcloud/{path}", trust_env=False).status_code == 403
    with pytest.raises(InvalidStatus) as refused:
        connect(f"{server.url.replace('http', 'ws', 1)}/mlcloud/events")
    assert refused.value.response.status_code == 403


def test_a_page_needs_the_xsrf_token_and_the_right_origin(server: Server, exp: Session) -> None:
    """A page is known by its cookie, which other sites' pages send along, too."""
    with httpx.Client(trust_env=False, follow_redirects=True) as page:
        page.get(f"{server.url}/api/me?token={server.token}")
        page.get(f"{server.url}/login")
        assert page.get(f"{server.url}/mlcloud/clusters").status_code == 200
        url = f"{server.url}/mlcloud/clusters/embedded/v1/sessions/{exp.name}/park"
        assert page.post(url).status_code == 403
        assert exp.state == "idle"
        xsrf = page.cookies.get("_xsrf") or ""
        assert page.post(url, headers={"X-XSRFToken": xsrf}).status_code == 200
        assert exp.state == "parked"
        cookies = "; ".join(f"{name}={value}" for name, value in page.cookies.items())
    url = f"{server.url.replace('http', 'ws', 1)}/mlcloud/events"
    given = {"Cookie": cookies, "Origin": "http://evil.example"}
    with pytest.raises(InvalidStatus) as refused:
        connect(url, additional_headers=given)
    assert refused.value.response.status_code == 403
    connect(url, additional_headers={"Cookie": cookies}).close()


def test_requests_are_forwarded(server: Server, cluster: Embedded) -> None:
    made = cluster.connect().session("forwarded", namespace={})
    made.run("x = list(range(1000))")

    def names() -> list[str]:
        state = server.get(f"clusters/embedded/v1/sessions/{made.name}/state")
        return [each["name"] for each in state.json()["variables"]]

    until(lambda: names() == ["x"], "its variable is saved")
    asked = "/mlcloud/clusters/embedded/v1/budgets"
    answer = server.http.put(asked, json={"session": made.name, "limit": "7/day"})
    assert [each["limit"] for each in answer.json()] == ["7/day"]
    path = f"clusters/embedded/v1/sessions/{made.name}"
    gone = server.http.delete(f"/mlcloud/{path}", timeout=60)
    assert (gone.status_code, gone.content) == (204, b"")
    missing = server.get(path)
    assert (missing.status_code, missing.json()["code"]) == (404, "NotFound")


@pytest.mark.parametrize(
    "path", ["../healthz", "%2e%2e/healthz", "a/../../healthz", "x%3Fy", "a b"]
)
def test_only_the_gateways_own_routes(server: Server, cluster: Embedded, path: str) -> None:
    cluster.connect()
    request = server.http.build_request("GET", "/mlcloud/clusters/embedded/v1/x")
    request.url = request.url.copy_with(
        raw_path=f"{server.base}mlcloud/clusters/embedded/v1/{path.replace(' ', '%20')}".encode()
    )
    answer = server.http.send(request)
    assert answer.status_code in (404, 422)
    assert "pid" not in answer.text


def test_a_cluster_that_is_not_known(server: Server) -> None:
    answer = server.get("clusters/nope/v1/cluster")
    assert answer.status_code == 404
    assert "there are: embedded" in answer.json()["message"]


def test_events_follow_and_hold_no_token(server: Server, cluster: Embedded) -> None:
    client = cluster.connect()
    token = cluster.connection["token"]
    with server.events() as events, server.events() as second:
        events.until(lambda: events.item("info"), "the cluster is told")
        assert events.known["embedded"]["up"] or events.until(
            lambda: events.known["embedded"]["up"], "it is up"
        )
        made = client.session("followed", namespace={})
        key = f"session/{made.name}"
        made.run("y = 1")
        for each in (events, second):
            each.until(
                lambda each=each: (
                    (each.item(key) or {}).get("state") == "idle"
                    and each.item(key)["finished_cells"] == 1
                ),
                "its cell has ended",
            )
        node = events.item(key)["node"]  # type: ignore[index]
        assert made.name in events.item(f"node/{node}")["sessions"]  # type: ignore[index]
        made.park()
        events.until(lambda: events.item(key)["state"] == "parked", "it is parked", 5)  # type: ignore[index]
        made.close()
        events.until(lambda: events.item(key) is None, "it is gone", 5)
        said = "".join([*events.texts, *second.texts])
    answers = [
        server.get(path)
        for path in ("clusters", "clusters/embedded/v1/cluster", "clusters/embedded/v1/nope")
    ]
    said += "".join(each.text + str(each.headers) for each in answers)
    assert token not in said
    assert len(said) > 1000


def test_a_job_is_followed_and_its_log_is_read(server: Server, cluster: Embedded) -> None:
    cluster.connect()
    with server.events() as events:
        events.until(lambda: events.item("jobs"), "it is told that there are jobs")
        job = remote(quiet=True)(_speaks).submit(3)
        key = f"job/{job.id}"
        events.until(lambda: events.item(key), "the job is told")

        def node() -> dict[str, Any] | None:
            """The one that its worker is on."""
            items = events.items["embedded"]
            nodes = [item for name, item in items.items() if name.startswith("node/")]
            return next((each for each in nodes if job.name in each["jobs"]), None)

        assert events.until(node, "its node is told", 90)["idle_since"] is None
        assert job.result(90) == 9
        events.until(lambda: events.item(key)["state"] == "done", "its end is told")  # type: ignore[index]
        log = server.get(f"clusters/embedded/v1/jobs/{job.id}/logs?after=0").json()
        assert "".join(each["text"] for each in log["pieces"]) == "squaring 3\n"


def _speaks(number: int) -> int:
    print("squaring", number)
    time.sleep(1)
    return number**2


def test_a_long_text_is_cut(server: Server, session: Callable[..., Session]) -> None:
    from mlcloud.gateway.watch import LONGEST, _cut

    assert len(_cut("x" * 10_000_000)) == LONGEST + 2
    made = session("long")
    with pytest.raises(Exception, match="xxx"):
        made.run("raise ValueError('x' * 10_000_000)")
    with server.events() as events:
        item = events.until(lambda: events.item(f"session/{made.name}"), "it is told")
        assert item["state"] == "idle"
        assert max(map(len, events.texts)) < 100_000


@pytest.mark.slow
def test_the_gateway_goes_and_comes_again(
    own_cluster: Callable[..., Embedded], own_server: Callable[[Embedded], Server]
) -> None:
    cluster = own_cluster()
    server = own_server(cluster)
    act = "/mlcloud/clusters/embedded"
    with server.events() as events:

        def up() -> bool:
            return bool(events.known.get("embedded", {}).get("up"))

        events.until(lambda: "embedded" in events.known, "it is known")
        assert not up()
        assert events.items.get("embedded", {}) == {}
        assert server.get("clusters/embedded/v1/cluster").status_code == 503

        assert server.http.post(f"{act}/up").status_code == 202
        events.until(up, "it is up", 60)
        events.until(lambda: (events.item("info") or {}).get("state") == "running", "it runs", 90)

        cluster.kill_gateway()
        events.until(lambda: not up(), "it is gone")
        events.until(lambda: events.items["embedded"] == {}, "nothing old is shown")
        cluster.connect()
        events.until(up, "it is up again")

        first, second = (server.http.post(f"{act}/down").status_code for _ in range(2))
        assert (first, second) == (202, 409)
        events.until(lambda: not up() and not events.known["embedded"]["doing"], "it is down", 90)
        assert not cluster.running()


def test_a_token_that_is_not_taken_is_said_and_heals(server: Server, cluster: Embedded) -> None:
    cluster.connect()
    path = cluster.settings.connection_file
    right = path.read_text()
    path.write_text(json.dumps({**json.loads(right), "token": "of-yesterday"}))
    try:
        refused = server.get("clusters/embedded/v1/cluster")
        assert refused.status_code == 503
        assert "does not take this server's token" in refused.json()["message"]
        with server.events() as events:
            events.until(
                lambda: "does not take" in events.known.get("embedded", {}).get("problem", ""),
                "the token is said to be wrong",
            )
            path.write_text(right)
            events.until(lambda: events.known["embedded"]["up"], "it is followed")
            assert events.known["embedded"]["problem"] == ""
    finally:
        path.write_text(right)


@pytest.mark.slow
def test_looking_on_keeps_no_cluster_awake(
    own_cluster: Callable[..., Embedded], own_server: Callable[[Embedded], Server]
) -> None:
    cluster = own_cluster(idle_end="4s")
    server = own_server(cluster)
    cluster.connect()
    with server.events() as events:
        events.until(lambda: events.known.get("embedded", {}).get("up"), "it is followed")
        events.until(lambda: not events.known["embedded"]["up"], "it has ended itself", 60)
        until(lambda: not cluster.running(), "nothing runs", 20)
