"""A cluster's specification: what is refused and in which words, what is kept, what a change is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcloud.cluster.specification import (
    Limit,
    NodeGroup,
    Specification,
    changes,
    check,
    from_yaml,
    load,
    schema,
    specify,
    split,
    to_yaml,
)
from mlcloud.cluster.specification.parts import OnChange, Part
from mlcloud.cluster.specification.values import write_duration, write_size
from mlcloud.errors import SpecificationError, UsageError
from mlcloud.units import parse_duration, parse_size
from tests.cluster.offers_on_sale import on_sale

GOOD: dict[str, Any] = {
    "name": "gpus",
    "cloud": "aws",
    "regions": ["eu-central-1"],
    "store": "s3://bucket/runs",
    "nodes": [{"gpu": "A10G:1", "max": 8}, {"name": "big", "instance_type": "g5.12xlarge"}],
    "budget": "50/day",
}


def good(**fields: Any) -> Specification:
    return specify(**{**GOOD, **fields})


def refused(**fields: Any) -> list[str]:
    with pytest.raises(SpecificationError) as caught:
        good(**fields)
    return [str(problem) for problem in caught.value.problems]


def message(**fields: Any) -> str:
    """The one thing that is wrong."""
    (found,) = refused(**fields)
    return found


# --- what is read ---------------------------------------------------------------------------------


def test_a_whole_file_is_read() -> None:
    made = from_yaml(
        """
name: gpus
cloud: aws
regions: [eu-central-1]
store: s3://bucket/runs
budget: [$5/h, 1000 per month, 5000 total]
spares: 1
image: ami-0123456789
setup: apt-get install -y ffmpeg
max_lifetime: 12h
nodes:
  - gpu: a10g
    cpus: 8
    memory: 32GiB
    disk: 0.2TB
    max: 8
  - instance_type: c7i.large
    market: on-demand
    min: 1
secrets:
  HF_TOKEN: keyring:huggingface/me
  WANDB_API_KEY: aws:prod/wandb
data:
  - {url: "s3://datasets/imagenet", path: /data/imagenet, cache: 200GB}
environment:
  index_urls: ["https://build:${HF_TOKEN}@pypi.example.com/simple"]
  lock: requirements.lock
idle: {session: 1h30m}
ssh: {user: ubuntu, key: ~/.ssh/id_ed25519, jump: "me@bastion:22"}
network: {vpc: vpc-1, subnet: "subnet-1"}
tags: {team: vision}
endpoints: {ec2: "https://ec2.internal"}
"""
    )
    first, second = made.nodes
    assert (first.gpu, first.cpus, first.memory, first.disk) == ("A10G:1", 8, 2**35, 2 * 10**11)
    assert (first.key, first.market, first.fallback) == ("a10g-1", "spot", "on-demand")
    assert str(first.shape) == "A10G:1, 8 CPUs, 34.4 GB"
    assert (second.key, second.market, second.min) == ("c7i-large", "on-demand", 1)
    assert [str(limit) for limit in made.budget] == ["5/hour", "1000/month", "5000 total"]
    assert made.budget[0] == Limit(Decimal(5), "hour")
    assert str(made.secrets["WANDB_API_KEY"]) == "aws:prod/wandb"
    assert made.setup == ("apt-get install -y ffmpeg",)
    assert made.idle.session == timedelta(minutes=90)
    told = made.settings(first, ssh_public_key="ssh-ed25519 AAAA")
    assert (told.disk_gb, told.image, told.lifetime_s) == (200, "ami-0123456789", 43200)
    assert told.network == {"vpc": "vpc-1", "subnet": "subnet-1"}
    assert told.regions == ("eu-central-1",)
    assert made.settings().disk_gb == 50  # the head's


def test_machines_that_one_owns() -> None:
    hosts = [{"host": "gpu1", "cpus": 16, "memory": "64GB", "gpu": "RTX4090:2"}]
    made = specify(name="lab", cloud="ssh", store="file:///shared/runs", ssh={"hosts": hosts})
    assert made.ssh.hosts[0].gpu == "RTX4090:2"
    assert made.ssh.hosts[0].usd_per_hour == 0


def test_nothing_of_a_specification_can_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        good().name = "other"  # type: ignore[misc]


# --- what is refused, in which words --------------------------------------------------------------

HOST = {"host": "a", "cpus": 1, "memory": "1GB"}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"reigon": "x"}, "reigon: no such field; did you mean 'regions'?"),
    "unknown below": (
        {"nodes": [{"gpus": "A10G"}]},
        "nodes[0].gpus: no such field; did you mean 'gpu'?",
    ),
    "nothing like it": (
        {"idle": {"xyz": "1m"}},
        "idle.xyz: no such field; there are session, node, cluster",
    ),
    "cloud": (
        {"cloud": "awss", "nodes": []},
        "cloud: 'awss' is not one of local, ssh, aws, gcp, azure, kubernetes; did you mean 'aws'?",
    ),
    "market": (
        {"nodes": [{"market": "sport"}]},
        "nodes[0].market: 'sport' is not one of spot, on-demand; did you mean 'spot'?",
    ),
    "fallback": (
        {"nodes": [{"fallback": "no"}]},
        "nodes[0].fallback: 'no' is not one of on-demand, none; did you mean 'none'?",
    ),
    "name": (
        {"name": "My GPUs"},
        "name: 'My GPUs' cannot be: lower-case letters, digits and `-`, a letter first, at most 40",
    ),
    "gpu": (
        {"nodes": [{"cpus": 1}, {"gpu": "A10G:x"}]},
        "nodes[1].gpu: 'A10G:x' asks for 'x' GPUs: a GPU is NAME:COUNT, such as 'A10G:1' or 'T4', "
        "and the count a whole number from 1",
    ),
    "memory": (
        {"nodes": [{"memory": 32}]},
        "nodes[0].memory: '32' has no unit: a size is a number with a unit, such as '512MB', "
        "'32GB' or '1.5GiB'; did you mean '32GB'?",
    ),
    "disk": ({"nodes": [{"disk": "2GB"}]}, "nodes[0].disk: 2GB is too little: at least 8GB"),
    "cpus": ({"nodes": [{"cpus": 0}]}, "nodes[0].cpus: 0 is too little: above 0"),
    "cpus yes": (
        {"nodes": [{"cpus": True}]},
        "nodes[0].cpus: a number is expected, not yes or no",
    ),
    "cpus text": ({"nodes": [{"cpus": "four"}]}, "nodes[0].cpus: a number is expected, not 'four'"),
    "min": ({"nodes": [{"min": -1}]}, "nodes[0].min: -1 is too little: at least 0"),
    "min half": ({"nodes": [{"min": 1.5}]}, "nodes[0].min: a whole number is expected, not 1.5"),
    "max below min": (
        {"nodes": [{"min": 4, "max": 2}]},
        "nodes[0].max: 2 is below min, which is 4: raise max or lower min",
    ),
    "default max below min": (
        {"nodes": [{"min": 9}]},
        "nodes[0].max: 4 is below min, which is 9: raise max or lower min",
    ),
    "max": ({"nodes": [{"max": 9999}]}, "nodes[0].max: 9999 is too much: at most 1000"),
    "type and shape": (
        {"nodes": [{"instance_type": "g5.xlarge", "gpu": "A10G", "cpus": 4}]},
        "nodes[0].instance_type: a type says its own gpu and cpus: leave gpu and cpus out, or "
        "leave instance_type out and any type that has as much is tried",
    ),
    "the same group twice": (
        {"nodes": [{"gpu": "A10G"}, {"gpu": "a10g:1", "market": "on-demand"}]},
        "nodes[1].name: 'a10g-1' is nodes[0] already: give each group its own name",
    ),
    "no list": (
        {"nodes": "A10G"},
        "nodes: a list is expected, not 'A10G': write it in [ ], or with a `-` a line",
    ),
    "no fields": ({"idle": "15m"}, "idle: fields with values are expected, not '15m'"),
    "no regions": (
        {"regions": []},
        "regions: name where nodes and data may be, such as [eu-central-1]: nothing leaves them",
    ),
    "region twice": (
        {"regions": ["eu-central-1", "eu-central-1"]},
        "regions[1]: 'eu-central-1' is in the list already",
    ),
    "region of no cloud": (
        {"regions": ["eu-central-1", "awz:eu-west-1"]},
        "regions[1]: no cloud 'awz'; did you mean 'aws'?",
    ),
    "no region": ({"regions": ["eu-central-1", "EU"]}, "regions[1]: 'EU' is not a region's name"),
    "budget": (
        {"budget": "fifty"},
        "budget: cannot read 'fifty': a budget is dollars in a period, such as '50/day', '5/h' or "
        "'200 total'",
    ),
    "budget without period": (
        {"budget": 50},
        "budget: '50' has no period: a budget is dollars in a period, such as '50/day', '5/h' or "
        "'200 total'; did you mean '50/day'?",
    ),
    "budget period": (
        {"budget": ["5/h", "50/dya"]},
        "budget[1]: unknown period 'dya': a budget is dollars in a period, such as '50/day', "
        "'5/h' or '200 total'; did you mean 'day'?",
    ),
    "budget in euros": (
        {"budget": "50€/day"},
        "budget: cannot read '50€/day': a budget is dollars in a period, such as '50/day', '5/h' "
        "or '200 total'",
    ),
    "budget zero": (
        {"budget": "0/day"},
        "budget: '0/day' would let nothing run: a budget is above 0",
    ),
    "budget twice": (
        {"budget": ["5/h", "6/hour"]},
        "budget[1]: a second limit per hour: keep one of them",
    ),
    "duration": (
        {"max_lifetime": "7"},
        "max_lifetime: '7' has no unit: a duration is a number with one of ms, s, m, h, d, such as "
        "'90s', '15m' or '1h30m'; did you mean '7s'?",
    ),
    "no duration": (
        {"idle": {"node": "0s"}},
        "idle.node: a duration above 0 is expected, such as '15m'",
    ),
    "store scheme": (
        {"store": "s3b://bucket"},
        "store: a URL is expected: s3://…, s3a://…, gs://…, gcs://…, az://…, abfs://…, abfss://…; "
        "did you mean 's3'?",
    ),
    "store on one machine": (
        {"store": "file:///tmp/x"},
        "store: a file:// is on one machine, and nodes go: use s3://…, gs://…, az://…",
    ),
    "no store": (
        {"store": None},
        "store: name where sessions are kept when nodes go: s3://…, gs://… or az://…",
    ),
    "store elsewhere": (
        {"store_region": "us-east-1"},
        "store_region: the store is in us-east-1, and `regions` allows only eu-central-1: choose "
        "another place, or add us-east-1 if data may be there",
    ),
    "store elsewhere by its ARN": (
        {"store": "s3://arn:aws:s3:us-east-1:1234:accesspoint/x"},
        "store: the store is in us-east-1, and `regions` allows only eu-central-1: choose another "
        "place, or add us-east-1 if data may be there",
    ),
    "store of another cloud elsewhere": (
        {"store": "gs://bucket", "store_region": "us-central1"},
        "store_region: the store is in us-central1, and `regions` allows only eu-central-1: choose "
        "another place, or add gcp:us-central1 if data may be there",
    ),
    "too many spares": (
        {"spares": 20},
        "spares: 20 is more than all groups may have together, which is 12",
    ),
    "hosts elsewhere": (
        {"ssh": {"hosts": [HOST]}},
        "ssh.hosts: these are for `cloud: ssh`, and the cloud is aws",
    ),
    "key in the file": (
        {"ssh": {"key": "-----BEGIN OPENSSH PRIVATE KEY-----\nabc"}},
        "ssh.key: the file of the key is expected, not the key (which is not repeated)",
    ),
    "network": (
        {"network": {"subnt": "x"}},
        "network.subnt: no such name; did you mean 'subnet'?; aws has vpc, subnet, security_group, "
        "instance_profile, worker_instance_profile, key_pair, public_ip, ssh_from",
    ),
    "our tags": (
        {"tags": {"mlcloud-owner": "x"}},
        "tags.mlcloud-owner: tags that begin with mlcloud are its own: rename it",
    ),
    "tag's name": (
        {"tags": {"Team": "x"}},
        "tags.Team: cannot be a tag's name: lower-case letters, digits, `-` and `_`, a letter "
        "first, at most 63",
    ),
    "tag's number": (
        {"tags": {"cost": 83}},
        "tags.cost: text is expected, and this is the number 83: put it in quotes",
    ),
    "tag's yes": (
        {"tags": {"spot": True}},
        "tags.spot: text is expected: YAML reads this as yes; put it in quotes",
    ),
    "secret's name": (
        {"secrets": {"HF-TOKEN": "env:X"}},
        "secrets.HF-TOKEN: cannot be the name of an environment variable, such as HF_TOKEN",
    ),
    "secrets by name alone": (
        {"secrets": ["HF_TOKEN"]},
        "secrets: names with where each is kept are expected: HF_TOKEN: keyring:hf/me",
    ),
    "secret's reference": (
        {"secrets": {"HF_TOKEN": "keyring:huggingface"}},
        "secrets.HF_TOKEN: a reference to keyring is written keyring:SERVICE/USER",
    ),
    "mount's path": (
        {"data": [{"url": "s3://b", "path": "data"}]},
        "data[0].path: 'data' cannot be: an absolute path below /, such as /data",
    ),
    "mount over a mount": (
        {"data": [{"url": "s3://b", "path": "/d"}, {"url": "s3://c", "path": "/d/"}]},
        "data[1].path: '/d' is data[0]'s already: choose another path",
    ),
    "mount without url": (
        {"data": [{"path": "/d"}]},
        "data[0].url: is missing: where the data is, such as s3://bucket/data",
    ),
    "index password": (
        {"environment": {"index_urls": ["https://me:hunter2@pypi.example.com/simple"]}},
        "environment.index_urls[0]: the URL has a password in it (not repeated here): name it "
        "under `secrets` and write ${NAME} in its place",
    ),
    "index secret unknown": (
        {
            "secrets": {"PIP_TOKEN": "env:PIP_TOKEN"},
            "environment": {"index_urls": ["https://x:${PIP_TOKN}@pypi.example.com/simple"]},
        },
        "environment.index_urls[0]: ${PIP_TOKN} is not under `secrets`; did you mean 'PIP_TOKEN'?",
    ),
    "endpoint": (
        {"endpoints": {"ec2": "localhost:5000"}},
        "endpoints.ec2: a URL is expected: https://…, http://…",
    ),
    "head": (
        {"head": {"memory": "lots"}},
        "head.memory: cannot read 'lots' as a size: a size is a number with a unit, such as "
        "'512MB', '32GB' or '1.5GiB'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_with_its_field_and_the_fix(case: str) -> None:
    fields, expected = WRONG[case]
    assert message(**fields) == expected


def test_a_missing_name_says_what_it_is() -> None:
    with pytest.raises(SpecificationError, match="name: is missing: what the cluster is called"):
        specify(cloud="local")


def test_what_only_some_clouds_refuse() -> None:
    local = {"name": "x", "cloud": "local"}
    with pytest.raises(SpecificationError, match="this computer: leave regions out"):
        specify(**local, regions=["eu-central-1"])
    with pytest.raises(SpecificationError, match=r"network\.vpc: no such name; local has no netw"):
        specify(**local, network={"vpc": "x"})
    with pytest.raises(SpecificationError, match=r"ssh\.hosts: name your machines, each with host"):
        specify(name="x", cloud="ssh", store="file:///x")
    gcp = {"name": "x", "cloud": "gcp", "regions": ["europe-west4"], "store": "gs://b"}
    with pytest.raises(SpecificationError, match=r"tags\.team: 'Vision' cannot be its value: at"):
        specify(**gcp, tags={"team": "Vision"})
    hosts = [HOST, {"host": "b", "cpus": 2}, HOST]
    with pytest.raises(SpecificationError) as caught:
        specify(name="x", cloud="ssh", store="file:///x", ssh={"hosts": hosts})
    assert "ssh.hosts[1].memory: is missing: how much memory it has" in str(caught.value)
    with pytest.raises(SpecificationError, match=r"hosts\[1\]\.host: 'a' is hosts\[0\] already"):
        specify(name="x", cloud="ssh", store="file:///x", ssh={"hosts": [HOST, HOST]})
    with pytest.raises(SpecificationError, match=r"hosts\[0\]\.region: say where the machine st"):
        specify(name="x", cloud="ssh", regions=["lab"], store="file:///x", ssh={"hosts": [HOST]})


def test_all_problems_come_at_once_each_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "name: gpus\ncloud: aws\nregions: [eu-central-1]\nstor: s3://b\nnodes:\n"
        "  - gpu: A10G:0\n    max: 2\n    min: 3\n  - memory: 5\n"
    )
    with pytest.raises(SpecificationError) as caught:
        load(file)
    head, *lines = str(caught.value).splitlines()
    assert head == f"{file}: 5 problems"
    assert [line.split(": ")[0].strip() for line in lines] == [
        "line 1  store",
        "line 4  stor",
        "line 6  nodes[0].gpu",
        "line 7  nodes[0].max",
        "line 9  nodes[1].memory",
    ]


SECRETS = ["hf_AbCdEf123456", "sk-proj-1234", "hunter2", "-----BEGIN PRIVATE KEY-----"]


@pytest.mark.parametrize("secret", SECRETS)
def test_what_may_be_a_secret_is_never_repeated(secret: str) -> None:
    fields: list[dict[str, Any]] = [
        {"secrets": {"TOKEN": secret}},
        {"secrets": {"TOKEN": f"env:{secret}!"}},
        {"secrets": secret},
        {"secrets": [secret]},
        {"secrets": {"TOKEN": [secret]}},
        {"environment": {"index_urls": [f"https://me:{secret}@host/simple"]}},
        {"environment": {"index_urls": [f"https://{secret}@host/simple"]}},
        {"store": f"s3://key:{secret}@bucket"},
    ]
    for each in fields:
        with pytest.raises(SpecificationError) as caught:
            good(**each)
        assert secret not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "fields with values are expected, such as `name: gpus`"),
        ("- a\n- b", "fields with values are expected, such as `name: gpus`"),
        ("name: [", "line 1: this is not YAML: "),
        ("name: gpus\nname: other", "line 2: name: is there twice: keep one of them"),
        ("name: gpus\n1: x", "line 2: 1: a field's name is text: put it in quotes"),
        ("name: gpus\nnodes: &a [*a]", "nodes[0]: this anchor holds itself"),
        ("name: !!python/object:os.system x", "line 1: this is not YAML: could not determine"),
        ("name: gpus\ntags: {day: 2026-99-99}", "this is not YAML: month must be in 1..12"),
    ],
)
def test_traps_of_yaml(text: str, said: str) -> None:
    with pytest.raises(SpecificationError) as caught:
        from_yaml(text, source="cluster.yaml")
    assert said in str(caught.value)
    assert str(caught.value).startswith("cluster.yaml")


def test_anchors_within_anchors_end_soon() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for n in range(1, 9):
        lines.append(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]")
    with pytest.raises(UsageError, match="more than 20,000 fields"):
        from_yaml("\n".join(lines))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("name: x")
    with pytest.raises(UsageError, match=r"there is no file .*; did you mean 'cluster\.yaml'\?"):
        load(tmp_path / "clutser.yaml")


# --- residency ------------------------------------------------------------------------------------


def test_offers_outside_residency_or_of_another_cloud_are_not_allowed() -> None:
    made = good(regions=["eu-central-1", "gcp:europe-west4"])
    assert made.node_regions == ("eu-central-1",)
    found = {offer.region for offer in on_sale() if made.allows(offer)}
    assert found == {"eu-central-1"}


def test_a_store_of_another_cloud_is_allowed_by_its_cloud_and_region() -> None:
    regions = ["eu-central-1", "gcp:europe-west4"]
    made = good(regions=regions, store="gs://bucket", store_region="europe-west4")
    made.require_store_in("europe-west4")
    with pytest.raises(SpecificationError, match="add gcp:us-central1 if data may be there"):
        made.require_store_in("us-central1")
    # a region's name of one cloud does not allow it in another
    with pytest.raises(SpecificationError, match="is in eu-central-1"):
        made.require_store_in("eu-central-1")
    with pytest.raises(SpecificationError, match="add europe-west4 if data may be there"):
        good(regions=regions, store_region="europe-west4")  # GCP's alone


def test_the_store_s_region_as_far_as_it_is_told() -> None:
    assert good().known_store_region is None
    assert good(store_region="eu-central-1").known_store_region == "eu-central-1"
    arn = "s3://arn:aws:s3:eu-central-1:1234:accesspoint/x"
    assert good(store=arn).known_store_region == "eu-central-1"


# --- against what is sold -------------------------------------------------------------------------


def sold(**fields: Any) -> list[str]:
    with pytest.raises(SpecificationError) as caught:
        check(good(**fields), on_sale(), ["eu-central-1", "us-east-1", "eu-west-1", "ap-south-1"])
    return [str(problem) for problem in caught.value.problems]


def test_what_is_sold_passes() -> None:
    check(good(), on_sale())
    check(good(nodes=[{"cpus": 2}, {"name": "odd", "cpus": 2, "market": "on-demand"}]), on_sale())


def test_an_unknown_region_and_type_come_with_the_nearest() -> None:
    found = sold(
        regions=["eu-central1", "eu-central-1"],
        nodes=[{"instance_type": "g5.xlrage"}, {"gpu": "A11G:1"}],
        head={"instance_type": "c7i.lagre"},
    )
    assert found == [
        "regions[0]: AWS has no region 'eu-central1'; did you mean 'eu-central-1'?",
        "nodes[0].instance_type: AWS has no type 'g5.xlrage'; did you mean 'g5.xlarge'?",
        "nodes[1].gpu: AWS has no GPU 'A11G'; did you mean 'A10G'?",
        "head.instance_type: AWS has no type 'c7i.lagre'; did you mean 'c7i.large'?",
    ]


def test_what_is_sold_elsewhere_only_says_where() -> None:
    assert sold(nodes=[{"gpu": "H100:8"}, {"instance_type": "p5.48xlarge"}]) == [
        f"{field}: the price list has no {what} in eu-central-1; it has it in us-east-1, which "
        "`regions` does not allow. To ask AWS whether it is sold there: mlcloud prices refresh "
        "--cloud aws --region eu-central-1"
        for field, what in (("nodes[0].gpu", "H100:8"), ("nodes[1].instance_type", "p5.48xlarge"))
    ]


def test_shapes_that_nobody_sells() -> None:
    assert sold(nodes=[{"gpu": "A10G:8"}]) == [
        "nodes[0].gpu: no type has A10G:8 where nodes may be: it comes as A10G:1, A10G:4"
    ]
    (found,) = sold(nodes=[{"gpu": "A10G:1", "cpus": 1000}])
    assert found.startswith("nodes[0].gpu: no offer for A10G:1, 1000 CPUs: this cluster has c7i")
    (found,) = sold(nodes=[{"cpus": 40}])
    assert found == (
        "nodes[0].cpus: only types with a GPU have 40 CPUs: name a gpu, or ask for less"
    )
    only = {"regions": ["us-east-1"], "nodes": [{"gpu": "H100:8", "fallback": "none"}]}
    assert sold(**only) == [
        "nodes[0].fallback: H100:8, 1 CPU is sold on demand only where nodes may be: fallback: "
        "on-demand, or it is never launched"
    ]


def test_without_any_offers_nothing_is_said() -> None:
    check(good(nodes=[{"instance_type": "whatever"}]), [])


# --- written and read again -----------------------------------------------------------------------

names = st.from_regex("[a-z][a-z0-9-]{0,9}", fullmatch=True)
sizes = st.integers(8 * 10**9, 10**16)
durations = st.timedeltas(timedelta(microseconds=1), timedelta(days=400))
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
gpus = st.builds(
    "{}:{}".format, st.sampled_from(["A10G", "T4", "H100", "Odd-1"]), st.integers(1, 16)
)
groups = st.fixed_dictionaries(
    {"min": st.integers(0, 5), "max": st.integers(5, 1000)},
    optional={
        "gpu": gpus,
        "cpus": st.integers(1, 256) | st.floats(0.1, 64),
        "memory": sizes.map(write_size),
        "market": st.sampled_from(["spot", "on-demand"]),
        "fallback": st.sampled_from(["on-demand", "none"]),
        "disk": sizes.map(write_size),
    },
)
limits = st.lists(
    st.sampled_from(["hour", "day", "week", "month", "total"]), unique=True, max_size=5
).flatmap(
    lambda periods: st.tuples(
        *(st.decimals(Decimal("0.01"), 10**6, places=2).map(lambda usd, p=p: f"{usd}/{p}")
          for p in periods)
    )
)  # fmt: skip
sources = st.sampled_from(
    [
        "keyring:a/b",
        "env:TOKEN",
        "aws:prod/x",
        "gcp:projects/p/secrets/s",
        "azure:https://v.vault.azure.net/secrets/n",
        "kubernetes:a/b",
    ]
)
specifications = st.fixed_dictionaries(
    {
        "name": names,
        "cloud": st.just("aws"),
        "regions": st.just(["eu-central-1"]),
        "store": st.just("s3://bucket/x"),
    },
    optional={
        "nodes": st.lists(groups, max_size=3).map(
            lambda found: [{"name": f"g{n}", **each} for n, each in enumerate(found)]
        ),
        "image": texts,
        "setup": st.lists(texts, max_size=3),
        "budget": limits.map(list),
        "secrets": st.dictionaries(
            st.from_regex("[A-Z_][A-Z0-9_]{0,9}", fullmatch=True), sources, max_size=3
        ),
        "tags": st.dictionaries(
            st.from_regex("[a-l][a-z0-9_-]{0,9}", fullmatch=True), texts, max_size=3
        ),
        "max_lifetime": durations.map(write_duration),
        "owner": texts,
        "idle": st.fixed_dictionaries({}, optional={"node": durations.map(write_duration)}),
        "data": st.just([{"url": "s3://d/x", "path": "/data", "cache": "1TiB"}]),
        "head": st.fixed_dictionaries({}, optional={"memory": sizes.map(write_size)}),
    },
)


judge = jsonschema.Draft202012Validator(schema())


@settings(deadline=None, max_examples=60)
@given(specifications)
def test_written_and_read_again_it_is_the_same(fields: dict[str, Any]) -> None:
    made = specify(**fields)
    text = to_yaml(made)
    again = from_yaml(text)
    assert again == made
    assert to_yaml(again) == text
    assert not changes(made, again)
    assert list(judge.iter_errors(yaml.safe_load(text))) == []


@given(st.integers(0, 10**18))
def test_a_size_is_written_exactly(count: int) -> None:
    assert parse_size(write_size(count)) == count


@given(st.timedeltas(timedelta(0), timedelta(days=10**4)))
def test_a_duration_is_written_exactly(value: timedelta) -> None:
    assert parse_duration(write_duration(value)) == value


def test_only_what_is_not_default_is_written() -> None:
    assert to_yaml(specify(name="x", nodes=[{"gpu": "T4", "market": "spot"}])) == (
        "name: x\nnodes:\n- gpu: T4:1\n"
    )


# --- the schema -----------------------------------------------------------------------------------


def test_editors_get_a_schema_that_knows_the_fields() -> None:
    made = schema()
    jsonschema.Draft202012Validator.check_schema(made)
    json.dumps(made)
    assert judge.is_valid(GOOD)
    assert judge.is_valid({**GOOD, "budget": ["5/h", "50/day"]})
    assert not judge.is_valid({**GOOD, "reigons": []})
    assert not judge.is_valid({**GOOD, "nodes": [{"gpuu": "A10G"}]})
    assert not judge.is_valid({**GOOD, "nodes": [{"market": "sport"}]})
    disk = made["$defs"]["NodeGroup"]["properties"]["disk"]
    assert disk["default"] == "100GB"
    assert "root disk" in disk["description"]


# --- changes under a running cluster --------------------------------------------------------------


def test_what_a_change_takes() -> None:
    new = good(
        nodes=[{"gpu": "A10G:1", "max": 16, "disk": "1TB"}, {"cpus": 4}],
        budget=["80/day"],
        regions=["eu-central-1", "eu-west-1"],
        tags={"team": "vision"},
        idle={"node": "5m"},
        image="ami-1",
    )
    found = {each.field: each for each in changes(good(), new)}
    assert {field: each.effect for field, each in found.items()} == {
        "regions": "in place",
        "nodes[a10g-1].max": "in place",
        "nodes[a10g-1].disk": "new nodes",
        "nodes[big]": "in place",
        "nodes[cpu4]": "in place",
        "image": "new nodes",
        "tags.team": "in place",
        "budget": "in place",
        "idle.node": "in place",
    }
    assert (found["budget"].old, found["budget"].new) == ("50/day", "80/day")
    assert (found["image"].old, found["image"].new) == ("–", "ami-1")
    assert found["nodes[big]"].note == "its nodes end when they are idle"
    assert changes(good(), good(network={"vpc": "vpc-1"})).needs_restart
    assert not changes(good(), good(spares=1)).needs_restart


def test_a_spelling_or_an_order_is_no_change() -> None:
    one = good(nodes=[{"gpu": "A10G:1", "disk": "1000GB"}, {"cpus": 2}], max_lifetime="48h")
    two = good(nodes=[{"cpus": 2.0}, {"gpu": "a10g", "disk": "1TB"}], max_lifetime="2d")
    assert not changes(one, two)
    assert repr(changes(one, two)) == "nothing differs"


def test_changes_show_themselves() -> None:
    found = changes(good(), good(spares=1, network={"vpc": "vpc-<1>"}))
    lines = repr(found).splitlines()
    assert lines[0].split() == ["field", "runs", "with", "new", "what", "happens"]
    assert lines[1].split() == ["spares", "0", "1", "applied", "in", "place"]
    assert lines[2].split() == ["network.vpc", "–", "vpc-<1>", "needs", "down", "and", "up"]
    assert "vpc-&lt;1&gt;" in found._repr_html_()


def test_what_is_applied_and_what_is_refused() -> None:
    new = good(spares=1, network={"vpc": "vpc-1"}, budget="80/day", head={"disk": "100GB"})
    found = split(good(), new)
    assert [each.field for each in found.applied] == ["budget", "spares"]
    assert [each.field for each in found.refused] == ["head.disk", "network.vpc"]
    assert found.merged == good(spares=1, budget="80/day")
    text = found.refusal()
    assert "network.vpc" in text
    assert "head.disk" in text
    assert "This was applied: budget: 50/day → 80/day (applied in place); spares: 0 → 1" in text
    assert "`mlcloud down`, then `up`" in text
    # again: only the rest is left
    assert not split(found.merged, new).applied


def test_all_of_it_is_applied_where_it_can_be() -> None:
    new = good(spares=1, regions=["eu-central-1", "eu-west-1"], image="ami-2")
    found = split(good(), new)
    assert found.merged == new
    assert not found.refused
    assert len(found.applied) == 3


@pytest.mark.parametrize(
    "fields",
    [
        # another cluster: nothing of it is for this one
        {"name": "other", "budget": "80/day", "spares": 1},
        # what is left would contradict itself: the store that stays is not in the new regions
        {
            "regions": ["eu-west-1"],
            "store": "s3://bucket/other",
            "store_region": "eu-west-1",
            "budget": "80/day",
        },
    ],
)
def test_nothing_is_applied(fields: dict[str, Any]) -> None:
    old = good(store_region="eu-central-1")
    found = split(old, good(**{"store_region": "eu-central-1", **fields}))
    assert (found.merged, list(found.applied)) == (old, [])
    assert "Nothing was changed" in found.refusal()
    assert {each.field for each in found.refused} >= fields.keys() - {"store_region"}


def test_machines_come_and_go_the_head_stays() -> None:
    def lab(*hosts: str) -> Specification:
        told = [{"host": each, "cpus": 1, "memory": "2GB"} for each in hosts]
        return specify(name="lab", cloud="ssh", store="s3://b/x", ssh={"hosts": told})

    found = split(lab("a", "b"), lab("a", "c"))
    assert [(each.field, each.effect) for each in found.applied] == [
        ("ssh.hosts[b]", "in place"),
        ("ssh.hosts[c]", "in place"),
    ]
    moved = split(lab("a", "b"), lab("b", "a"))
    assert [str(each) for each in moved.refused] == ["ssh.hosts: a, b → b, a (needs down and up)"]


def _fields(model: type[Part]) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        yield f"{model.__name__}.{name}", field


def test_every_field_says_what_its_change_takes_and_what_it_is() -> None:
    parts = [Specification, *Part.__subclasses__()]
    silent = [
        name
        for part in parts
        for name, field in _fields(part)
        if not any(isinstance(each, OnChange) for each in field.metadata) or not field.description
    ]
    assert silent == []


def test_the_group_of_a_name() -> None:
    group = good().group("big")
    assert isinstance(group, NodeGroup)
    assert group.instance_type == "g5.12xlarge"
    assert good().group("none") is None
