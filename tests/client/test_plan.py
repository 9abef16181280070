"""`mlcloud.plan`, `%mlcloud plan` and `mlcloud plan`: nothing is started, nobody is asked."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import mlcloud
from mlcloud.cli import main
from mlcloud.cluster import clouds
from mlcloud.cluster.clouds.base import CloudSettings
from mlcloud.cluster.offers import Offer
from mlcloud.errors import MLCloudError, NoSuchResources, SpecificationError, UsageError
from mlcloud.magics.commands import run_command
from tests.cluster.offers_on_sale import on_sale

FILE = """
name: team
nodes:
  - gpu: A10G:1
    max: 8
  - cpus: 4
    market: on-demand
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture
def catalogue(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A price list of AWS in the place where the package has its own."""
    asked: list[tuple[Any, ...]] = []

    def offers(cloud: str, regions: Any = None) -> list[Any]:
        asked.append((cloud, regions))
        return on_sale() if cloud == "aws" else []

    monkeypatch.setattr("mlcloud.cost.catalogue.offers", offers)
    monkeypatch.setattr(
        "mlcloud.cost.catalogue.regions", lambda cloud: ["eu-central-1", "us-east-1"]
    )
    return asked


def shell(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["plan", *words])
    assert result.exit_code == code, result.output
    return result.output


def test_a_plan_of_a_shape_on_the_local_cloud(mlcloud_home: str) -> None:
    before = sorted(Path(mlcloud_home).rglob("*"))
    found = mlcloud.plan(gpu="a10g:1", hours="90m")
    assert found.hours == 1.5
    assert found.simulated
    assert found.best is not None
    assert str(found.best.offer) == "local.a10g spot local-b ($0.3219/h)"
    assert len(found.offers) == 6
    assert sorted(Path(mlcloud_home).rglob("*")) == before  # not even a folder was made


def test_without_anything_every_offer_is_ranked() -> None:
    found = mlcloud.plan()
    prices = [row.offer.usd_per_hour for row in found.offers]
    assert len(found.offers) == 24
    assert prices == sorted(prices)


def test_a_file_and_a_cluster_are_planned_alike(file: Path) -> None:
    by_file = mlcloud.plan(file)
    by_cluster = mlcloud.Cluster.from_file(file).plan()
    assert by_file.record() == by_cluster.record()
    assert [row.group for row in by_file.offers] == ["a10g-1"] * 6 + ["cpu4"] * 3


def test_a_shape_instead_of_a_file_s_groups(file: Path) -> None:
    found = mlcloud.plan(str(file), gpu="T4", market="on-demand")
    assert {row.group for row in found.offers} == {"t4-1"}
    assert {row.offer.market for row in found.offers} == {"on-demand"}


def test_what_cannot_be_planned(file: Path) -> None:
    with pytest.raises(NoSuchResources, match="no offer for H100:8, 1 CPU: this cluster has no H"):
        mlcloud.plan(gpu="H100:8")
    with pytest.raises(UsageError, match="cannot read 'soon' as a duration"):
        mlcloud.plan(hours="soon")
    with pytest.raises(UsageError, match="hours=0: how many hours"):
        mlcloud.plan(hours=0)
    with pytest.raises(UsageError, match="those of 'team' itself"):
        mlcloud.plan(file, cloud="aws")
    with pytest.raises(UsageError, match=r"a plan is of a cluster\.yaml's path or of a Cluster"):
        mlcloud.plan(7)
    file.write_text(FILE.replace("A10G:1", "A100:1"))
    with pytest.raises(
        SpecificationError, match=r"yaml, line 4: nodes\[0\]\.gpu: local has no GPU 'A100'"
    ):
        mlcloud.plan(file)


def test_a_cloud_whose_prices_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlcloud.cost.catalogue.offers", lambda cloud, regions: [])
    with pytest.raises(MLCloudError, match="no prices of aws are known to this version"):
        mlcloud.plan(cloud="aws", gpu="A10G")


def test_a_real_cloud_by_its_price_list(catalogue: list[tuple[Any, ...]]) -> None:
    found = mlcloud.plan(cloud="aws", regions=["eu-central-1"], gpu="A10G:1")
    assert {row.offer.region for row in found.offers} == {"eu-central-1"}
    assert not found.simulated
    everywhere = mlcloud.plan(cloud="aws", gpu="A10G:1")
    assert {row.offer.region for row in everywhere.offers} == {"eu-central-1", "us-east-1"}
    with pytest.raises(SpecificationError, match="no region 'eu-centrall-1'; did you mean 'eu-c"):
        mlcloud.plan(cloud="aws", regions=["eu-centrall-1"])
    assert set(catalogue) == {("aws", None)}


def test_a_cluster_is_checked_against_the_price_list(catalogue: list[tuple[Any, ...]]) -> None:
    cluster = mlcloud.Cluster(
        "gpus",
        cloud="aws",
        regions=["eu-central-1"],
        nodes=[{"instance_type": "g5.xlagre"}, {"gpu": "H100:8"}],
        store="s3://bucket/x",
    )
    with pytest.raises(SpecificationError) as caught:
        cluster.plan()
    assert "nodes[0].instance_type: AWS has no type 'g5.xlagre'; did you mean" in str(caught.value)
    assert "nodes[1].gpu: the price list has no H100:8 in eu-central-1" in str(caught.value)
    with pytest.raises(SpecificationError, match=r"did you mean 'g5\.xlarge'"):
        cluster.up()  # before anything is asked of the cloud


def test_quotas_are_asked_for_only_where_one_wants_them(
    catalogue: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class AwsCloud:
        def __init__(self, settings: CloudSettings, offers: list[Offer]) -> None: ...

        def quotas(self, region: str) -> dict[str, int]:
            asked.append(region)
            return {"spot": 0}

    def lacking(offer: Offer, quotas: dict[str, int]) -> str | None:
        return "quota L-1 is 0" if quotas.get(offer.market) == 0 else None

    package, part = types.ModuleType("fake.aws"), types.ModuleType("fake.aws.quotas")
    AwsCloud.__module__ = "fake.aws.cloud"
    package.AwsCloud, part.lacking = AwsCloud, lacking  # type: ignore[attr-defined]
    for name, module in (("fake.aws", package), ("fake.aws.quotas", part)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(clouds.RENTED, "aws", ("fake.aws", "AwsCloud"))
    shape: dict[str, Any] = {"cloud": "aws", "regions": ["eu-central-1"], "gpu": "A10G:1"}
    assert mlcloud.plan(**shape).offers[0].offer.market == "spot"
    assert asked == []
    found = mlcloud.plan(**shape, quotas=True)
    assert found.offers[0].offer.market == "on-demand"
    assert found.offers[-1].lacking == "quota L-1 is 0"
    assert asked == ["eu-central-1"]
    with pytest.raises(UsageError, match="on local cannot be asked here"):
        mlcloud.plan(quotas=True)


def test_the_shell(file: Path) -> None:
    text = shell(str(file), "--hours", "4")
    assert text.startswith("plan of team on local, simulated prices: nobody is charged. Nothing w")
    assert "a10g-1: 6 offers" in text
    assert "cpu4: 3 offers" in text
    assert "warm spares: none." in text
    made = json.loads(shell("--gpu", "T4", "--on-demand", "--json"))
    assert made["offers"][0]["usd_per_hour"] == "0.526"
    assert made["configuration"][0]["ray"]["node_type"] == "t4-1"
    (told,) = yaml.safe_load(shell("--gpu", "T4", "--spot", "--config"))
    assert told["ray"]["resources"]["T4"] == 1
    assert "NoSuchResources: no offer for T5:1" in shell("--gpu", "T5", code=1)
    assert "there is no file 'nowhere.yaml'" in shell("nowhere.yaml", code=1)


def test_the_schema_in_the_shell() -> None:
    result = CliRunner().invoke(main, ["schema"])
    assert json.loads(result.output)["properties"]["nodes"]["type"] == "array"


def test_the_magic(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_command(f"plan {file} --hours 3")
    assert found.hours == 3
    assert run_command("plan --gpu T4 --config") is None
    assert yaml.safe_load(capsys.readouterr().out)[0]["group"] == "t4-1"
    with pytest.raises(UsageError, match="unknown option --gpus; did you mean --gpu"):
        run_command("plan --gpus T4")


def test_planning_needs_neither_ray_nor_torch() -> None:
    code = (
        "import sys, mlcloud; repr(mlcloud.plan(gpu='A10G'));"
        "print(sorted({'ray', 'torch', 'pandas', 'boto3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
