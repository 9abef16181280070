"""`mlcloud prices` in a shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlcloud.cli import main
from mlcloud.cost import refresh_azure
from tests.cost.price_apis import serving
from tests.cost.test_refresh_azure import SPOT, item, page


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLCLOUD_HOME", str(tmp_path / "home"))


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["prices", *words])


def test_a_table_cheapest_first_with_the_age_of_its_prices() -> None:
    done = run("--gpu", "a100", "--region", "eu-central-1", "--region", "europe-west4")
    assert done.exit_code == 0, done.output
    heads, first, *_ = done.stdout.splitlines()
    assert heads.split() == (
        [
            "$/h",
            "market",
            "cloud",
            "region",
            "machine",
            "accelerator",
            "vCPUs",
            "memory",
            "as",
            "of",
        ]
    )
    assert "spot       gcp    europe-west4  a2-highgpu-1g  A100:1" in first
    assert "p4d.24xlarge" in done.stdout
    assert "days old" in done.stdout
    assert "mlcloud prices refresh --cloud aws && mlcloud prices refresh --cloud gcp" in done.stderr


def test_a_line_for_a_region_not_for_each_of_its_zones() -> None:
    lines = run("--gpu", "T4", "--on-demand", "--region", "us-east-1", "--limit", "100").stdout
    assert sum("g4dn.xlarge" in line for line in lines.splitlines()) == 1
    assert "spot" not in lines


def test_estimates_are_marked_and_explained() -> None:
    out = run("--gpu", "L4", "--spot", "--cloud", "aws", "--region", "ap-south-1").stdout
    assert "~0.4039" in out
    assert "~ estimated: no source states this price" in out


def test_json_has_every_zone_and_exact_prices() -> None:
    done = run("--gpu", "L4", "--region", "europe-west4", "--json")
    rows = json.loads(done.stdout)
    assert {row["zone"] for row in rows} == {f"europe-west4-{z}" for z in "abc"}
    small = [r for r in rows if r["instance_type"] == "g2-standard-4" and r["market"] == "spot"]
    assert {r["usd_per_hour"] for r in small} == {"0.3153"}
    assert {r["as_of"] for r in small} == {"2025-09-09"}
    assert all(r["source"].startswith("https://github.com/skypilot-org") for r in small)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu", "A1000"], "the catalogue has nothing with A1000:1, 1 CPU there"),
        (["--region", "eu-centrl-1"], "did you mean 'eu-central-1'"),
        (["--cloud", "amazon"], "no prices for the cloud 'amazon'"),
        (["--cloud", "gcp", "--region", "eu-central-1"], "none of gcp has prices for a region"),
        (["--gpu", "T4:many"], "cannot"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str) -> None:
    done = run(*words)
    assert done.exit_code == 1
    assert said in done.stderr or "asks for 'many' GPUs" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_refresh_then_the_new_prices_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda *_: page([item(), item(price=0.1866, **SPOT)])) as server:
        monkeypatch.setattr(refresh_azure, "URL", server.url)
        done = run("refresh", "--cloud", "azure", "--region", "westeurope")
    assert done.exit_code == 0, done.output
    assert done.stdout == "azure westeurope: 1 on-demand and 1 spot prices\n"
    shown = run("--gpu", "T4", "--region", "westeurope", "--limit", "1")
    assert "0.1866" in shown.stdout
    assert "~" not in shown.stdout  # the shipped one is an estimate
    assert "Standard_NC4as_T4_v3" in shown.stdout
    assert shown.stderr == ""  # of today: nothing to warn of


def test_a_refresh_that_read_nothing_fails_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    done = run("refresh", "--cloud", "aws", "--region", "eu-central-1")
    assert done.exit_code == 1
    assert done.stderr.startswith("aws: AWS's prices ")
    assert len(done.stderr.splitlines()) == 1
