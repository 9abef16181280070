"""The embedded cluster grows from nothing and shrinks to nothing, and keeps to itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime, timezone

import psutil
import pytest

from mlcloud.client.api import Client
from mlcloud.client.session import Session
from mlcloud.cluster.clouds.local import LocalCloud
from mlcloud.cluster.notices.aws import Metadata
from mlcloud.errors import NoSuchResources, UsageError
from tests.live import Embedded, Process, until

pytestmark = pytest.mark.cluster

TOKEN = "X-aws-ec2-metadata-token"


def test_from_zero_to_one_to_zero_to_one(own_cluster: Callable[..., Embedded]) -> None:
    embedded = own_cluster(node_idle="2s")
    client = embedded.connect()
    until(lambda: client.cluster.status().info.state == "running", "the cluster is up", 60)
    assert embedded.workers() == []
    s = client.session("s", namespace={})
    assert s.info.usd_per_hour == 0
    s.run("kept = 1", durable=True, quiet=True)
    [worker] = embedded.workers()
    assert worker["id"] == s.info.node
    assert s.info.usd_per_hour > 0
    s.park()
    until(lambda: not embedded.workers(), "the node is given back", 40)
    until(lambda: client.cluster.status().info.usd_per_hour == 0, "nothing bills", 5)
    spent = s.cost
    assert spent > 0
    s.run("kept += 1", quiet=True)
    assert s["kept"] == 2
    assert len(embedded.workers()) == 1
    s.close()
    until(lambda: not embedded.workers(), "the node is given back", 40)


def test_an_idle_session_is_parked_by_itself(
    session: Callable[..., Session], cluster: Embedded
) -> None:
    s = session(idle_timeout="1s")
    s.run("kept = 'x'", quiet=True)
    until(lambda: s.state == "parked", "it is parked", 20)
    assert s.info.node is None
    assert s["kept"] == "x"


@pytest.mark.slow
def test_two_homes_do_not_disturb_each_other(
    own_cluster: Callable[..., Embedded], cluster: Embedded
) -> None:
    ours = cluster.connect().session("two-homes", namespace={})
    ours.run("import os; home, pid = os.environ['MLCLOUD_HOME'], os.getpid()", quiet=True)
    other = own_cluster("other")
    client = other.connect()
    assert client.sessions() == []
    theirs = client.session("two-homes", namespace={})
    theirs.run("import os; home, pid = os.environ['MLCLOUD_HOME'], os.getpid()", quiet=True)
    assert (ours["home"], theirs["home"]) == (str(cluster.home), str(other.home))
    assert ours["pid"] != theirs["pid"]
    before = {each.pid for each in cluster.processes()}
    assert not before & {each.pid for each in other.processes()}
    other.end()
    assert before <= {each.pid for each in cluster.processes()}
    ours.run("assert pid == os.getpid()", quiet=True)
    ours.close()


def test_sessions_share_nodes_while_there_is_room(
    session: Callable[..., Session], cluster: Embedded
) -> None:
    first, second = session("a"), session("b")
    first.run("1", quiet=True)
    known = {each["id"] for each in cluster.workers()}  # an earlier test's may be among them
    second.run("1", quiet=True)
    assert first.info.node in known
    assert second.info.node in known


def test_on_demand_is_never_given_spot(session: Callable[..., Session], cluster: Embedded) -> None:
    s = session(market="on-demand")
    s.run("1", quiet=True)
    [node] = [each for each in cluster.workers() if each["id"] == s.info.node]
    assert node["offer"]["market"] == "on-demand"
    with pytest.raises(UsageError, match="only spot nodes"):
        cluster.connect().cluster.preempt(s, "1s")
    # Else it would serve the next test's session, which is to be taken away.
    LocalCloud(cluster.settings.cloud_root).terminate(node["id"], "the test ended")


def test_the_notice_is_what_ec2_would_say(
    session: Callable[..., Session], client: Client, cluster: Embedded
) -> None:
    """IMDSv2: no token is 401, nothing to say is 404, then the JSON of `spot/instance-action`."""
    s = session()
    s.run("1", quiet=True)
    [node] = [each for each in cluster.workers() if each["id"] == s.info.node]
    base = f"/imds/{node['metadata_key']}"
    action = f"{base}/latest/meta-data/spot/instance-action"
    with cluster.http(token="") as http:
        assert http.get(action).status_code == 401
        assert http.get(action, headers={TOKEN: "made-up"}).status_code == 401
        assert http.get(f"{base}/latest/meta-data/instance-id").status_code == 401
        ttl = {f"{TOKEN}-ttl-seconds": "60"}
        assert http.put(f"{base}/latest/api/token").status_code == 400
        assert http.put("/imds/guessed/latest/api/token", headers=ttl).status_code == 404
        token = http.put(f"{base}/latest/api/token", headers=ttl).text
        headers = {TOKEN: token}
        assert http.get(action, headers=headers).status_code == 404
        name = http.get(f"{base}/latest/meta-data/instance-id", headers=headers)
        assert name.text == node["id"]

        metadata = Metadata(lambda: f"{cluster.connection['url']}{base}")
        assert metadata.read("spot/instance-action") is None
        notice = client.cluster.preempt(s, "6s")
        answer = http.get(action, headers=headers)
        assert answer.status_code == 200
        body = json.loads(answer.text)
        assert body["action"] == "terminate"
        at = datetime.strptime(body["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
        assert abs((at - notice.deadline).total_seconds()) <= 1
        seen = metadata.read("spot/instance-action")
        assert seen is not None
        assert seen.json() == body
    # The agent saw it as well, told the gateway, and the node is gone when it said.
    until(lambda: s.state in ("moving", "idle"), "the session heard of it", 5)
    until(lambda: node["id"] not in {e["id"] for e in cluster.workers()}, "it is gone", 15)
    # Before that only because the session had left it, and nothing more was to be paid for.
    assert datetime.now(timezone.utc) >= notice.deadline or s.info.node != node["id"]


def test_a_node_has_exactly_the_processes_it_started(
    session: Callable[..., Session], cluster: Embedded
) -> None:
    """When a node ends, nothing of it stays, whatever a cell left running."""
    s = session()
    s.run(
        "import subprocess\n"
        "a = subprocess.Popen(['sleep', '600'])\n"
        "b = subprocess.run('setsid sleep 600 >/dev/null 2>&1 & echo $!', shell=True,"
        " capture_output=True, text=True)\npids = [a.pid, int(b.stdout)]\ndel a, b",
        durable=True,
        quiet=True,
    )
    left = [Process(pid, started(pid), "sleep") for pid in s["pids"]]
    assert all(each.alive for each in left)
    cluster.connect().cluster.preempt(s, "0s")
    until(lambda: not any(each.alive for each in left), "what the cell left running is gone", 10)


def started(pid: int) -> float:
    return psutil.Process(pid).create_time()


def test_a_gpu_that_is_not_offered_is_refused_at_once(client: Client) -> None:
    began = time.monotonic()
    with pytest.raises(NoSuchResources, match=r"H100:8.*A10G:1"):
        client.session("never", gpu="H100:8")
    assert time.monotonic() - began < 1
    assert "never" not in [each.name for each in client.sessions()]
