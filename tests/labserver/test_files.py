"""`cluster.yaml` beside a notebook, with a real Jupyter server: what it would cost, what is wrong,
and that it is brought up."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlcloud.config import Settings
from mlcloud.errors import CredentialsMissing
from mlcloud.labserver.hub import Hub
from tests.labserver.conftest import Server
from tests.live import Embedded

pytestmark = pytest.mark.cluster

RENTED = """\
name: rented
cloud: aws
regions: [eu-central-1]
store: s3://bucket/mlcloud
budget: 50/day
nodes:
  - gpu: A10G:1
    max: 4
"""
WRONG = """\
name: rented
cloud: aws
reigons: [eu-central-1]
nodes:
  - gpu: A10G:x
"""
OWNED = """\
name: owned
cloud: ssh
store: file:///srv/mlcloud
ssh:
  hosts:
    - {host: 127.0.0.1, port: 1, cpus: 2, memory: 4GB}
"""


def read(server: Server, folder: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.get(f"files?folder={folder}").json()
    return found


def test_a_file_with_its_price_and_one_with_its_problems(server: Server) -> None:
    folder = server.folder / "experiments"
    folder.mkdir()
    (folder / "cluster.yaml").write_text(RENTED)
    (folder / "wrong.cluster.yml").write_text(WRONG)
    (folder / "clustering.yaml").write_text("of: something else")
    (folder / "cluster-raw.yaml").write_bytes(b"\xff\xfe\x00")
    raw, right, wrong = read(server, "experiments")
    assert right["path"] == "experiments/cluster.yaml"
    assert (right["cluster"], right["cloud"], right["budget"]) == ("rented", "aws", ["50/day"])
    assert (right["problems"], right["changes"]) == ([], None)
    (group,) = right["groups"]
    assert (group["name"], group["min"], group["max"]) == ("a10g-1", 0, 4)
    assert group["instance_type"].startswith("g5.")
    assert group["zone"].startswith("eu-central-1")
    assert 0 < float(group["usd_per_hour"]) < 3
    assert 0 < group["saving"] < 1
    assert any(
        each.startswith("bills while the cluster is up: the head") for each in right["notes"]
    )

    said = {each["field"]: each for each in wrong["problems"]}
    assert said["reigons"]["line"] == 3
    assert "did you mean 'regions'" in said["reigons"]["text"]
    assert said["nodes[0].gpu"]["line"] == 5
    assert wrong["groups"] == []
    assert "cannot be read" in raw["problems"][0]["text"]


def test_what_is_not_sold_is_said_with_its_line(server: Server) -> None:
    folder = server.folder / "unsold"
    folder.mkdir()
    (folder / "cluster.yaml").write_text(RENTED.replace("eu-central-1", "eu-centrl-1"))
    (found,) = read(server, "unsold")
    assert found["problems"][0]["line"] == 3
    assert "eu-central-1" in found["problems"][0]["text"]


@pytest.mark.parametrize("folder", ["nowhere", "..", "../..", ".hidden", "%2e%2e"])
def test_only_what_the_file_browser_shows(server: Server, folder: str) -> None:
    for place in (server.folder.parent, server.folder / ".hidden"):
        place.mkdir(exist_ok=True)
        (place / "cluster.yaml").write_text(RENTED)
    assert read(server, folder) == []
    answer = server.http.post("/mlcloud/files", json={"path": f"{folder}/cluster.yaml"})
    assert answer.status_code in (404, 422)
    assert "rented" not in answer.text


def test_a_file_with_problems_is_not_brought_up(server: Server) -> None:
    (server.folder / "wrong-cluster.yaml").write_text(WRONG)
    answer = server.http.post("/mlcloud/files", json={"path": "wrong-cluster.yaml"})
    assert (answer.status_code, answer.json()["code"]) == (422, "SpecificationError")
    assert "nodes[0].gpu: " in answer.json()["message"]


def test_a_head_that_cannot_be_reached(server: Server, cluster: Embedded) -> None:
    if shutil.which("ssh") is None:
        pytest.skip("no ssh: install openssh-client")
    cluster.connect()
    (server.folder / "cluster.yaml").write_text(OWNED)
    with server.events() as events:
        events.until(lambda: "embedded" in events.known, "the page is told what there is")
        answer = server.http.post("/mlcloud/files", json={"path": "cluster.yaml"})
        assert answer.status_code == 202
        events.until(lambda: events.known.get("owned", {}).get("problem"), "why is told", 60)
        known = events.known["owned"]
        assert "127.0.0.1" in known["problem"]
        assert not known["up"]
        (cluster.settings.clusters / "owned.json").unlink()
        events.until(lambda: "owned" not in events.known, "it is forgotten")


async def test_why_nothing_was_begun_stays_until_it_is_read(tmp_path: Path) -> None:
    hub = Hub(Settings(home=tmp_path))
    pressed = threading.Event()

    def refuse(name: str, settings: Settings, say: Callable[[str], None]) -> None:
        say("looking for credentials")
        pressed.wait(10)
        raise CredentialsMissing("there are no credentials")

    async def known(**wanted: str) -> None:
        async for _ in hub.known.follow():
            item = hub.known.items.get("new", {})
            if all(item.get(key) == value for key, value in wanted.items()):
                return

    hub.enter()
    assert hub.act_anew("new", refuse, "coming up")
    assert not hub.act_anew("new", refuse, "coming up")  # in another window
    await asyncio.wait_for(known(doing="coming up: looking for credentials", kind="file"), 10)
    hub.dismiss("new")  # not while it comes up
    pressed.set()
    await asyncio.wait_for(known(doing="", problem="there are no credentials"), 10)
    hub._find()
    assert "new" in hub.known.items
    hub.dismiss("new")
    assert "new" not in hub.known.items
    hub.leave()


@pytest.mark.slow
def test_a_local_cluster_comes_up_and_takes_up_a_change(
    own_cluster: Callable[..., Embedded], own_server: Callable[[Embedded], Server]
) -> None:
    cluster = own_cluster()
    server = own_server(cluster)
    path = server.folder / "cluster.yaml"
    path.write_text("name: mine\ncloud: local\nbudget: 20/day\n")
    (found,) = read(server, "")
    assert (found["cluster"], found["simulated"], found["changes"]) == ("embedded", True, None)
    with server.events() as events:
        assert server.http.post("/mlcloud/files", json={"path": "cluster.yaml"}).status_code == 202
        events.until(lambda: (events.item("info") or {}).get("state") == "running", "it runs", 90)
        events.until(lambda: (events.item("budget/") or {}).get("limit") == "20/day", "its budget")
        assert read(server, "")[0]["changes"] == []

        path.write_text("name: mine\ncloud: local\nbudget: 30/day\n")
        (change,) = read(server, "")[0]["changes"]
        assert "20/day" in change
        assert "30/day" in change
        events.until(lambda: not events.known["embedded"]["doing"], "it has come up")
        assert server.http.post("/mlcloud/files", json={"path": "cluster.yaml"}).status_code == 202
        events.until(lambda: (events.item("budget/") or {}).get("limit") == "30/day", "the change")
