"""The client's WebSocket against a real server: messages of all sizes, refusals, ends, silence."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.server import Server, ServerConnection, serve

from mlcloud.client import wire
from mlcloud.client.wire import Wire


@contextmanager
def server(handle: Callable[[ServerConnection], None], **options: Any) -> Iterator[str]:
    running: Server = serve(handle, "127.0.0.1", 0, max_size=None, **options)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{running.socket.getsockname()[1]}"
    finally:
        running.shutdown()
        thread.join(10)


def echo(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


def test_messages_of_all_sizes() -> None:
    with server(echo) as url:
        link = Wire(url, {})
        for size in (0, 1, 125, 126, 70_000, 5_000_000):
            link.send(b"x" * size)
            assert link.recv() == b"x" * size
        link.close()


def test_a_message_in_fragments_and_many_at_once() -> None:
    def handle(connection: ServerConnection) -> None:
        connection.send([b"one ", b"two ", b"three"])
        for number in range(100):
            connection.send(b"%d" % number)
        connection.recv()

    with server(handle) as url:
        link = Wire(url, {})
        assert link.recv() == b"one two three"
        assert [link.recv() for _ in range(100)] == [b"%d" % number for number in range(100)]
        link.close()


def test_headers_are_sent_and_a_refusal_is_raised() -> None:
    def check(connection: ServerConnection, request: Any) -> Any:
        if request.headers.get("Authorization") != "Bearer right":
            return connection.respond(401, "no")
        return None

    with server(echo, process_request=check) as url:
        with pytest.raises(InvalidStatus, match="401"):
            Wire(url, {"Authorization": "Bearer wrong"})
        link = Wire(url + "/path?after=3", {"Authorization": "Bearer right"})
        link.send(b"in")
        assert link.recv() == b"in"
        link.close()


def test_nobody_there() -> None:
    with pytest.raises(OSError, match="refused"):
        Wire("ws://127.0.0.1:9", {})


def test_the_other_ends_close_is_told_to_who_reads_and_who_writes() -> None:
    with server(lambda connection: connection.close(4404, "gone")) as url:
        link = Wire(url, {})
        with pytest.raises(ConnectionClosed) as caught:
            link.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 4404
        with pytest.raises((ConnectionClosed, OSError)):
            link.send(b"x")
        link.close()


def test_closing_wakes_who_reads() -> None:
    with server(echo) as url:
        link = Wire(url, {})
        raised: list[BaseException] = []

        def read() -> None:
            try:
                link.recv()
            except (ConnectionClosed, OSError) as error:
                raised.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        time.sleep(0.2)
        link.close()
        reader.join(5)
        assert len(raised) == 1
        link.close()


def test_pings_are_answered_and_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "QUIET_S", 0.1)
    answered = threading.Event()

    def handle(connection: ServerConnection) -> None:
        if connection.ping().wait(5):
            answered.set()
        time.sleep(0.8)  # the client asks meanwhile, and the library answers
        connection.send(b"still here")
        with suppress(ConnectionClosed):
            connection.recv()

    with server(handle) as url:
        link = Wire(url, {})
        assert link.recv() == b"still here"
        assert answered.is_set()
        link.close()


def test_a_tunnel_that_swallows_everything_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "QUIET_S", 0.2)
    swallows = threading.Event()

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not swallows.is_set():
                    target.sendall(data)

    with server(echo) as url, socket.create_server(("127.0.0.1", 0)) as tunnel:

        def serve_one() -> None:
            near, _ = tunnel.accept()
            far = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
            threading.Thread(target=pass_on, args=(near, far), daemon=True).start()
            pass_on(far, near)

        threading.Thread(target=serve_one, daemon=True).start()
        link = Wire(f"ws://127.0.0.1:{tunnel.getsockname()[1]}", {})
        link.send(b"before")
        assert link.recv() == b"before"
        swallows.set()
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            link.recv()
        assert time.monotonic() - began < 5
        link.close()


def test_several_threads_send() -> None:
    with server(echo) as url:
        link = Wire(url, {})
        threads = [
            threading.Thread(target=lambda n=n: [link.send(b"%d" % n * 9000) for _ in range(20)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        found = [link.recv() for _ in range(80)]
        for thread in threads:
            thread.join()
        assert sorted(found) == sorted(b"%d" % n * 9000 for n in range(4) for _ in range(20))
        link.close()
