"""Compute Engine's REST API: one authorized session, operations waited for, lists page by page.

    call() ──► 200 ─► the answer            wait() ──► DONE ─► the operation
           └─► 429, 5xx: again, with a        │        └─► error ─► NoCapacity, QuotaExceeded, …
               pause (urllib3)                └─► still running after a while: None

Every change carries a `requestId`, so that one that the transport sends twice happens once
(https://cloud.google.com/apis/design/design_patterns#request_duplication).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import uuid4

from mlcloud.cluster.clouds.gcp import answers
from mlcloud.errors import (
    CloudCredentialsExpired,
    CloudRefused,
    Conflict,
    CredentialsMissing,
    NotFound,
)

URL = "https://compute.googleapis.com/compute/v1"
SCOPE = "https://www.googleapis.com/auth/compute"
#: Answers after which the same request is sent again, at most so often.
BUSY = (429, 500, 502, 503, 504)
RETRIES = 5


class Compute:
    """Calls in one project. Errors are those that `Cloud` lists, `NotFound` for a 404, and
    `Conflict` for what is there already."""

    def __init__(
        self,
        project: str | None = None,
        *,
        credentials: Any = None,
        url: str = URL,
        pause_s: float = 0.5,
    ) -> None:
        self._given = project
        self._credentials = credentials
        self._url = url.rstrip("/")
        self._pause_s = pause_s
        self._session: Any = None

    @property
    def project(self) -> str:
        """The project. Raises `CredentialsMissing` where nothing names one."""
        if not self._given:
            self._given = os.environ.get("GOOGLE_CLOUD_PROJECT") or None
        if not self._given:
            self._sign_in()
        if not self._given:
            raise CredentialsMissing(
                "gcp: no project is named: set network={'project': …} or GOOGLE_CLOUD_PROJECT"
            )
        return self._given

    def path(self, rest: str) -> str:
        return f"projects/{self.project}/{rest}"

    # --- calls ------------------------------------------------------------------------------------

    def call(
        self,
        method: str,
        path: str,
        what: str,
        *,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """One request. `path` begins with `projects/`, `what` says it for a message."""
        from google.auth import exceptions as auth
        from requests import exceptions as http

        session = self._sign_in()
        for attempt in range(RETRIES + 1):
            try:
                response = session.request(
                    method, f"{self._url}/{path}", json=body, params=params, timeout=150
                )
            except (auth.TransportError, http.RequestException) as error:
                raise CloudRefused(f"{what}: {self._url} cannot be reached: {error}") from error
            except auth.GoogleAuthError as error:
                raise CloudCredentialsExpired(
                    f"{what}: Google does not take the credentials any more ({error.args[0]}); "
                    "renew them: gcloud auth application-default login"
                ) from error
            if response.ok:
                return dict(response.json()) if response.content else {}
            refused = _error_of(response)
            if response.status_code == 404:
                raise NotFound(f"{what}: {refused.get('message', 'not found')}")
            if response.status_code == 409 and "alreadyExists" in answers.codes(refused):
                raise Conflict(f"{what}: {refused.get('message', 'is there already')}")
            # Google says "too often" with 403 too, which urllib3 does not take for a try again.
            if not answers.RATE.intersection(answers.codes(refused)) or attempt == RETRIES:
                break
            time.sleep(self._pause_s * 2**attempt)
        raise answers.refusal(refused, what=what, project=self.project)

    def change(
        self,
        method: str,
        path: str,
        what: str,
        *,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """A request that makes or ends something: the operation that does it.

        Each call is a request of its own: under the id of one that failed, Google would answer
        with that failure again.
        """
        return self.call(method, path, what, body=body, params={"requestId": str(uuid4())})

    def wait(
        self, operation: Mapping[str, Any], what: str, seconds: float
    ) -> dict[str, Any] | None:
        """The operation once it is done, or None if it is not after `seconds`.

        Google's `wait` holds the call until the operation is done, for two minutes at most.
        """
        until = time.monotonic() + seconds
        current = dict(operation)
        while current.get("status") != "DONE":
            if time.monotonic() >= until:
                return None
            path = f"{current['selfLink'].split('/compute/v1/')[-1]}/wait"
            before = time.monotonic()
            current = self.call("POST", path, what)
            if current.get("status") != "DONE" and time.monotonic() - before < self._pause_s:
                time.sleep(self._pause_s)  # answered at once all the same: not a busy loop
        if "error" in current:
            if "RESOURCE_ALREADY_EXISTS" in answers.codes(current["error"]):
                raise Conflict(f"{what}: is there already")
            raise answers.refusal(current["error"], what=what, project=self.project)
        return current

    def items(
        self, path: str, what: str, *, params: Mapping[str, str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The items of a list, all its pages; of an aggregated one, those of every scope.

        A scope that did not answer is an error: a machine that is missing from a list counts as
        gone.
        """
        asked = dict(params or {}, maxResults="500")
        while True:
            page = self.call("GET", path, what, params=asked)
            items = page.get("items", [])
            if isinstance(items, dict):
                for scope in items.values():
                    yield from next((v for v in scope.values() if isinstance(v, list)), [])
            else:
                yield from items
            if page.get("unreachables"):
                raise CloudRefused(f"{what}: no answer from {', '.join(page['unreachables'])}")
            if not page.get("nextPageToken"):
                return
            asked["pageToken"] = page["nextPageToken"]

    # --- who asks ---------------------------------------------------------------------------------

    def _sign_in(self) -> Any:
        if self._session is not None:
            return self._session
        try:
            import google.auth
            from google.auth.exceptions import DefaultCredentialsError
            from google.auth.transport.requests import AuthorizedSession
            from requests.adapters import HTTPAdapter
            from urllib3.util import Retry
        except ImportError as error:
            raise CredentialsMissing(
                f"gcp: {error.name} is not installed: pip install 'mlcloud[gcp]'"
            ) from error
        if self._credentials is None:
            try:
                self._credentials, project = google.auth.default(scopes=[SCOPE])
            except DefaultCredentialsError as error:
                raise CredentialsMissing(
                    "gcp: no credentials here: run `gcloud auth application-default login`, or set "
                    "GOOGLE_APPLICATION_CREDENTIALS to a service account's key file"
                ) from error
            self._given = self._given or project
        retry = Retry(
            total=RETRIES,
            status_forcelist=BUSY,
            allowed_methods=None,
            backoff_factor=self._pause_s,
            raise_on_status=False,
        )
        session: Any = AuthorizedSession(self._credentials)  # type: ignore[no-untyped-call]
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        self._session = session
        return session


def _error_of(response: Any) -> dict[str, Any]:
    """What an HTTP error says, also where it is not JSON (a proxy's)."""
    try:
        return dict(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return {"code": response.status_code, "message": f"HTTP {response.status_code}"}
