"""Spot prices that move while a node runs: everything that shows dollars follows."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlcloud.cluster.clouds.base import Instance
from mlcloud.cluster.clouds.local import LocalCloud
from mlcloud.cluster.offers import Offer
from mlcloud.config import Settings
from mlcloud.cost import catalogue
from mlcloud.cost.ledger import PriceChange
from mlcloud.gateway import entries, repricing
from mlcloud.gateway.repricing import Repricing
from tests.cost import test_refresh_azure as azure
from tests.cost import test_refresh_gcp as gcp
from tests.cost.price_apis import Answer, serving
from tests.cost.test_meter import at
from tests.cost.test_refresh_aws import history
from tests.gateway.test_reserve import Played, World
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
    # Each row is rounded to a billionth; to the microdollar they are the whole.
    assert abs(costs.costs.usd - sum(row.usd for row in costs.costs.rows)) < Decimal("1e-6")
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


def _played(world: World, sold: Offer) -> tuple[Played, list[str]]:
    """A session on a node that runs for as long as the cluster."""
    told: list[str] = []
    session = world.session("s-1", "ada")
    session.story = lambda kind, text: told.append(f"{kind}: {text}")
    world.place(session, world.launch(sold), "1")
    return session, told


def _sold(cloud: str, region: str, instance_type: str, home: Path) -> Offer:
    found = catalogue.offers(
        cloud, [region], instance_types=[instance_type], markets=["spot"], home=home
    )
    return found[0]


@pytest.mark.parametrize("cloud", ["azure", "gcp"])
def test_a_gateway_asks_each_clouds_own_list(
    cloud: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the cloud's answer to the meter, the budget and the session that is told; asked as
    seldom as prices move there, and a list that does not answer changes nothing."""
    monkeypatch.setenv("MLCLOUD_HOME", str(tmp_path))
    monkeypatch.setenv("GOOGLE_API_KEY", "AIza-not-a-real-key")
    if cloud == "azure":
        name = "Standard_D16s_v3"
        sold = _sold("azure", "westeurope", name, tmp_path)
        spot = {"skuName": "D16s v3 Spot", "meterName": "D16s v3 Spot"}
        page = azure.page([azure.item(name, 0.9, **spot), azure.item(name, 9.0)])
        since, price = timedelta(0), Decimal("0.9")  # of a meter that is years old: from its launch
    else:
        sold = _sold("gcp", "europe-west4", "e2-standard-4", tmp_path)
        page = gcp.page(gcp.PARTS)
        # Google does not say since when: from now on. 4 cores and 16 GiB.
        since, price = timedelta(seconds=100), Decimal("0.056")
    assert sold.usd_per_hour != price
    answers = [page, Answer(status=503), Answer(status=503)]
    world = World(tmp_path, [sold])
    clock = SimpleNamespace(monotonic=lambda: world.clock, time=lambda: world.clock)
    with world.running(), serving(lambda _, number: answers[min(number, 2)]) as server:
        monkeypatch.setattr(repricing, "now", world.now)
        monkeypatch.setattr(repricing, "time", clock)
        settings = Settings(price_moves=timedelta(0))
        book = Repricing(settings, world, {cloud: f"{server.url}/list"})  # type: ignore[arg-type]
        _, told = _played(world, sold)
        world.budgets.put("s-1", "100")
        world.clock = 100.0
        assert asyncio.run(book.look()) == 1
        (change,) = world.billing.ledger.price_changes
        assert (change.usd_per_hour, change.at) == (price, at(0) + since)
        assert world.billing.price_of("i-0") == price
        assert len(told) == 1
        assert told[0].startswith(f"price: the price of its node is ${price:f}")
        # The budget has it at once: for the seconds that a stop takes.
        budget = world.budgets._all["s-1"]
        reserve = world.budgets.look(budget).reserve
        world.clock += 10
        old = sold.usd_per_hour * Decimal(since.total_seconds()) / 3600
        new = price * (110 - Decimal(since.total_seconds())) / 3600
        assert abs(world.billing.spent("s-1") - old - new) < Decimal("1E-8")
        assert reserve >= price * Decimal(repricing.LOOK_S) / 3600

        asked = len(server.asked)
        assert asyncio.run(book.look()) == 0
        assert len(server.asked) == asked, "not every second"
        world.clock += repricing.LEAST_S[cloud]
        assert asyncio.run(book.look()) == 0
        assert len(server.asked) > asked
        assert world.billing.price_of("i-0") == price
        assert len(told) == 1


def test_prices_that_cannot_be_asked_for_are_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A head on Google Cloud whose identity may not read the price list."""
    monkeypatch.setenv("MLCLOUD_HOME", str(tmp_path))
    for name in ("GOOGLE_API_KEY", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    sold = _sold("gcp", "europe-west4", "e2-standard-4", tmp_path)
    world = World(tmp_path, [sold])
    with world.running():
        every = timedelta(milliseconds=20)
        settings = Settings(price_moves=timedelta(0), price_refresh=every)
        monkeypatch.setitem(repricing.LEAST_S, "gcp", 0.0)
        book = Repricing(settings, world)  # type: ignore[arg-type]
        _, told = _played(world, sold)

        async def some_time() -> None:
            running = asyncio.create_task(book.run())
            await asyncio.sleep(0.5)
            running.cancel()

        asyncio.run(some_time())
    ours = [each for each in caplog.records if each.name == repricing.log.name]
    warned = [each.getMessage() for each in ours]
    assert len(warned) == 1
    assert "Google Cloud's prices need an API key in GOOGLE_API_KEY" in warned[0]
    assert told == []
    assert world.billing.ledger.price_changes == []
