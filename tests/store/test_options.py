"""What a user gives the cloud's client arrives at the cloud, and secrets in it are never shown."""

from __future__ import annotations

import base64
import pickle
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlcloud import errors
from mlcloud.checkpoint import Checkpoints
from mlcloud.store import Store
from mlcloud.store.backends import ConditionalBackend
from tests import seaweed
from tests.store.test_store_s3 import moto

s3fs = pytest.importorskip("s3fs", reason="S3 needs s3fs: pip install s3fs")
pytest.importorskip("moto.server", reason="the S3 server is moto's: pip install 'moto[server]'")

SECRET = "very-secret-key-0123456789abcdef"  # 32 characters
KMS = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/mine"}


@pytest.fixture(scope="module")
def line() -> Iterator[seaweed.Line]:
    """To an S3 server that no environment names."""
    with moto() as endpoint, seaweed.line(endpoint) as made:
        s3fs.S3FileSystem(**reach(made)).mkdir("bucket")
        yield made
        s3fs.S3FileSystem.clear_instance_cache()


def reach(line: seaweed.Line) -> dict[str, Any]:
    return {"endpoint_url": line.endpoint, "key": "AKIAKEY", "secret": SECRET}


def test_encryption_by_the_server_is_asked_for_in_every_put(line: seaweed.Line) -> None:
    store = Store("s3://bucket/kms", options={**reach(line), "s3_additional_kwargs": KMS})
    line.seen.clear()
    series = Checkpoints(store, "exp")
    series.save({"n": 1, "text": "x" * 10_000}, 1)
    assert series.load(1)["n"] == 1
    puts = [(path, headers) for method, path, headers in line.seen if method == "PUT"]
    kinds = {path.split("/")[3] for path, _ in puts}
    assert {"chunks", "manifests"} <= kinds
    for path, headers in puts:
        assert headers["x-amz-server-side-encryption"] == "aws:kms", path
        assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/mine"
    # the commit is a conditional one all the same
    (commit,) = [headers for path, headers in puts if "/manifests/" in path]
    assert commit["if-none-match"] == "*"


def test_a_key_of_the_customers_goes_with_every_read_too(line: seaweed.Line) -> None:
    given = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": SECRET}
    store = Store("s3://bucket/ssec", options={**reach(line), "s3_additional_kwargs": given})
    line.seen.clear()
    ref = store.put_chunk(b"content")
    store.commit("checkpoint", "a", 1, {"c": str(ref)})
    assert store.verify("checkpoint", "a", 1) == []
    wanted = base64.b64encode(SECRET.encode()).decode()
    about = [each for each in line.seen if "/chunks/" in each[1] or "/manifests/check" in each[1]]
    methods = set()
    for method, path, headers in about:
        if path.rpartition("/")[2].startswith("?"):
            continue  # a listing
        methods.add(method)
        assert headers["x-amz-server-side-encryption-customer-key"] == wanted, (method, path)
    assert {"PUT", "GET", "HEAD"} <= methods


def test_other_options_are_another_instance(line: seaweed.Line) -> None:
    """Else the first store of a process would decide for all."""
    plain = Store("s3://bucket/other", options=reach(line))
    kms = Store("s3://bucket/other", options={**reach(line), "s3_additional_kwargs": KMS})
    for number, store in enumerate((plain, kms, plain)):
        line.seen.clear()
        store.put_chunk(b"content %d" % number)
        (put,) = [headers for method, _, headers in line.seen if method == "PUT"]
        assert ("x-amz-server-side-encryption" in put) == (store is kms)


def test_secrets_are_never_shown(line: seaweed.Line, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {
        **reach(line),
        # botocore repeats in its message what it was given, where it is no text
        "s3_additional_kwargs": {"SSEKMSEncryptionContext": [SECRET]},
    }
    store = Store("s3://bucket/shown", options=options)
    shown = [
        repr(store),
        str(vars(store)),
        repr(Checkpoints(Store("s3://bucket/x", options=reach(line)))),
    ]
    with pytest.raises(errors.StoreError) as caught:
        store.put_chunk(b"x")
    assert "SSEKMSEncryptionContext" in str(caught.value)  # what is wrong is said
    shown.append("".join(traceback.format_exception(caught.value)))
    for attempt in ({**reach(line), "no_such_option": SECRET}, lambda: {}["x"], [SECRET], "x"):
        with pytest.raises(errors.MLCloudError) as caught:
            Store("s3://bucket/shown", options=attempt).exists("0" * 64)  # type: ignore[arg-type]
        shown.append("".join(traceback.format_exception(caught.value)))
    with pytest.raises(errors.NotPicklable):
        pickle.dumps(store._options)
    for text in shown:
        assert SECRET not in text
        assert SECRET[:12] not in text
    # what is no secret stays readable
    monkeypatch.setattr(ConditionalBackend, "attempts", 1)
    away = {**reach(line), "endpoint_url": "http://127.0.0.1:9"}
    away["config_kwargs"] = {"retries": {"max_attempts": 0}}
    with pytest.raises(errors.StoreError, match=r"127\.0\.0\.1:9"):
        Store("s3://bucket/shown", options=away).exists("0" * 64)


def test_a_disk_takes_none(tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="takes no options"):
        Store(str(tmp_path), options={"endpoint_url": "x"})
