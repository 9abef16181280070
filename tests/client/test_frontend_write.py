"""What is printed under a running cell leaves at once, in order, by ipykernel's stream or not."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from ipykernel.iostream import IOPubThread, OutStream
from jupyter_client.session import Session

from mlcloud.client import frontend

PARENT = {"msg_id": "m-1", "session": "s", "username": "u", "date": "", "msg_type": "x"}


class Kernel:
    """A stream of ipykernel's, and what a front end receives of it."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        publisher = self._context.socket(zmq.PUB)
        port = publisher.bind_to_random_port("tcp://127.0.0.1")
        self._front = self._context.socket(zmq.SUB)
        self._front.subscribe(b"")
        self._front.connect(f"tcp://127.0.0.1:{port}")
        self.session = Session(key=b"k")
        self.thread = IOPubThread(publisher)
        self.thread.start()
        self.stream = OutStream(self.session, self.thread, "stdout", watchfd=False)
        self.stream.set_parent({"header": PARENT})
        while not self._front.poll(50):  # until it is subscribed
            self.session.send(self.thread, "hello", {})
        while self._front.poll(100):
            self._front.recv_multipart()

    def texts(self, count: int) -> list[str]:
        found = []
        for _ in range(count):
            assert self._front.poll(5000), found
            _, parts = self.session.feed_identities(self._front.recv_multipart())
            message = self.session.deserialize(parts)
            assert message["msg_type"] == "stream"
            assert message["parent_header"]["msg_id"] == "m-1"
            found.append(message["content"]["text"])
        return found

    def close(self) -> None:
        self.stream.close()
        self.thread.stop()
        self.thread.close()
        self._front.close()
        self._context.term()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.close()


def by_the_stream(monkeypatch: pytest.MonkeyPatch, stream: Any) -> list[str]:
    """What goes through the stream's own `write` from now on."""
    seen: list[str] = []
    write = stream.write
    monkeypatch.setattr(stream, "write", lambda text: seen.append(text) or write(text))
    return seen


def test_it_leaves_without_the_streams_flush(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = by_the_stream(monkeypatch, kernel.stream)
    for number in range(5):
        frontend.write(kernel.stream, f"{number}\n")
    assert kernel.texts(5) == [f"{number}\n" for number in range(5)]
    assert seen == []


def test_what_was_printed_before_comes_first(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.stream.write("local ")
    seen = by_the_stream(monkeypatch, kernel.stream)
    frontend.write(kernel.stream, "remote")
    assert seen == ["remote"]
    assert "".join(kernel.texts(1)) == "local remote"
    frontend.write(kernel.stream, " and on")
    assert kernel.texts(1) == [" and on"]


def test_who_listens_to_the_stream_hears_it(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = by_the_stream(monkeypatch, kernel.stream)
    kernel.stream.register_hook(lambda message: message)
    frontend.write(kernel.stream, "hooked")
    assert seen == ["hooked"]
    kernel.stream._hooks.clear()
    echo = io.StringIO()
    kernel.stream.echo = echo
    frontend.write(kernel.stream, "echoed")
    assert echo.getvalue() == "echoed"


def test_another_stream_is_written_to() -> None:
    captured = io.StringIO()
    frontend.write(captured, "text")
    assert captured.getvalue() == "text"
