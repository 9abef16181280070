"""The way to a pod's port through the API server: a stand-in of that, a real server behind it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from mlcloud.client.portforward import PortForward
from mlcloud.cluster.clouds.kubernetes.api import Api
from mlcloud.errors import ConnectionFailed
from tests.live import until

pytest.importorskip("kubernetes")

from tests.cluster.clouds.kubelet import NAMESPACE, ApiServer

PORT = 8443
LABELS = {"ray.io/cluster": "pods", "ray.io/node-type": "head"}


class Echo:
    """What is sent to it comes back; `taken` are its connections."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.taken: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                one, _ = self.listener.accept()
            except OSError:
                return
            self.taken.append(one)
            threading.Thread(target=self._serve, args=(one,), daemon=True).start()

    @staticmethod
    def _serve(one: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                one.sendall(data)
        except OSError:
            pass
        one.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.listener.close()


@pytest.fixture
def server(echo: Echo) -> Iterator[ApiServer]:
    with ApiServer() as made:
        made.connects = lambda pod, port: _connected(pod, port, echo)
        made.put("pods", {"metadata": {"name": "h-1", "labels": LABELS}})
        made.status("h-1", phase="Running")
        yield made


def _connected(pod: str, port: int, echo: Echo) -> socket.socket:
    assert port == PORT
    if pod == "h-deaf":
        raise ConnectionRefusedError("nothing listens in the pod")
    made = socket.create_connection(("127.0.0.1", echo.port))
    made.setblocking(False)
    return made


@pytest.fixture
def way(server: ApiServer) -> Iterator[PortForward]:
    made = PortForward(Api(NAMESPACE, url=server.url), "pods", PORT)
    yield made
    made.close()


def connection(way: PortForward) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", way.port), 10)
    made.settimeout(20)
    return made


def echoed(one: socket.socket, data: bytes) -> bytes:
    threading.Thread(target=one.sendall, args=(data,), daemon=True).start()
    found = bytearray()
    while len(found) < len(data) and (piece := one.recv(2**20)):
        found += piece
    return bytes(found)


def test_bytes_go_there_and_back_as_they_are(way: PortForward) -> None:
    assert way.open() == f"http://127.0.0.1:{way.port}"
    data = os.urandom(8 * 2**20)
    with connection(way) as one, connection(way) as other:
        assert echoed(one, data) == data
        assert echoed(other, b"\x00\x01") == b"\x00\x01"
        assert echoed(one, b"still there") == b"still there"


def test_an_end_on_either_side_is_an_end_on_the_other(way: PortForward, echo: Echo) -> None:
    with connection(way) as one:
        assert echoed(one, b"x") == b"x"
        echo.taken[0].shutdown(socket.SHUT_RDWR)
        assert one.recv(1) == b""
    two = connection(way)
    assert echoed(two, b"y") == b"y"
    two.close()
    until(lambda: echo.taken[1].fileno() == -1, "the pod's side ends too")


def test_the_pod_is_looked_up_anew(way: PortForward, server: ApiServer) -> None:
    with connection(way) as one:
        assert echoed(one, b"x") == b"x"
    server.objects["pods"].clear()
    with pytest.raises(ConnectionFailed, match=r"'pods' has no head now.*`mlcloud up` brings it"):
        way.open()
    with connection(way) as one:
        assert one.recv(1) == b""
    server.put("pods", {"metadata": {"name": "h-2", "labels": LABELS}})
    server.status("h-2", phase="Running")
    with connection(way) as one:
        assert echoed(one, b"again") == b"again"


def test_a_pod_in_which_nothing_listens(way: PortForward, server: ApiServer) -> None:
    server.objects["pods"].clear()
    server.put("pods", {"metadata": {"name": "h-deaf", "labels": LABELS}})
    server.status("h-deaf", phase="Running")
    with connection(way) as one:
        assert one.recv(1) == b""


def test_an_api_server_that_takes_the_credentials_no_more(
    way: PortForward, server: ApiServer
) -> None:
    server.token = "another"
    with pytest.raises(ConnectionFailed, match="does not take the credentials any more"):
        way.open()
    with connection(way) as one:
        assert one.recv(1) == b""


def test_closed_is_closed(way: PortForward) -> None:
    port = way.port
    way.close()
    way.close()
    assert way.closed
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 2)
