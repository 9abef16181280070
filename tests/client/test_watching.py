"""What looks at the cluster: while somebody looks and no longer, without waking or holding it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mlcloud.client import watching
from mlcloud.client.connection import Address
from mlcloud.client.watching import Watch
from tests.live import Embedded, until


class Gateway(ThreadingHTTPServer):
    """Answers as a gateway would, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bool]] = []
        self.answers: dict[str, tuple[int, bytes]] = {}
        super().__init__(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def look(self) -> Address:
        return Address(f"http://127.0.0.1:{self.server_port}", "secret")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _any(self) -> None:
        server = self.server
        assert isinstance(server, Gateway)
        assert self.headers["Authorization"] == "Bearer secret"
        server.asked.append((self.command, self.path, "mlcloud-glance" in self.headers))
        status, body = server.answers.get(self.path, (200, b"{}"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = _any

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    server = Gateway()
    yield server
    server.shutdown()
    server.server_close()


def test_it_runs_while_beats_come_and_then_stops(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "EVERY_S", 0.05)
    monkeypatch.setattr(watching, "LINGER_S", 0.5)
    published: list[str | None] = []
    watch = Watch(gateway.look, lambda cluster, spend: published.append(cluster))
    assert not watch.runs  # nobody looked yet
    watch.beat()
    until(lambda: len(published) > 3, "it is read again and again")
    until(lambda: not watch.runs, "nobody looks, and it stops")
    count = len(gateway.asked)
    time.sleep(0.2)
    assert len(gateway.asked) == count
    watch.beat()
    until(lambda: len(gateway.asked) > count, "somebody looks again")
    watch.close()
    until(lambda: not watch.runs, "it is closed")
    assert all(glance for _, _, glance in gateway.asked)
    spends = [path for _, path, _ in gateway.asked if path.startswith("/v1/spend")]
    assert len(spends) == 1  # every ten seconds


def test_a_cell_that_began_while_somebody_looked_counts(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "EVERY_S", 0.05)
    monkeypatch.setattr(watching, "LINGER_S", 0.3)
    watch = Watch(gateway.look, lambda cluster, spend: None)
    watch.beat()
    watch._cell_begins()
    time.sleep(0.6)
    assert watch.runs
    watch._cell_ended()
    until(lambda: not watch.runs, "the cell ended, and nobody looks")


def test_what_is_pressed(gateway: Gateway) -> None:
    watch = Watch(gateway.look, lambda cluster, spend: None)
    assert watch.act("park", "a b") == "session a b is parked: its node is given back"
    assert watch.act("resume", "x") == "session x is on a node again"
    assert watch.act("close", "x") == "session x is closed"
    assert watch.act("interrupt", "x", "e-1") == "session x was interrupted"
    assert watch.act("interrupt", "x") == "session x runs no cell"
    assert gateway.asked == [
        ("POST", "/v1/sessions/a%20b/park", False),
        ("POST", "/v1/sessions/x/resume", False),
        ("DELETE", "/v1/sessions/x", False),
        ("POST", "/v1/sessions/x/executions/e-1/interrupt", False),
    ]
    told = {"code": "Conflict", "message": "`fig` would be lost"}
    gateway.answers["/v1/sessions/x/park"] = (409, json.dumps(told).encode())
    assert watch.act("park", "x") == "session x: park failed: `fig` would be lost"


def test_a_gateway_that_is_gone_is_not_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def look() -> None:
        looks.append(1)

    published: list[str | None] = []
    watch = Watch(look, lambda cluster, spend: published.append(cluster))
    for _ in range(20):
        watch.tick()
    assert published == [""] * 20
    assert len(looks) == 1  # and seldom looked for
    assert "no gateway is up" in watch.act("park", "x")


@pytest.mark.cluster
def test_a_dashboard_neither_wakes_nor_holds_a_cluster(
    own_cluster: Callable[..., Embedded],
) -> None:
    pytest.importorskip("anywidget")
    import mlcloud
    from mlcloud.client import embedded as module
    from mlcloud.client.show import dashboard

    cluster = own_cluster(idle_end="4s")
    settings = cluster.settings
    board = dashboard(lambda: module.running(settings))
    assert "no cluster is up" in board.text()
    assert not cluster.running()
    client = cluster.connect()
    client.session("one", namespace={}).run("x = 1", quiet=True)
    client.attach("one").park()
    watch = Watch(client.look, board.take)
    seen = []
    monotonic = time.monotonic() + 60

    def ended() -> bool:
        watch.tick()
        seen.append(bool(board.cluster))
        time.sleep(0.2)
        return not board.cluster

    until(ended, "an idle gateway ends though it is looked at", timeout=60)
    assert any(seen)
    assert time.monotonic() < monotonic
    assert "no cluster is up" in board.text()
    assert mlcloud.show is not None
