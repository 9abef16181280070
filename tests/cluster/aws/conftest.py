"""An AWS account for each test: moto behind a door, with credentials and a clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from mlcloud.cluster.clouds.base import CloudSettings, LaunchRequest
from mlcloud.cluster.offers import Market, Offer
from tests import ec2

REGION = "us-east-1"
IMAGE = "ami-0000000000000new"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPWgg4vLCkDRPZ0OKCPPBbYIkEIBeRYVxmmqPpb4bJqZ ann@x"
SETTINGS = CloudSettings(
    "work", "Ann Example", (REGION,), image=IMAGE, ssh_public_key=KEY, tags={"team": "vision"}
)


def offer(
    kind: str = "g5.xlarge",
    zone: str = "us-east-1a",
    market: Market = "spot",
    price: str = "0.4023",
    **more: Any,
) -> Offer:
    gpu = kind.startswith(("g", "p"))
    plain = Offer(
        cloud="aws",
        region=zone[:-1],
        zone=zone,
        instance_type=kind,
        cpus=4,
        memory_bytes=16 * 2**30,
        accelerator="A10G" if gpu else None,
        accelerator_count=1 if gpu else 0,
        market=market,
        usd_per_hour=Decimal(price),
        simulated=False,
        source="test",
        as_of=date(2026, 1, 1),
    )
    return replace(plain, **more)


def request(node_type: str = "a10g", **more: Any) -> LaunchRequest:
    tags = {"ray-user-node-type": node_type, "ray-node-kind": "worker"}
    return LaunchRequest(node_type, {"CPU": 4.0}, tags=tags, bootstrap="echo hello", **more)


class Clock:
    """A time that only a test moves, and sleep that moves it."""

    def __init__(self) -> None:
        self.at = datetime.now(timezone.utc).replace(microsecond=0)
        self.slept: list[float] = []

    def __call__(self) -> datetime:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def account() -> Iterator[ec2.Door]:
    pytest.importorskip("moto.server", reason="the cloud is moto's: pip install 'moto[server]'")
    pytest.importorskip("boto3")
    with ec2.door() as made:
        yield made


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def aws(account: ec2.Door, credentials: None, monkeypatch: pytest.MonkeyPatch) -> ec2.Door:
    monkeypatch.setenv("AWS_ENDPOINT_URL", account.url)
    account.reset()
    return account


@pytest.fixture(scope="session")
def clients() -> dict[Any, Any]:
    """One set of boto3's clients for all tests: EC2's takes a second to make."""
    return {}


@pytest.fixture
def cloud(aws: ec2.Door, clock: Clock, clients: dict[Any, Any]) -> Callable[..., Any]:
    """Makes the cloud under test: `cloud(regions=…, network=…)`."""
    from mlcloud.cluster.clouds.aws import AwsCloud

    def make(offers: list[Offer] | None = None, **settings: Any) -> AwsCloud:
        buckets = settings.pop("buckets", ())
        made = replace(SETTINGS, **settings)
        sold = [offer(), offer(market="on-demand", price="1.006")] if offers is None else offers
        aws = AwsCloud(made, sold, buckets=buckets, now=clock, sleep=clock.sleep)
        aws.api._clients = clients
        return aws

    return make
