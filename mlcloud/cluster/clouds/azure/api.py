"""Azure Resource Manager: one pipeline, operations waited for, lists page by page.

    call() ──► 2xx ─► the answer            change() ──► 201, 202 ─► Azure-AsyncOperation
           └─► 429, 5xx: again, after          wait() ──► Succeeded ─► done
               what Retry-After says                 └──► Failed ─► NoCapacity, QuotaExceeded, …

`wait` is ours because it must give up: azure-core's poller goes on in a thread of its own.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlcloud.cluster.clouds.azure import answers
from mlcloud.errors import (
    CloudCredentialsExpired,
    CloudRefused,
    Conflict,
    CredentialsMissing,
    NotFound,
)

URL = "https://management.azure.com"
#: Versions of the services' APIs; their schemas are checked in the tests.
VERSIONS = {
    "Microsoft.Compute/virtualMachines": "2024-07-01",
    "Microsoft.Compute/disks": "2024-03-02",
    "Microsoft.Network": "2024-05-01",
    "resourcegroups": "2022-09-01",
    "subscriptions": "2022-12-01",
}
RETRIES = 5


class Arm:
    """Calls in one subscription. Errors are those that `Cloud` lists, `NotFound` for a 404, and
    `Conflict` for what is there already."""

    def __init__(
        self,
        subscription: str | None = None,
        *,
        credential: Any = None,
        url: str = URL,
        pause_s: float = 2.0,
    ) -> None:
        self._given = subscription
        self._credential = credential
        self._url = url.rstrip("/")
        self._pause_s = pause_s
        self._client: Any = None
        self._signed_in = False

    @property
    def subscription(self) -> str:
        """The subscription's id. Raises `CredentialsMissing` where nothing names one."""
        self._given = self._given or os.environ.get("AZURE_SUBSCRIPTION_ID") or _of_the_cli()
        if not self._given:
            raise CredentialsMissing(
                "azure: no subscription is named: set network={'subscription': …} or "
                "AZURE_SUBSCRIPTION_ID, or run `az login`"
            )
        return self._given

    def path(self, rest: str = "") -> str:
        return f"/subscriptions/{self.subscription}/{rest}".rstrip("/")

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
        """One request, and its JSON. `path` begins with `/subscriptions/`."""
        response = self._send(method, path, what, body, params)
        return dict(response.json()) if response.content else {}

    def change(
        self,
        method: str,
        path: str,
        what: str,
        *,
        body: Mapping[str, Any] | None = None,
        seconds: float = 300.0,
        only_new: bool = False,
    ) -> bool:
        """A request that makes or ends something: whether it is done within `seconds`.

        Azure's PUT and DELETE are idempotent, so that one that is sent twice happens once. With
        `only_new` a PUT changes nothing that is there: it raises `Conflict`.
        """
        headers = {"If-None-Match": "*"} if only_new else {}
        response = self._send(method, path, what, body, headers=headers)
        url = response.headers.get("Azure-AsyncOperation") or response.headers.get("Location")
        return True if url is None else self._wait(url, what, seconds)

    def _wait(self, url: str, what: str, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while True:
            response = self._send("GET", url, what)
            state = response.json() if response.content else {}
            status = str(state.get("status", "")).lower()
            if status in ("failed", "canceled"):
                error = state.get("error") or {"code": status, "message": f"the operation {status}"}
                raise answers.refusal(error, what=what)
            # A Location that is done answers with the thing itself, or with nothing.
            if status == "succeeded" or (not status and response.status_code != 202):
                return True
            asked = float(response.headers.get("Retry-After", self._pause_s))
            pause = min(asked, self._pause_s)
            if time.monotonic() + pause >= until:
                return False
            time.sleep(pause)

    def items(
        self, path: str, what: str, *, params: Mapping[str, str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The items of a list, all its pages. Nothing, where what it is a list of is gone."""
        page: dict[str, Any] = {}
        with suppress(NotFound):
            page = self.call("GET", path, what, params=params)
        while True:
            yield from page.get("value", [])
            if not page.get("nextLink"):
                return
            page = self.call("GET", page["nextLink"], what)

    def _send(
        self,
        method: str,
        where: str,
        what: str,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        client = self._sign_in()
        from azure.core import exceptions as azure
        from azure.core.rest import HttpRequest

        whole = where.startswith("http")  # an operation's or a page's own address
        asked = {} if whole else {"api-version": _version(where), **(params or {})}
        url = where if whole else f"{self._url}{where}"
        try:
            response = client.send_request(
                HttpRequest(method, url, params=asked, json=body, headers=headers),
                # A token travels in the clear on this machine only, to a stand-in of Azure.
                enforce_https=not url.startswith("http://127.0.0.1:"),
            )
        except azure.ClientAuthenticationError as error:
            raise self._unknown(what, error) from error
        except azure.AzureError as error:
            raise CloudRefused(f"{what}: {self._url} cannot be reached: {error}") from error
        self._signed_in = True
        if response.status_code < 400:
            return response
        refused = _error_of(response)
        if response.status_code == 404:
            raise NotFound(f"{what}: {refused.get('message', 'not found')}")
        if response.status_code == 412:
            raise Conflict(f"{what}: {refused.get('message', 'is there already')}")
        raise answers.refusal(refused, what=what, status=response.status_code)

    # --- who asks ---------------------------------------------------------------------------------

    def _unknown(self, what: str, error: Exception) -> CloudRefused:
        first = str(error).strip().splitlines()[0]
        if self._signed_in:
            return CloudCredentialsExpired(
                f"{what}: Azure does not take the credentials any more ({first}); renew them: "
                "az login"
            )
        return CredentialsMissing(
            "azure: no credentials here, or they have expired: run `az login`, or set "
            f"AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET ({first})"
        )

    def _sign_in(self) -> Any:
        if self._client is not None:
            return self._client
        try:
            from azure.core import PipelineClient
            from azure.core.pipeline import policies
        except ImportError as error:
            raise _not_installed(error) from error
        if self._credential is None:
            try:
                from azure.identity import DefaultAzureCredential
            except ImportError as error:
                raise _not_installed(error) from error
            self._credential = DefaultAzureCredential()
        self._client = PipelineClient(
            self._url,
            policies=[
                policies.RequestIdPolicy(),
                policies.UserAgentPolicy("mlcloud"),
                policies.RetryPolicy(
                    retry_total=RETRIES,
                    retry_backoff_factor=self._pause_s / 2,
                    retry_on_methods=["GET", "PUT", "DELETE", "PATCH", "POST"],
                ),
                policies.BearerTokenCredentialPolicy(self._credential, f"{URL}/.default"),
            ],
        )
        return self._client


def _not_installed(error: ImportError) -> CredentialsMissing:
    return CredentialsMissing(f"azure: {error.name} is not installed: pip install 'mlcloud[azure]'")


def _version(path: str) -> str:
    """The version of the service that a path is of, the innermost one it names."""
    return next(v for part, v in VERSIONS.items() if f"/{part}/".lower() in f"{path}/".lower())


def _error_of(response: Any) -> dict[str, Any]:
    """What an HTTP error says, also where it is not JSON (a proxy's)."""
    try:
        return dict(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return {"code": f"HTTP {response.status_code}", "message": "no reason given"}


def _of_the_cli() -> str | None:
    """The subscription that `az account set` chose."""
    folder = Path(os.environ.get("AZURE_CONFIG_DIR", Path.home() / ".azure"))
    try:
        profile = json.loads((folder / "azureProfile.json").read_text("utf-8-sig"))
        return next(str(each["id"]) for each in profile["subscriptions"] if each["isDefault"])
    except (OSError, ValueError, LookupError, TypeError, StopIteration):
        return None
