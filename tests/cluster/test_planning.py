"""A plan: the order of offers, what they come to, what else bills, what would be launched."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest

from mlcloud.cluster.clouds.base import CloudSettings, CloudThatPlans, LaunchRequest
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.planning import Plan, machines, plan
from mlcloud.cluster.specification import Specification, specify
from mlcloud.cluster.startup import Startup
from mlcloud.cost import catalogue
from mlcloud.errors import CredentialsMissing, NoSuchResources
from tests.cluster.offers_on_sale import AS_OF, offer, on_sale


def cluster(**fields: Any) -> Specification:
    base = {"name": "gpus", "cloud": "aws", "regions": ["eu-central-1"], "store": "s3://b"}
    return specify(**{**base, "nodes": [{"gpu": "A10G:1"}], **fields})


def made(specification: Specification | None = None, **options: Any) -> Plan:
    return plan(specification or cluster(), on_sale(), today=AS_OF, **options)


def order(found: Plan) -> list[tuple[str, str, str]]:
    return [(r.offer.instance_type, r.offer.market, r.offer.zone[-1]) for r in found.offers]


def test_the_cheapest_comes_first_and_nothing_outside_residency() -> None:
    assert order(made()) == [
        ("g5.xlarge", "spot", "a"),
        ("g5.xlarge", "spot", "b"),
        ("g5.xlarge", "on-demand", "a"),
        ("g5.xlarge", "on-demand", "b"),
        ("g5.12xlarge", "spot", "a"),
        ("g5.12xlarge", "spot", "b"),
        ("g5.12xlarge", "on-demand", "a"),
        ("g5.12xlarge", "on-demand", "b"),
    ]


def test_markets_types_and_shapes_decide_what_is_tried() -> None:
    only = made(cluster(nodes=[{"gpu": "A10G:1", "fallback": "none"}]))
    assert {market for _, market, _ in order(only)} == {"spot"}
    steady = made(cluster(nodes=[{"gpu": "A10G:1", "market": "on-demand"}]))
    assert {market for _, market, _ in order(steady)} == {"on-demand"}
    typed = made(cluster(nodes=[{"instance_type": "g5.12xlarge"}]))
    assert {type for type, _, _ in order(typed)} == {"g5.12xlarge"}
    plain = made(cluster(nodes=[{"cpus": 2, "memory": "6GiB"}]))
    assert {type for type, _, _ in order(plain)} == {"m7i.large"}  # no GPU that nobody asked for
    groups = made(cluster(nodes=[{"gpu": "A10G"}, {"cpus": 2}]))
    assert [row.group for row in groups.offers] == ["a10g-1"] * 8 + ["cpu2"] * 8


def test_what_it_comes_to() -> None:
    first = made(hours=2).offers[0]
    price = Decimal("1.006") * Decimal("0.4")
    assert first.offer.usd_per_hour == price
    assert first.on_demand_usd_per_hour == Decimal("1.006")
    assert first.saving == Decimal("0.6")
    # it bills from its launch: 40 s boot, 40 s image, 100 s packages and Ray
    assert first.startup.total == timedelta(seconds=180)
    assert first.usd == price * (2 + Decimal("0.05"))
    assert first.effective_usd_per_hour == first.usd / 2
    assert made(hours=2).offers[2].saving is None  # on demand


@pytest.mark.parametrize(
    ("region", "gpu", "first"),
    [
        ("westeurope", "T4:1", "Standard_NC4as_T4_v3"),
        ("westeurope", "A100:8", "Standard_ND96asr_v4"),
        ("centralindia", "T4:1", "Standard_NC4as_T4_v3"),
        ("centralindia", "A100-80GB:1", "Standard_NC24ads_A100_v4"),
    ],
)
def test_azures_gpus_in_europe_and_india_can_be_planned_with_what_is_shipped(
    region: str, gpu: str, first: str
) -> None:
    wanted = cluster(cloud="azure", regions=[region], store="az://b@a", nodes=[{"gpu": gpu}])
    found = plan(wanted, catalogue.offers("azure", [region], refreshed=False), today=AS_OF)
    assert found.best is not None
    assert (found.best.offer.instance_type, found.best.offer.market) == (first, "spot")
    listed = next(row for row in found.offers if row.offer.market == "on-demand")
    assert listed.offer.instance_type == first
    assert not listed.offer.estimated
    assert found.best.offer.estimated
    for row in (found.best, listed):
        assert row.offer.as_of == date(2023, 12, 18)
        assert row.offer.source
        assert row.record()["price_as_of"] == "2023-12-18"
    assert found.best.record()["estimated"] is True
    html = found._repr_html_().replace(
        "<span>$</span>", "$"
    )  # so that no page sets it as a formula
    for shown in (repr(found), html):
        assert f"~${found.best.offer.usd_per_hour:,.4f}" in shown
        assert f"~${listed.offer.usd_per_hour:,.4f}" not in shown
        assert shown.count("~ estimated: no source states this price") == 1


def test_whoever_knows_more_of_the_price_decides_the_order() -> None:
    def lost_work(offer: Offer, startup: Startup) -> Decimal:
        lost = Decimal(3) if offer.market == "spot" and offer.zone.endswith("a") else Decimal(1)
        return offer.usd_per_hour * lost

    found = made(effective=lost_work)
    assert order(found)[:2] == [("g5.xlarge", "spot", "b"), ("g5.xlarge", "on-demand", "a")]


def test_what_this_cluster_measured_takes_the_place_of_what_is_typical() -> None:
    took = [timedelta(seconds=each) for each in (60, 300, 80)]
    found = made(history={"g5.xlarge": took})
    assert found.offers[0].startup.total == timedelta(seconds=80)
    assert found.notes[0] == (
        "time to the first cell: 1 min 20 s. measured by this cluster, 3 nodes"
    )
    assert found.offers[4].startup.total == timedelta(seconds=180)  # g5.12xlarge: typical


def test_what_the_quota_forbids_comes_last_and_says_why() -> None:
    def lacking(offer: Offer) -> str | None:
        return "0 vCPUs of G spot (L-3819A6DF)" if offer.market == "spot" else None

    found = made(lacking=lacking)
    assert [row.offer.market for row in found.offers] == ["on-demand"] * 4 + ["spot"] * 4
    assert "quota: 4 of 8 offers may not be launched: 0 vCPUs of G spot (L-3819A6DF)" in found.notes
    assert repr(found).count("no quota") == 4


def notes(specification: Specification) -> str:
    return "\n".join(made(specification).notes)


def test_notes_say_what_else_bills_and_what_is_not_known() -> None:
    found = notes(cluster(nodes=[{"gpu": "A10G", "min": 2}]))
    assert (
        "bills while the cluster is up: the head $0.12/h (m7i.large), 2 of a10g-1 $0.8048/h"
        in found
    )
    assert "warm spares: none. One (g5.xlarge) would cost $0.4024/h, used or not" in found
    assert "the store's region is not known here: say store_region" in found
    assert "2 warm spares: $0.8048/h in all, used or not" in notes(cluster(spares=2))
    assert "region is not known" not in notes(cluster(store_region="eu-central-1"))
    assert "and your setup commands beside it" in notes(cluster(setup=["make"]))


def test_old_prices_say_so() -> None:
    found = plan(cluster(), on_sale(), today=date(2027, 1, 10))
    assert found.offers[0].age == timedelta(days=70)
    assert "prices are up to 70 days old: `mlcloud prices refresh` asks the clouds" in found.notes
    assert "70 d old" in repr(found)
    assert not any("days old" in note for note in made().notes)


def test_an_image_of_one_s_own_saves_the_installation() -> None:
    found = made(cluster(image="ami-1")).offers[0]
    assert found.startup.total == timedelta(seconds=90)


def test_nothing_that_fits() -> None:
    with pytest.raises(NoSuchResources, match="no offer for H100:8, 1 CPU: this cluster has no H"):
        made(cluster(nodes=[{"gpu": "H100:8"}]))


def test_machines_that_one_owns_are_offers_at_their_own_price() -> None:
    hosts = [
        {"host": "gpu1", "cpus": 16, "memory": "64GB", "gpu": "RTX4090:2", "usd_per_hour": "0.35"},
        {"host": "gpu2", "cpus": 8, "memory": "32GB", "gpu": "RTX4090"},
    ]
    lab = specify(
        name="lab",
        cloud="ssh",
        store="file:///x",
        ssh={"hosts": hosts},
        nodes=[{"gpu": "RTX4090:1"}],
    )
    found = plan(lab, machines(lab))
    assert [(row.offer.zone, row.offer.usd_per_hour) for row in found.offers] == [
        ("gpu2", Decimal(0)),
        ("gpu1", Decimal("0.35")),
    ]
    # spot is the default market of a group, and on-demand what it falls back to
    assert {row.offer.market for row in found.offers} == {"on-demand"}


# --- what would be launched -----------------------------------------------------------------------


class Showing(CloudThatPlans):
    """A cloud that shows what it would send."""

    def configuration(self, offer: Offer, request: LaunchRequest) -> dict[str, Any]:
        return {"InstanceType": offer.instance_type, "UserData": request.bootstrap}


def test_the_configuration_is_what_the_first_launch_would_be_told() -> None:
    specification = cluster(
        nodes=[{"gpu": "A10G:1", "disk": "200GB", "max": 8}, {"cpus": 2}],
        setup=["apt-get install -y ffmpeg"],
        tags={"team": "vision"},
        image="ami-1",
        max_lifetime="1d",
    )
    asked: list[CloudSettings] = []

    def showing(settings: CloudSettings) -> Showing:
        asked.append(settings)
        return Showing()

    first, second = made(specification, showing=showing).configuration
    assert first["offer"] == "g5.xlarge spot eu-central-1a ($0.4024/h)"
    assert first["nodes"] == {"min": 0, "max": 8}
    assert (first["image"], first["disk_gb"]) == ("ami-1", 200)
    assert first["ray"]["node_type"] == "a10g-1"
    # the least that every one of its offers has: Ray is told no more
    assert first["ray"]["resources"]["CPU"] == 4
    assert first["ray"]["resources"]["A10G"] == 1
    assert first["ray"]["resources"]["memory"] <= 16 * 2**30
    assert first["tags"]["team"] == "vision"
    assert first["tags"]["mlcloud-cluster"] == "gpus"
    launched, expires = (int(first["tags"][f"mlcloud-{n}"]) for n in ("launched", "expires"))
    assert expires - launched == 86400
    assert first["request"] == {
        "InstanceType": "g5.xlarge",
        "UserData": "#!/bin/sh\napt-get install -y ffmpeg",
    }
    assert second["ray"]["resources"] == {"CPU": 2, "memory": int(4 * 2**30 * 0.85)}
    assert [settings.disk_gb for settings in asked] == [200, 100]
    assert made(specification).configuration[0]["request"] is None


def test_what_would_be_sent_may_need_credentials() -> None:
    def showing(settings: CloudSettings) -> Showing:
        raise CredentialsMissing("no project is known: set network.project")

    (told,) = made(showing=showing).configuration
    assert told["request"] is None
    assert told["request_unknown"] == "no project is known: set network.project"


# --- how it is shown ------------------------------------------------------------------------------


def test_as_text() -> None:
    lines = repr(made(hours=2)).splitlines()
    assert lines[0] == "plan of gpus on aws in eu-central-1. Nothing was launched."
    assert lines[2] == "a10g-1: 8 offers, in the order in which they are tried"
    heads = "# type GPU CPUs memory market zone $/h saved 2 h first cell price"
    assert " ".join(lines[3].split()) == heads
    assert " ".join(lines[4].split()) == (
        "1 g5.xlarge A10G:1 4 16 GiB spot eu-central-1a $0.4024 60% $0.82 3 min 00 s today"
    )
    assert max(map(len, lines[:12])) < 120


def test_as_html_nothing_of_a_name_is_markup() -> None:
    odd = offer("<b>x</b>", usd="0.1")
    found = plan(cluster(), [odd], today=AS_OF)._repr_html_()
    assert "&lt;b&gt;x&lt;/b&gt;" in found
    assert "<b>" not in found


def test_many_offers_are_shown_in_part_and_kept_whole() -> None:
    many = [offer(f"g{n}.xlarge", usd=str(Decimal(n) / 100)) for n in range(1, 41)]
    found = plan(cluster(), many, today=AS_OF)
    assert len(found.offers) == 40
    assert "and 28 more, dearer" in repr(found)
    assert "g12.xlarge" in repr(found)
    assert "g13.xlarge" not in repr(found)
    assert "and 28 more, dearer" in found._repr_html_()


def test_as_a_frame() -> None:
    pandas = pytest.importorskip("pandas")
    frame = made().to_frame()
    assert list(frame["usd_per_hour"]) == sorted(frame["usd_per_hour"])
    assert frame["first_cell"][0] == pandas.Timedelta(seconds=180)
    assert frame["saving"][0] == pytest.approx(0.6)


@pytest.fixture
def large() -> list[Offer]:
    """5,000 offers, shuffled."""
    base = on_sale()
    found = [
        replace(each, zone=f"eu-central-1{zone}", region="eu-central-1", instance_type=f"g{n}.x")
        for n in range(105)
        for zone in "abc"
        for each in base[:16]
    ]
    random.Random(0).shuffle(found)
    return found[:5000]


def test_thousands_of_offers_take_no_time(large: list[Offer]) -> None:
    began = time.perf_counter()
    found = plan(cluster(), large, today=AS_OF)
    took = time.perf_counter() - began
    assert len(found.offers) > 2000
    assert took < 3.0
