"""The client's way to a gateway in a pod: the Kubernetes API server's port-forward.

    127.0.0.1:<free port> ══ WebSocket, TLS, kubectl's rights ══► API server ══► kubelet ──► pod

Each connection here is one there, so one that is cut takes no other along. The pod is looked up
again for each, since the operator may have made another. Nothing listens outside the cluster for
it, and the gateway's own loopback port is what it leads to.

In the cluster's own network (a JupyterHub's pod) none is needed: `beside.service`, by TLS with the
gateway's certificate alone.
"""

from __future__ import annotations

import atexit
import contextlib
import socket
import threading
from typing import Any

from mlcloud.cluster.clouds.kubernetes.api import Api
from mlcloud.errors import ConnectionFailed, MLCloudError

PIECE = 256 * 1024


class PortForward:
    """To `far` on the loopback address of the head of the RayCluster `name`. Any thread's."""

    def __init__(self, api: Api, name: str, far: int) -> None:
        self.target, self.far = (api.namespace, name), far
        self._api, self._name = api, name
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._closed = threading.Event()
        self._asking = threading.Lock()  # the client library is not for two threads at once
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
        here.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            there = self._forwarded()
        except Exception:  # of several libraries; who connected sees its connection end
            here.close()
            return
        back = threading.Thread(target=_pump, args=(there, here), daemon=True)
        back.start()
        _pump(here, there)
        back.join()
        here.close()
        there.close()

    def _forwarded(self) -> Any:
        """A socket to the pod's port."""
        from kubernetes.client import ApiClient, CoreV1Api
        from kubernetes.stream import portforward

        with self._asking:
            core = CoreV1Api(ApiClient(self._api.client().configuration))
            forward = portforward(
                core.connect_get_namespaced_pod_portforward,
                self._pod(),
                self._api.namespace,
                ports=str(self.far),
            )
        return forward.socket(self.far)


def _pump(source: Any, target: Any) -> None:
    """Until `source` ends; `target` is told so."""
    with contextlib.suppress(OSError):
        while piece := source.recv(PIECE):
            target.sendall(piece)
    for each in (target, source):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
