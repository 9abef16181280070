"""What would be sent to Google: of its published schema, with nothing open that need not be."""

from __future__ import annotations

from typing import Any

import pytest

from mlcloud.cluster.clouds.gcp import GcpCloud, body, network
from mlcloud.cluster.offers import Offer
from mlcloud.errors import CloudRefused, NoSuchResources, UsageError
from tests.cluster.clouds import discovery
from tests.cluster.clouds.selling import KEY, NOW, offer, request, settings

REGION = "europe-west4"
ZONE = f"{REGION}-a"
L4 = offer("gcp", "g2-standard-4", ZONE, REGION, gpu=("L4", 1))
T4 = offer("gcp", "n1-standard-8", ZONE, REGION, "on-demand", "0.73", gpu=("T4", 2))
CPU = offer("gcp", "e2-standard-4", ZONE, REGION, "on-demand", "0.147")
N4 = offer("gcp", "n4-standard-4", ZONE, REGION, "spot", "0.06")
A100 = offer("gcp", "a2-highgpu-1g", ZONE, REGION, "spot", "1.6", gpu=("A100", 1))
GRACE = offer("gcp", "a4x-highgpu-4g", ZONE, REGION, "spot", "30", gpu=("GB200", 4))
OFFERS = [L4, T4, CPU, N4, A100, GRACE]


def cloud(**more: Any) -> GcpCloud:
    return GcpCloud(settings(REGION, **more), OFFERS, now=lambda: NOW)


def sent(given: Offer, node_type: str = "l4", **more: Any) -> dict[str, Any]:
    return cloud(**more).configuration(given, request(node_type))


@pytest.mark.parametrize("given", OFFERS, ids=lambda o: o.instance_type)
@pytest.mark.parametrize("node_type", ["head", "worker"])
def test_every_machine_is_one_of_the_published_schema(given: Offer, node_type: str) -> None:
    network = {"service_account": "node@lab.iam.gserviceaccount.com", "public_ip": "all"}
    assert discovery.faults(sent(given, node_type), "Instance") == []
    assert discovery.faults(sent(given, node_type, network=network), "Instance") == []


def test_the_check_itself_notices_a_wrong_field_type_and_word() -> None:
    body = sent(L4)
    body["zones"] = ["a"]
    body["scheduling"]["provisioningModel"] = "spot"
    body["scheduling"]["maxRunDuration"]["seconds"] = 60
    body["disks"][0]["initializeParams"]["sizeGb"] = "1"
    body["networkInterfaces"][0]["kind"] = "x"
    found = "\n".join(discovery.faults(body, "Instance"))
    for path in (
        "Instance.zones: no such field",
        "provisioningModel: 'spot' is none of",
        "maxRunDuration.seconds: no string",
        "initializeParams.sizeGb: no such field",
        "networkInterfaces[0].kind: is the cloud's",
    ):
        assert path in found


def test_a_spot_machine_is_deleted_when_it_is_taken_and_told_two_minutes_before() -> None:
    assert sent(L4)["scheduling"] == {
        "provisioningModel": "SPOT",
        "instanceTerminationAction": "DELETE",
        "onHostMaintenance": "TERMINATE",
        "automaticRestart": False,
        "maxRunDuration": {"seconds": "604800"},
        "preemptionNoticeDuration": {"seconds": "120"},
    }


def test_an_on_demand_machine_moves_with_its_host_unless_it_has_a_gpu_and_has_a_lifetime() -> None:
    plain = sent(CPU, lifetime_s=3600.0)["scheduling"]
    assert plain["provisioningModel"] == "STANDARD"
    assert plain["onHostMaintenance"] == "MIGRATE"
    assert plain["maxRunDuration"] == {"seconds": "3600"}
    assert plain["instanceTerminationAction"] == "DELETE"
    assert "preemptionNoticeDuration" not in plain
    assert sent(T4)["scheduling"]["onHostMaintenance"] == "TERMINATE"


def test_only_n1_is_given_gpus_beside() -> None:
    assert sent(T4)["guestAccelerators"] == [
        {"acceleratorType": f"zones/{ZONE}/acceleratorTypes/nvidia-tesla-t4", "acceleratorCount": 2}
    ]
    assert "guestAccelerators" not in sent(L4)
    assert "guestAccelerators" not in sent(A100)


def test_the_disk_is_of_a_kind_the_family_takes_and_goes_with_the_machine() -> None:
    for given, kind in ((L4, "pd-balanced"), (N4, "hyperdisk-balanced")):
        disk = sent(given, disk_gb=200)["disks"][0]
        assert disk["autoDelete"] is True
        assert disk["initializeParams"]["diskType"].endswith(kind)
        assert disk["initializeParams"]["diskSizeGb"] == "200"
        assert disk["initializeParams"]["labels"]["mlcloud-cluster"] == "exp-7"


def test_the_image_has_the_driver_where_there_is_a_gpu_and_is_the_users_own_if_given() -> None:
    def image(given: Offer, **more: Any) -> str:
        return str(sent(given, **more)["disks"][0]["initializeParams"]["sourceImage"])

    assert image(L4).endswith("ubuntu-accelerator-2404-amd64-with-nvidia-580")
    assert image(GRACE).endswith("ubuntu-accelerator-2404-arm64-with-nvidia-580")
    assert image(CPU).endswith("ubuntu-2404-lts-amd64")
    assert image(L4, image="projects/lab/global/images/mine").endswith("mine")


def test_only_the_head_has_an_address_of_its_own() -> None:
    assert "accessConfigs" not in sent(L4)["networkInterfaces"][0]
    assert sent(L4, "head")["networkInterfaces"][0]["accessConfigs"]
    assert sent(L4, network={"public_ip": "all"})["networkInterfaces"][0]["accessConfigs"]
    none = sent(L4, "head", network={"public_ip": "none"})
    assert "accessConfigs" not in none["networkInterfaces"][0]


def test_the_network_is_the_clusters_own_unless_one_is_named() -> None:
    def where(**names: str) -> dict[str, Any]:
        return dict(sent(L4, network=names)["networkInterfaces"][0])

    assert where() == {"subnetwork": f"regions/{REGION}/subnetworks/mlcloud-exp-7"}
    assert where(network="lab") == {"network": "global/networks/lab"}
    assert where(subnet="deep") == {"subnetwork": f"regions/{REGION}/subnetworks/deep"}
    shared = f"projects/host/regions/{REGION}/subnetworks/deep"
    assert where(subnet=shared) == {"subnetwork": shared}


def test_labels_say_whose_it_is_in_words_google_takes() -> None:
    ours = {"Team": "Vision & Co", "9lives": "x"}
    found = sent(L4, tags=ours)["labels"]
    assert found == {
        "team": "vision---co",
        "x9lives": "x",
        "mlcloud-cluster": "exp-7",
        "mlcloud-owner": "ada-example-com",
        "mlcloud-session": "exp",
        "mlcloud-node-type": "l4",
        "mlcloud-market": "spot",
        "mlcloud-price": "0-28",
        "mlcloud-launched": "1767268800",
        "mlcloud-expires": "1767873600",
    }


def test_metadata_has_the_script_and_one_key_and_shuts_the_other_ways_in() -> None:
    items = {each["key"]: each["value"] for each in sent(L4)["metadata"]["items"]}
    assert items == {
        "block-project-ssh-keys": "TRUE",
        "enable-oslogin": "FALSE",
        "serial-port-enable": "FALSE",
        "startup-script": "#!/bin/sh\necho up\n",
        "ssh-keys": f"ubuntu:{KEY}",
    }


def test_a_machine_is_nobody_unless_a_service_account_is_named_and_only_the_head_launches() -> None:
    network = {"service_account": "node@lab.iam.gserviceaccount.com"}
    assert sent(L4)["serviceAccounts"] == []
    worker = sent(L4, network=network)["serviceAccounts"][0]["scopes"]
    head = sent(L4, "head", network=network)["serviceAccounts"][0]["scopes"]
    assert [scope.rsplit("/", 1)[-1] for scope in worker] == ["devstorage.read_write"]
    assert [scope.rsplit("/", 1)[-1] for scope in head] == ["devstorage.read_write", "compute"]


def test_a_script_of_256_kb_is_taken_and_one_byte_more_is_not() -> None:
    fits = request(bootstrap="é" * (128 * 1024))
    cloud().configuration(L4, fits)
    with pytest.raises(UsageError, match="262146 bytes; Google takes 262144"):
        cloud().configuration(L4, request(bootstrap="é" * (128 * 1024 + 1)))


def test_what_google_does_not_sell_is_refused_with_the_nearest() -> None:
    with pytest.raises(NoSuchResources, match="did you mean 'g2-standard-4'"):
        sent(offer("gcp", "g2-standard4", ZONE, REGION, gpu=("L4", 1)))
    with pytest.raises(NoSuchResources, match="did you mean 'europe-west4-a'"):
        sent(offer("gcp", "g2-standard-4", "europe-west4-z", REGION, gpu=("L4", 1)))
    with pytest.raises(UsageError, match="an offer of aws, not of gcp"):
        sent(offer("aws", "g5.xlarge", "us-east-1a", "us-east-1"))


def test_nothing_is_sent_outside_the_clusters_regions() -> None:
    foreign = offer("gcp", "g2-standard-4", "us-central1-a", "us-central1", gpu=("L4", 1))
    here = GcpCloud(settings(REGION), [*OFFERS, foreign])
    assert foreign not in here.offers()
    with pytest.raises(CloudRefused, match="'us-central1' is outside the regions of cluster"):
        here.configuration(foreign, request())


def test_gpus_that_a_family_does_not_take_and_tpus_are_refused() -> None:
    wrong = offer("gcp", "n2-standard-8", ZONE, REGION, gpu=("T4", 1))
    tpu = offer("gcp", "ct5lp-hightpu-4t", ZONE, REGION, gpu=("TPU-V5E", 4))
    here = GcpCloud(settings(REGION), [wrong, tpu])
    with pytest.raises(NoSuchResources, match="Google attaches no T4 to n2; N1 takes T4, V100"):
        here.configuration(wrong, request())
    with pytest.raises(NoSuchResources, match="TPUs are not supported"):
        here.configuration(tpu, request())


def test_names_are_googles_and_an_id_that_is_none_is_refused() -> None:
    given = cloud().configuration(L4, request("L4_1x4cpu on-demand"))["name"]
    assert given.startswith("mlcloud-exp-7-l4-1x4cpu-on-")
    assert cloud().configuration(L4, request(instance_id="i-0a1b"))["name"] == "i-0a1b"
    with pytest.raises(UsageError, match="no name for a machine on GCP"):
        cloud().configuration(L4, request(instance_id="I_0"))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"subnets": "x"}, "did you mean 'subnet'"),
        ({"public_ip": "workers"}, "public_ip: 'workers' is none of head, all, none"),
        ({"ssh_from": "0.0.0.0/0"}, "lets the world in"),
        ({"ssh_from": "home"}, "'home' is no address or range"),
    ],
)
def test_a_wrong_network_setting_is_named_at_once(network: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        cloud(network=network)


def test_what_the_network_is_made_of_is_of_the_published_schema() -> None:
    marked = network.describe({"mlcloud-cluster": "exp-7", "mlcloud-expires": "1"})
    assert network.described(marked) == {"mlcloud-cluster": "exp-7", "mlcloud-expires": "1"}
    assert network.described("made by hand") == {}
    name = body.group(settings(REGION))
    assert discovery.faults(network.network(name, marked), "Network") == []
    assert discovery.faults(network.router(name, REGION, marked), "Router") == []
    subnet = network.subnet(name, REGION, "10.100.0.0/16", marked)
    assert discovery.faults(subnet, "Subnetwork") == []
    rules = network.firewalls(name, marked, ["203.0.113.7/32"])
    for rule in rules:
        assert discovery.faults(rule, "Firewall") == []
        assert "0.0.0.0/0" not in str(rule)
    assert [rule["name"] for rule in network.firewalls(name, marked, [])] == [f"{name}-inside"]


def test_the_schema_here_is_the_one_google_ships() -> None:
    pytest.importorskip("googleapiclient")
    import json
    from pathlib import Path

    import googleapiclient

    folder = Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
    whole = json.loads((folder / "compute.v1.json").read_text())["schemas"]
    for name, schema in discovery.GOOGLE.items():
        assert schema.get("properties", {}).keys() <= whole[name].get("properties", {}).keys()
