"""The Kubernetes API by its official client, in one namespace, and what its refusals mean.

Credentials are kubectl's: a kubeconfig (with its exec plugins for GKE, EKS and AKS), or the service
account of the pod this runs in. `endpoints={'api': …}` is an API server without any.

A change to a RayCluster is a merge patch with the version that it was read at, so that two who
change it at once never undo each other: the second reads it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import contextmanager
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

_RAY = ("ray.io", "v1")
#: How often a change is tried again after somebody else's came first.
_TRIES = 8
_TIMEOUT_S = 30
#: urllib3's own attempts where nobody answers: a second, not a minute.
_RETRIES = 1


class Api:
    """Calls in one namespace. Errors are those that `Cloud` lists, `NotFound` for a 404, and
    `Conflict` for what is there already."""

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
        self._connect()
        return self._namespace or "default"

    # --- RayClusters ------------------------------------------------------------------------------

    def clusters(self, selector: str) -> list[dict[str, Any]]:
        """The RayClusters with these labels. Raises `CloudRefused` where KubeRay is missing."""
        with self._asking("RayClusters"):
            try:
                found = self._custom().list_namespaced_custom_object(
                    *_RAY, self.namespace, "rayclusters", label_selector=selector, **_LIMITS
                )
            except self._error() as error:
                if error.status != 404:
                    raise
                raise CloudRefused(
                    "kubernetes: this cluster knows no RayCluster: install KubeRay's operator "
                    "(helm install kuberay-operator kuberay/kuberay-operator)"
                ) from error
        return [dict(each) for each in found["items"]]

    def cluster(self, name: str) -> dict[str, Any]:
        with self._asking(f"RayCluster {name}"):
            return dict(
                self._custom().get_namespaced_custom_object(
                    *_RAY, self.namespace, "rayclusters", name, **_LIMITS
                )
            )

    def create_cluster(self, body: Mapping[str, Any]) -> None:
        with self._asking(f"RayCluster {body['metadata']['name']}"):
            self._custom().create_namespaced_custom_object(
                *_RAY, self.namespace, "rayclusters", dict(body), **_LIMITS
            )

    def change_cluster(
        self, name: str, change: Callable[[dict[str, Any]], Mapping[str, Any] | None]
    ) -> None:
        """`change` is given the RayCluster and gives what of its `spec` is new, or None."""
        for attempt in range(_TRIES):
            present = self.cluster(name)
            spec = change(present)
            if spec is None:
                return
            seen = {"resourceVersion": present["metadata"].get("resourceVersion")}
            try:
                with self._asking(f"RayCluster {name}"):
                    self._custom().patch_namespaced_custom_object(
                        *_RAY, self.namespace, "rayclusters", name,
                        {"metadata": seen, "spec": dict(spec)}, **_LIMITS,
                    )  # fmt: skip
                return
            except Conflict:
                if attempt == _TRIES - 1:
                    raise

    def delete_cluster(self, name: str) -> None:
        """Gone already is fine. Its pods go with it."""
        with self._asking(f"RayCluster {name}", missing=True):
            self._custom().delete_namespaced_custom_object(
                *_RAY, self.namespace, "rayclusters", name, **_LIMITS
            )

    # --- what Kubernetes itself has ---------------------------------------------------------------

    def pods(self, selector: str) -> list[dict[str, Any]]:
        with self._asking("pods"):
            found = self._core().list_namespaced_pod(
                self.namespace, label_selector=selector, **_RAW
            )
            return _items(found)

    def create_secret(self, body: Mapping[str, Any]) -> None:
        with self._asking(f"secret {body['metadata']['name']}"):
            self._core().create_namespaced_secret(self.namespace, dict(body), **_LIMITS)

    def secrets(self, selector: str) -> list[dict[str, Any]]:
        with self._asking("secrets"):
            found = self._core().list_namespaced_secret(
                self.namespace, label_selector=selector, **_RAW
            )
            return _items(found)

    def delete_secret(self, name: str) -> None:
        with self._asking(f"secret {name}", missing=True):
            self._core().delete_namespaced_secret(name, self.namespace, **_LIMITS)

    def create_policy(self, body: Mapping[str, Any]) -> None:
        with self._asking(f"network policy {body['metadata']['name']}"):
            self._networking().create_namespaced_network_policy(
                self.namespace, dict(body), **_LIMITS
            )

    def policies(self, selector: str) -> list[dict[str, Any]]:
        with self._asking("network policies"):
            found = self._networking().list_namespaced_network_policy(
                self.namespace, label_selector=selector, **_RAW
            )
            return _items(found)

    def delete_policy(self, name: str) -> None:
        with self._asking(f"network policy {name}", missing=True):
            self._networking().delete_namespaced_network_policy(name, self.namespace, **_LIMITS)

    # --- the client -------------------------------------------------------------------------------

    def _connect(self) -> Any:
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
            except config.ConfigException:
                raise CredentialsMissing(
                    f"kubernetes: no cluster is configured here ({missing}): set KUBECONFIG, or "
                    "get credentials with gcloud, aws eks or az aks"
                ) from missing

    def _custom(self) -> Any:
        from kubernetes import client

        return client.CustomObjectsApi(self._connect())

    def _core(self) -> Any:
        from kubernetes import client

        return client.CoreV1Api(self._connect())

    def _networking(self) -> Any:
        from kubernetes import client

        return client.NetworkingV1Api(self._connect())

    @staticmethod
    def _error() -> Any:
        from kubernetes.client.exceptions import ApiException

        return ApiException

    @contextmanager
    def _asking(self, what: str, *, missing: bool = False) -> Any:
        """Turns the client's errors into ours. With `missing` a 404 is no error."""
        self._connect()
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as error:
            if missing and error.status == 404:
                return
            raise _refusal(error, what) from error
        except HTTPError as error:
            raise CloudRefused(f"{what}: the API server cannot be reached: {error}") from error


_LIMITS: dict[str, Any] = {"_request_timeout": _TIMEOUT_S}
#: The client's models refuse an object that lacks what their own version knows as required: the
#: JSON is read as it came.
_RAW: dict[str, Any] = {**_LIMITS, "_preload_content": False}


def _items(response: Any) -> list[dict[str, Any]]:
    return [dict(each) for each in json.loads(response.data)["items"]]


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
