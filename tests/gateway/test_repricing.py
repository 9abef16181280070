"""Spot prices that move while a node runs: everything that shows dollars follows."""

from __future__ import annotations

import csv
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from mlcloud.cluster.clouds.base import Instance
from mlcloud.cluster.clouds.local import LocalCloud
from mlcloud.config import Settings
from mlcloud.cost import catalogue
from mlcloud.cost.ledger import PriceChange
from mlcloud.gateway import entries, repricing
from mlcloud.gateway.repricing import Repricing
from tests.cost.price_apis import serving
from tests.cost.test_meter import at
from tests.cost.test_refresh_aws import history
from tests.gateway.test_reserve import World
from tests.live import Embedded, until

FIRST = Decimal("0.0289")


def test_a_price_that_moves(own_cluster: Callable[..., Embedded], tmp_path: Path) -> None:
    embedded = own_cluster(node_idle="60s", price_refresh="1s")
    client = embedded.connect()
    session = client.session("a", cpus=2, namespace={})
    session.run("1", durable=True, quiet=True)

    def price() -> Decimal:
        with embedded.http() as http:
            (node,) = http.get("/v1/cluster").json()["nodes"]
        return Decimal(node["usd_per_hour"])

    assert price() == FIRST
    LocalCloud(embedded.home / "cloud").move_prices({"local-a": "2", "local-b": "3"})
    until(lambda: price() == 2 * FIRST, "the node costs twice as much", 30)
    assert client.sessions()[0].usd_per_hour == 2 * FIRST
    began = client.costs("session")
    session.run("import time; time.sleep(1.5)", quiet=True)
    # A gateway that comes back knows what it entered.
    embedded.kill_gateway()
    client = embedded.connect()
    assert price() == 2 * FIRST
    costs = client.costs("price")
    found = {row.key["price"]: row for row in costs.costs.rows}
    assert set(map(Decimal, found)) >= {FIRST, 2 * FIRST}
    assert costs.costs.usd == sum(row.usd for row in costs.costs.rows)
    for text, row in found.items():  # exact to what a billionth of an hour costs
        assert abs(Decimal(text) * row.node_hours - row.usd) < Decimal("1E-8")
    assert costs.costs.usd > began.costs.usd
    costs.focus(tmp_path / "focus.csv")
    with open(tmp_path / "focus.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {Decimal(row["ContractedUnitPrice"]) for row in rows} >= {FIRST, 2 * FIRST}
    with embedded.http() as http:
        events = http.get("/v1/sessions/a/events").json()
    told = [str(each) for each in events if each["kind"] == "story"]
    assert any("$0.0578/h now, it was $0.0289/h (simulated market)" in each for each in told)


def test_a_price_counts_from_when_the_cloud_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS: one node was launched before the price came, one after; what the list said of the second
    was too old, and is put right from its launch on."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("MLCLOUD_HOME", str(tmp_path))
    (sold, *_) = catalogue.offers(
        "aws", ["eu-central-1"], instance_types=["g5.xlarge"], markets=["spot"], home=tmp_path
    )
    world = World(tmp_path, [sold])
    rows = [("g5.xlarge", sold.zone, "9.0000", f"{at(50):%Y-%m-%dT%H:%M:%S.000Z}")]
    with world.running(), serving(lambda *_: history(rows)) as server:
        monkeypatch.setattr(repricing, "now", world.now)
        book = Repricing(Settings(), world, {"ec2": server.url})  # type: ignore[arg-type]
        for when in (0.0, 70.0):
            world.clock = when
            world.launch(sold)
        world.clock = 100.0
        nodes: list[Instance] = list(world.nodes.values())
        prices = book._prices("aws", nodes)
        source = "AWS EC2, DescribeSpotPriceHistory Linux/UNIX"
        for each in nodes:
            (price,) = prices.values()
            assert book._enter(each, price)
            assert not book._enter(each, price)
        assert world.billing.ledger.price_changes == [
            PriceChange("i-0", at(50), Decimal("9.0000"), source),
            PriceChange("i-1", at(70), Decimal("9.0000"), source),
        ]
        # 50 s at the old price, 50 s and 30 s at $0.0025 a second.
        old = sold.usd_per_hour * 50 / 3600
        assert abs(world.billing.spent() - old - Decimal("0.2")) < Decimal("1E-8")
        # So it is after a restart.
        with world.engine.connect() as connection:
            found = [row.entry for row in entries.live(connection)]
        assert [
            e for e in found if isinstance(e, PriceChange)
        ] == world.billing.ledger.price_changes
