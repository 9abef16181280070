"""A head on AWS: bought, and given back where it does not come up. Nothing of it is left."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from mlcloud.client import launching, renting
from mlcloud.cluster import ssh
from mlcloud.cluster.clouds import at_head
from mlcloud.cluster.clouds.base import CloudWithLeftovers
from mlcloud.cluster.headspec import HeadSpec
from mlcloud.cluster.specification import Specification, specify
from mlcloud.config import Settings
from mlcloud.errors import ConnectionFailed, NoCapacity, NotFound
from tests import ec2
from tests.cluster.aws.conftest import IMAGE

REGION = "eu-central-1"


@pytest.fixture
def checkip() -> Iterator[str]:
    """The service that tells who asks its address."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"203.0.113.7\n")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture
def wanted(aws: ec2.Door, checkip: str, tmp_path: Path, monkeypatch: Any) -> Specification:
    monkeypatch.setenv("MLCLOUD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(renting, "LOOK_S", 0.1)
    return specify(
        name="gpus",
        cloud="aws",
        regions=(REGION,),
        owner="ann",
        store="s3://mine/runs",
        store_region=REGION,
        image=IMAGE,
        nodes=[{"gpu": "A10G:1", "max": 3}],
        endpoints={"checkip": checkip},
    )


def up(wanted: Specification) -> list[str]:
    said: list[str] = []
    launching.up(wanted, Settings(), said.append)
    return said


def test_a_head_that_lets_nobody_in(
    wanted: Specification, aws: ec2.Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(target: ssh.Target, script: str, timeout: float = 0) -> str:
        assert target.user == "ubuntu"
        raise NoCapacity(f"{target.host} cannot be reached")

    monkeypatch.setattr(ssh, "run", away)
    monkeypatch.setattr(renting, "SSHD_S", 0.3)
    with pytest.raises(ConnectionFailed, match="did not let us in"):
        up(wanted)
    cloud = renting.cloud_from_here(wanted)
    assert [each for each in cloud.instances() if each.alive] == []
    with pytest.raises(NotFound):
        launching.note_of("gpus", Settings())
    # What was made around it is found, and goes.
    said: list[str] = []
    renting.sweep(wanted.model_dump(mode="json"), said.append)
    assert isinstance(cloud, CloudWithLeftovers)
    assert cloud.leftovers(datetime.now(timezone.utc)) == []


def test_an_up_that_was_broken_off_buys_no_second_head(
    wanted: Specification, aws: ec2.Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "run", lambda *_, **__: "")
    folder = tmp_path / "key"
    folder.mkdir()
    first = renting.rent(wanted, folder, lambda _: None)
    again = renting.rent(wanted, folder, lambda _: None)
    assert first.machines == again.machines
    (head,) = [each for each in renting.cloud_from_here(wanted).instances() if each.alive]
    assert head.node_type == "head"
    assert head.offer.market == "on-demand"
    assert first.machines[0].host == head.public_ip
    assert (first.cloud, first.settings["MLCLOUD_MAX_NODES"]) == ("aws", "3")
    # SSH is let in from this computer alone, and nothing else from anywhere.
    client = renting.cloud_from_here(wanted).api.client("ec2", REGION)  # type: ignore[attr-defined]
    groups = client.describe_security_groups(
        Filters=[{"Name": "tag-key", "Values": ["mlcloud-cluster"]}]
    )["SecurityGroups"]
    let_in = [
        (rule["FromPort"], [each["CidrIp"] for each in rule["IpRanges"]])
        for group in groups
        for rule in group["IpPermissions"]
        if rule["IpRanges"]
    ]
    assert let_in == [(22, ["203.0.113.7/32"])]


def test_what_the_head_is_told_gives_it_the_cloud(
    wanted: Specification, aws: ec2.Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that is written for it, read there: the offers its specification takes."""
    monkeypatch.setattr(ssh, "run", lambda *_, **__: "")
    folder = tmp_path / "key"
    folder.mkdir()
    made = renting.rent(wanted, folder, lambda _: None)
    spec = HeadSpec("gpus", "gpus-1", made.cloud, "10.0.0.5", made.cloud_settings)
    file = tmp_path / "head.json"
    file.write_text(spec.write())
    cloud = at_head(tmp_path / "root", file)
    assert cloud.name == "aws"
    offers = cloud.offers()
    assert {each.accelerator for each in offers} == {"A10G"}
    assert {each.region for each in offers} == {REGION}
    assert {each.market for each in offers} == {"spot", "on-demand"}


def test_no_head_to_be_had(
    wanted: Specification, aws: ec2.Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renting, "TRIES", 0)
    with pytest.raises(NoCapacity, match="no head for 'gpus' could be had"):
        up(wanted)
