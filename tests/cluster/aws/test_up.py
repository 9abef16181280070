"""A cluster on AWS, from `up` to `down`: EC2 is moto's, and every instance of it runs here."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

import mlcloud
from mlcloud.client import elsewhere, notes, renting
from mlcloud.client.leftovers import leftovers
from mlcloud.cluster import bootstrap
from mlcloud.cluster.clouds.aws.policies import head_policy
from mlcloud.config import Settings
from mlcloud.errors import Conflict, MLCloudError, NotFound
from tests import netns, rented
from tests.live import until

pytestmark = pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "-")
REGION, BUCKET = rented.REGION, "mine"


@pytest.fixture
def region(
    credentials: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[rented.Region]:
    pytest.importorskip("moto.server", reason="the cloud is moto's: pip install 'moto[server]'")
    pytest.importorskip("s3fs")
    monkeypatch.setenv("MLCLOUD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(renting, "LOOK_S", 0.3)
    Settings().make_folders()
    failed = request.session.testsfailed
    with rented.account() as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.door.url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", made.door.moto)
        rented.client(made.door, REGION, "s3").create_bucket(Bucket=BUCKET)
        try:
            yield made
        finally:
            for tunnel in elsewhere.tunnels.values():
                tunnel.close()
            if request.session.testsfailed > failed:
                print(made.logs(), file=sys.stderr)


def cluster(region: rented.Region, **more: Any) -> mlcloud.Cluster:
    given: dict[str, Any] = {
        "cloud": "aws",
        "regions": [REGION],
        "owner": "ann",
        "store": f"s3://{BUCKET}/lab",
        "store_region": REGION,
        "nodes": [{"instance_type": "t3.medium", "max": 2}],
        "endpoints": {"checkip": region.checkip},
        **more,
    }
    return mlcloud.Cluster("lab", **given)


def machine_of(region: rented.Region, session: mlcloud.Session) -> rented.Rented:
    session.run("import os as _os; _pid = _os.getpid()", quiet=True)
    return region.machine(session["_pid"])


def processes() -> list[str]:
    """Those of any cluster called `lab`, wherever they run."""
    found = []
    for each in psutil.process_iter():
        try:
            if each.environ().get(bootstrap.CLUSTER_MARK, "").startswith("lab-"):
                found.append(" ".join(each.cmdline()))
        except (psutil.Error, OSError):
            continue
    return found


def allowed(policy: dict[str, Any]) -> set[str]:
    """The actions that a policy allows on anything."""
    return {name.partition(":")[2] for each in policy["Statement"] for name in each["Action"]}


def timed(what: str, began: float) -> None:
    print(f"{what} after {time.monotonic() - began:.1f} s", file=sys.stderr)


@pytest.mark.slow
def test_a_cluster_from_up_to_down(region: rented.Region) -> None:
    """A head bought and set up, cells on a node that it buys, two reclaims, and nothing is left."""
    began = time.monotonic()
    made = cluster(region, budget="50/day")
    status = made.up()
    timed("up", began)
    assert status.info.cloud == "aws"
    (head,) = region.running
    assert head.role == "mlcloud-ann-lab-head"
    # The head bills from now on, and says so.
    assert status.info.standing_usd_per_hour > 0
    assert [(each.session, each.limit) for each in status.info.budgets] == [(None, "50/day")]

    client = mlcloud.connect("lab")
    namespace: dict[str, Any] = {"start": 40}
    session = client.session("s", namespace=namespace)
    session.run("answer = start + 2; kept = list(range(1000))", durable=True)
    timed("first cell", began)
    assert namespace["answer"] == 42
    worker = machine_of(region, session)
    assert worker is not head
    assert worker.role == "mlcloud-ann-lab-worker"
    (launch,) = region.door.calls("RunInstances")[1:]
    assert launch["InstanceMarketOptions.MarketType"] == "spot"
    # Who reads a machine's user data finds no key of the store's, and no token of anybody's.
    secrets = [notes.note_of("lab", Settings()).token, "PRIVATE KEY", "of-the-role"]
    assert not [each for each in secrets if each in worker.user_data]

    # Taken back with a notice: gone before the end, and nothing runs twice.
    began = time.monotonic()
    region.reclaim(worker, 40)
    until(lambda: len(region.running) == 3, "the successor is bought at the notice", 30)
    timed("successor bought", began)
    session.run("kept.append(-1); total = sum(kept)")
    timed("a cell's end", began)
    until(worker.ended.is_set, "it is taken back", 60)
    session.run("total -= 1")
    timed("a cell's end elsewhere", began)
    assert namespace["total"] == sum(range(1000)) - 2
    second = machine_of(region, session)
    assert second not in (head, worker)

    # Without a word, in the middle of a cell: it runs again from its start.
    begun = second.folder / "begun"
    code = f"import time\nopen({str(begun)!r}, 'w').close()\ntime.sleep(5)\ntotal += 1"
    with ThreadPoolExecutor(1) as pool:
        cell = pool.submit(session.run, code)
        until(begun.exists, "the cell runs")
        began = time.monotonic()
        region.reclaim(second, 0)
        cell.result(180)
    timed("a cell's end after a loss", began)
    assert namespace["total"] == sum(range(1000)) - 1
    assert machine_of(region, session) not in (head, worker, second)
    assert region.why_ended(second) == "Server.SpotInstanceTermination"

    # Changed while it runs: what can be is applied, and its session goes on.
    began = time.monotonic()
    changed = cluster(
        region,
        nodes=[{"instance_type": "t3.medium", "max": 3}, {"instance_type": "m5.large", "max": 1}],
        budget=["60/day", "200/week"],
        tags={"team": "vision"},
    )
    node = machine_of(region, session)
    changed.up()
    timed("changed", began)
    assert {each.limit for each in client.budgets()} == {"60/day", "200/week"}
    assert session["total"] == sum(range(1000)) - 1
    assert machine_of(region, session) is node
    larger = client.session("larger", memory="6GB", namespace={})
    larger.run("answer = 1")
    timed("a cell on a node of the new group", began)
    launch = region.door.calls("RunInstances")[-1]
    assert launch["InstanceType"] == "m5.large"
    assert "vision" in str(launch)
    with pytest.raises(Conflict, match="store"):
        cluster(region, store=f"s3://{BUCKET}/other").up()

    # The head, with the keys of its role, asked for nothing that its role may not.
    asked = {action for key, action in region.door.signed if key.startswith("ASIA")}
    assert {"RunInstances", "DescribeInstances"} <= asked
    settings = made.specification.settings()
    assert asked <= allowed(head_policy(settings, (BUCKET,)))

    began = time.monotonic()
    made.down()
    timed("down", began)
    assert region.left() == []
    until(lambda: region.running == [], "its machines end", 20)
    until(lambda: processes() == [], "no process is left")
    assert notes.known(Settings()) == []


@pytest.mark.slow
def test_a_cluster_that_nobody_uses(region: rented.Region) -> None:
    """It ends itself, its head too, and comes back with what it knew."""
    made = cluster(region, idle={"session": "5s", "node": "5s", "cluster": "15s"})
    made.up()
    client = mlcloud.connect("lab")
    session = client.session("s", namespace={})
    session.run("answer = 42", durable=True)
    head = machine_of(region, session)
    elsewhere.tunnels["lab"].close()
    began = time.monotonic()
    until(lambda: region.running == [], "all machines end", 120)
    timed("ended", began)
    assert {region.why_ended(each) for each in region.machines.values()} == {
        "Client.UserInitiatedShutdown",
        "Client.InstanceInitiatedShutdown",
    }
    assert head.ended.is_set()

    made.up()
    again = mlcloud.connect("lab").session("s", namespace={})
    again.run("answer += 1")
    assert again["answer"] == 43
    made.down()
    assert region.left() == []


@pytest.mark.slow
def test_a_cluster_as_old_as_it_may_become(region: rented.Region) -> None:
    """Its nodes end, and its head too while it is in use: saved, by its keeper."""
    made = cluster(region, max_lifetime="90s", idle={"session": "10m", "node": "10m"})
    made.up()
    client = mlcloud.connect("lab")
    session = client.session("s", namespace={})
    session.run("answer = 41", durable=True)
    (head,) = (each for each in region.running if each is not machine_of(region, session))
    told = "the head node is as old as it may become (max_lifetime)"
    until(lambda: told in client.cluster.status().info.detail or head.ended.is_set(), "said", 120)
    until(lambda: region.running == [], "all machines end", 120)
    assert region.why_ended(head) == "Client.InstanceInitiatedShutdown"
    elsewhere.tunnels["lab"].close()
    cluster(region).up()
    again = mlcloud.connect("lab").session("s", namespace={})
    again.run("answer += 1")
    assert again["answer"] == 42
    made.down()
    assert region.left() == []


@pytest.mark.slow
def test_a_head_that_boots_again(region: rented.Region) -> None:
    """Its keeper starts with it: the gateway takes up its sessions, the node that knew the old one
    is given back, and it ends as it would have."""
    made = cluster(region, idle={"session": "1m", "node": "5s", "cluster": "15s"})
    made.up()
    client = mlcloud.connect("lab")
    session = client.session("s", namespace={})
    session.run("answer = 41", durable=True)
    node = machine_of(region, session)
    (head,) = (each for each in region.running if each is not node)
    began = time.monotonic()
    region.reboot(head)
    until(lambda: answers(client), "its gateway listens", 60)
    timed("listens", began)
    session.run("answer += 1")
    timed("a cell's end", began)
    assert session["answer"] == 42
    assert machine_of(region, session) is not node
    until(node.ended.is_set, "the node of before ends", 30)
    elsewhere.tunnels["lab"].close()
    until(lambda: region.running == [], "all machines end when nobody uses them", 180)
    (start,) = head.home.glob(".mlcloud-node/lab-*/head/gateway.db")
    assert not start.with_name("start.sh").exists(), "not at a next boot"
    made.down()
    assert region.left() == []


def answers(client: Any) -> bool:
    try:
        return bool(client.cluster.status())
    except MLCloudError:
        return False


def test_what_a_laptop_left_that_crashed(
    region: rented.Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of `up`: the head is let in and nobody comes. It ends itself, `gc` finds all
    that is left around it, and no second head is bought by who tries again."""
    monkeypatch.setattr(renting, "DESERTED_S", 8.0)
    made = cluster(region)
    folder = Settings().clusters / "lab"
    folder.mkdir(parents=True)
    for _ in range(2):
        renting.rent(made.specification, folder, lambda text: None)
    (head,) = region.running
    found = leftovers(made)
    assert [each.kind for each in found][:1] == ["instance"]
    until(head.ended.is_set, "nobody makes it a head: it ends", 60)
    until(lambda: region.why_ended(head) == "Client.InstanceInitiatedShutdown", "EC2 knows")
    assert region.left() != []
    with pytest.raises(NotFound):
        notes.note_of("lab", Settings())
    assert leftovers(made).remove() == []
    assert region.left() == []
