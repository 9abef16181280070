"""The client's way to a gateway in a pod: the Kubernetes API server's port-forward.

    127.0.0.1:<free port> ══ WebSocket, TLS, kubectl's rights ══► API server ══► kubelet ──► pod

Each connection here is one there, so one that is cut takes no other along. The pod is looked up
again for each, since the operator may have made another. Nothing listens outside the cluster for
it, and the gateway's own loopback port is what it leads to. (The official client has this too, but
holds what is sent in memory whole, and leaves connections hanging where the API server ends them.)

In the cluster's own network (a JupyterHub's pod) none is needed: `beside.service`, by TLS with the
gateway's certificate alone.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

from websockets.typing import Subprotocol

from mlcloud.cluster.clouds.kubernetes.api import Api
from mlcloud.errors import ConnectionFailed, MLCloudError

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

log = logging.getLogger(__name__)
PIECE, OPEN_S = 256 * 1024, 10.0
#: Channel 0 carries data and channel 1 errors, in binary messages.
PROTOCOL, DATA = "v4.channel.k8s.io", b"\0"


class PortForward:
    """To `far` on the loopback address of the head of the RayCluster `name`. Any thread's."""

    def __init__(self, api: Api, name: str, far: int) -> None:
        self.target, self.far = (api.namespace, name), far
        self._api, self._name = api, name
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._closed = threading.Event()
        self._asking = threading.Lock()  # it may renew its token
        threading.Thread(target=self._accept, name="mlcloud-port-forward", daemon=True).start()
        atexit.register(self.close)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def open(self, timeout: float = 0) -> str:
        """Its address here. Raises `ConnectionFailed` where there is no head to lead to."""
        self._pod()
        return self.url

    def close(self) -> None:
        """Idempotent."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        atexit.unregister(self.close)

    def _pod(self) -> str:
        selector = f"ray.io/cluster={self._name},ray.io/node-type=head"
        try:
            found = self._api.list("pod", selector, "status.phase=Running")
        except MLCloudError as error:
            raise ConnectionFailed(f"no way to the head of {self._name!r}: {error}") from error
        if not found:
            raise ConnectionFailed(
                f"{self._name!r} has no head now: it ended after idle time, or Kubernetes moves "
                "it; `mlcloud up` brings it back"
            )
        newest = max(found, key=lambda each: each["metadata"].get("creationTimestamp", ""))
        return str(newest["metadata"]["name"])

    # --- its threads ------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(here,), daemon=True).start()

    def _serve(self, here: socket.socket) -> None:
        from websockets.exceptions import InvalidHandshake

        here.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            with self._connected() as there:
                back = threading.Thread(target=_back, args=(there, here), daemon=True)
                back.start()
                _forth(here, there)
                back.join()
        except (MLCloudError, InvalidHandshake, OSError) as error:
            log.info("no way to the head of %s: %s", self._name, error)
        finally:
            here.close()  # who connected sees that

    def _connected(self) -> ClientConnection:
        """The way to the pod's port: a WebSocket whose first byte is the channel's number."""
        from websockets.sync.client import connect

        client, pod = self._api.client(), self._pod()
        headers: dict[str, str] = {}
        with self._asking:
            client.update_params_for_auth(headers, [], ["BearerToken"])
        known = client.configuration
        secure = known.host.startswith("https")
        path = f"/api/v1/namespaces/{self._api.namespace}/pods/{pod}/portforward?ports={self.far}"
        return connect(
            f"ws{known.host.removeprefix('http')}{path}",
            ssl=_trusting(known) if secure else None,
            server_hostname=(known.tls_server_name or None) if secure else None,
            additional_headers=headers,
            subprotocols=[Subprotocol(PROTOCOL)],
            proxy=known.proxy or True,
            compression=None,
            max_size=None,
            # What goes through has pings of its own.
            ping_interval=None,
            open_timeout=OPEN_S,
            close_timeout=1,
        )


def _trusting(known: Any) -> ssl.SSLContext:
    """As the official client's configuration says."""
    made = ssl.create_default_context(cafile=known.ssl_ca_cert)
    if not known.verify_ssl:
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    if known.cert_file:
        made.load_cert_chain(known.cert_file, known.key_file)
    return made


def _forth(here: socket.socket, there: ClientConnection) -> None:
    from websockets.exceptions import ConnectionClosed

    with contextlib.suppress(OSError, ConnectionClosed):
        while piece := here.recv(PIECE):
            there.send(DATA + piece)
    there.close()


def _back(there: ClientConnection, here: socket.socket) -> None:
    """Of each channel the first message only says which port it is of."""
    from websockets.exceptions import ConnectionClosed

    begun = set()
    with contextlib.suppress(OSError, ConnectionClosed):
        for message in there:
            assert isinstance(message, bytes)
            channel = message[:1]
            if channel not in begun:
                begun.add(channel)
            elif channel == DATA:
                here.sendall(memoryview(message)[1:])
            else:
                log.info("the pod: %s", message[1:].decode(errors="replace"))
                break
    with contextlib.suppress(OSError):
        here.shutdown(socket.SHUT_RDWR)
    there.close()
