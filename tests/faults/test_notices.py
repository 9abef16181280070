"""What a cloud says to a node, and what a session makes of it: moved, saved, or left alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from mlcloud.client.api import Client
from mlcloud.client.session import Session
from mlcloud.cluster.clouds.local import LocalCloud
from tests.live import Embedded, Running, alive, events, stories, until

pytestmark = pytest.mark.cluster

POLL_S = 1.0
ASKED_S = 1.0  # beyond the poll
BUSY_S = 1.5  # what this machine may take longer when it is busy

CELL = """
import os, time
print('ready', flush=True)
first = not os.path.exists({ran!r})
open({ran!r}, 'w').close()
if first: time.sleep(60)
again = True
"""
TRAIN = """
import time, mlcloud
w = 0
for step in mlcloud.resumable(range(400), state={{"w": w}}, every=1000):
    w += 1
    print(step, flush=True)
    if __import__('os').path.exists({stop!r}): break
    time.sleep(0.1)
"""


def asked_after(session: Session, drill: Callable[[], object]) -> float:
    """Seconds from the drill until a replacement is asked for, by the event's own time."""

    def asked() -> list[float]:
        return [
            each["time"]
            for each in events(session, after)
            if each["kind"] == "status" and "asking for a node" in each["content"]["text"]
        ]

    after = session.info.last_event
    began = time.time()
    drill()
    return until(asked, "a replacement is asked for", 20)[0] - began


def record(cluster: Embedded, node: str | None) -> dict[str, Any]:
    [found] = [each for each in cluster.records() if each["id"] == node]
    return found


def cloud_of(cluster: Embedded) -> LocalCloud:
    return LocalCloud(cluster.settings.cloud_root)


def drill(cluster: Embedded, s: Session, ran: str) -> float:
    """A node is taken back in a cell: how long until its replacement was asked for. The cell runs
    again there."""
    client = cluster.connect()
    s.run("kept = [1]", durable=True, quiet=True)
    first = s.info.node
    cell = Running(s, CELL.format(ran=ran))
    cell.printed("ready")
    took = asked_after(cell.watch, lambda: client.cluster.preempt(s.name, "3s"))
    assert cell.error(120) is None
    assert s.info.node not in (first, None)
    assert (s["kept"], s["again"]) == ([1], True)
    assert {"notice", "lost", "moved", "rerun"} <= set(stories(s))
    assert [e["content"]["what"] for e in events(s) if e["kind"] == "story"].count("notice") == 1
    return took


def test_a_replacement_is_asked_for_at_once(
    session: Callable[..., Session], cluster: Embedded, tmp_path: object
) -> None:
    took = drill(cluster, session(), f"{tmp_path}/ran")
    assert took <= POLL_S + ASKED_S + BUSY_S


@pytest.mark.slow
@pytest.mark.parametrize("flavour", ["gcp", "azure"])
def test_as_google_and_azure_say_it(
    flavour: str, own_cluster: Callable[..., Embedded], tmp_path: object
) -> None:
    embedded = own_cluster(metadata=flavour)
    s = embedded.connect().session("s", namespace={})
    took = drill(embedded, s, f"{tmp_path}/ran")
    assert took <= POLL_S + ASKED_S + BUSY_S
    # Nothing is taken back here: a live migration is announced, and a session stays and saves.
    node = s.info.node
    cloud_of(embedded).warn(str(node))
    until(lambda: "risk" in stories(s), "the risk is told", 10)
    assert "stand still" in stories(s)["risk"]
    s.run("kept.append(2)", quiet=True)
    assert s.info.node == node
    s.close()


def test_a_rebalance_recommendation_saves_and_moves_nothing(
    session: Callable[..., Session], cluster: Embedded, tmp_path: object
) -> None:
    s = session()
    s.run("kept = 1", durable=True, quiet=True)
    node = str(s.info.node)
    cell = Running(s, TRAIN.format(stop=f"{tmp_path}/stop"))
    cell.printed("3")
    cloud_of(cluster).warn(node)

    def saved() -> bool:
        return any(
            each["kind"] == "mlcloud_event" and each["content"].get("reason") == "notice"
            for each in events(cell.watch)
        )

    until(saved, "the loop saves", 15)
    open(f"{tmp_path}/stop", "w").close()
    assert cell.error(60) is None
    told = [e["content"] for e in events(s) if e["kind"] == "story"]
    assert [each["what"] for each in told] == ["risk"]
    assert "may take" in told[0]["text"]
    assert s.info.node == node
    assert s.state == "idle"
    # What follows is a notice like any other.
    cluster.connect().cluster.preempt(s, "8s")
    until(lambda: s.info.node not in (node, None) and s.state == "idle", "it has moved", 60)


def test_a_node_that_goes_away_gets_no_new_work(
    session: Callable[..., Session], cluster: Embedded, client: Client
) -> None:
    """Neither the one that a session leaves, nor one that nobody is on."""
    first = session("first")
    first.run("1", quiet=True)
    going = str(first.info.node)
    first.park()
    assert going in {each["id"] for each in cluster.workers()}
    client.cluster.preempt(going, "40s")
    # The node is not told of by a session, which there is none on: the gateway's own list is.
    with cluster.http() as http:
        token = {"Authorization": f"Bearer {record(cluster, going)['node_token']}"}
        until(lambda: record(cluster, going)["notice"], "the notice is there", 5)
        time.sleep(POLL_S + 0.5)
        assert http.post(f"/v1/nodes/{going}/heartbeat", json={"pid": 1}, headers=token).is_success
    second = session("second")
    second.run("1", quiet=True)
    assert second.info.node != going
    first.run("1", quiet=True)
    assert first.info.node != going
    cloud_of(cluster).terminate(going, "the test ended")


def test_a_machine_that_shuts_down_without_a_notice(
    session: Callable[..., Session], cluster: Embedded
) -> None:
    """The operating system ends the agent: there is time to leave."""
    s = session()
    s.run("kept = [1]", durable=True, quiet=True)
    first = s.info.node
    agent = psutil.Process(record(cluster, first)["pid"])
    took = asked_after(s, lambda: os.kill(agent.pid, signal.SIGTERM))
    assert took <= ASKED_S + BUSY_S
    until(lambda: s.info.node not in (first, None) and s.state == "idle", "it has moved", 60)
    assert "in 30 s" in stories(s)["notice"]
    assert "lost" not in stories(s)  # it left, nothing was cut short
    assert s["kept"] == [1]
    # Whoever takes a node away on purpose does not wait.
    began = time.monotonic()
    cloud_of(cluster).terminate(str(first), "the test ended")
    assert not alive(agent)
    assert time.monotonic() - began < 4


def test_a_node_that_is_taken_down_says_nothing(
    session: Callable[..., Session], cluster: Embedded
) -> None:
    s = session()
    s.run("kept = [1]", durable=True, quiet=True)
    node = str(s.info.node)
    agent = psutil.Process(record(cluster, node)["pid"])
    cloud_of(cluster).terminate(node, "the test ended")
    assert not alive(agent)
    assert s["kept"] == [1]
    assert "notice" not in stories(s)


@pytest.mark.slow
def test_a_gateway_that_was_not_told_hears_it_with_the_next_heartbeat(
    session: Callable[..., Session], cluster: Embedded
) -> None:
    """Of a gateway that is started between notice and end. What is repeated changes nothing."""
    s = session()
    s.run("kept = [1]", durable=True, quiet=True)
    first = s.info.node
    token = {"Authorization": f"Bearer {record(cluster, first)['node_token']}"}
    said = {"key": "a notice", "kind": "preempt", "in_s": 20.0}
    with cluster.http() as http:
        for _ in range(3):
            beat = {"pid": 1, "notices": [said]}
            answer = http.post(f"/v1/nodes/{first}/heartbeat", json=beat, headers=token)
            assert answer.status_code == 204
        bad = {"pid": 1, "notices": [said | {"in_s": -1}]}
        answer = http.post(f"/v1/nodes/{first}/heartbeat", json=bad, headers=token)
        assert answer.status_code == 422
    until(lambda: s.info.node not in (first, None) and s.state == "idle", "it has moved", 60)
    told = [e["content"]["what"] for e in events(s) if e["kind"] == "story"]
    assert told.count("notice") == 1
    assert s["kept"] == [1]
    cloud_of(cluster).terminate(str(first), "the test ended")


@pytest.mark.slow
def test_a_notice_that_the_cloud_takes_back(
    session: Callable[..., Session], cluster: Embedded, tmp_path: object
) -> None:
    """The cell goes on where it is; a drained node is left between cells."""
    s = session()
    s.run("kept = [1]", durable=True, quiet=True)
    first = s.info.node
    cell = Running(
        s,
        "import os, time\nprint('ready', flush=True)\n"
        f"while not os.path.exists('{tmp_path}/go'): time.sleep(0.05)\nkept.append(2)",
    )
    cell.printed("ready")
    token = {"Authorization": f"Bearer {record(cluster, first)['node_token']}"}
    said = {"key": "an event", "kind": "preempt", "in_s": 25.0}
    with cluster.http() as http:
        path = f"/v1/nodes/{first}/notice"
        assert http.post(path, json=said, headers=token).status_code == 204
        until(lambda: "notice" in stories(cell.watch), "the notice is told", 5)
        back = {"key": "an event", "kind": "withdrawn"}
        assert http.post(path, json=back, headers=token).status_code == 204
    until(lambda: "took its notice back" in stories(cell.watch).get("risk", ""), "it is said", 5)
    open(f"{tmp_path}/go", "w").close()
    assert cell.error(60) is None
    until(lambda: s.info.node not in (first, None) and s.state == "idle", "it has moved", 60)
    assert s["kept"] == [1, 2]
    assert not {"lost", "rerun"} & set(stories(s))
    cloud_of(cluster).terminate(str(first), "the test ended")


@pytest.mark.slow
def test_a_node_does_not_become_older_than_it_may(own_cluster: Callable[..., Embedded]) -> None:
    """Its sessions have left by then. The head of an embedded cluster is your own computer."""
    embedded = own_cluster(node_lifetime="60s")
    s = embedded.connect().session("s", namespace={})
    s.run("kept = [1]", durable=True, quiet=True)
    first = s.info.node
    until(lambda: "notice" in stories(s), "the notice is told", 70)
    assert "as old as it may become" in stories(s)["notice"]
    until(lambda: s.info.node not in (first, None) and s.state == "idle", "it has moved", 60)
    until(lambda: record(embedded, first)["ended_at"], "the old node has ended", 60)
    assert s["kept"] == [1]
    head = [each for each in embedded.records() if each["node_type"] == "head"]
    assert [each["ended_at"] for each in head] == [None]
    s.close()
