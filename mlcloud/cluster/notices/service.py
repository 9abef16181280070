"""Requests to a metadata service: never through a proxy, never redirected, never for ever.

The service lives at a link-local address that only the machine itself reaches. Where there is none
(another cloud, a container behind one hop too many, whose answers are dropped) a connection is
refused or hangs: `limit_s` bounds the whole exchange, also for a server that sends a byte a second.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

LIMIT_S = 2.0
MOST = 256 * 1024  # bytes of an answer

Endpoint = Callable[[], str | None]


class NoAnswer(OSError):
    """There is no service here, or it does not say what was asked."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def date(self) -> datetime:
        """The service's time; this machine's where it does not tell."""
        with contextlib.suppress(TypeError, ValueError):
            return utc(parsedate_to_datetime(self.headers.get("date", "")))
        return datetime.now(timezone.utc)

    def until(self, moment: datetime) -> float:
        """Seconds from the answer to a moment that the service named, by the service's clock."""
        return max(0.0, (utc(moment) - self.date).total_seconds())

    def json(self) -> Any:
        return json.loads(self.text)


def utc(moment: datetime) -> datetime:
    """A time without a zone is UTC: every cloud's is."""
    return moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment


class Service:
    """A service at `endpoint`, which may move or be unknown for a while (None)."""

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str] | None = None) -> None:
        self._endpoint = endpoint
        self._headers = dict(headers or {})

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        limit_s: float | None = None,
    ) -> Answer:
        """An answer of any status, within `LIMIT_S` if not told otherwise. Raises `NoAnswer`."""
        limit_s = LIMIT_S if limit_s is None else limit_s
        endpoint = self._endpoint()
        if endpoint is None:
            raise NoAnswer("where the metadata service is, is not known")
        try:
            return _exchange(method, endpoint, path, {**self._headers, **(headers or {})}, limit_s)
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            said = str(error) or type(error).__name__
            raise NoAnswer(f"no answer from {urlsplit(endpoint).netloc}: {said}") from None

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer | None:
        """What is at `path`, None where nothing is (404). Raises `NoAnswer`."""
        return found(self.request("GET", path, headers), path)


def found(answer: Answer, path: str) -> Answer | None:
    if answer.status == 404:
        return None
    if answer.status != 200:
        raise NoAnswer(f"status {answer.status} at {path}")
    return answer


def _exchange(
    method: str, endpoint: str, path: str, headers: Mapping[str, str], limit_s: float
) -> Answer:
    parts = urlsplit(endpoint)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=limit_s)
    cut = threading.Event()
    # A timeout of the socket is one for each piece that comes; this one is for all of them.
    timer = threading.Timer(limit_s, _cut, (connection, cut))
    timer.daemon = True
    try:
        connection.connect()
        timer.start()
        connection.request(
            method, parts.path.rstrip("/") + path, headers={**headers, "Connection": "close"}
        )
        response = connection.getresponse()
        body = response.read(MOST + 1)
        if cut.is_set():
            raise TimeoutError(f"not complete within {limit_s:g} s")
        if len(body) > MOST:
            raise NoAnswer(f"more than {MOST} bytes")
        kept = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, kept, body.decode())
    except (OSError, http.client.HTTPException, ValueError):
        if cut.is_set():
            raise TimeoutError(f"not complete within {limit_s:g} s") from None
        raise
    finally:
        timer.cancel()
        connection.close()


def _cut(connection: http.client.HTTPConnection, cut: threading.Event) -> None:
    cut.set()
    with contextlib.suppress(OSError, AttributeError):  # it may be closed by now
        connection.sock.shutdown(socket.SHUT_RDWR)
