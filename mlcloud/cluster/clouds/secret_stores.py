"""Secrets as the clouds keep them: read on the machine that this runs on, with its credentials.

    read(Source.parse("aws:prod/hf"))  ─► the value

    aws         Secrets Manager GetSecretValue, Systems Manager GetParameter (by ARN)
                https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html
    gcp         GET …/v1/projects/P/secrets/NAME/versions/latest:access
                https://cloud.google.com/secret-manager/docs/reference/rest/v1/projects.secrets.versions/access
    azure       GET https://VAULT.vault.azure.net/secrets/NAME?api-version=7.4
                https://learn.microsoft.com/en-us/rest/api/keyvault/secrets/get-secret/get-secret
    kubernetes  the key of a Secret in the pod's own namespace

What the services were run against: moto's Secrets Manager and Systems Manager; for GCP and Azure,
servers of the tests that answer in the documented shapes.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlcloud.cluster.specification.values import Source
from mlcloud.errors import CloudRefused, CredentialsMissing, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

GOOGLE_URL = "https://secretmanager.googleapis.com"
GOOGLE_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
AZURE_VERSION = "7.4"
TIMEOUT_S = 15.0


def read(source: Source, *, credentials: Any = None, url: str = GOOGLE_URL) -> str:
    """The secret's present value. Blocks. `credentials`: Google's or Azure's, else those here.

    `url`: Google's endpoint. Raises `CredentialsMissing`, `CloudRefused`; never with the value.
    """
    if source.kept == "aws":
        return _aws(source.reference)
    if source.kept == "gcp":
        return _google(source.reference, credentials, url)
    if source.kept == "azure":
        return _azure(source.reference, credentials)
    if source.kept == "kubernetes":
        return _kubernetes(source.reference)
    raise UsageError(f"{source.kept} is the notebook's own, and is read there")


# --- aws ------------------------------------------------------------------------------------------


def _aws(reference: str) -> str:
    import_of = _importing("aws", "boto3")
    with import_of():
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
    arn = reference.split(":")
    region = arn[3] if len(arn) > 3 else os.environ.get("AWS_REGION")
    service = "ssm" if len(arn) > 2 and arn[2] == "ssm" else "secretsmanager"
    try:
        client = boto3.client(service, region_name=region or None)
        if service == "ssm":
            answer = client.get_parameter(Name=reference, WithDecryption=True)
            return str(answer["Parameter"]["Value"])
        answer = client.get_secret_value(SecretId=reference)
    except NoCredentialsError as error:
        raise CredentialsMissing(
            "the gateway has no credentials of AWS: give its machine an instance profile that may "
            "secretsmanager:GetSecretValue"
        ) from error
    except ClientError as error:
        told = error.response.get("Error", {})
        raise CloudRefused(f"AWS says {told.get('Code')}: {told.get('Message')}") from None
    except BotoCoreError as error:
        raise CloudRefused(f"AWS cannot be asked: {error}") from None
    if "SecretString" in answer:
        return str(answer["SecretString"])
    return _text("AWS", answer["SecretBinary"])


# --- Google ---------------------------------------------------------------------------------------


def _google(reference: str, credentials: Any, url: str) -> str:
    with _importing("gcp", "google-auth")():
        import google.auth
        import requests
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
        from google.auth.transport.requests import AuthorizedSession
    if credentials is None:
        try:
            credentials, _ = google.auth.default(scopes=[GOOGLE_SCOPE])
        except DefaultCredentialsError as error:
            raise CredentialsMissing(
                "the gateway has no credentials of Google: give its machine a service account that "
                "has roles/secretmanager.secretAccessor"
            ) from error
    version = reference if "/versions/" in reference else f"{reference}/versions/latest"
    try:
        kind: Any = AuthorizedSession  # it ships no types
        with kind(credentials) as session:
            answer = session.get(f"{url.rstrip('/')}/v1/{version}:access", timeout=TIMEOUT_S)
    except (requests.RequestException, GoogleAuthError) as error:
        raise CloudRefused(f"Google cannot be asked: {error}") from None
    body = _object("Google", answer)
    if answer.status_code != 200:
        told = body.get("error", {})
        raise CloudRefused(f"Google says {told.get('status')}: {told.get('message')}")
    return _text("Google", base64.b64decode(body.get("payload", {}).get("data", "")))


# --- Azure ----------------------------------------------------------------------------------------


def _azure(reference: str, credentials: Any) -> str:
    with _importing("azure", "azure-identity")():
        from azure.core.exceptions import AzureError, ClientAuthenticationError
        from azure.identity import DefaultAzureCredential
    import httpx

    if credentials is None:
        credentials = DefaultAzureCredential()
    # Of the vault's own cloud: vault.azure.net, vault.azure.cn, vault.usgovcloudapi.net.
    scope = f"https://{(urlsplit(reference).hostname or '').partition('.')[2]}/.default"
    try:
        token = credentials.get_token(scope).token
    except ClientAuthenticationError as error:
        raise CredentialsMissing(
            "the gateway has no credentials of Azure: give its machine an identity that is a Key "
            f"Vault Secrets User of the vault ({str(error).splitlines()[0]})"
        ) from None
    except AzureError as error:
        raise CloudRefused(f"Azure cannot be asked: {error}") from None
    try:
        answer = httpx.get(
            reference,
            params={"api-version": AZURE_VERSION},
            headers={"Authorization": f"Bearer {token}"},
            timeout=TIMEOUT_S,
        )
    except httpx.HTTPError as error:
        raise CloudRefused(f"Azure cannot be asked: {error}") from None
    body = _object("Azure", answer)
    if answer.status_code != 200:
        told = body.get("error", {})
        raise CloudRefused(f"Azure says {told.get('code')}: {told.get('message')}")
    return str(body.get("value", ""))


# --- Kubernetes -----------------------------------------------------------------------------------


def _kubernetes(reference: str) -> str:
    with _importing("kubernetes", "kubernetes")():
        from kubernetes import client, config
        from kubernetes.client.rest import ApiException
    try:
        config.load_incluster_config()
        namespace = _namespace()
    except config.ConfigException:
        try:
            config.load_kube_config()
            _, active = config.list_kube_config_contexts()
            namespace = active["context"].get("namespace", "default")
        except config.ConfigException as error:
            raise CredentialsMissing(
                f"the gateway has no credentials of Kubernetes: {error}"
            ) from None
    name, _, key = reference.partition("/")
    try:
        found = client.CoreV1Api().read_namespaced_secret(name, namespace).data or {}
    except ApiException as error:
        raise CloudRefused(f"Kubernetes says {error.status} ({error.reason})") from None
    if key not in found:
        raise CloudRefused(f"Secret {name} has no key {key}; it has {', '.join(sorted(found))}")
    return _text("Kubernetes", base64.b64decode(found[key]))


def _namespace() -> str:
    with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace") as file:
        return file.read().strip()


# --- what they share ------------------------------------------------------------------------------


def _importing(extra: str, package: str) -> Callable[[], Any]:
    @contextmanager
    def importing() -> Iterator[None]:
        try:
            yield
        except ImportError as error:
            raise CredentialsMissing(
                f"{package} is not installed on the gateway: pip install 'mlcloud[{extra}]'"
            ) from error

    return importing


def _object(who: str, answer: Any) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise CloudRefused(f"{who} answered HTTP {answer.status_code}, and no JSON")
    return body


def _text(who: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise CloudRefused(
            f"{who} has bytes there that are no text: an environment variable cannot hold them"
        ) from None
