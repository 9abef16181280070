"""Launch, list, terminate and tidy up on an Azure played over real HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from mlcloud.cluster.clouds.azure import AzureCloud
from mlcloud.errors import (
    CloudCredentialsExpired,
    CloudRefused,
    CredentialsMissing,
    NoCapacity,
    QuotaExceeded,
)
from tests.cluster.clouds.resource_manager import ResourceManager
from tests.cluster.clouds.selling import NOW, offer, request, settings

pytest.importorskip("azure.core")

REGION = "westeurope"
T4 = offer("azure", "Standard_NC4as_T4_v3", f"{REGION}-1", REGION, gpu=("T4", 1))
NORTH = offer("azure", "Standard_NC4as_T4_v3", "northeurope-1", "northeurope", gpu=("T4", 1))
OFFERS = [T4, NORTH]
CORES = (
    "Operation could not be completed as it results in exceeding approved standardNCASv3_T4Family "
    "Cores quota. Additional details - Deployment Model: Resource Manager, Location: westeurope, "
    "Current Limit: 0, Current Usage: 0, Additional Required: 4, (Minimum) New Limit Required: 4."
)


class Token:
    """A credential whose token Azure takes until it does not."""

    def __init__(self) -> None:
        self.token = "good"

    def get_token(self, *scopes: str, **_: object) -> Any:
        from azure.core.credentials import AccessToken

        assert scopes == ("https://management.azure.com/.default",)
        return AccessToken(self.token, int(time.time()) + (3600 if self.token == "good" else -1))


@pytest.fixture
def azure() -> Iterator[ResourceManager]:
    plane = ResourceManager()
    yield plane
    plane.close()


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def cloud(azure: ResourceManager, clock: Clock | None = None, **more: Any) -> AzureCloud:
    names = {"subscription": azure.subscription, **more.pop("network", {})}
    credential = more.pop("credential", None) or Token()
    given = settings(
        REGION, "northeurope", network=names, endpoints={"management": azure.url}, **more
    )
    return AzureCloud(
        given, OFFERS, credential=credential, now=clock or Clock(), pause_s=0.01, accepted_s=2
    )


def other(here: AzureCloud) -> AzureCloud:
    """Another cluster of the same subscription."""
    return AzureCloud(
        replace(here.settings, cluster="other"),
        OFFERS,
        credential=Token(),
        now=lambda: NOW,
        pause_s=0.01,
    )


def kinds(azure: ResourceManager) -> list[str]:
    return sorted(path.split("/")[-2] for path in azure.resources)


def test_exactly_what_the_plan_shows_is_sent_once_its_network_is_there(
    azure: ResourceManager,
) -> None:
    azure.slow = 2
    here = cloud(azure, network={"ssh_from": "203.0.113.7"})
    asked = request("head", instance_id="head-1")
    here.launch(T4, asked)
    assert [each.path.split("/")[-2] for each in azure.sent("PUT")] == [
        "resourceGroups",
        "networkSecurityGroups",
        "publicIPAddresses",
        "natGateways",
        "virtualNetworks",
        "virtualMachines",
    ]
    assert azure.sent("PUT", "head-1")[0].body == here.configuration(T4, asked)
    [found] = cloud(azure).instances()
    assert (found.id, found.node_type, found.offer, found.launched_at, found.alive) == (
        "head-1", "head", T4, NOW, True,
    )  # fmt: skip
    assert (found.private_ip, found.public_ip) == ("10.100.0.4", "198.51.100.4")
    # a laptop that moved: the rule follows it, and no gateway or network is made again
    cloud(azure, network={"ssh_from": "198.51.100.9"}).launch(T4, request())
    # the head itself, which is told of no address, does not shut it out
    cloud(azure).launch(T4, request())
    [rules] = [r for p, r in azure.resources.items() if "/networksecuritygroups/" in p]
    first = rules["properties"]["securityRules"][0]["properties"]
    assert first["sourceAddressPrefixes"] == ["198.51.100.9/32"]
    assert kinds(azure).count("natgateways") == 1


def test_every_resource_of_a_cluster_is_tagged(azure: ResourceManager) -> None:
    cloud(azure).launch(T4, request("head"))
    for path, each in azure.resources.items():
        if "/subnets/" not in path:
            assert each["tags"]["mlcloud-cluster"] == "exp-7", path
            assert each["tags"]["mlcloud-owner"] == "ada-example-com", path
            assert each["tags"]["mlcloud-expires"] == "1767873600", path


def test_each_region_has_a_network_that_overlaps_no_other(azure: ResourceManager) -> None:
    here = cloud(azure)
    here.launch(T4, request())
    here.launch(NORTH, request())
    prefixes = [
        each["properties"]["addressSpace"]["addressPrefixes"]
        for path, each in azure.resources.items()
        if path.split("/")[-2] == "virtualnetworks"
    ]
    assert sorted(prefixes) == [["10.100.0.0/16"], ["10.101.0.0/16"]]


def test_a_resource_group_outside_the_regions_is_not_used(azure: ResourceManager) -> None:
    azure.resources[f"{azure.root}/resourcegroups/mlcloud-exp-7"] = {
        "id": "x", "name": "mlcloud-exp-7", "location": "eastus",
    }  # fmt: skip
    with pytest.raises(CloudRefused, match="lies in 'eastus', outside the regions"):
        cloud(azure).launch(T4, request())


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        ({"code": code, "message": "no room"}, NoCapacity, f"none free there now .{code}: no room")
        for code in (
            "AllocationFailed",
            "ZonalAllocationFailed",
            "OverconstrainedZonalAllocationRequest",
            "SkuNotAvailable",
        )
    ]
    + [
        (
            {"code": "OperationNotAllowed", "message": CORES},
            QuotaExceeded,
            r"quota standardNCASv3_T4Family Cores is used up \(limit 0, westeurope, 4 needed\); "
            "raise it at https://portal.azure.com/",
        ),
        (
            {
                "code": "Failed",
                "message": "x",
                "details": [{"code": "ImageNotFound", "message": "y"}],
            },
            CloudRefused,
            r"y \(Failed\)",
        ),
    ],
)
def test_an_operation_that_fails_says_why_and_leaves_nothing(
    azure: ResourceManager, error: dict[str, Any], kind: type[Exception], words: str
) -> None:
    here = cloud(azure)
    here.launch(T4, request(instance_id="first"))
    before = kinds(azure)
    azure.slow, azure.error = 2, error
    with pytest.raises(kind, match=words) as caught:
        here.launch(T4, request())
    assert type(caught.value) is kind
    assert str(T4) in str(caught.value)
    assert kinds(azure) == before  # Azure kept the failed machine; we did not
    azure.error = None
    assert here.launch(T4, request()).alive


@pytest.mark.parametrize(
    ("status", "code", "message", "kind", "words"),
    [
        (409, "SkuNotAvailable", "not available in zone 1", NoCapacity, "none free there now"),
        (409, "OperationNotAllowed", CORES, QuotaExceeded, "limit 0, westeurope"),
        (
            409,
            "OperationNotAllowed",
            "Operation results in exceeding quota limits of Core. Maximum allowed: 4, Current in "
            "use: 4, Additional requested: 2.",
            QuotaExceeded,
            r"a quota of cores is used up \(limit 4\)",
        ),
        (409, "OperationNotAllowed", "the disk is attached", CloudRefused, "the disk is attached"),
        (403, "AuthorizationFailed", "no virtualMachines/write", CloudRefused, "not allowed: no"),
        (
            409,
            "MissingSubscriptionRegistration",
            "not registered",
            CloudRefused,
            "az provider register --namespace Microsoft.Compute",
        ),
        (401, "ExpiredAuthenticationToken", "expired", CloudCredentialsExpired, "az login"),
        (400, "InvalidParameter", "vmSize is bad", CloudRefused, r"vmSize is bad \(InvalidParam"),
    ],
)
def test_a_refused_request_says_why(
    azure: ResourceManager, status: int, code: str, message: str, kind: type[Exception], words: str
) -> None:
    here = cloud(azure)
    here.launch(T4, request())
    azure.refusals = [(status, {"code": code, "message": message})]
    with pytest.raises(kind, match=words) as caught:
        here.launch(T4, request())
    assert type(caught.value) is kind


def test_a_busy_api_is_asked_again_and_one_launch_stays_one_machine(azure: ResourceManager) -> None:
    here = cloud(azure)
    here.launch(T4, request())
    azure.busy = [503, 429, 500]
    here.launch(T4, request(instance_id="n-1"))
    assert len(azure.sent("PUT", "n-1")) == 4
    assert kinds(azure).count("virtualmachines") == 2


def test_an_operation_that_takes_long_counts_as_accepted(azure: ResourceManager) -> None:
    here = cloud(azure)
    here.launch(T4, request())
    here._accepted_s = 0.1
    azure.slow = 1000
    before = time.monotonic()
    assert here.launch(T4, request()).alive
    assert time.monotonic() - before < 5


def test_one_id_is_one_machine_and_a_second_launch_does_it_no_harm(azure: ResourceManager) -> None:
    cloud(azure).launch(T4, request(instance_id="n-1"))
    again = cloud(azure).launch(T4, request("other-type", instance_id="n-1"))
    assert (again.id, again.node_type, again.private_ip) == ("n-1", "l4-1x4cpu", "10.100.0.4")
    [found] = cloud(azure).instances()
    assert found.alive
    machine = next(r for p, r in azure.resources.items() if p.endswith("machines/n-1"))
    machine["tags"]["mlcloud-cluster"] = "other"
    with pytest.raises(CloudRefused, match="another machine of the resource group is 'n-1'"):
        cloud(azure).launch(T4, request(instance_id="n-1"))
    cloud(azure).terminate("n-1", "idle")
    assert kinds(azure).count("virtualmachines") == 1


def test_a_list_of_many_pages_has_every_machine_with_its_address(azure: ResourceManager) -> None:
    here = cloud(azure)
    for number in range(5):
        here.launch(T4, request(instance_id=f"n-{number}"))
    azure.page = 2
    found = cloud(azure).instances()
    assert [each.id for each in found] == [f"n-{n}" for n in range(5)]
    assert [each.private_ip for each in found] == [f"10.100.0.{n + 4}" for n in range(5)]


def test_before_anything_is_made_there_is_nothing(azure: ResourceManager) -> None:
    here = cloud(azure)
    here.check()
    assert here.instances() == []
    here.terminate("never-was", "idle")


def test_a_new_machine_that_is_not_listed_yet_counts_as_there(azure: ResourceManager) -> None:
    clock = Clock()
    here = cloud(azure, clock)
    here.launch(T4, request(instance_id="late"))
    azure.unlisted = {"late"}
    assert here.instances()[0].alive
    clock.now += timedelta(minutes=5)
    [gone] = here.instances()
    assert (gone.alive, gone.reason) == (False, "gone from the cloud: evicted, or deleted")
    assert gone.offer.usd_per_hour == Decimal("0.28")


def test_shut_down_from_inside_bills_on_and_deallocated_does_not(azure: ResourceManager) -> None:
    here = cloud(azure)
    here.launch(T4, request(instance_id="a-stopped"))
    here.launch(T4, request(instance_id="b-deallocated"))
    azure.switch_off("a-stopped", "stopped")
    azure.switch_off("b-deallocated", "deallocated")
    assert [each.alive for each in cloud(azure).instances()] == [True, False]
    whys = {each.id.rsplit("/", 1)[-1]: each.why for each in other(here).leftovers(NOW)}
    assert whys == {
        "a-stopped": "switched off from inside, which bills in full",
        "b-deallocated": "deallocated: its disk bills",
    }


def test_terminating_takes_disk_card_and_address_along(azure: ResourceManager) -> None:
    here = cloud(azure)
    here.launch(T4, request("head", instance_id="n-1"))
    cloud(azure).terminate("n-1", "idle")
    for kind in ("virtualmachines", "disks", "networkinterfaces"):
        assert kind not in kinds(azure)
    assert kinds(azure).count("publicipaddresses") == 1  # the gateway's
    here.terminate("n-1", "idle")
    here.terminate("n-1", "idle")
    [ended] = here.instances()
    assert (ended.alive, ended.reason) == (False, "idle")


def test_everything_a_crashed_laptop_left_is_found_and_removed(azure: ResourceManager) -> None:
    here = cloud(azure)
    here.launch(T4, request("head", instance_id="n-1"))
    elsewhere = other(here)
    assert elsewhere.leftovers(NOW + timedelta(days=6)) == []
    late = NOW + timedelta(days=8)
    found = elsewhere.leftovers(late)
    assert [(each.kind, each.why, each.usd_per_hour) for each in found] == [
        ("instance", "past its lifetime", Decimal("0.28")),
        ("resource-group", "its cluster is past its lifetime", Decimal("0.05")),
    ]
    for _ in range(2):
        for each in found:
            elsewhere.remove(each)
    assert azure.resources == {}
    assert elsewhere.leftovers(late) == []


def test_in_a_group_of_yours_loose_parts_are_found_and_the_group_is_left(
    azure: ResourceManager,
) -> None:
    azure.resources[f"{azure.root}/resourcegroups/lab"] = {
        "id": f"{azure.root}/resourceGroups/lab", "name": "lab", "location": REGION,
    }  # fmt: skip
    here = cloud(azure, network={"resource_group": "lab"})
    here.launch(T4, request("head", instance_id="n-1"))
    machine = next(path for path in azure.resources if path.endswith("machines/n-1"))
    azure.resources.pop(machine)  # without its parts
    for each in azure.resources.values():
        if each.get("of") == machine:
            each.pop("managedBy", None)
            each["properties"].pop("virtualMachine", None)
            each["properties"].pop("ipConfiguration", None)
    found = here.leftovers(NOW)
    assert {each.kind for each in found} == {"network-interface", "public-ip", "disk"}
    for each in found:
        here.remove(each)
    assert "disks" not in kinds(azure)
    assert f"{azure.root}/resourcegroups/lab" in azure.resources


def test_down_finds_its_own_cluster_only(azure: ResourceManager) -> None:
    here = cloud(azure)
    here.launch(T4, request(instance_id="n-1"))
    other(here).launch(T4, request(instance_id="foreign"))
    found = here.leftovers(NOW)
    assert [each.kind for each in found] == ["instance", "resource-group"]
    for each in found:
        here.remove(each)
    assert [each.id for each in other(here).instances()] == ["foreign"]


def test_credentials_that_expire_meanwhile_say_so(azure: ResourceManager) -> None:
    from azure.core.exceptions import ClientAuthenticationError

    class Ending(Token):
        def get_token(self, *scopes: str, **more: object) -> Any:
            if self.token == "ended":
                raise ClientAuthenticationError("AADSTS700082: The refresh token has expired")
            return super().get_token(*scopes, **more)

    credential = Ending()
    here = cloud(azure, credential=credential)
    here.check()
    credential.token = "ended"
    azure.busy = []
    fresh = cloud(azure, credential=credential)
    with pytest.raises(CredentialsMissing, match="run `az login`"):
        fresh.check()
    here.arm._client = None  # the pipeline keeps a token for its hour
    with pytest.raises(CloudCredentialsExpired, match="refresh token has expired"):
        here.check()


def test_no_sdk_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "azure.core", None)
    with pytest.raises(CredentialsMissing, match=r"pip install 'mlcloud\[azure\]'"):
        AzureCloud(settings(REGION, network={"subscription": "s"}), OFFERS).check()


def test_an_api_that_cannot_be_reached_is_no_hang(azure: ResourceManager) -> None:
    here = cloud(azure)
    azure.close()
    before = time.monotonic()
    with pytest.raises(CloudRefused, match="cannot be reached"):
        here.check()
    assert time.monotonic() - before < 10


def test_a_refused_second_launch_does_not_delete_the_first(azure: ResourceManager) -> None:
    cloud(azure).launch(T4, request(instance_id="n-1"))
    azure.refusals = [(409, {"code": "AllocationFailed", "message": "full"})]
    here = cloud(azure)
    here._network._ready.add(REGION)
    with pytest.raises(NoCapacity):
        here.launch(T4, request(instance_id="n-1"))
    azure.refusals = []
    assert [each.id for each in cloud(azure).instances()] == ["n-1"]
    assert azure.sent("DELETE") == []


def test_an_expired_group_with_a_machine_that_is_not_is_left(azure: ResourceManager) -> None:
    here = cloud(azure)
    here.launch(T4, request(instance_id="n-1"))
    group = azure.resources[f"{azure.root}/resourcegroups/mlcloud-exp-7"]
    group["tags"]["mlcloud-expires"] = "1"
    assert other(here).leftovers(NOW) == []
