"""Google's Cloud Billing Catalog, as documented at
https://cloud.google.com/billing/docs/reference/rest/v1/services.skus/list"""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from mlcloud.cost import catalogue
from mlcloud.cost.refresh import Outcome, refresh
from mlcloud.cost.web import Web
from mlcloud.errors import CloudCredentialsExpired, CredentialsMissing
from tests.cost.price_apis import Answer, Asked, Server, serving

NOW = datetime(2026, 11, 26, 12, tzinfo=timezone.utc)
KEY = "AIza-not-a-real-key"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)


def sku(
    description: str,
    usd: str | None,
    *,
    spot: bool = False,
    regions: tuple[str, ...] = ("europe-west4",),
    unit: str = "h",
    group: str = "CPU",
    **price: Any,
) -> dict[str, Any]:
    """A SKU as the documentation shows one; `usd` None leaves the unit price's numbers out."""
    whole, _, rest = (usd or "").partition(".")
    amount = {"units": whole, "nanos": int((rest + "0" * 9)[:9])} if usd is not None else {}
    return {
        "name": "services/6F81-5844-456A/skus/0009-6F35-3126",
        "skuId": "0009-6F35-3126",
        "description": description,
        "category": {
            "serviceDisplayName": "Compute Engine",
            "resourceFamily": "Compute",
            "resourceGroup": group,
            "usageType": "Preemptible" if spot else "OnDemand",
        },
        "serviceRegions": list(regions),
        "pricingInfo": [
            {
                "summary": "",
                "pricingExpression": {
                    "usageUnit": unit,
                    "usageUnitDescription": "hour",
                    "baseUnit": "s",
                    "baseUnitConversionFactor": 3600,
                    "displayQuantity": 1,
                    "tieredRates": [
                        {
                            "startUsageAmount": 0,
                            "unitPrice": {"currencyCode": "USD", **amount, **price},
                        }
                    ],
                },
                "currencyConversionRate": 1,
                "effectiveTime": "2026-01-01T00:00:00Z",
            }
        ],
        "serviceProviderName": "Google",
    }


PARTS = [
    sku("E2 Instance Core running in Netherlands", "0.02400888"),
    sku("E2 Instance Ram running in Netherlands", "0.00321890", unit="GiBy.h", group="RAM"),
    sku("Spot Preemptible E2 Instance Core running in Netherlands", "0.01", spot=True),
    sku("Spot Preemptible E2 Instance Ram running in Netherlands", "0.001", spot=True),
    sku("G2 Instance Core running in Netherlands", "0.02750"),
    sku("G2 Instance Ram running in Netherlands", "0.003220", unit="GiBy.h"),
    sku("Nvidia L4 GPU running in Netherlands", "0.588", group="GPU"),
    sku("N1 Predefined Instance Core running in Netherlands", "0.034806"),
    sku("N1 Predefined Instance Ram running in Netherlands", "0.004664", unit="GiBy.h"),
    sku("Nvidia Tesla T4 GPU running in Netherlands", "0.3675", group="GPU"),
    sku("A3 Instance Core running in Netherlands", "0.03"),
    sku("A3 Instance Ram running in Netherlands", "0.002", unit="GiBy.h"),
    sku("Nvidia H100 80GB GPU running in Netherlands", "12.735", group="GPU"),
    sku("SSD backed Local Storage in Netherlands", "0.0876", unit="GiBy.mo", group="LocalSSD"),
]


def page(skus: list[Any], token: str = "") -> Answer:
    return Answer({"skus": skus, "nextPageToken": token})


def ask(server: Server, home: Path, *regions: str) -> list[Outcome]:
    web = Web(sleep=[].append)
    try:
        return refresh(
            "gcp",
            regions or ("europe-west4",),
            home=home,
            endpoints={"gcp": f"{server.url}/v1/services/6F81-5844-456A/skus"},
            web=web,
            now=NOW,
        )
    finally:
        web.close()


def prices(home: Path, region: str = "europe-west4") -> dict[tuple[str, str], Decimal]:
    return {
        (o.instance_type, o.market): o.usd_per_hour
        for o in catalogue.offers("gcp", [region], home=home)
        if o.as_of == NOW.date()
    }


def test_machines_are_put_together_from_their_parts(tmp_path: Path) -> None:
    def answer(asked: Asked, number: int) -> Answer:
        half = len(PARTS) // 2
        return page(PARTS[:half], "token=2") if number == 0 else page(PARTS[half:])

    with serving(answer) as server:
        (outcome,) = ask(server, tmp_path)
    first, second = server.asked
    assert first.path == "/v1/services/6F81-5844-456A/skus"
    assert first.query == {"currencyCode": "USD", "pageSize": "5000"}
    assert second.query["pageToken"] == "token=2"
    assert first.headers["x-goog-api-key"] == KEY
    assert KEY not in str(first.query)
    found = prices(tmp_path)
    # 4 × 0.02400888 + 16 × 0.0032189
    assert found["e2-standard-4", "on-demand"] == Decimal("0.147538")
    assert found["e2-standard-4", "spot"] == Decimal("0.056")
    # 8 × 0.0275 + 32 × 0.00322 + 0.588
    assert found["g2-standard-8", "on-demand"] == Decimal("0.91104")
    # 4 × 0.034806 + 15 × 0.004664 + 0.3675
    assert found["n1-standard-4+T4x1", "on-demand"] == Decimal("0.576684")
    # 26 × 0.03 + 234 × 0.002 + 12.735 + 750 GiB × 0.0876 a month / 730 h
    assert found["a3-highgpu-1g", "on-demand"] == Decimal("14.073")
    # no spot part of it was listed: the shipped price stays
    assert ("g2-standard-8", "spot") not in found
    assert outcome.errors == {}
    h100 = catalogue.offers("gcp", ["europe-west4"], accelerator="H100", home=tmp_path)
    assert {o.zone for o in h100} == {"europe-west4-b", "europe-west4-c"}


def test_skus_of_reservations_and_the_like_are_passed_over(tmp_path: Path) -> None:
    """The H100 of a calendar reservation costs less than half: taken for on-demand, it misleads."""
    others = [
        sku("Nvidia H100 80GB GPU running in Netherlands for DWS Calendar Mode", "4.2"),
        sku("Reserved Nvidia H100 80GB GPU in Netherlands", "4.3"),
        sku("DWS Defined Duration Nvidia H100 80GB GPU running in Netherlands", "4.4"),
        sku("Commitment v1: A3 Cpu in Netherlands for 1 Year", "0.01"),
        sku("E2 Custom Instance Core running in Netherlands", "0.01"),
        sku("E2 Sole Tenancy Instance Core running in Netherlands", "0.01"),
        sku("N1 Predefined Extended Instance Ram running in Netherlands", "0.1"),
        sku("Network Internet Egress from EMEA to EMEA", "0.1"),
        {"description": "E2 Instance Core running in Netherlands"},
        "not an object",
    ]
    with serving(lambda *_: page([*others, *PARTS])) as server:
        (outcome,) = ask(server, tmp_path)
    assert outcome.skipped == {}
    found = prices(tmp_path)
    assert found["a3-highgpu-1g", "on-demand"] == Decimal("14.073")
    assert found["e2-standard-4", "on-demand"] == Decimal("0.147538")


def test_malformed_parts_are_counted_and_no_machine_is_made_of_them(tmp_path: Path) -> None:
    wrong = [
        sku("G2 Instance Core running in Netherlands", "0"),
        sku("G2 Instance Ram running in Netherlands", None),
        sku("Nvidia L4 GPU running in Netherlands", "0.5", currencyCode="EUR"),
        sku("Nvidia Tesla T4 GPU running in Netherlands", "0.5", nanos="NaN"),
        {**sku("N1 Predefined Instance Core running in Netherlands", "1"), "pricingInfo": []},
        sku("N1 Predefined Instance Ram running in Netherlands", "1", unit="mo"),
    ]
    with serving(lambda *_: page([*PARTS[:4], *wrong])) as server:
        (outcome,) = ask(server, tmp_path)
    assert sum(outcome.skipped.values()) == 6
    assert outcome.skipped["a price of 0"] == 2
    assert outcome.skipped["not in US dollars"] == 1
    assert outcome.skipped["not by the hour"] == 1
    names = {name for name, _ in prices(tmp_path)}
    assert names
    assert {name[:11] for name in names} == {"e2-standard"}


def test_two_prices_for_one_part_are_none(tmp_path: Path) -> None:
    twice = sku("Nvidia L4 GPU running in Netherlands", "0.2")
    same = sku("G2 Instance Core running in Netherlands", "0.02750")
    with serving(lambda *_: page([*PARTS, twice, same])) as server:
        (outcome,) = ask(server, tmp_path)
    assert outcome.skipped == {"two prices for the same part": 1}
    assert ("g2-standard-8", "on-demand") not in prices(tmp_path)
    assert ("e2-standard-8", "on-demand") in prices(tmp_path)


def test_one_list_serves_all_regions(tmp_path: Path) -> None:
    us = ("us-central1", "us-east1", "us-west1")
    americas = [
        sku("E2 Instance Core running in Americas", "0.02181159", regions=us),
        sku("E2 Instance Ram running in Americas", "0.00292353", regions=us),
    ]
    with serving(lambda *_: page([*PARTS, *americas])) as server:
        outcomes = ask(server, tmp_path, "europe-west4", "us-central1", "us-east1")
    assert len(server.asked) == 1
    assert [o.region for o in outcomes] == ["europe-west4", "us-central1", "us-east1"]
    for region in ("us-central1", "us-east1"):
        assert prices(tmp_path, region)["e2-standard-2", "on-demand"] == Decimal("0.067011")


def test_errors_are_asked_again_then_the_old_prices_are_kept(tmp_path: Path) -> None:
    def throttled(_: Asked, number: int) -> Answer:
        return page(PARTS) if number else Answer({"error": {"code": 429}}, 429)

    with serving(throttled) as server:
        (outcome,) = ask(server, tmp_path)
    assert outcome.errors == {}
    assert len(server.asked) == 2
    with serving(lambda *_: Answer({"error": {"code": 500}}, 500)) as server:
        (outcome,) = ask(server, tmp_path)
    assert "the old prices are kept" in str(outcome)
    assert "HTTP 500" in str(outcome)
    assert prices(tmp_path)["e2-standard-4", "on-demand"] == Decimal("0.147538")


def test_a_key_that_is_not_taken(tmp_path: Path) -> None:
    with (
        serving(lambda *_: Answer({"error": {"status": "UNAUTHENTICATED"}}, 401)) as server,
        pytest.raises(CloudCredentialsExpired, match="does not take the key") as caught,
    ):
        ask(server, tmp_path)
    assert KEY not in str(caught.value)


def test_no_credentials_is_one_line_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_API_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # google-auth: no metadata server is looked for
    with serving(lambda *_: page(PARTS)) as server:
        with pytest.raises(CredentialsMissing, match="GOOGLE_API_KEY") as caught:
            ask(server, tmp_path)
        assert "\n" not in str(caught.value)
        assert server.asked == []
