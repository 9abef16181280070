"""Secrets of the clouds' own stores: moto's for AWS, and for Google and Azure servers that answer
as their documents say."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from mlcloud.cluster.clouds.secret_stores import AZURE_VERSION, read
from mlcloud.cluster.specification.values import Source
from mlcloud.errors import CloudRefused, CredentialsMissing, UsageError

VALUE = "from-the-cloud-5f0e77"


# --- aws ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aws() -> Iterator[Any]:
    boto3 = pytest.importorskip("boto3")
    server_of = pytest.importorskip("moto.server")
    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
        patch.delenv("AWS_REGION", raising=False)
        yield boto3
    server.stop()


def test_aws_by_name_and_by_arn(aws: Any) -> None:
    here = aws.client("secretsmanager")
    here.create_secret(Name="prod/hf", SecretString=VALUE)
    there = aws.client("secretsmanager", region_name="us-west-2")
    arn = there.create_secret(Name="far", SecretBinary=VALUE.encode())["ARN"]
    aws.client("ssm").put_parameter(Name="/prod/p", Value=VALUE, Type="SecureString")
    parameter = "arn:aws:ssm:eu-central-1:123456789012:parameter/prod/p"
    assert read(Source.parse("aws:prod/hf")) == VALUE
    assert read(Source.parse(f"aws:{arn}")) == VALUE
    assert read(Source.parse(f"aws:{parameter}")) == VALUE


def test_aws_says_why_not(aws: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    with pytest.raises(CloudRefused, match="ResourceNotFoundException"):
        read(Source.parse("aws:not/there"))
    aws.client("secretsmanager").create_secret(Name="bytes", SecretBinary=b"\xff\xfe\x00")
    with pytest.raises(CloudRefused, match="bytes there that are no text"):
        read(Source.parse("aws:bytes"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    aws.setup_default_session()
    with pytest.raises(CredentialsMissing, match="instance profile"):
        read(Source.parse("aws:prod/hf"))
    aws.DEFAULT_SESSION = None


# --- Google and Azure -----------------------------------------------------------------------------


class Store(BaseHTTPRequestHandler):
    """`answers`: by path. `asked`: the requests, with their headers."""

    answers: ClassVar[dict[str, tuple[int, Any]]] = {}
    asked: ClassVar[list[tuple[str, dict[str, list[str]], str]]] = []

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.asked.append((parts.path, parse_qs(parts.query), self.headers["Authorization"]))
        code, body = self.answers.get(parts.path, (404, {"error": {"code": "SecretNotFound"}}))
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def store() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Store.asked.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_google(store: str) -> None:
    oauth2 = pytest.importorskip("google.oauth2.credentials")
    credentials = oauth2.Credentials("a-token")
    answer = {
        "name": "projects/123/secrets/hf/versions/4",
        "payload": {"data": base64.b64encode(VALUE.encode()).decode(), "dataCrc32c": "1"},
    }
    Store.answers = {
        "/v1/projects/p/secrets/hf/versions/latest:access": (200, answer),
        "/v1/projects/p/secrets/hf/versions/4:access": (200, answer),
        "/v1/projects/p/secrets/no/versions/latest:access": (
            403,
            {
                "error": {
                    "code": 403,
                    "status": "PERMISSION_DENIED",
                    "message": "denied on resource",
                }
            },
        ),
        "/v1/projects/p/secrets/html/versions/latest:access": (502, b"<html>"),
    }

    def asked(reference: str) -> str:
        return read(Source.parse(f"gcp:{reference}"), credentials=credentials, url=store)

    assert asked("projects/p/secrets/hf") == VALUE
    assert asked("projects/p/secrets/hf/versions/4") == VALUE
    assert {each[2] for each in Store.asked} == {"Bearer a-token"}
    with pytest.raises(CloudRefused, match="PERMISSION_DENIED: denied on resource"):
        asked("projects/p/secrets/no")
    with pytest.raises(CloudRefused, match="HTTP 502"):
        asked("projects/p/secrets/html")


class Token:
    token = "a-token"


class Identity:
    def __init__(self) -> None:
        self.scopes: list[str] = []

    def get_token(self, scope: str) -> Token:
        self.scopes.append(scope)
        return Token()


def test_azure(store: str) -> None:
    pytest.importorskip("azure.identity")
    Store.answers = {
        "/secrets/hf": (200, {"value": VALUE, "id": f"{store}/secrets/hf/9f", "attributes": {}}),
        "/secrets/no": (403, {"error": {"code": "Forbidden", "message": "no permission"}}),
    }
    identity = Identity()
    assert read(Source("azure", f"{store}/secrets/hf"), credentials=identity) == VALUE
    assert Store.asked == [("/secrets/hf", {"api-version": [AZURE_VERSION]}, "Bearer a-token")]
    with pytest.raises(CloudRefused, match="Forbidden: no permission"):
        read(Source("azure", f"{store}/secrets/no"), credentials=identity)
    with pytest.raises(CloudRefused, match="SecretNotFound"):
        read(Source("azure", f"{store}/secrets/gone"), credentials=identity)
    with pytest.raises(CloudRefused, match="cannot be asked"):
        read(Source("azure", "https://no-such.vault.invalid/secrets/hf"), credentials=identity)
    assert identity.scopes[-1] == "https://vault.invalid/.default"


def test_those_of_the_notebook_are_not_read_here() -> None:
    with pytest.raises(UsageError, match="the notebook's own"):
        read(Source.parse("env:HF_TOKEN"))
