"""A store outside of the regions is refused before anything starts, and copies on nodes are too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import mlcloud
from mlcloud.client import renting
from mlcloud.client.residency import require_store
from mlcloud.cluster.agent import ray_environment
from mlcloud.cluster.specification import Specification, specify, to_yaml
from mlcloud.errors import SpecificationError, UsageError
from mlcloud.store import residency

REGIONS = ("eu-central-1",)


@pytest.fixture
def buckets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An S3 with `near` in eu-central-1 and `far` in us-west-2; no others."""
    fsspec = pytest.importorskip("fsspec")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        httpx.post(f"http://{host}:{port}/moto-api/reset", trust_env=False)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
        for name, region in (("near", "eu-central-1"), ("far", "us-west-2")):
            s3 = boto3.client("s3", region_name=region)
            where = {"LocationConstraint": region}
            s3.create_bucket(Bucket=name, CreateBucketConfiguration=where)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        residency._known.cache_clear()
        yield
    finally:
        server.stop()
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        residency._known.cache_clear()


def wanted(store: str, **fields: Any) -> Specification:
    given = {"name": "gpus", "cloud": "aws", "regions": list(REGIONS), "store": store, **fields}
    return specify("", None, **given)


def test_a_store_is_where_data_may_be(buckets: None, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    require_store(wanted("s3://near/x"), said.append)
    with pytest.raises(
        SpecificationError, match=r"store is in us-west-2.*allows only eu-central-1"
    ):
        require_store(wanted("s3://far/x"), said.append)
    wide = wanted("s3://far/x", regions=[*REGIONS, "us-west-2"], store_region="eu-central-1")
    with pytest.raises(SpecificationError, match="store_region: the store is in us-west-2, not in"):
        require_store(wide, said.append)
    # a bucket that nobody knows: what is said of it counts, else it must be said
    require_store(wanted("s3://none/x", store_region="eu-central-1"), said.append)
    assert said[0].startswith("s3://none/x was not asked where it is (")
    assert said[0].endswith("taken to be in eu-central-1, as you say")
    with pytest.raises(
        SpecificationError, match=r"get-bucket-location --bucket none.*store_region"
    ):
        require_store(wanted("s3://none/x"), said.append)

    require_store(wanted("s3://none/x"), said.append, must_know=False)
    assert "store_region" in said[1]


def test_up_asks_before_it_launches_anything(
    buckets: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLCLOUD_HOME", str(tmp_path))
    for name in ("_running", "_bought"):
        monkeypatch.setattr(renting, name, lambda *_: pytest.fail("launched"))
    here = {"ssh_from": "203.0.113.7/32"}
    far = wanted("s3://far/x", network=here)
    with pytest.raises(SpecificationError, match="us-west-2"):
        mlcloud.Cluster.from_yaml(to_yaml(far)).up()


def test_a_node_keeps_no_checkpoints_elsewhere(
    buckets: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"id": "i-1", "node_type": "cpu2"}
    settings: dict[str, Any] = {"ray_environment": {}, "node_ip": "127.0.0.1", "ray_dir": "/tmp"}
    settings["residency"] = residency.variables(REGIONS, "aws")
    variables = ray_environment(record, settings)
    for name in (residency.REGIONS, residency.CLOUD):
        monkeypatch.setenv(name, variables[name])
    mlcloud.Checkpoints("s3://near/runs")
    with pytest.raises(UsageError, match=r"checkpoints at s3://far/runs is in us-west-2, and"):
        mlcloud.Checkpoints("s3://far/runs")


def test_without_regions_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "region_of", lambda url: pytest.fail("asked"))
    residency.refuse_outside("s3://far/x", "checkpoints")
    local = specify("", None, name="try", store="s3://far/x")
    require_store(local, print)
