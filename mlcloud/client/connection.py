"""A connection to a gateway: authenticated HTTP, errors raised as the classes they were,
reconnects.

The embedded gateway may be killed and started again by anybody: a refused connection makes us look
at the connection file anew, and start one if there is none. A gateway named by URL is only retried.
"""

from __future__ import annotations

import contextlib
import http.client
import json as _json
import selectors
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from mlcloud import errors
from mlcloud.client import pinned

LANE_TIMEOUT_S = 60.0
LANE_IDLE_S = 3.0  # uvicorn closes after 5


@dataclass(frozen=True)
class Address:
    """Where a gateway listens, and the token it takes."""

    url: str
    token: str
    #: TLS to a gateway whose certificate is pinned; None: who is on loopback, or has a bought one
    tls: ssl.SSLContext | None = field(default=None, compare=False)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def __repr__(self) -> str:  # never the token
        return f"Address({self.url!r})"


class Connection:
    """`find` gives the gateway's present address, starting it where that is ours to do; `look`
    gives it, or None, and starts nothing; `recover` (as `find`) gives it to who waits: it starts no
    cluster, and raises `ClusterDown` where that is needed.

    `cluster` is the name of the cluster, if it was found by that; empty: the embedded one, or one
    by its URL."""

    def __init__(
        self,
        find: Callable[[], Address],
        *,
        embedded: bool,
        look: Callable[[], Address | None] | None = None,
        recover: Callable[[], Address] | None = None,
        cluster: str = "",
    ) -> None:
        self._find = find
        self.cluster = cluster
        self._look = look
        self._recover = recover or find
        self.embedded = embedded
        self.address = find()
        self._http = self._open()
        self._finding = threading.Lock()
        self._lanes: list[tuple[float, http.client.HTTPConnection]] = []

    def _open(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.address.url,
            headers=self.address.headers,
            timeout=httpx.Timeout(60.0, connect=5.0),
            verify=self.address.tls or True,
            trust_env=False,
        )

    def reopen(self, *, start: bool = True) -> None:
        """Find the gateway again after it was lost. Raises `ConnectionFailed`. From any thread.

        `start` False: a cluster that is down stays so, and `ClusterDown` is raised.
        """
        with self._finding:
            self._close_lanes()
            address = self._find() if start else self._recover()
            if address != self.address:
                self.address = address
                # Not closed: another thread may be in the middle of finding out that it is dead.
                self._http = self._open()

    def answers(self) -> bool:
        """Whether the gateway can be reached now; an embedded one that is gone is not started."""
        try:
            address = self._find() if self._look is None else self._look()
        except errors.MLCloudError:
            return False
        if address is not None and address != self.address:
            self.reopen()
        return address is not None

    def look(self) -> Address | None:
        """Where the gateway answers now, None where it does not; starts nothing."""
        try:
            return self._find() if self._look is None else self._look()
        except errors.MLCloudError:
            return None

    @contextlib.contextmanager
    def lane(self) -> Iterator[http.client.HTTPConnection]:
        """A plain connection of the caller's own, for bytes in bulk: it copies none of them.

        Paths begin with `prefix`. Safe to call from several threads. One that an error interrupts
        is closed, others are used again.
        """
        lane = self._idle_lane() or self._new_lane()
        try:
            yield lane
        except BaseException:
            lane.close()
            raise
        self._lanes.append((time.monotonic(), lane))

    def _idle_lane(self) -> http.client.HTTPConnection | None:
        while self._lanes:
            try:
                since, lane = self._lanes.pop()
            except IndexError:  # another thread took it
                return None
            if time.monotonic() - since < LANE_IDLE_S and not _ended(lane):
                return lane
            lane.close()
        return None

    def _new_lane(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.address.url)
        host = parts.hostname or "localhost"
        if parts.scheme == "https":
            return http.client.HTTPSConnection(
                host,
                parts.port,
                timeout=LANE_TIMEOUT_S,
                context=self.address.tls or httpx.create_ssl_context(trust_env=False),
            )
        return http.client.HTTPConnection(host, parts.port, timeout=LANE_TIMEOUT_S)

    @property
    def prefix(self) -> str:
        """What the gateway's URL has in front of `/v1`."""
        return urlsplit(self.address.url).path.rstrip("/")

    def _close_lanes(self) -> None:
        lanes, self._lanes = self._lanes, []
        for _, lane in lanes:
            lane.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: dict[str, Any] | None = None,
        missing_ok: bool = False,
        timeout: float | None = None,
        content: bytes | None = None,
        start: bool = True,
    ) -> httpx.Response:
        """One request; a lost gateway is found again (`start`: as of `reopen`). Raises what the
        gateway raised."""
        options: dict[str, Any] = {"json": json, "params": params}
        if content is not None:
            options["content"] = content
        if timeout is not None:
            options["timeout"] = timeout
        last = 3 if self.embedded else 2  # one that ends itself may be found just before its end
        for attempt in range(1, last + 1):
            try:
                response = self._http.request(method, path, **options)
                break
            except httpx.TransportError as error:
                if attempt == last:
                    raise errors.ConnectionFailed(
                        f"the gateway at {self.address.url} does not answer ({error}); "
                        f"{'run the cell again' if self.embedded else 'is it running?'}"
                    ) from error
                self.reopen(start=start)
        if missing_ok and response.status_code == 404:
            return response
        if response.is_error:
            raise error_from(response)
        return response

    def ask(self, path: str, json: Any, timeout: float, method: str = "POST") -> Any:
        """A request tried once, for at most `timeout` seconds; {} where that gives no answer.

        For what is asked in passing: nothing is started, found again, or raised.
        """
        try:
            response = self._http.request(method, path, json=json, timeout=timeout)
        except (httpx.HTTPError, RuntimeError):  # httpx raises RuntimeError for a closed client
            return {}
        return {} if response.is_error else response.json()

    def get(self, path: str, **options: Any) -> Any:
        return self.request("GET", path, **options).json()

    def post(self, path: str, json: Any = None, **options: Any) -> Any:
        response = self.request("POST", path, json=json, **options)
        return response.json() if response.content else None

    def put(self, path: str, json: Any, **options: Any) -> Any:
        return self.request("PUT", path, json=json, **options).json()

    def close(self) -> None:
        self._http.close()
        self._close_lanes()


def _ended(lane: http.client.HTTPConnection) -> bool:
    """Whether the gateway closed a connection that waits: there is something to read, the end."""
    if lane.sock is None:
        return True
    with selectors.DefaultSelector() as selector:
        selector.register(lane.sock, selectors.EVENT_READ)
        return bool(selector.select(0))


def error_from(response: httpx.Response) -> errors.MLCloudError:
    """The error that the gateway raised, as its own class."""
    asked = f"{response.request.method} {response.request.url.path}"
    return error_in(response.content, response.status_code, asked)


def error_in(body: bytes, status: int, asked: str) -> errors.MLCloudError:
    """The error that an answer's body holds."""
    try:
        told = _json.loads(body)
        code, message = told["code"], told["message"]
    except (ValueError, KeyError, TypeError):
        return errors.MLCloudError(f"the gateway answered {status} to {asked}")
    return error_named(code, message)


def error_named(code: str, message: str) -> errors.MLCloudError:
    """An error of the class that `code` names, or the root where we know no such class."""
    kind = getattr(errors, code, None)
    if isinstance(kind, type) and issubclass(kind, errors.MLCloudError):
        return kind(message)
    return errors.MLCloudError(f"{code}: {message}")


def fixed(url: str, token: str | None, fingerprint: str | None = None) -> Callable[[], Address]:
    """A gateway by URL: check it once at connect, with a clear word when it is not there.

    `fingerprint` is its certificate's SHA-256: nothing is sent to who has another one.
    """
    tls = pinned.context(url, fingerprint) if fingerprint else None
    address = Address(url.rstrip("/"), token or "", tls)

    def find() -> Address:
        until = time.monotonic() + 10
        while True:
            try:
                response = httpx.get(
                    f"{address.url}/v1/sessions",
                    headers=address.headers,
                    timeout=5,
                    verify=tls or True,
                    trust_env=False,
                )
            except (httpx.TransportError, httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                if fingerprint is None and "CERTIFICATE_VERIFY_FAILED" in str(error):
                    raise errors.ConnectionFailed(
                        f"no authority vouches for the certificate of {address.url}: pass the "
                        "gateway's own, `mlcloud.connect(url, token=…, fingerprint=…)`"
                    ) from error
                if time.monotonic() > until or not isinstance(error, httpx.ConnectError):
                    raise errors.ConnectionFailed(
                        f"no gateway answers at {address.url} ({error}); check the address, or use "
                        "`mlcloud.connect()` for the embedded one"
                    ) from error
                time.sleep(0.5)
                continue
            if response.is_error:
                raise error_from(response)
            return address

    return find
