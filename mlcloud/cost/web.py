"""JSON from a price list's API over HTTPS, with a bounded patience.

429 and 5xx are asked again, after what `Retry-After` says or 0.5, 1, 2 … seconds; so are lost
connections. Anything else is an answer. Keys travel in headers, never in the URL, which is in
messages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mlcloud.errors import CloudCredentialsExpired, CloudRefused

if TYPE_CHECKING:
    import httpx

_TRIES = 5
_LONGEST = 30.0  # seconds between two tries, whatever the server asks for
_AGAIN = (429, 500, 502, 503, 504)


class Web:
    """One connection pool. `sleep` waits between tries (tests pass their own)."""

    def __init__(self, *, timeout: float = 30.0, sleep: Callable[[float], None] = time.sleep):
        import httpx

        self._client = httpx.Client(timeout=timeout, follow_redirects=True)
        self._sleep = sleep

    def get(
        self,
        url: str,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """The JSON object at `url`.

        Raises `CloudRefused` with the last answer, `CloudCredentialsExpired` for a 401.
        """
        import httpx

        said = ""
        for attempt in range(_TRIES):
            wait = 0.5 * 2**attempt
            try:
                answer = self._client.get(url, params=params, headers=headers)
            except httpx.TransportError as error:
                said = f"{type(error).__name__}: {error}"
            else:
                if answer.status_code == 200:
                    return _object(url, answer)
                said = f"HTTP {answer.status_code}: {_short(answer)}"
                if answer.status_code == 401:
                    raise CloudCredentialsExpired(f"{_host(url)} does not take the key: {said}")
                if answer.status_code not in _AGAIN:
                    raise CloudRefused(f"{_host(url)} refused: {said}")
                wait = _asked_for(answer) or wait
            if attempt + 1 < _TRIES:
                self._sleep(min(wait, _LONGEST))
        raise CloudRefused(f"{_host(url)} did not answer in {_TRIES} tries: {said}")

    def close(self) -> None:
        self._client.close()


def _object(url: str, answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CloudRefused(f"{_host(url)} did not answer with JSON: {_short(answer)}")
    return found


def _asked_for(answer: httpx.Response) -> float:
    try:
        return max(0.0, float(answer.headers.get("retry-after", "")))
    except ValueError:
        return 0.0


def _short(answer: httpx.Response) -> str:
    text = " ".join(answer.text.split())
    return text[:200] + ("…" if len(text) > 200 else "")


def _host(url: str) -> str:
    return url.split("?")[0]
