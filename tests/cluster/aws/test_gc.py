"""`mlcloud gc`: what a crashed laptop left is found by anybody with the account, and goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mlcloud.cli import main
from tests import ec2
from tests.cluster.aws.conftest import REGION, Clock, offer, request

SPECIFICATION = f"""
name: work
cloud: aws
regions: [{REGION}]
owner: Ann Example
store: s3://mine/runs
store_region: {REGION}
nodes:
  - gpu: A10G:1
"""


def gc(*words: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(main, ["gc", *words], input=answer)


def test_what_a_crashed_laptop_left(
    cloud: Callable[..., Any], aws: ec2.Door, clock: Clock, tmp_path: Path
) -> None:
    made = cloud(network={"ssh_from": "203.0.113.7"})
    head = made.launch(offer(market="on-demand"), request("head"))
    node = made.launch(offer(), request())
    file = tmp_path / "cluster.yaml"
    file.write_text(SPECIFICATION)

    found = gc(str(file))
    assert found.exit_code == 0, found.output
    assert head.id in found.output
    assert "left alone, it costs $0.8046/h or more" in found.output
    assert {each["id"] for each in json.loads(gc(str(file), "--json").output)} >= {head.id, node.id}
    # Looking removes nothing, and neither does an answer of no.
    assert gc(str(file), "--remove", answer="n\n").exit_code == 1
    assert {each.id for each in made.instances() if each.alive} == {head.id, node.id}

    removed = gc(str(file), "--remove", "--yes")
    assert removed.exit_code == 0, removed.output
    assert f"instance {head.id}: removed" in removed.output
    assert "nothing is left over" in gc(str(file)).output


def test_of_others_only_what_has_expired(
    cloud: Callable[..., Any], aws: ec2.Door, clock: Clock
) -> None:
    running = cloud(cluster="busy").launch(offer(), request())
    lost = cloud(cluster="lost", lifetime_s=0.0).launch(offer(), request())
    found = gc("--cloud", "aws", "--region", REGION)
    assert found.exit_code == 0, found.output
    assert lost.id in found.output
    assert running.id not in found.output


@pytest.mark.parametrize(
    ("words", "says"),
    [((), "name a cluster.yaml, or a --cloud"), (("--cloud", "local"), "`mlcloud down` ends all")],
)
def test_where_there_is_nothing_to_look_at(words: tuple[str, ...], says: str) -> None:
    answer = gc(*words)
    assert answer.exit_code == 1
    assert says in answer.output


def test_without_credentials(credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    answer = gc("--cloud", "aws", "--region", REGION)
    assert answer.exit_code == 1
    assert answer.output.startswith("CredentialsMissing: ")
    assert len(answer.output.splitlines()) == 1
