"""AWS's Price List API and EC2's spot price history, through botocore's own models:
https://docs.aws.amazon.com/aws-cost-management/latest/APIReference/API_pricing_GetProducts.html
https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSpotPriceHistory.html"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from mlcloud.cluster.offers import Shape, walk
from mlcloud.cost import catalogue
from mlcloud.cost.quotes import quotes_path
from mlcloud.cost.refresh import Outcome, current, refresh
from mlcloud.errors import CloudCredentialsExpired, CredentialsMissing, UsageError
from tests.cost.price_apis import Answer, Asked, serving

pytest.importorskip("boto3")

NOW = datetime(2026, 11, 26, 12, tzinfo=timezone.utc)
REGION = "eu-central-1"


@pytest.fixture(autouse=True)
def _account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


def product(name: str, usd: Any, **dimension: Any) -> str:
    """A PriceList entry: a JSON document as text, as the API gives them."""
    return json.dumps(
        {
            "product": {
                "productFamily": "Compute Instance",
                "attributes": {
                    "instanceType": name,
                    "regionCode": REGION,
                    "operatingSystem": "Linux",
                    "tenancy": "Shared",
                    "vcpu": "4",
                    "memory": "16 GiB",
                },
                "sku": "2223B6PCG6QAUYY6",
            },
            "serviceCode": "AmazonEC2",
            "terms": {
                "OnDemand": {
                    "2223B6PCG6QAUYY6.JRTCKXETXF": {
                        "priceDimensions": {
                            "2223B6PCG6QAUYY6.JRTCKXETXF.6YS6EN2CT7": {
                                "unit": "Hrs",
                                "endRange": "Inf",
                                "description": f"${usd} per On Demand Linux {name} Instance Hour",
                                "appliesTo": [],
                                "rateCode": "2223B6PCG6QAUYY6.JRTCKXETXF.6YS6EN2CT7",
                                "beginRange": "0",
                                "pricePerUnit": {"USD": usd},
                                **dimension,
                            }
                        },
                        "sku": "2223B6PCG6QAUYY6",
                        "effectiveDate": "2026-11-01T00:00:00Z",
                        "offerTermCode": "JRTCKXETXF",
                        "termAttributes": {},
                    }
                }
            },
            "version": "20261101000000",
            "publicationDate": "2026-11-01T00:00:00Z",
        }
    )


def products(entries: list[str], token: str = "") -> Answer:
    body = {"FormatVersion": "aws_v1", "PriceList": entries}
    return Answer(
        {**body, **({"NextToken": token} if token else {})},
        headers={"content-type": "application/x-amz-json-1.1"},
    )


def history(rows: list[tuple[str, str, str, str]], token: str = "") -> Answer:
    """The XML of the documentation; a row is type, zone, price, time."""
    items = "".join(
        f"<item><instanceType>{name}</instanceType>"
        f"<productDescription>Linux/UNIX</productDescription><spotPrice>{usd}</spotPrice>"
        f"<timestamp>{at}</timestamp><availabilityZone>{zone}</availabilityZone></item>"
        for name, zone, usd, at in rows
    )
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<DescribeSpotPriceHistoryResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">'
        "<requestId>59dbff89-35bd-4eac-99ed-be587EXAMPLE</requestId>"
        f"<spotPriceHistorySet>{items}</spotPriceHistorySet><nextToken>{token}</nextToken>"
        "</DescribeSpotPriceHistoryResponse>"
    )
    return Answer(body.encode(), headers={"content-type": "text/xml"})


def refused(code: str, status: int = 400) -> Answer:
    body = (
        f"<Response><Errors><Error><Code>{code}</Code><Message>{code}!</Message></Error></Errors>"
    )
    return Answer(f"{body}<RequestID>1</RequestID></Response>".encode(), status)


SPOT = [
    ("g5.xlarge", "eu-central-1a", "0.6178", "2026-11-26T11:00:05.000Z"),
    ("g5.xlarge", "eu-central-1b", "0.4510", "2026-11-26T10:00:05.000Z"),
    ("g4dn.xlarge", "eu-central-1a", "0.2470", "2026-11-26T09:00:05.000Z"),
]
LISTED = [product("g5.xlarge", "1.2580000000"), product("g4dn.xlarge", "0.6580000000")]


def ask(
    home: Path,
    pricing: Callable[[Asked, int], Answer] = lambda *_: products(LISTED),
    ec2: Callable[[Asked, int], Answer] = lambda *_: history(SPOT),
    regions: tuple[str, ...] = (REGION,),
) -> tuple[list[Outcome], list[Asked], list[Asked]]:
    with serving(pricing) as one, serving(ec2) as two:
        outcomes = refresh(
            "aws",
            regions,
            home=home,
            endpoints={"pricing": one.url, "ec2": two.url},
            now=NOW,
        )
        return outcomes, one.asked, two.asked


def prices(home: Path) -> dict[tuple[str, str, str], Decimal]:
    return {
        (o.instance_type, o.zone, o.market): o.usd_per_hour
        for o in catalogue.offers("aws", [REGION], home=home)
        if o.as_of == NOW.date()
    }


def test_on_demand_by_region_and_spot_by_zone(tmp_path: Path) -> None:
    (outcome,), listed, spot = ask(tmp_path)
    assert str(outcome) == "aws eu-central-1: 2 on-demand and 3 spot prices"
    sent = json.loads(listed[0].body)
    assert listed[0].headers["x-amz-target"] == "AWSPriceListService.GetProducts"
    assert sent["ServiceCode"] == "AmazonEC2"
    assert {f["Field"]: f["Value"] for f in sent["Filters"]} == {
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
        "marketoption": "OnDemand",
        "regionCode": REGION,
    }
    form = parse_qs(spot[0].body.decode())
    assert form["Action"] == ["DescribeSpotPriceHistory"]
    assert form["ProductDescription.1"] == ["Linux/UNIX"]
    assert form["StartTime"] == ["2026-11-26T12:00:00Z"]
    found = prices(tmp_path)
    assert found["g5.xlarge", "eu-central-1b", "spot"] == Decimal("0.4510")
    for zone in catalogue.zones("aws", REGION):
        assert found["g5.xlarge", zone, "on-demand"] == Decimal("1.258")
    offers = catalogue.offers("aws", [REGION], accelerator="A10G", home=tmp_path)
    (first, *_) = walk(offers, Shape.parse(gpu="A10G"), "spot", {}, NOW)
    assert (first.instance_type, first.zone) == ("g5.xlarge", "eu-central-1b")
    assert first.source == "AWS EC2, DescribeSpotPriceHistory Linux/UNIX"
    assert not first.estimated


def test_pages_of_both(tmp_path: Path) -> None:
    def pricing(asked: Asked, number: int) -> Answer:
        assert (json.loads(asked.body).get("NextToken") is None) == (number == 0)
        return products([LISTED[number]], "more" if number == 0 else "")

    def ec2(asked: Asked, number: int) -> Answer:
        assert ("NextToken" in parse_qs(asked.body.decode())) == (number > 0)
        return history([SPOT[number]], f"more-{number}" if number < 2 else "")

    (outcome,), listed, spot = ask(tmp_path, pricing, ec2)
    assert (len(listed), len(spot)) == (2, 3)
    assert (outcome.on_demand, outcome.spot) == (2, 3)


def test_of_several_times_the_newest_that_has_come_counts(tmp_path: Path) -> None:
    rows = [
        ("g5.xlarge", "eu-central-1a", "0.50", "2026-11-26T08:00:00.000Z"),
        ("g5.xlarge", "eu-central-1a", "0.60", "2026-11-26T11:30:00.000Z"),
        ("g5.xlarge", "eu-central-1a", "0.55", "2026-11-26T09:00:00.000Z"),
        ("g5.xlarge", "eu-central-1a", "0.10", "2026-11-26T13:00:00.000Z"),  # not yet
        ("g5.xlarge", "eu-central-1b", "0.70", "2026-11-20T00:00:00.000Z"),
    ]
    ask(tmp_path, ec2=lambda *_: history(rows))
    spot = {zone: usd for (_, zone, market), usd in prices(tmp_path).items() if market == "spot"}
    assert spot == {"eu-central-1a": Decimal("0.60"), "eu-central-1b": Decimal("0.70")}


def test_malformed_rows_are_counted_and_left_out(tmp_path: Path) -> None:
    wrong = [
        product("g5.2xlarge", "0.0000000000"),
        product("g5.2xlarge", "NaN"),
        product("g5.2xlarge", "1", pricePerUnit={"CNY": "8"}),
        product("g5.2xlarge", "1", unit="Quantity"),
        json.dumps({"product": {"attributes": {"instanceType": "g5.2xlarge"}}}),
        json.dumps({"product": {}}),
        "{",
        product("z9.unknown", "1"),
    ]
    bad_spot = [
        ("g5.xlarge", "eu-central-1c", "0", "2026-11-26T11:00:00.000Z"),
        ("g5.xlarge", "eu-central-1c", "NaN", "2026-11-26T11:00:00.000Z"),
        ("g5.xlarge", "", "0.3", "2026-11-26T11:00:00.000Z"),
    ]
    (outcome,), _, _ = ask(
        tmp_path, lambda *_: products([*wrong, *LISTED]), lambda *_: history([*bad_spot, *SPOT])
    )
    assert outcome.errors == {}
    assert (outcome.on_demand, outcome.spot) == (2, 3)
    assert outcome.skipped["a price of 0"] == 2
    assert outcome.skipped["no price: 'NaN'"] == 2
    assert outcome.skipped["not in US dollars"] == 1
    assert outcome.skipped["not by the hour"] == 1
    assert outcome.skipped["a row of another form"] == 2
    assert ("g5.2xlarge", "eu-central-1a", "on-demand") not in prices(tmp_path)


def test_throttling_and_server_errors_are_asked_again(tmp_path: Path) -> None:
    def pricing(_: Asked, number: int) -> Answer:
        if number == 0:
            body = {"__type": "ThrottlingException", "message": "Rate exceeded"}
            return Answer(body, 400, {"content-type": "application/x-amz-json-1.1"})
        return products(LISTED)

    def ec2(_: Asked, number: int) -> Answer:
        return history(SPOT) if number else Answer(b"", 500)

    (outcome,), listed, spot = ask(tmp_path, pricing, ec2)
    assert (len(listed), len(spot)) == (2, 2)
    assert outcome.errors == {}


def test_where_spot_is_not_allowed_on_demand_is_still_refreshed(tmp_path: Path) -> None:
    ask(tmp_path)
    dearer = [product("g5.xlarge", "1.300"), LISTED[1]]
    (outcome,), _, _ = ask(
        tmp_path, lambda *_: products(dearer), lambda *_: refused("UnauthorizedOperation", 403)
    )
    assert set(outcome.errors) == {"spot"}
    assert "2 on-demand prices; spot: the old prices are kept:" in str(outcome)
    assert "UnauthorizedOperation" in str(outcome)
    found = prices(tmp_path)
    assert found["g5.xlarge", "eu-central-1a", "on-demand"] == Decimal("1.3")
    assert found["g5.xlarge", "eu-central-1a", "spot"] == Decimal("0.6178")


def test_expired_credentials_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(CloudCredentialsExpired, match="does not take the credentials"):
        ask(tmp_path, ec2=lambda *_: refused("RequestExpired"))
    assert not quotes_path(tmp_path, "aws", REGION).exists()


def test_no_credentials_is_one_line_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(CredentialsMissing, match="aws configure") as caught:
        ask(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_unknown_region_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'eu-central-1'"):
        ask(tmp_path, regions=("eu-central1",))


def test_the_secret_is_in_no_file_and_no_message(tmp_path: Path) -> None:
    (outcome,), _, _ = ask(tmp_path, ec2=lambda *_: refused("UnauthorizedOperation", 403))
    kept = quotes_path(tmp_path, "aws", REGION).read_text()
    assert "testing" not in kept
    assert "testing" not in str(outcome)


def test_what_a_few_machines_cost_now(tmp_path: Path) -> None:
    """Only these are asked for, and nothing is kept; a spot price comes with its time."""
    wanted = [
        o
        for o in catalogue.offers("aws", [REGION], instance_types=["g5.xlarge"], home=tmp_path)
        if o.zone == "eu-central-1b"
    ]
    with serving(lambda *_: products(LISTED)) as one, serving(lambda *_: history(SPOT)) as two:
        ends = {"pricing": one.url, "ec2": two.url}
        found, wrong = current(wanted, endpoints=ends, now=NOW)
        spot, _ = current([o for o in wanted if o.market == "spot"], endpoints=ends, now=NOW)
    assert wrong == []
    prices_of = {key[-1]: (each.usd_per_hour, each.since) for key, each in found.items()}
    assert prices_of["on-demand"] == (Decimal("1.258"), None)
    came = datetime(2026, 11, 26, 10, 0, 5, tzinfo=timezone.utc)
    assert prices_of["spot"] == (Decimal("0.4510"), came)
    (sent,) = [json.loads(each.body) for each in one.asked]  # once: not for spot alone
    asked_for = {f["Field"]: f["Value"] for f in sent["Filters"]}
    assert asked_for["instanceType"] == "g5.xlarge"
    assert parse_qs(two.asked[0].body.decode())["InstanceType.1"] == ["g5.xlarge"]
    assert [each.usd_per_hour for each in spot.values()] == [Decimal("0.4510")]
    assert not (tmp_path / "prices").exists()


def test_a_cloud_that_does_not_say_what_they_cost(tmp_path: Path) -> None:
    (wanted, *_) = catalogue.offers("aws", [REGION], markets=["spot"], home=tmp_path)
    with serving(lambda *_: refused("UnauthorizedOperation")) as two:
        found, wrong = current([wanted], endpoints={"ec2": two.url}, now=NOW)
    assert found == {}
    assert "aws eu-central-1 spot" in wrong[0]
