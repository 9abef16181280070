"""The shipped offers: every row has a source, a day and a price that can be true."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest

from mlcloud.cluster.offers import Cooldown, Offer, OfferKey, Shape, key_of, walk
from mlcloud.cost import catalogue
from mlcloud.cost.prices import local_offers, on_demand_usd_per_hour
from mlcloud.cost.quotes import Found, Part, Quote, quotes_path, write_quotes
from mlcloud.errors import UsageError

NOW = datetime(2026, 11, 26, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def shipped() -> list[Offer]:
    return [o for cloud in catalogue.CLOUDS for o in catalogue.offers(cloud, refreshed=False)]


def price(cloud: str, region: str, name: str, market: str = "on-demand") -> Decimal:
    offers = catalogue.offers(cloud, [region], instance_types=[name], refreshed=False)
    (found,) = {o.usd_per_hour for o in offers if o.market == market}
    return found


# --- what is shipped ------------------------------------------------------------------------------


def test_every_offer_has_a_source_a_day_and_a_price_that_can_be_true(shipped: list[Offer]) -> None:
    assert len(shipped) > 15_000
    for offer in shipped:
        assert Decimal("0.005") < offer.usd_per_hour < 200, offer
        assert date(2020, 8, 1) <= offer.as_of <= date(2026, 11, 26), offer
        assert len(offer.source) > 20
        assert ("estimated" in offer.source) == offer.estimated
        assert not offer.simulated
        assert offer.zone.startswith(offer.region)
        assert offer.region in catalogue.regions(offer.cloud)
        assert offer.zone in catalogue.zones(offer.cloud, offer.region)
        assert (offer.accelerator is None) == (offer.accelerator_count == 0)
        assert offer.cpus >= 1
        assert offer.memory_bytes >= 2**30


def test_no_offer_is_there_twice(shipped: list[Offer]) -> None:
    assert len({(o.cloud, *key_of(o)) for o in shipped}) == len(shipped)


def test_spot_is_cheaper_than_on_demand_and_not_absurdly_so(shipped: list[Offer]) -> None:
    listed = {
        (o.cloud, o.instance_type, o.zone): o.usd_per_hour
        for o in shipped
        if o.market == "on-demand"
    }
    compared = 0
    for offer in shipped:
        on_demand = listed.get((offer.cloud, offer.instance_type, offer.zone))
        if offer.market == "spot" and on_demand is not None:
            assert on_demand * Decimal("0.09") < offer.usd_per_hour < on_demand, offer
            compared += 1
    assert compared > 8_000


def test_on_demand_prices_are_never_estimated(shipped: list[Offer]) -> None:
    assert not [o for o in shipped if o.estimated and o.market == "on-demand"]


@pytest.mark.parametrize(
    ("cloud", "region", "name", "usd"),
    [
        ("aws", "us-east-1", "g5.xlarge", "1.006"),
        ("aws", "eu-central-1", "g5.xlarge", "1.258"),
        ("aws", "ap-south-1", "g4dn.xlarge", "0.579"),
        ("aws", "us-east-1", "p5.48xlarge", "55.04"),  # 98.32 until June 2025
        ("aws", "us-east-1", "p4d.24xlarge", "21.957642"),
        ("aws", "us-east-1", "m5.xlarge", "0.192"),
        ("aws", "us-west-2", "m5.xlarge", "0.192"),
        ("aws", "us-east-1", "trn1.32xlarge", "21.5"),
        ("aws", "us-east-1", "inf2.xlarge", "0.7582"),
        ("gcp", "us-central1", "a2-highgpu-1g", "3.67338"),
        ("gcp", "us-central1", "g2-standard-4", "0.70683"),
        ("gcp", "us-central1", "e2-standard-4", "0.13402"),
        ("gcp", "us-central1", "ct5lp-hightpu-1t", "1.2"),
        ("azure", "eastus", "Standard_NC24ads_A100_v4", "3.673"),
        ("azure", "eastus", "Standard_NC4as_T4_v3", "0.526"),
        ("azure", "centralindia", "Standard_D4s_v4", "0.202"),
        ("azure", "centralindia", "Standard_NC24ads_A100_v4", "5.142"),
        ("azure", "westeurope", "Standard_NC24ads_A100_v4", "4.775"),
        ("azure", "westeurope", "Standard_ND96asr_v4", "35.357"),
        ("azure", "westeurope", "Standard_D16s_v5", "0.92"),  # twice a D8s_v5
        ("azure", "uksouth", "Standard_ND96isr_H100_v5", "122.9"),
        ("azure", "switzerlandnorth", "Standard_D4s_v4", "0.253"),  # 0.288 in 2020
    ],
)
def test_known_list_prices(cloud: str, region: str, name: str, usd: str) -> None:
    assert price(cloud, region, name) == Decimal(usd)


def test_two_sources_agree_where_both_have_a_price() -> None:
    """AWS's sizes that were filled in have the ratios that the sizes in the other source have."""
    for region in ("eu-central-1", "ap-south-1", "ap-northeast-1", "us-west-2"):
        ratio = price("aws", region, "g5.xlarge") / price("aws", "us-east-1", "g5.xlarge")
        for name in ("g5.2xlarge", "g5.12xlarge", "g5.48xlarge", "g6.xlarge", "g6.48xlarge"):
            mine = price("aws", region, name) / price("aws", "us-east-1", name)
            assert abs(mine / ratio - 1) < Decimal("0.004"), (region, name)


def test_the_sizes_of_a_family_without_accelerators_cost_in_proportion(
    shipped: list[Offer],
) -> None:
    """What is left of another tenancy's prices would stand out by 10 %."""
    families: dict[tuple[str, str], dict[str, Decimal]] = defaultdict(dict)
    for o in shipped:
        if o.cloud == "aws" and o.market == "on-demand" and o.accelerator is None:
            family = o.instance_type.split(".")[0]
            families[o.region, family][o.instance_type] = o.usd_per_hour / o.memory_bytes
    assert len(families) > 100
    for key, each in families.items():
        assert max(each.values()) / min(each.values()) < Decimal("1.01"), key


def test_the_sizes_of_azures_families_cost_in_proportion(shipped: list[Offer]) -> None:
    """What is left of another meter's prices (Windows, Promo) would stand out."""
    listed = {
        (o.region, o.instance_type): o.usd_per_hour
        for o in shipped
        if o.cloud == "azure" and o.market == "on-demand"
    }
    families: dict[tuple[str, str], list[Decimal]] = defaultdict(list)
    for (region, name), usd in listed.items():
        family = re.sub(r"^Standard_([A-Z]+)\d+", r"\1", name)  # NCas_T4_v3, Ds_v5
        families[region, family].append(usd / listed["eastus", name])
    assert len(families) > 120
    for key, multiples in families.items():
        assert max(multiples) / min(multiples) < Decimal("1.011"), key
        assert min(multiples) > Decimal("0.99"), key
        assert max(multiples) < Decimal("1.55"), key


@pytest.mark.parametrize("region", ["westeurope", "centralindia"])
@pytest.mark.parametrize("name", ["Standard_NC4as_T4_v3", "Standard_NC24ads_A100_v4"])
def test_azures_gpus_outside_the_united_states_have_a_day_and_a_marked_estimate(
    region: str, name: str
) -> None:
    here = catalogue.offers("azure", [region], instance_types=[name], refreshed=False)
    assert {(o.market, o.estimated) for o in here} == {("on-demand", False), ("spot", True)}
    assert {o.as_of for o in here} == {
        date(2023, 12, 18)
    }  # an estimate is as old as its older part
    (listed,) = {o.source for o in here if not o.estimated}
    assert "karpenter-provider-azure/blob/0499866a" in listed
    (guessed,) = {o.source for o in here if o.estimated}
    assert guessed.startswith("estimated: on-demand ×")
    part = price("azure", region, name, "spot") / price("azure", region, name)
    home = price("azure", "eastus", name, "spot") / price("azure", "eastus", name)
    assert abs(part / home - 1) < Decimal("0.001")


def test_europe_and_india_have_accelerators_on_both_markets(shipped: list[Offer]) -> None:
    for region, gpus in {
        "eu-central-1": {"T4", "A10G", "L4", "L40S", "A100", "A100-80GB", "Inferentia2"},
        "eu-west-1": {"T4", "A10G", "A100"},
        "eu-north-1": {"A10G", "H100", "H200"},
        "ap-south-1": {"T4", "A10G", "L4", "H100", "A100"},
        "europe-west4": {"T4", "V100", "L4", "A100", "H100", "TPU-v5e", "TPU-v5p", "TPU-v6e"},
        "asia-south1": {"T4", "L4", "H100", "TPU-v6e"},
        "westeurope": {"T4", "A100", "A100-80GB", "H100"},
        "northeurope": {"T4", "A100-80GB"},
        "germanywestcentral": {"T4"},
        "francecentral": {"A100-80GB"},
        "uksouth": {"T4", "A100-80GB", "H100"},
        "swedencentral": {"T4", "A100-80GB", "H100"},
        "switzerlandnorth": {"A100-80GB", "H100"},
        "norwayeast": {"A100-80GB"},
        "centralindia": {"T4", "A100-80GB"},
        "southindia": {"T4", "A100-80GB"},
    }.items():
        here = [o for o in shipped if o.region == region]
        assert gpus <= {o.accelerator for o in here}, region
        assert {o.market for o in here if o.accelerator} == {"spot", "on-demand"}
    assert [o for o in shipped if o.region == "ap-south-2"]


def test_custom_accelerators_are_offers_like_the_others() -> None:
    (trn1, *_) = catalogue.offers("aws", ["us-east-1"], accelerator="trainium", refreshed=False)
    assert trn1.accelerator == "Trainium"
    tpus = catalogue.offers("gcp", ["us-central1"], accelerator="TPU-v5p", refreshed=False)
    assert {(o.instance_type, o.accelerator_count) for o in tpus} == {("ct5p-hightpu-4t", 4)}
    asked = Shape.parse(gpu="tpu-V5E:8")
    (first, *_) = walk(catalogue.offers("gcp", refreshed=False), asked, "spot", {}, NOW)
    assert first.instance_type == "ct5lp-hightpu-8t"


def test_facts_of_a_machine() -> None:
    found = catalogue.machine("aws", "p5.48xlarge")
    assert (found.cpus, found.memory_bytes) == (192, 2048 * 2**30)
    assert (found.accelerator, found.accelerator_count) == ("H100", 8)
    assert found.accelerator_memory_bytes == 80 * 2**30
    assert catalogue.machine("azure", "Standard_D4s_v4").accelerator is None


def test_zones_as_the_clouds_name_them() -> None:
    assert "us-east-1f" in catalogue.zones("aws", "us-east-1")
    assert catalogue.zones("gcp", "us-central1") == [f"us-central1-{z}" for z in "abcf"]
    assert catalogue.zones("azure", "eastus") == ["eastus-1", "eastus-2", "eastus-3"]
    assert catalogue.zones("azure", "southindia") == ["southindia"]


def test_a_machine_of_google_is_offered_where_it_is_sold() -> None:
    h100 = catalogue.offers("gcp", ["europe-west4"], accelerator="H100", refreshed=False)
    assert {o.zone for o in h100} == {"europe-west4-b", "europe-west4-c"}


def test_filters() -> None:
    spot = catalogue.offers(
        "aws", ["eu-west-1"], accelerator="A10G", markets=["spot"], refreshed=False
    )
    assert spot
    assert {(o.market, o.accelerator, o.region) for o in spot} == {("spot", "A10G", "eu-west-1")}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: catalogue.offers("awz"), r"no prices for the cloud 'awz'.*did you mean 'aws'"),
        (lambda: catalogue.offers("aws", ["eu-centrl-1"]), "did you mean 'eu-central-1'"),
        (lambda: catalogue.zones("gcp", "us-east-1"), "gcp region 'us-east-1'"),
        (lambda: catalogue.machine("aws", "g5.xlarg"), "did you mean 'g5.xlarge'"),
    ],
)
def test_what_is_not_known_is_named_with_the_nearest(call, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()


def test_the_reader_imports_nothing_heavy() -> None:
    code = (
        "import sys; from mlcloud.cost import catalogue; catalogue.offers('aws', refreshed=False); "
        "print([m for m in ('pandas', 'numpy', 'boto3', 'httpx', 'ray') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_tables_are_small() -> None:
    folder = Path(catalogue.__file__).parent / "data"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000


# --- how old --------------------------------------------------------------------------------------


def test_the_age_of_prices_is_said() -> None:
    (offer,) = [o for o in local_offers() if (o.zone, o.market) == ("local-a", "spot")][:1]
    offer = replace(offer, simulated=False, as_of=date(2025, 3, 2))
    today = date(2026, 11, 26)
    assert catalogue.age([offer], today) == "prices of 2025-03-02, 634 days old"
    young = replace(offer, as_of=today)
    assert catalogue.age([young], today) == "prices of 2026-11-26"
    assert catalogue.age([young, offer], today) == (
        "prices of 2025-03-02 to 2026-11-26, up to 634 days old"
    )
    guess = replace(offer, estimated=True)
    assert catalogue.age([guess, offer], today).endswith("634 days old; 1 of 2 estimated")
    assert catalogue.age(local_offers(), today) == ""


def test_old_prices_are_warned_of_with_what_to_do() -> None:
    offers = catalogue.offers("aws", ["us-east-1"], refreshed=False)
    warning = catalogue.warning(offers, date(2026, 11, 26))
    assert warning is not None
    assert "may have changed: mlcloud prices refresh --cloud aws" in warning
    fresh = [replace(o, as_of=date(2026, 11, 1)) for o in offers]
    assert catalogue.warning(fresh, date(2026, 11, 26)) is None


# --- refreshed prices -----------------------------------------------------------------------------


def quote(name: str, zone: str | None, market, usd: str, day: date = date(2026, 11, 26)) -> Quote:
    return Quote(name, "eu-central-1", zone, market, Decimal(usd), "asked", day)


def keep(home: Path, *quotes: Quote) -> None:
    parts = [
        Part("eu-central-1", market, Found([q for q in quotes if q.market == market]))
        for market in ("spot", "on-demand")
    ]
    write_quotes(home, "aws", "eu-central-1", parts, NOW)


def test_a_refreshed_price_replaces_the_shipped_one_in_every_zone(tmp_path: Path) -> None:
    keep(tmp_path, quote("g5.xlarge", None, "on-demand", "1.111"))
    offers = catalogue.offers(
        "aws", ["eu-central-1"], accelerator="A10G", markets=["on-demand"], home=tmp_path
    )
    mine = [o for o in offers if o.instance_type == "g5.xlarge"]
    assert {o.zone for o in mine} == set(catalogue.zones("aws", "eu-central-1"))
    assert {o.usd_per_hour for o in mine} == {Decimal("1.111")}
    assert {(o.source, o.as_of, o.estimated) for o in mine} == {("asked", NOW.date(), False)}
    others = [o for o in offers if o.instance_type == "g5.2xlarge"]
    assert others
    assert {o.as_of for o in others} < {date(2025, 3, 2), date(2025, 9, 9)}


def test_spot_prices_differ_by_zone_once_they_are_refreshed(tmp_path: Path) -> None:
    keep(
        tmp_path,
        quote("g5.xlarge", "eu-central-1a", "spot", "0.61"),
        quote("g5.xlarge", "eu-central-1c", "spot", "0.47"),
    )
    offers = catalogue.offers("aws", ["eu-central-1"], accelerator="A10G", home=tmp_path)
    (first, second, *rest) = walk(offers, Shape.parse(gpu="A10G"), "spot", {}, NOW)
    assert (first.zone, first.usd_per_hour) == ("eu-central-1c", Decimal("0.47"))
    assert (second.zone, second.usd_per_hour) == ("eu-central-1a", Decimal("0.61"))
    spots = [o for o in rest if o.market == "spot" and o.instance_type == "g5.xlarge"]
    assert spots == []  # the cloud named no price for eu-central-1b: none is offered there
    assert on_demand_usd_per_hour(first, offers) == Decimal("1.258")


def test_a_younger_package_wins_over_an_old_refresh(tmp_path: Path) -> None:
    keep(tmp_path, quote("g5.xlarge", None, "on-demand", "1.999", date(2024, 1, 1)))
    offers = catalogue.offers("aws", ["eu-central-1"], accelerator="A10G", home=tmp_path)
    assert Decimal("1.999") not in {o.usd_per_hour for o in offers}
    assert {o.zone for o in offers if o.instance_type == "g5.xlarge"}


def test_a_machine_that_is_new_in_a_region_is_offered_there(tmp_path: Path) -> None:
    keep(tmp_path, quote("p5.48xlarge", None, "on-demand", "71.5"))
    offers = catalogue.offers("aws", ["eu-central-1"], accelerator="H100", home=tmp_path)
    assert {o.zone for o in offers} == set(catalogue.zones("aws", "eu-central-1"))
    assert {o.accelerator_count for o in offers} == {8}


@pytest.mark.parametrize(
    "damage",
    ["{", "[]", '{"version": 9, "quotes": []}', '{"version": 1, "quotes": [["x"]]}'],
)
def test_a_damaged_file_is_warned_of_and_the_shipped_prices_are_used(
    tmp_path: Path, damage: str
) -> None:
    path = quotes_path(tmp_path, "aws", "eu-central-1")
    path.parent.mkdir()
    path.write_text(damage)
    with pytest.warns(UserWarning, match="cannot be read.*shipped prices are used.*refresh"):
        found = catalogue.offers("aws", ["eu-central-1"], home=tmp_path)
    assert found == catalogue.offers("aws", ["eu-central-1"], refreshed=False)


def test_a_price_of_zero_in_the_file_is_not_believed(tmp_path: Path) -> None:
    keep(tmp_path, quote("g5.xlarge", None, "on-demand", "1"))
    path = quotes_path(tmp_path, "aws", "eu-central-1")
    stored = json.loads(path.read_text())
    stored["quotes"][0][3] = "0"
    path.write_text(json.dumps(stored))
    with pytest.warns(UserWarning, match="a price of 0"):
        catalogue.offers("aws", ["eu-central-1"], home=tmp_path)


# --- speed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", [None, "L4:1"])
@pytest.mark.parametrize("cooling", [0, 500])
def test_a_decision_over_5000_offers_takes_at_most_10_ms(
    shipped: list[Offer], gpu: str | None, cooling: int
) -> None:
    sold = shipped[:: len(shipped) // 5000][:5000]
    assert len(sold) == 5000
    until = Cooldown(NOW + timedelta(minutes=5), "no capacity")
    cooldowns = {key_of(offer): until for offer in sold[:cooling]}
    shape = Shape.parse(gpu=gpu)
    took = []
    for _ in range(10):
        begun = time.process_time()
        walked = walk(sold, shape, "spot", cooldowns, NOW)
        took.append(time.process_time() - begun)
    assert walked
    assert min(took) <= 0.010, took


def test_the_order_is_the_same_however_it_is_found(shipped: list[Offer]) -> None:
    """Against the plain definition of the order, with ties and cool-downs."""
    offers = shipped[::17]
    cooldowns = {
        OfferKey(o.zone, o.instance_type, o.market): Cooldown(NOW.replace(year=2027), "x")
        for o in offers[::5]
    }
    for market in ("spot", "on-demand", None):
        for shape in (Shape(), Shape.parse(4, "16GB", "L4:1")):
            expected = sorted(
                (
                    o
                    for o in offers
                    if o.dominates(shape)
                    and (market != "on-demand" or o.market == "on-demand")
                    and key_of(o) not in cooldowns
                ),
                key=lambda o: (
                    market == "spot" and o.market != "spot",
                    o.usd_per_hour,
                    o.market != "on-demand",
                    o.cloud,
                    o.zone,
                    o.instance_type,
                ),
            )
            assert walk(offers, shape, market, cooldowns, NOW) == expected
            assert walk(reversed(offers), shape, market, cooldowns, NOW) == expected


def test_an_estimate_is_as_old_as_the_older_price_in_it(shipped: list[Offer]) -> None:
    listed = {
        (o.cloud, o.instance_type, o.zone): o.as_of for o in shipped if o.market == "on-demand"
    }
    for offer in shipped:
        if offer.estimated:
            assert offer.as_of <= listed[offer.cloud, offer.instance_type, offer.zone], offer
