"""A changed specification under a running cluster: by Python, the magic and the shell; limits, node
groups, idle times and budgets in force at once, and a session that goes on meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import mlcloud
from mlcloud import cli
from mlcloud.errors import Conflict, NoSuchResources
from tests.live import Embedded, open_notebook, until

pytestmark = pytest.mark.cluster

FIELDS: dict[str, Any] = {
    "nodes": [{"name": "small", "cpus": 2, "max": 1}, {"gpu": "A10G:1", "max": 1}],
    "idle": {"node": "10m"},
}


def test_a_running_cluster_takes_up_what_it_can(
    own_cluster: Callable[..., Embedded], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embedded = own_cluster()
    mlcloud.Cluster("try", **FIELDS).up()
    embedded.processes()
    client = mlcloud.connect()
    first = client.session("first", cpus=2, namespace={})
    first.run("kept = 41")
    node = first.info.node

    # one more node of a group than there could be before, asked for while it waits
    second = client.session("second", cpus=2, namespace={})
    pool = second.run("pass", detach=True)
    until(
        lambda: any("have all the nodes" in each.detail for each in attempts(client)),
        "its group is full",
    )
    changed = {**FIELDS, "nodes": [{**FIELDS["nodes"][0], "max": 2}, FIELDS["nodes"][1]]}
    capsys.readouterr()
    mlcloud.Cluster("try", **changed, budget=["3/week", "9/day"]).up()
    said = capsys.readouterr().out
    assert "applied to the running cluster try" in said
    assert "nodes[small].max" in said
    assert {each.limit for each in client.budgets()} == {"3/week", "9/day"}
    pool.result(60)
    assert second.info.node not in (None, node)

    # a group less: who is on its node goes on, nobody else comes; one that is idle ends soon
    fewer = {"nodes": [{"name": "big", "cpus": 4, "max": 1}], "idle": {"node": "2s"}}
    mlcloud.Cluster("try", **fewer).up()
    assert client.budgets() == []
    first.run("kept += 1")
    assert first["kept"] == 42
    assert first.info.node == node
    with pytest.raises(NoSuchResources, match="A10G"):
        client.session("third", gpu="A10G:1", namespace={})
    second.park()
    until(lambda: [each["id"] for each in embedded.workers()] == [node], "an idle node ends")
    with pytest.raises(NoSuchResources, match=r"no node of 2 CPUs any more; there are: .*4 CPUs"):
        second.run("1")

    # a gateway that follows goes on with it, and with the session on the node of before
    embedded.kill_gateway()
    assert first["kept"] == 42
    file = embedded.settings.cloud_root / "autoscaling.yaml"
    until(lambda: json.loads(file.read_text())["max_workers"] == 1, "only so many from now on")
    assert mlcloud.connect().cluster.specification.nodes[0].name == "big"

    # by the magic and by the shell
    file = tmp_path / "cluster.yaml"
    file.write_text("name: try\nnodes: [{cpus: 2, max: 3}]\nidle: {node: 2s}\n")
    with open_notebook(embedded) as notebook:
        shown = notebook.ok(f"%mlcloud up {file}")
        assert "nodes[cpu2]" in shown.stream()
    second.run("back = 1")
    file.write_text("name: try\nnodes: [{cpus: 2, max: 3}]\nidle: {node: 2s, session: 5m}\n")
    done = CliRunner().invoke(cli.main, ["up", str(file)])
    assert "idle.session" in done.output
    with pytest.raises(Conflict, match=r"(?s)store.*`mlcloud down`, then `up`"):
        mlcloud.Cluster("try", store=f"file://{tmp_path}/other", **FIELDS).up()


def attempts(client: Any) -> list[Any]:
    return list(client.cluster.status().info.attempts)
