"""The Kubernetes API by its official client, in one namespace, and what its refusals mean.

Credentials are kubectl's: a kubeconfig (with its exec plugins for GKE, EKS and AKS), or the service
account of the pod this runs in. `endpoints={'api': …}` is an API server without any.

What `up` makes is applied (server-side, by the field manager `mlcloud`), so that a second `up`
changes what differs and leaves alone what others own: the head owns the list of worker groups. A
change to that is a merge patch with the version that it was read at, so that two who change it at
once never undo each other: the second reads it again.

https://kubernetes.io/docs/reference/using-api/server-side-apply/
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlcloud.errors import (
    CloudCredentialsExpired,
    CloudRefused,
    Conflict,
    CredentialsMissing,
    MLCloudError,
    NotFound,
    QuotaExceeded,
)

#: Kinds, by our names for them: group and version, and their plural.
KINDS = {
    "raycluster": ("ray.io/v1", "rayclusters"),
    "pod": ("v1", "pods"),
    "service": ("v1", "services"),
    "network-policy": ("networking.k8s.io/v1", "networkpolicies"),
    "secret": ("v1", "secrets"),
    "config-map": ("v1", "configmaps"),
    "role-binding": ("rbac.authorization.k8s.io/v1", "rolebindings"),
    "role": ("rbac.authorization.k8s.io/v1", "roles"),
    "service-account": ("v1", "serviceaccounts"),
    "event": ("v1", "events"),
}
MANAGER = "mlcloud"
_APPLY = "application/apply-patch+yaml"  # JSON is YAML
_MERGE = "application/merge-patch+json"
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
#: How often a change is tried again after somebody else's came first.
_TRIES = 8
_TIMEOUT_S = 30
#: urllib3's own attempts where nobody answers: a second, not a minute.
_RETRIES = 1


class Api:
    """Calls in one namespace; `kind` is one of `KINDS`. Errors are those that `Cloud` lists,
    `NotFound` for a 404, and `Conflict` for what is there already."""

    def __init__(
        self, namespace: str | None, *, context: str | None = None, url: str | None = None
    ) -> None:
        self._namespace = namespace
        self._context = context
        self._url = url
        self._client: Any = None

    @property
    def namespace(self) -> str:
        """The one that is named, else the kubeconfig's, else `default`."""
        self.client()
        return self._namespace or "default"

    # --- objects of any kind ----------------------------------------------------------------------

    def list(self, kind: str, selector: str = "", fields: str = "") -> list[dict[str, Any]]:
        """Those with these labels. Raises `CloudRefused` where KubeRay is missing."""
        query = {"labelSelector": selector, "fieldSelector": fields}
        try:
            found = self._ask("GET", kind, query={k: text for k, text in query.items() if text})
        except NotFound as error:
            if kind != "raycluster":
                raise
            raise CloudRefused(
                "kubernetes: this cluster knows no RayCluster: install KubeRay's operator "
                "(helm install kuberay-operator kuberay/kuberay-operator)"
            ) from error
        return [dict(each) for each in found["items"]]

    def get(self, kind: str, name: str) -> dict[str, Any]:
        return self._ask("GET", kind, name)

    def create(self, kind: str, body: Mapping[str, Any]) -> None:
        self._ask("POST", kind, body["metadata"]["name"], body=body)

    def apply(self, kind: str, body: Mapping[str, Any]) -> None:
        """Make it, or give it these fields, whoever had set them."""
        query = {"fieldManager": MANAGER, "force": "true"}
        whole = {"apiVersion": KINDS[kind][0], **body}
        self._ask("PATCH", kind, body["metadata"]["name"], query=query, body=whole, type=_APPLY)

    def delete(self, kind: str, name: str) -> None:
        """Gone already is fine. What it owns goes with it."""
        self._ask("DELETE", kind, name, query={"propagationPolicy": "Background"}, missing=True)

    def change_cluster(
        self, name: str, change: Callable[[dict[str, Any]], Mapping[str, Any] | None]
    ) -> None:
        """`change` is given the RayCluster and gives what of its `spec` is new, or None."""
        for attempt in range(_TRIES):
            present = self.get("raycluster", name)
            spec = change(present)
            if spec is None:
                return
            seen = {"resourceVersion": present["metadata"].get("resourceVersion")}
            body = {"metadata": seen, "spec": dict(spec)}
            try:
                self._ask("PATCH", "raycluster", name, body=body, type=_MERGE)
                return
            except Conflict:
                if attempt == _TRIES - 1:
                    raise

    def annotate(self, kind: str, name: str, annotations: Mapping[str, str]) -> None:
        body = {"metadata": {"annotations": dict(annotations)}}
        self._ask("PATCH", kind, name, body=body, type=_MERGE)

    def log(self, pod: str, lines: int = 20, *, previous: bool = False) -> str:
        """The last words of a pod's container; "" where there are none."""
        query = {"tailLines": str(lines), "previous": str(previous).lower()}
        try:
            return self._send("GET", f"{self._path('pod', pod)}/log", query, None, "", f"pod {pod}")
        except MLCloudError:
            return ""

    # --- one request ------------------------------------------------------------------------------

    def _ask(
        self,
        method: str,
        kind: str,
        name: str = "",
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        type: str = "application/json",
        missing: bool = False,
    ) -> dict[str, Any]:
        path = self._path(kind, "" if method == "POST" else name)
        what = f"{kind} {name}".rstrip()
        try:
            told = self._send(method, path, query or {}, body, type, what)
        except NotFound:
            if missing:
                return {}
            raise
        found: dict[str, Any] = json.loads(told or "{}")
        return found

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Mapping[str, Any] | None,
        type: str,
        what: str,
    ) -> str:
        client = self.client()
        with _asking(what):
            # The client's own models refuse an object that lacks what their version knows as
            # required: the JSON is read as it came.
            response = client.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params={"Accept": "application/json, */*", "Content-Type": type},
                body=None if body is None else dict(body),
                auth_settings=["BearerToken"],
                _preload_content=False,
                _return_http_data_only=True,
                _request_timeout=_TIMEOUT_S,
            )
        data: bytes = response.data
        return data.decode(errors="replace")

    def _path(self, kind: str, name: str) -> str:
        version, plural = KINDS[kind]
        root = "/api" if version == "v1" else "/apis"
        path = f"{root}/{version}/namespaces/{self.namespace}/{plural}"
        return f"{path}/{name}" if name else path

    # --- the client -------------------------------------------------------------------------------

    def client(self) -> Any:
        """The official client's `ApiClient`. Raises `CredentialsMissing`."""
        if self._client is not None:
            return self._client
        try:
            from kubernetes import client, config
        except ImportError as error:
            raise CredentialsMissing(
                f"kubernetes: {error.name} is not installed: pip install 'mlcloud[kubernetes]'"
            ) from error
        configuration = client.Configuration()
        configuration.retries = _RETRIES
        if self._url:
            configuration.host = self._url
        else:
            self._sign_in(config, configuration)
        self._client = client.ApiClient(configuration)
        return self._client

    def _sign_in(self, config: Any, configuration: Any) -> None:
        try:
            config.load_kube_config(context=self._context, client_configuration=configuration)
            _, active = config.list_kube_config_contexts()
            self._namespace = self._namespace or active["context"].get("namespace")
        except config.ConfigException as missing:
            try:
                config.load_incluster_config(client_configuration=configuration)
                self._namespace = self._namespace or _OWN_NAMESPACE.read_text().strip()
            except config.ConfigException:
                raise CredentialsMissing(
                    f"kubernetes: no cluster is configured here ({missing}): set KUBECONFIG, or "
                    "get credentials with gcloud, aws eks or az aks"
                ) from missing


@contextmanager
def _asking(what: str) -> Any:
    """Turns the client's errors into ours."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        raise _refusal(error, what) from error
    except HTTPError as error:
        raise CloudRefused(f"{what}: the API server cannot be reached: {error}") from error


def _refusal(error: Any, what: str) -> MLCloudError:
    """What an `ApiException` means."""
    try:
        message = str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        message = str(error.reason or error.body or "no reason given")
    if error.status == 404:
        return NotFound(f"{what}: {message}")
    if error.status == 409:
        return Conflict(f"{what}: {message}")
    if error.status == 401:
        return CloudCredentialsExpired(
            f"{what}: Kubernetes does not take the credentials any more ({message}); get new ones "
            "with gcloud, aws eks or az aks"
        )
    if error.status == 403 and "exceeded quota" in message:
        return QuotaExceeded(f"{what}: {message}; raise the namespace's ResourceQuota")
    if error.status == 403:
        return CloudRefused(f"{what}: not allowed: {message}")
    return CloudRefused(f"{what}: {message} (HTTP {error.status})")
