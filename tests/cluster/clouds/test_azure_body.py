"""What would be sent to Azure: of its SDKs' models, with nothing open that need not be."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from mlcloud.cluster.clouds.azure import AzureCloud, answers, network
from mlcloud.cluster.clouds.azure.body import zone
from mlcloud.cluster.offers import Offer
from mlcloud.errors import CloudRefused, CredentialsMissing, NoSuchResources, UsageError
from tests.cluster.clouds import discovery
from tests.cluster.clouds.selling import KEY, NOW, offer, request, settings

REGION = "westeurope"
T4 = offer("azure", "Standard_NC4as_T4_v3", f"{REGION}-1", REGION, gpu=("T4", 1))
CPU = offer("azure", "Standard_D4s_v5", REGION, REGION, "on-demand", "0.23")
ARM = offer("azure", "Standard_D4ps_v5", f"{REGION}-2", REGION, "spot", "0.04")
OFFERS = [T4, CPU, ARM]
GROUP = "/subscriptions/s-1/resourceGroups/mlcloud-exp-7"


def cloud(network: dict[str, str] | None = None, **more: Any) -> AzureCloud:
    given = settings(REGION, network={"subscription": "s-1", **(network or {})}, **more)
    return AzureCloud(given, OFFERS, now=lambda: NOW)


def sent(given: Offer, node_type: str = "t4", **more: Any) -> dict[str, Any]:
    return cloud(**more).configuration(given, request(node_type))


def card(body: dict[str, Any]) -> dict[str, Any]:
    return dict(body["properties"]["networkProfile"]["networkInterfaceConfigurations"][0])


@pytest.mark.parametrize("given", OFFERS, ids=lambda o: o.instance_type)
@pytest.mark.parametrize("node_type", ["head", "worker"])
def test_every_machine_is_one_of_the_sdks_models(given: Offer, node_type: str) -> None:
    identity = f"{GROUP}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/node"
    for names in ({}, {"identity": identity, "public_ip": "all"}):
        body = sent(given, node_type, network=names)
        assert discovery.faults(body, "compute.VirtualMachine", discovery.AZURE) == []


def test_the_check_itself_notices_a_wrong_field_type_and_word() -> None:
    body = sent(T4)
    body["properties"]["priority"] = "spot!"
    body["properties"]["billingProfile"]["maxPrice"] = "-1"
    body["properties"]["storageProfile"]["osDisk"]["diskSizeGb"] = 1
    body["properties"]["provisioningState"] = "Succeeded"
    found = "\n".join(discovery.faults(body, "compute.VirtualMachine", discovery.AZURE))
    for words in ("priority: 'spot!' is none", "maxPrice: no number", "diskSizeGb: no such field",
                  "provisioningState: is the cloud's"):  # fmt: skip
        assert words in found


def test_the_sdk_itself_reads_it_as_it_was_meant() -> None:
    compute = pytest.importorskip("azure.mgmt.compute")
    body = sent(T4, "head")
    machine = compute.models.VirtualMachine(body)
    assert machine.properties.priority == "Spot"
    assert machine.properties.os_profile.linux_configuration.disable_password_authentication
    assert machine.as_dict() == body


def test_the_schema_here_is_what_the_sdks_ship() -> None:
    pytest.importorskip("azure.mgmt.compute")
    pytest.importorskip("azure.mgmt.network")
    from tests.cluster.clouds import azure_models

    for name, schema in azure_models.build().items():
        if name in discovery.AZURE:
            mine = discovery.AZURE[name]["properties"].keys()
            assert mine <= schema["properties"].keys(), name


def test_a_spot_machine_is_deleted_when_it_is_taken_and_never_outbid() -> None:
    properties = sent(T4)["properties"]
    assert properties["priority"] == "Spot"
    assert properties["evictionPolicy"] == "Delete"
    assert properties["billingProfile"] == {"maxPrice": -1}
    plain = sent(CPU)["properties"]
    assert plain["priority"] == "Regular"
    assert "evictionPolicy" not in plain
    assert "billingProfile" not in plain


def test_all_that_is_made_with_a_machine_goes_with_it() -> None:
    body = sent(T4, "head")
    assert body["properties"]["storageProfile"]["osDisk"]["deleteOption"] == "Delete"
    assert card(body)["properties"]["deleteOption"] == "Delete"
    address = card(body)["properties"]["ipConfigurations"][0]["properties"]
    assert address["publicIPAddressConfiguration"]["properties"]["deleteOption"] == "Delete"
    for each in (body, card(body), address["publicIPAddressConfiguration"]):
        assert each["tags"]["mlcloud-cluster"] == "exp-7"
        assert each["tags"]["mlcloud-expires"] == "1767873600"


def test_zones_are_numbers_or_none() -> None:
    assert sent(T4)["zones"] == ["1"]
    assert "zones" not in sent(CPU)
    named = [("eastus2", "eastus2", None), ("eastus2-3", "eastus2", "3"), ("1", "eastus2", "1")]
    for words, region, number in named:
        assert zone(offer("azure", "x", words, region)) == number


def test_only_a_key_opens_it_and_the_script_is_its_first_boot() -> None:
    profile = sent(T4)["properties"]["osProfile"]
    assert base64.b64decode(profile["customData"]) == b"#!/bin/sh\necho up\n"
    assert profile["linuxConfiguration"] == {
        "disablePasswordAuthentication": True,
        "ssh": {"publicKeys": [{"path": "/home/ubuntu/.ssh/authorized_keys", "keyData": KEY}]},
    }
    assert profile["allowExtensionOperations"] is False
    assert "adminPassword" not in profile
    with pytest.raises(UsageError, match="a machine needs an SSH key"):
        sent(T4, ssh_public_key=None)


def test_a_script_of_64_kb_is_taken_and_one_byte_more_is_not() -> None:
    cloud().configuration(T4, request(bootstrap="x" * 65535))
    with pytest.raises(UsageError, match="65536 bytes; Azure takes 65535"):
        cloud().configuration(T4, request(bootstrap="x" * 65536))


def test_only_the_head_has_an_address_of_its_own() -> None:
    def has(node_type: str, **network: str) -> bool:
        address = card(sent(T4, node_type, network=network))["properties"]["ipConfigurations"][0]
        return "publicIPAddressConfiguration" in address["properties"]

    assert has("head")
    assert not has("worker")
    assert has("worker", public_ip="all")
    assert not has("head", public_ip="none")


def test_the_network_is_the_clusters_own_unless_one_is_named() -> None:
    def where(**network: str) -> tuple[str, str | None]:
        properties = card(sent(T4, network=network))["properties"]
        rules = properties.get("networkSecurityGroup", {}).get("id")
        return properties["ipConfigurations"][0]["properties"]["subnet"]["id"], rules

    mine = f"{GROUP}/providers/Microsoft.Network"
    assert where() == (
        f"{mine}/virtualNetworks/mlcloud-westeurope/subnets/nodes",
        f"{mine}/networkSecurityGroups/mlcloud-westeurope",
    )
    assert where(subnet="lab/gpu") == (f"{mine}/virtualNetworks/lab/subnets/gpu", None)
    whole = "/subscriptions/s-2/resourceGroups/hub/providers/x/subnets/y"
    assert where(subnet=whole, security_group="lab")[0] == whole
    assert where(resource_group="shared")[0].startswith("/subscriptions/s-1/resourceGroups/shared/")


def test_images_have_the_driver_or_are_measured_at_boot_or_are_the_users_own() -> None:
    def image(given: Offer, **more: Any) -> dict[str, str]:
        return dict(sent(given, **more)["properties"]["storageProfile"]["imageReference"])

    assert image(T4)["offer"] == "ubuntu-hpc"
    assert image(CPU)["sku"] == "server"
    assert image(ARM)["sku"] == "server-arm64"
    assert image(T4, image="/subscriptions/s/images/mine") == {"id": "/subscriptions/s/images/mine"}
    assert sent(CPU)["properties"]["securityProfile"]["securityType"] == "TrustedLaunch"
    assert "securityProfile" not in sent(T4)["properties"]
    with pytest.raises(UsageError, match="neither a resource id nor publisher:offer:sku:version"):
        image(T4, image="ubuntu")


def test_a_deletion_is_announced_and_a_node_may_be_somebody() -> None:
    events = sent(T4)["properties"]["scheduledEventsProfile"]
    assert events == {"terminateNotificationProfile": {"enable": True, "notBeforeTimeout": "PT5M"}}
    assert "identity" not in sent(T4)
    identity = f"{GROUP}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/node"
    assert sent(T4, network={"identity": identity})["identity"] == {
        "type": "UserAssigned",
        "userAssignedIdentities": {identity: {}},
    }
    end = answers.roles("s-1", "mlcloud-exp-7")["end_itself"]
    assert end["Actions"][-1] == "Microsoft.Compute/virtualMachines/delete"
    assert end["AssignableScopes"] == [GROUP]


def test_tags_are_in_characters_that_azure_takes() -> None:
    found = sent(T4, tags={"cost/center%": "Ü" * 300})["tags"]
    assert found["cost-center-"] == "Ü" * 256
    assert found["mlcloud-price"] == "0-28"


def test_what_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(NoSuchResources, match="did you mean 'Standard_NC4as_T4_v3'"):
        sent(offer("azure", "Standard_NC4as_T4_v4", f"{REGION}-1", REGION, gpu=("T4", 1)))
    with pytest.raises(CloudRefused, match="'eastus' is outside the regions of cluster"):
        sent(offer("azure", "Standard_D4s_v5", "eastus", "eastus"))
    with pytest.raises(UsageError, match="did you mean 'subscription'"):
        cloud(network={"subscripton": "x"})
    with pytest.raises(UsageError, match="no name for a machine on Azure"):
        cloud().configuration(T4, request(instance_id="node_1"))


def test_the_subscription_is_the_clis_where_none_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("AZURE_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("AZURE_SUBSCRIPTION_ID", raising=False)
    here = AzureCloud(settings(REGION), OFFERS)
    with pytest.raises(CredentialsMissing, match="AZURE_SUBSCRIPTION_ID, or run `az login`"):
        here.configuration(T4, request())
    profile = (
        '\ufeff{"subscriptions": [{"id": "a", "isDefault": false}, {"id": "b", "isDefault": true}]}'
    )
    (tmp_path / "azureProfile.json").write_text(profile, "utf-8")
    assert "/subscriptions/b/" in str(here.configuration(T4, request()))


def test_what_the_network_is_made_of_is_of_the_sdks_models() -> None:
    marked = {"mlcloud-cluster": "exp-7"}
    made = {
        "NetworkSecurityGroup": network.security_group(REGION, marked, ["203.0.113.7/32"]),
        "PublicIPAddress": network.public_ip(REGION, marked),
        "NatGateway": network.nat_gateway(REGION, marked, "/a"),
        "VirtualNetwork": network.virtual_network(REGION, marked, "10.100.0.0/16", "/r", "/n"),
    }
    for name, body in made.items():
        assert discovery.faults(body, f"network.{name}", discovery.AZURE) == []
        assert body["tags"] == marked
    rules = made["NetworkSecurityGroup"]["properties"]["securityRules"]
    assert [(r["name"], r["properties"]["access"]) for r in rules] == [
        ("ssh", "Allow"),
        ("nobody-else", "Deny"),
    ]
    closed = network.security_group(REGION, marked, [])["properties"]["securityRules"]
    assert [rule["properties"]["access"] for rule in closed] == ["Deny"]
