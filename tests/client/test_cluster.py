"""`Cluster(…)`: the embedded cluster by a specification, and what a real cloud waits for."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mlcloud
from mlcloud.client.cluster import Status
from mlcloud.client.embedded_specification import of_settings, variables
from mlcloud.cluster.specification import Specification, specify
from mlcloud.cost.prices import local_offers
from mlcloud.errors import (
    Conflict,
    ConnectionFailed,
    CredentialsMissing,
    NotFound,
    SpecificationError,
)
from tests.live import Embedded

AWS: dict[str, Any] = {"cloud": "aws", "regions": ["eu-central-1"], "store": "s3://bucket/x"}


def test_a_cluster_is_checked_when_it_is_made() -> None:
    with pytest.raises(SpecificationError) as caught:
        mlcloud.Cluster("gpus", nodes=[{"gpu": "A10G:x"}], budgt="5/h", spares="many")
    assert str(caught.value).splitlines()[0] == "Cluster('gpus'): 3 problems"
    assert "budgt: no such field; did you mean 'budget'?" in str(caught.value)
    with pytest.raises(SpecificationError, match="nodes: a list is expected, not 'A10G:1'"):
        mlcloud.Cluster("gpus", nodes="A10G:1")  # type: ignore[arg-type]


def test_a_cluster_that_is_not_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLCLOUD_HOME", str(tmp_path / "home"))
    cluster = mlcloud.Cluster("try", nodes=[{"gpu": "A10G:1", "max": 8}])
    assert repr(cluster) == "<cluster try on local: A10G:1, 1 CPU, spot, 0 to 8>"
    assert mlcloud.Cluster.from_yaml(cluster.to_yaml()).specification == cluster.specification
    for ask in (cluster.status, lambda: cluster.preempt("x")):
        with pytest.raises(ConnectionFailed, match=r"'try' is not up: cluster\.up\(\) starts it"):
            ask()
    with pytest.raises(NotFound, match="'try' is not up"):
        cluster.changes()
    assert not (tmp_path / "home").exists()


def test_only_settings_that_are_named_are_set() -> None:
    assert variables(specify(name="x")) == {}
    named = specify(
        name="x",
        nodes=[{"gpu": "A10G", "max": 40}, {"cpus": 2, "max": 60}],
        spares=0,
        idle={"node": "90s"},
        store="file:///tmp/x",
    )
    assert variables(named) == {
        "MLCLOUD_MAX_NODES": "64",
        "MLCLOUD_WARM_SPARES": "0",
        "MLCLOUD_STORE": "file:///tmp/x",
        "MLCLOUD_NODE_IDLE": "1m30s",
    }


def test_the_settings_as_a_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLCLOUD_MAX_NODES", "7")
    monkeypatch.setenv("MLCLOUD_IDLE_TIMEOUT", "5m")
    made = of_settings()
    assert made.nodes[0].max == 7
    assert variables(made)["MLCLOUD_IDLE_TIMEOUT"] == "5m"


# --- real clouds ----------------------------------------------------------------------------------


def test_a_real_cloud_is_brought_up_by_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Specification]] = []

    def up(specification: Specification) -> Any:
        asked.append(("up", specification))
        raise CredentialsMissing("no AWS credentials were found: run `aws configure`")

    monkeypatch.setattr("mlcloud.client.launching.up", up)
    monkeypatch.setattr(
        "mlcloud.client.launching.down", lambda specification: asked.append(("down", specification))
    )
    cluster = mlcloud.Cluster("gpus", **AWS)
    with pytest.raises(CredentialsMissing, match="run `aws configure`"):
        cluster.up()
    cluster.down()
    assert asked == [("up", cluster.specification), ("down", cluster.specification)]


# --- the embedded one -----------------------------------------------------------------------------


@pytest.mark.cluster
def test_the_embedded_cluster_by_a_specification(
    own_cluster: Callable[..., Embedded], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embedded = own_cluster()
    store = tmp_path / "store"
    fields: dict[str, Any] = {
        "store": f"file://{store}",
        "nodes": [{"gpu": "A10G:1", "max": 2}, {"cpus": 2, "max": 1}],
        "idle": {"cluster": "10m"},
        "budget": "5/day",
    }
    cluster = mlcloud.Cluster("try", **fields)
    status = cluster.up()
    embedded.processes()
    assert isinstance(status, Status)
    assert status.info.store == f"file://{store}"
    assert not cluster.changes()
    assert mlcloud.connect().cluster.specification == cluster.specification

    # the same again finds it, as does another name for the same home's default
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = mlcloud.Cluster("try", **fields).up()
    assert again.info.state in ("starting", "running")

    assert [each.limit for each in status.info.budgets] == ["5/day"]

    # what can change while it runs does, what cannot is refused by name
    other = mlcloud.Cluster("try", **{**fields, "budget": "9/day", "store": f"file://{store}2"})
    assert [str(each) for each in other.changes()] == [
        f"store: file://{store} → file://{store}2 (needs down and up)",
        "budget: 5/day → 9/day (applied in place)",
    ]
    with pytest.raises(Conflict, match="cannot take this up while it does") as caught:
        other.up()
    text = str(caught.value)
    assert f"store  file://{store}" in text
    assert "This was applied: budget: 5/day → 9/day" in text
    assert "`mlcloud down`, then `up`" in text
    assert [each.limit for each in cluster.status().info.budgets] == ["9/day"]
    cluster = mlcloud.Cluster("try", **{**fields, "budget": "9/day"})
    assert not cluster.changes()

    # what was asked for is what Ray's autoscaler was told
    told = json.loads((embedded.settings.cloud_root / "autoscaling.yaml").read_text())
    assert told["max_workers"] == 3

    # a gateway that died is followed by one with the same store, for whoever connects plainly
    embedded.kill_gateway()
    client = mlcloud.connect()
    assert client.cluster.status().info.store == f"file://{store}"
    assert client.cluster.specification == cluster.specification

    cluster.down()
    with pytest.raises(NotFound, match="is not up"):
        mlcloud.Cluster("try", **fields).changes()
    assert mlcloud.connect().cluster.status().info.store != f"file://{store}"


def test_the_default_cluster_is_itself_again_by_its_own_yaml() -> None:
    offers = local_offers()
    groups = of_settings().nodes
    assert {each.gpu for each in offers if not any(g.takes(each) for g in groups)} == set()
    (asks,) = mlcloud.Cluster("a", cloud="local", nodes=[{"cpus": 2}]).specification.nodes
    assert {each.gpu for each in offers if asks.takes(each)} == {None}
