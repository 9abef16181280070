"""Launch, list, terminate and tidy up on a Compute Engine played over real HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from mlcloud.cluster.clouds.base import Instance
from mlcloud.cluster.clouds.gcp import GcpCloud
from mlcloud.errors import (
    CloudCredentialsExpired,
    CloudRefused,
    CredentialsMissing,
    NoCapacity,
    QuotaExceeded,
)
from tests.cluster.clouds.compute_engine import ComputeEngine
from tests.cluster.clouds.selling import NOW, offer, request, settings

pytest.importorskip("google.auth")
pytest.importorskip("requests")

REGION, ZONE = "europe-west4", "europe-west4-a"
L4 = offer("gcp", "g2-standard-4", ZONE, REGION, gpu=("L4", 1))
L4_B = offer("gcp", "g2-standard-4", "us-east1-b", "us-east1", gpu=("L4", 1))
OFFERS = [L4, L4_B]
FULL = {
    "errors": [
        {
            "code": "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
            "message": "The zone does not have enough resources available to fulfill the request.",
        }
    ]
}
QUOTA = {
    "errors": [
        {
            "code": "QUOTA_EXCEEDED",
            "message": "Quota 'NVIDIA_L4_GPUS' exceeded.  Limit: 0.0 in region europe-west4.",
            "errorDetails": [
                {
                    "quotaInfo": {
                        "metricName": "compute.googleapis.com/nvidia_l4_gpus",
                        "limitName": "NVIDIA-L4-GPUS-per-project-region",
                        "dimensions": {"region": REGION},
                        "limit": 0,
                    }
                }
            ],
        }
    ]
}


@pytest.fixture
def google() -> Iterator[ComputeEngine]:
    plane = ComputeEngine()
    yield plane
    plane.close()


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def cloud(google: ComputeEngine, clock: Clock | None = None, **more: Any) -> GcpCloud:
    from google.auth.credentials import AnonymousCredentials

    names = {"project": "lab", **more.pop("network", {})}
    given = settings(REGION, "us-east1", network=names, endpoints={"compute": google.base}, **more)
    credentials = AnonymousCredentials()  # type: ignore[no-untyped-call]
    return GcpCloud(
        given, OFFERS, credentials=credentials, now=clock or Clock(), pause_s=0.01, accepted_s=2
    )


def other(here: GcpCloud) -> GcpCloud:
    """Another cluster of the same project."""
    return GcpCloud(
        replace(here.settings, cluster="other"),
        OFFERS,
        credentials=here.compute._credentials,
        now=lambda: NOW,
        pause_s=0.01,
    )


def test_exactly_what_the_plan_shows_is_sent_once_its_network_is_there(
    google: ComputeEngine,
) -> None:
    google.slow = 2
    here = cloud(google, network={"ssh_from": "203.0.113.7"})
    asked = request("head", instance_id="head-1")
    launched = here.launch(L4, asked)
    made = [each.path.split("/lab/")[-1] for each in google.sent("POST") if each.body]
    assert made == [
        "global/networks",
        "global/firewalls",
        "global/firewalls",
        f"regions/{REGION}/subnetworks",
        f"regions/{REGION}/routers",
        f"zones/{ZONE}/instances",
    ]
    assert google.sent("POST", "/instances")[0].body == here.configuration(L4, asked)
    assert launched.id == "head-1"
    [found] = cloud(google).instances()
    assert found == Instance(
        id="head-1",
        node_type="head",
        offer=L4,
        launched_at=NOW,
        tags=found.tags,
        private_ip="10.100.0.2",
        public_ip="198.51.100.2",
    )
    rule = google.resources["global/firewalls/mlcloud-exp-7-ssh"]
    assert rule["sourceRanges"] == ["203.0.113.7/32"]
    # a laptop that moved: the rule follows it, and nothing else is made again
    before = len(google.sent("POST", "/networks"))
    cloud(google, network={"ssh_from": "198.51.100.9"}).launch(L4, request())
    assert rule["sourceRanges"] == ["198.51.100.9/32"]
    assert len(google.sent("POST", "/networks")) == before


def test_each_region_has_a_subnet_that_overlaps_no_other(google: ComputeEngine) -> None:
    here = cloud(google)
    here.launch(L4, request())
    here.launch(L4_B, request())
    cidrs = [r["ipCidrRange"] for p, r in google.resources.items() if "/subnetworks/" in p]
    assert sorted(cidrs) == ["10.100.0.0/16", "10.101.0.0/16"]


def test_a_named_network_is_left_alone(google: ComputeEngine) -> None:
    google.resources["global/networks/lab"] = {"name": "lab"}
    cloud(google, network={"network": "lab"}).launch(L4, request())
    assert len([each for each in google.sent("POST") if each.body]) == 1


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (FULL, NoCapacity, "Google has none free there now"),
        (
            QUOTA,
            QuotaExceeded,
            r"NVIDIA-L4-GPUS-per-project-region is used up \(limit 0, europe-west4\); raise it at "
            r"https://console.cloud.google.com/iam-admin/quotas\?project=lab",
        ),
        (
            {"errors": [{"code": "RESOURCE_NOT_FOUND", "message": "no image ubuntu-1"}]},
            CloudRefused,
            r"no image ubuntu-1 \(RESOURCE_NOT_FOUND\)",
        ),
    ],
)
def test_an_operation_that_fails_says_why(
    google: ComputeEngine, error: dict[str, Any], kind: type[Exception], words: str
) -> None:
    google.slow = 1
    google.errors[ZONE] = error
    here = cloud(google)
    with pytest.raises(kind, match=words) as caught:
        here.launch(L4, request())
    assert type(caught.value) is kind
    assert "g2-standard-4 spot europe-west4-a" in str(caught.value)
    assert here.instances() == []
    google.errors.clear()
    assert here.launch(L4, request()).alive  # and the same process may try again


@pytest.mark.parametrize(
    ("status", "error", "kind", "words"),
    [
        (
            403,
            {
                "code": 403,
                "message": "Quota 'GPUS_ALL_REGIONS' exceeded.  Limit: 0.0 globally.",
                "errors": [{"reason": "quotaExceeded"}],
            },
            QuotaExceeded,
            r"quota GPUS_ALL_REGIONS is used up \(limit 0, all regions\)",
        ),
        (
            403,
            {
                "code": 403,
                "message": "Compute Engine API has not been used in project lab before",
                "errors": [{"reason": "accessNotConfigured"}],
                "status": "PERMISSION_DENIED",
                "details": [{"reason": "SERVICE_DISABLED"}],
            },
            CloudRefused,
            "API is off in project 'lab'; switch it on at https://console.cloud.google.com/apis",
        ),
        (
            403,
            {
                "code": 403,
                "message": "Required 'compute.instances.create' permission for 'projects/lab'",
                "errors": [{"reason": "forbidden"}],
            },
            CloudRefused,
            "not allowed in project 'lab': Required 'compute.instances.create' permission",
        ),
        (
            401,
            {"code": 401, "message": "Invalid Credentials", "errors": [{"reason": "authError"}]},
            CloudCredentialsExpired,
            "renew them: gcloud auth application-default login",
        ),
        (
            400,
            {"code": 400, "message": "bad zone", "errors": [{"reason": "invalid"}]},
            CloudRefused,
            "bad zone",
        ),
    ],
)
def test_a_refused_request_says_why(
    google: ComputeEngine, status: int, error: dict[str, Any], kind: type[Exception], words: str
) -> None:
    here = cloud(google)
    here.launch(L4, request())
    google.refusals = [(status, error)] * 3  # AuthorizedSession tries a 401 twice more itself
    with pytest.raises(kind, match=words) as caught:
        here.launch(L4, request())
    assert type(caught.value) is kind


def test_a_region_that_is_not_there_is_a_refusal_and_no_missing_page(google: ComputeEngine) -> None:
    here = cloud(google, network={"subnet": "nowhere"})
    with pytest.raises(CloudRefused, match="subnetworks/nowhere' was not found"):
        here.launch(L4, request())


def test_a_busy_api_is_asked_again_and_one_launch_stays_one_machine(google: ComputeEngine) -> None:
    here = cloud(google)
    here.launch(L4, request())
    google.busy = [503, 429, 500]
    here.launch(L4, request())
    rate = {
        "code": 403,
        "message": "Rate Limit Exceeded",
        "errors": [{"reason": "rateLimitExceeded"}],
    }
    google.refusals = [(403, rate), (403, rate)]
    here.launch(L4, request())
    posts = google.sent("POST", "/instances")
    assert len(posts) == 1 + 4 + 3
    assert len({each.query["requestId"] for each in posts}) == 3
    assert len(here.instances()) == 3


def test_an_api_that_stays_busy_ends_in_an_error(google: ComputeEngine) -> None:
    here = cloud(google)
    google.busy = [503] * 50
    with pytest.raises(CloudRefused, match="HTTP 503"):
        here.check()
    assert len(google.requests) == 6


def test_one_id_is_one_machine(google: ComputeEngine) -> None:
    first = cloud(google).launch(L4, request(instance_id="node-1"))
    again = cloud(google).launch(L4, request(instance_id="node-1"))
    assert again.id == first.id
    assert len(cloud(google).instances()) == 1
    google.resources[f"zones/{ZONE}/instances/node-1"]["labels"]["mlcloud-cluster"] = "other"
    with pytest.raises(CloudRefused, match="another machine of the project is 'node-1'"):
        cloud(google).launch(L4, request(instance_id="node-1"))


def test_a_list_of_many_pages_has_every_machine_of_this_cluster_only(google: ComputeEngine) -> None:
    here = cloud(google)
    for number in range(7):
        here.launch(L4, request(instance_id=f"n-{number}"))
    other(here).launch(L4, request(instance_id="foreign"))
    google.page = 2
    assert [each.id for each in cloud(google).instances()] == [f"n-{n}" for n in range(7)]
    assert [each.id for each in other(here).instances()] == ["foreign"]


def test_a_new_machine_that_is_not_listed_yet_counts_as_there(google: ComputeEngine) -> None:
    clock = Clock()
    here = cloud(google, clock)
    here.launch(L4, request(instance_id="late"))
    google.unlisted = {"late"}
    assert here.instances()[0].alive
    google.unlisted = set()
    clock.now += timedelta(minutes=5)
    assert here.instances()[0].private_ip


def test_a_machine_that_google_took_says_so_with_its_price(google: ComputeEngine) -> None:
    clock = Clock()
    here = cloud(google, clock)
    here.launch(L4, request(instance_id="taken"))
    here.launch(L4, request(instance_id="gone"))
    here.instances()
    google.system("compute.instances.preempted", f"zones/{ZONE}/instances/taken")
    google.resources.pop(f"zones/{ZONE}/instances/gone")
    clock.now += timedelta(hours=2)
    by_id = {each.id: each for each in here.instances()}
    assert by_id["taken"].reason == "preempted"
    assert by_id["taken"].ended_at == datetime(2026, 1, 1, 8, tzinfo=timezone.utc)
    assert by_id["taken"].offer.usd_per_hour == Decimal("0.28")
    assert by_id["gone"].reason == "gone from the cloud"
    assert not by_id["gone"].alive


def test_a_machine_of_a_type_nobody_sells_any_more_keeps_its_price(google: ComputeEngine) -> None:
    cloud(google).launch(L4, request(instance_id="old"))
    here = cloud(google)
    here._offers = []
    [found] = here.instances()
    assert found.offer.usd_per_hour == Decimal("0.28")
    assert (found.offer.zone, found.offer.region, found.offer.market) == (ZONE, REGION, "spot")


def test_terminating_is_once_and_for_all_from_any_process(google: ComputeEngine) -> None:
    here = cloud(google)
    here.launch(L4, request(instance_id="n-1"))
    cloud(google).terminate("n-1", "idle")
    assert f"zones/{ZONE}/instances/n-1" not in google.resources
    here.terminate("n-1", "idle")
    here.terminate("n-1", "idle")
    here.terminate("never-was", "idle")
    [ended] = here.instances()
    assert (ended.alive, ended.reason) == (False, "idle")


def test_what_was_terminated_stays_so_while_google_still_lists_it(google: ComputeEngine) -> None:
    here = cloud(google)
    here.launch(L4, request(instance_id="n-1"))
    kept = dict(google.resources[f"zones/{ZONE}/instances/n-1"])
    here.terminate("n-1", "idle")
    google.resources[f"zones/{ZONE}/instances/n-1"] = {**kept, "status": "STOPPING"}
    assert not here.instances()[0].alive


def test_a_stopped_machine_has_ended(google: ComputeEngine) -> None:
    cloud(google).launch(L4, request(instance_id="n-1"))
    google.resources[f"zones/{ZONE}/instances/n-1"].update(
        status="TERMINATED", lastStopTimestamp="2026-01-01T13:00:00.000Z"
    )
    [found] = cloud(google).instances()
    assert found.ended_at == datetime(2026, 1, 1, 13, tzinfo=timezone.utc)


def test_everything_a_crashed_laptop_left_is_found_and_removed(google: ComputeEngine) -> None:
    here = cloud(google, network={"ssh_from": "203.0.113.7"})
    here.launch(L4, request("head", instance_id="expired"))
    here.launch(L4, request(instance_id="stopped"))
    google.resources[f"zones/{ZONE}/instances/stopped"]["status"] = "TERMINATED"
    for name, users in (("loose", []), ("used", ["x"])):
        google.resources[f"zones/{ZONE}/disks/{name}"] = {
            "name": name,
            "labels": {"mlcloud-cluster": "exp-7"},
            "sizeGb": "730",
            "users": users,
            "zone": ZONE,
            "creationTimestamp": "2026-01-01T00:00:00.000-07:00",
            "selfLink": f"https://www.googleapis.com/compute/v1/projects/lab/zones/{ZONE}/disks/{name}",
        }
    elsewhere = other(here)
    day = NOW + timedelta(days=1)
    assert {each.id.rsplit("/", 1)[-1] for each in elsewhere.leftovers(day)} == {"stopped", "loose"}
    late = NOW + timedelta(days=8)
    found = elsewhere.leftovers(late)
    assert [(each.kind, each.why) for each in found] == [
        ("instance", "past its lifetime"),
        ("instance", "stopped: its disk bills"),
        ("disk", "attached to no machine"),
    ]
    assert found[0].usd_per_hour == Decimal("0.28")
    assert found[2].usd_per_hour == Decimal("0.1")
    assert {each.region for each in found} == {REGION}
    for _ in range(2):
        for each in elsewhere.leftovers(late):
            elsewhere.remove(each)
    elsewhere.remove(found[0])  # gone already
    assert [path for path in google.resources if "used" not in path] == []


def test_down_finds_all_of_its_own_cluster_and_nothing_of_another(google: ComputeEngine) -> None:
    here = cloud(google, network={"ssh_from": "203.0.113.7"})
    here.launch(L4, request(instance_id="n-1"))
    other(here).launch(L4, request(instance_id="foreign"))
    found = here.leftovers(NOW)
    kinds = ["instance", "router", "firewall", "firewall", "subnet", "network"]
    assert [each.kind for each in found] == kinds
    assert {each.tags["mlcloud-cluster"] for each in found} == {"exp-7"}
    for each in found:
        here.remove(each)
    assert here.leftovers(NOW) == []
    assert [each.id for each in other(here).instances()] == ["foreign"]


def test_credentials_that_expire_meanwhile_say_so(google: ComputeEngine) -> None:
    from google.oauth2.credentials import Credentials

    expired = Credentials(  # type: ignore[no-untyped-call]
        token=None,
        refresh_token="r",
        token_uri=f"{google.url}/token",
        client_id="c",
        client_secret="s",
    )
    here = GcpCloud(
        settings(REGION, network={"project": "lab"}, endpoints={"compute": google.base}),
        OFFERS,
        credentials=expired,
        pause_s=0.01,
    )
    with pytest.raises(CloudCredentialsExpired, match="gcloud auth application-default login"):
        here.check()


def test_no_credentials_and_no_sdk_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    def nobody(**_: object) -> None:
        raise DefaultCredentialsError("none")  # type: ignore[no-untyped-call]

    monkeypatch.setattr(google.auth, "default", nobody)
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    with pytest.raises(CredentialsMissing, match="run `gcloud auth application-default login`"):
        GcpCloud(settings(REGION), OFFERS).check()
    monkeypatch.setitem(sys.modules, "google.auth", None)
    with pytest.raises(CredentialsMissing, match=r"pip install 'mlcloud\[gcp\]'"):
        GcpCloud(settings(REGION), OFFERS).check()


def test_an_api_that_cannot_be_reached_is_no_hang(google: ComputeEngine) -> None:
    here = cloud(google)
    google.close()
    before = time.monotonic()
    with pytest.raises(CloudRefused, match="cannot be reached"):
        here.check()
    assert time.monotonic() - before < 10


def test_launches_at_once_make_one_network(google: ComputeEngine) -> None:
    from concurrent.futures import ThreadPoolExecutor

    here = cloud(google)
    google.slow = 3
    with ThreadPoolExecutor(6) as threads:
        made = list(threads.map(lambda n: here.launch((L4, L4_B)[n % 2], request()), range(6)))
    assert len({each.id for each in made}) == 6
    assert len(google.sent("POST", "/networks")) == 1
    assert len([path for path in google.resources if "/subnetworks/" in path]) == 2
    assert len(here.instances()) == 6
