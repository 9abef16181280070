"""A head on AWS: bought, and given back where it does not come up. Nothing of it is left."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from mlcloud.client import head_files, launching, notes, renting
from mlcloud.cluster import bootstrap, ssh
from mlcloud.cluster.clouds import at_head, reach
from mlcloud.cluster.clouds.base import CloudWithLeftovers, LaunchRequest
from mlcloud.cluster.clouds.headed import Headed
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
        notes.note_of("gpus", Settings())
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


def test_nodes_are_told_what_they_need(
    wanted: Specification, aws: ec2.Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rights to the store's bucket, the clients to reach it, the disk of their group, how long
    they may live, and what their head costs."""
    monkeypatch.setattr(ssh, "run", lambda *_, **__: "")
    roomy = [{"gpu": "A10G:1", "disk": "200GB"}]
    told = wanted.model_dump(mode="json") | {"nodes": roomy, "network": {"ssh_from": "me"}}
    wanted = Specification.model_validate(told)
    folder = tmp_path / "key"
    folder.mkdir()
    made = renting.rent(wanted, folder, lambda _: None)
    assert made.settings["MLCLOUD_NODE_LIFETIME"] == "604800s"
    runtime = head_files.with_wheel(made)[0].runtime
    assert runtime.extras == ("aws",)
    spec = HeadSpec("gpus", "gpus-1", made.cloud, "10.0.0.5", made.cloud_settings, runtime=runtime)
    file = tmp_path / "head.json"
    file.write_text(spec.write())
    assert HeadSpec.read(file) == spec
    script = bootstrap.head(
        cluster="gpus",
        cluster_id="gpus-1",
        instance="i",
        files={},
        variables={},
        runtime=runtime,
        version="1",
    )
    assert f'"$folder/{runtime.wheel}[aws]"' in script

    head = at_head(tmp_path / "root", file)
    assert isinstance(head, Headed)
    assert head.head_offer == renting.cloud_from_here(wanted).instances()[0].offer
    seen = len(aws.calls("AuthorizeSecurityGroupIngress"))
    offer = min(head.beyond.offers(), key=lambda each: each.usd_per_hour)
    head.beyond.launch(offer, LaunchRequest("a10g", {"GPU": 1.0}))
    launch = aws.calls("RunInstances")[-1]
    assert launch["IamInstanceProfile.Name"] == "mlcloud-ann-gpus-worker"
    assert launch["BlockDeviceMapping.1.Ebs.VolumeSize"] == "200"
    # `me` is this computer, not the head: who is let in stays as it was.
    assert len(aws.calls("AuthorizeSecurityGroupIngress")) == seen
    assert aws.calls("RevokeSecurityGroupIngress") == []


def test_a_head_that_runs_is_not_given_back(
    wanted: Specification, aws: ec2.Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of reach from here for a moment, as by another address: it is let in, or left alone."""
    monkeypatch.setattr(ssh, "run", lambda *_, **__: "")
    folder = tmp_path / "key"
    folder.mkdir()
    renting.rent(wanted, folder, lambda _: None)

    def away(target: ssh.Target, script: str, timeout: float = 0) -> str:
        raise NoCapacity(f"{target.host} cannot be reached")

    monkeypatch.setattr(ssh, "run", away)
    monkeypatch.setattr(renting, "SSHD_S", 0.3)
    monkeypatch.setattr(reach, "own_address", lambda _: "198.51.100.9")
    with pytest.raises(ConnectionFailed, match="did not let us in"):
        renting.rent(wanted, folder, lambda _: None)
    cloud = renting.cloud_from_here(wanted)
    assert [each.node_type for each in cloud.instances() if each.alive] == ["head"]
    assert "198.51.100.9/32" in str(aws.calls("AuthorizeSecurityGroupIngress")[-1])


def test_an_address_that_was_anothers(tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    ssh.forget(known, "203.0.113.7")
    known.write_text("203.0.113.7 ssh-ed25519 AAAA\n203.0.113.70 ssh-ed25519 BBBB\n")
    ssh.forget(known, "203.0.113.7")
    assert known.read_text() == "203.0.113.70 ssh-ed25519 BBBB\n"


def test_no_head_to_be_had(
    wanted: Specification, aws: ec2.Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renting, "TRIES", 0)
    with pytest.raises(NoCapacity, match="no head for 'gpus' could be had"):
        up(wanted)
