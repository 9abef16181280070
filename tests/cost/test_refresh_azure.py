"""Azure's Retail Prices API, as documented at
https://learn.microsoft.com/en-us/rest/api/cost-management/retail-prices/azure-retail-prices"""

from __future__ import annotations

from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlcloud.cost import catalogue
from mlcloud.cost.quotes import quotes_path
from mlcloud.cost.refresh import Outcome, refresh
from mlcloud.cost.web import Web
from tests.cost.price_apis import Answer, Asked, Server, serving

NOW = datetime(2026, 11, 26, 12, tzinfo=timezone.utc)
T4 = "Standard_NC4as_T4_v3"


def item(name: str = T4, price: Any = 0.658, region: str = "westeurope", **other: Any) -> dict:
    """A meter as the documentation shows one."""
    short = name.removeprefix("Standard_").replace("_", " ")
    return {
        "currencyCode": "USD",
        "tierMinimumUnits": 0.0,
        "retailPrice": price,
        "unitPrice": price,
        "armRegionName": region,
        "location": "EU West",
        "effectiveStartDate": "2020-11-01T00:00:00Z",
        "meterId": "000a794b-bdb0-58be-a0cd-0c3a0f222923",
        "meterName": short,
        "productId": "DZH318Z0BQPS",
        "skuId": "DZH318Z0BQPS/00TG",
        "availabilityId": None,
        "productName": "Virtual Machines NCasT4_v3 Series",
        "skuName": short,
        "serviceName": "Virtual Machines",
        "serviceId": "DZH313Z7MMC8",
        "serviceFamily": "Compute",
        "unitOfMeasure": "1 Hour",
        "type": "Consumption",
        "isPrimaryMeterRegion": True,
        "armSkuName": name,
        **other,
    }


def page(items: list[Any], following: str | None = None) -> Answer:
    return Answer(
        {
            "BillingCurrency": "USD",
            "CustomerEntityId": "Default",
            "CustomerEntityType": "Retail",
            "Items": items,
            "NextPageLink": following,
            "Count": len(items),
        }
    )


SPOT = {"skuName": "NC4as T4 v3 Spot", "meterName": "NC4as T4 v3 Spot"}


def ask(
    server: Server, home: Path, *regions: str, waits: list[float] | None = None
) -> list[Outcome]:
    web = Web(sleep=(waits if waits is not None else []).append)
    try:
        return refresh(
            "azure",
            regions or ("westeurope",),
            home=home,
            endpoints={"azure": f"{server.url}/api/retail/prices"},
            web=web,
            now=NOW,
        )
    finally:
        web.close()


def prices(home: Path, region: str = "westeurope") -> dict[tuple[str, str], Decimal]:
    return {
        (o.instance_type, o.market): o.usd_per_hour
        for o in catalogue.offers("azure", [region], home=home)
        if o.as_of == NOW.date()
    }


def test_pages_are_followed_and_both_markets_found(tmp_path: Path) -> None:
    def answer(asked: Asked, number: int) -> Answer:
        if number == 0:
            return page([item()], f"http://{asked.headers['host']}/next?$skip=1000")
        return page([item(price=0.1866, **SPOT)])

    with serving(answer) as server:
        (outcome,) = ask(server, tmp_path)
    first, second = server.asked
    assert first.path == "/api/retail/prices"
    assert first.query["api-version"] == "2023-01-01-preview"
    assert first.query["$filter"] == (
        "serviceName eq 'Virtual Machines' and armRegionName eq 'westeurope' and "
        "priceType eq 'Consumption'"
    )
    assert (second.path, second.query) == ("/next", {"$skip": "1000"})
    assert (outcome.on_demand, outcome.spot, outcome.errors) == (1, 1, {})
    assert str(outcome) == "azure westeurope: 1 on-demand and 1 spot prices"
    assert prices(tmp_path) == {
        (T4, "on-demand"): Decimal("0.658"),
        (T4, "spot"): Decimal("0.1866"),
    }
    offers = catalogue.offers("azure", ["westeurope"], instance_types=[T4], home=tmp_path)
    assert {o.zone for o in offers} == {"westeurope-1", "westeurope-2", "westeurope-3"}
    assert {o.source for o in offers} == {
        "Azure Retail Prices API, https://prices.azure.com/api/retail/prices"
    }
    assert {o.as_of for o in offers} == {date(2026, 11, 26)}


def test_other_meters_of_the_same_machine_are_passed_over(tmp_path: Path) -> None:
    others = [
        item(price=1.1, productName="Virtual Machines NCasT4_v3 Series Windows"),
        item(price=0.2, skuName="NC4as T4 v3 Low Priority"),
        item(price=0.3, productName="Cloud Services NCasT4_v3 Series"),
        item(price=0.4, type="DevTestConsumption"),
        item(price=0.5, region="northeurope"),
        item("Standard_Unknown_v9", 0.1),
        "not an object",
    ]
    with serving(lambda *_: page([*others, item(), item(price=0.18, **SPOT)])) as server:
        (outcome,) = ask(server, tmp_path)
    assert outcome.skipped == {}
    assert prices(tmp_path)[T4, "on-demand"] == Decimal("0.658")


def test_malformed_rows_are_counted_and_left_out(tmp_path: Path) -> None:
    wrong = [
        item(price=0.0),
        item(price="NaN"),
        item(price=-1),
        item(price=None),
        item(currencyCode=None),
        item(currencyCode="EUR"),
        item(unitOfMeasure="1 Month"),
        item(effectiveStartDate="2027-01-01T00:00:00Z"),
    ]
    good = [item("Standard_NC8as_T4_v3", 0.94), item(price=0.19, **SPOT)]
    with serving(lambda *_: page([*wrong, *good])) as server:
        (outcome,) = ask(server, tmp_path)
    assert outcome.skipped == {
        "a price of 0": 1,
        "no price: 'NaN'": 1,
        "no price: -1": 1,
        "no number: None": 1,
        "not in US dollars": 2,
        "not by the hour": 1,
        "not in force yet": 1,
    }
    assert "left out: 1 × a price of 0" in str(outcome)
    assert (T4, "on-demand") not in prices(tmp_path)
    assert prices(tmp_path)["Standard_NC8as_T4_v3", "on-demand"] == Decimal("0.94")


def test_of_two_prices_the_one_that_is_in_force_later_counts(tmp_path: Path) -> None:
    old = item(price=0.9, effectiveStartDate="2020-01-01T00:00:00Z")
    new = item(price=0.7, effectiveStartDate="2026-01-01T00:00:00Z")
    for items in ([old, new], [new, old]):
        with serving(lambda *_, items=items: page([*items, item(price=0.1, **SPOT)])) as server:
            ask(server, tmp_path)
        assert prices(tmp_path)[T4, "on-demand"] == Decimal("0.7")


def test_throttling_and_server_errors_are_asked_again(tmp_path: Path) -> None:
    def answer(_: Asked, number: int) -> Answer:
        if number == 0:
            return Answer({"error": "slow down"}, 429, {"retry-after": "7"})
        if number == 1:
            return Answer(b"oops", 500)
        return page([item(), item(price=0.2, **SPOT)])

    waits: list[float] = []
    with serving(answer) as server:
        (outcome,) = ask(server, tmp_path, waits=waits)
    assert outcome.errors == {}
    assert waits == [7.0, 1.0]  # what it asked for, then our own


def test_a_list_that_fails_half_way_keeps_the_old_prices(tmp_path: Path) -> None:
    with serving(lambda *_: page([item(), item(price=0.2, **SPOT)])) as server:
        ask(server, tmp_path)
    before = quotes_path(tmp_path, "azure", "westeurope").read_bytes()

    def answer(asked: Asked, number: int) -> Answer:
        if number == 0:
            return page([item(price=9)], f"http://{asked.headers['host']}/next")
        return Answer(b"down", 503)

    with serving(answer) as server:
        (outcome,) = ask(server, tmp_path)
    assert len(server.asked) == 1 + 5
    assert set(outcome.errors) == {"spot", "on-demand"}
    assert "no prices; spot and on-demand: the old prices are kept" in str(outcome)
    assert "did not answer in 5 tries: HTTP 503: down" in str(outcome)
    assert quotes_path(tmp_path, "azure", "westeurope").read_bytes() == before


def test_one_region_failing_leaves_the_others(tmp_path: Path) -> None:
    def answer(asked: Asked, _: int) -> Answer:
        if "northeurope" in asked.query["$filter"]:
            return Answer({"Error": {"Code": "BadRequest"}}, 400)
        region = asked.query["$filter"].split("'")[3]
        return page([item(region=region), item(price=0.2, region=region, **SPOT)])

    with serving(answer) as server:
        one, two = ask(server, tmp_path, "northeurope", "westeurope")
    assert "HTTP 400" in one.errors["spot"]
    assert len(server.asked) == 2  # a refusal is an answer: not asked again
    assert two.errors == {}
    assert not quotes_path(tmp_path, "azure", "northeurope").exists()


def test_an_empty_list_does_not_wipe_out_what_was_known(tmp_path: Path) -> None:
    with serving(lambda *_: page([item(), item(price=0.2, **SPOT)])) as server:
        ask(server, tmp_path)
    with serving(lambda *_: page([])) as server:
        (outcome,) = ask(server, tmp_path)
    assert "none of the machines of the catalogue" in outcome.errors["spot"]
    assert prices(tmp_path)[T4, "spot"] == Decimal("0.2")


def test_one_market_missing_keeps_its_old_prices(tmp_path: Path) -> None:
    with serving(lambda *_: page([item(), item(price=0.2, **SPOT)])) as server:
        ask(server, tmp_path)
    with serving(lambda *_: page([item(price=0.7)])) as server:
        (outcome,) = ask(server, tmp_path)
    assert set(outcome.errors) == {"spot"}
    assert prices(tmp_path) == {(T4, "on-demand"): Decimal("0.7"), (T4, "spot"): Decimal("0.2")}


def test_a_list_without_an_end_is_given_up(tmp_path: Path) -> None:
    def answer(asked: Asked, _: int) -> Answer:
        return page([item()], f"http://{asked.headers['host']}/again")

    with serving(answer) as server:
        (outcome,) = ask(server, tmp_path)
    assert "has no last page" in outcome.errors["spot"]
    assert len(server.asked) == 2


def test_an_answer_that_is_no_json(tmp_path: Path) -> None:
    with serving(lambda *_: Answer(b"<html>proxy</html>")) as server:
        (outcome,) = ask(server, tmp_path)
    assert "did not answer with JSON: <html>proxy</html>" in outcome.errors["on-demand"]


def test_nobody_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda *_: page([])) as server:
        url = server.url
    waits: list[float] = []
    (outcome,) = ask(Server(url, []), tmp_path, waits=waits)
    assert "ConnectError" in outcome.errors["spot"]
    assert waits == [0.5, 1.0, 2.0, 4.0]
    assert httpx.ConnectError.__name__ in str(outcome)
