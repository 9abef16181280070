"""Quotas on vCPUs: read from what service-quotas lists, and what they leave room for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlcloud.cluster.clouds.aws import quotas
from mlcloud.cluster.offers import Market
from tests import ec2
from tests.cluster.aws.conftest import REGION, offer

Make = Callable[..., Any]


def test_the_accounts_quotas_are_read_over_all_pages(cloud: Make, aws: ec2.Door) -> None:
    from botocore.stub import Stubber  # moto has none; this checks against the service's own model

    made = cloud()
    client = made.api.client("service-quotas", REGION)
    with Stubber(client) as stub:
        stub.add_response(
            "list_service_quotas",
            {
                "Quotas": [
                    {"QuotaCode": "L-3819A6DF", "QuotaName": "All G and VT …", "Value": 0.0},
                    {"QuotaCode": "L-0263D0A3", "QuotaName": "EC2-VPC Elastic IPs", "Value": 5.0},
                ],
                "NextToken": "more",
            },
            {"ServiceCode": "ec2"},
        )
        stub.add_response(
            "list_service_quotas",
            {"Quotas": [{"QuotaCode": "L-DB2E81BA", "QuotaName": "x", "Value": 8.0}]},
            {"ServiceCode": "ec2", "NextToken": "more"},
        )
        read = made.quotas(REGION)
    assert {code: quota.vcpus for code, quota in read.items()} == {
        "L-3819A6DF": 0,
        "L-DB2E81BA": 8,
    }
    why = quotas.lacking(offer(), read)
    assert why is not None
    assert why.startswith(
        "g5.xlarge spot in us-east-1 needs 4 vCPUs, and the account's quota L-3819A6DF "
        "('All G and VT Spot Instance Requests') is 0; raise it at https://us-east-1.console"
    )
    assert quotas.lacking(offer(market="on-demand"), read) is None
    assert quotas.lacking(offer("g5.48xlarge", market="on-demand", cpus=192), read) is not None
    assert quotas.lacking(offer("m5.large"), read) is None  # not known


@pytest.mark.parametrize(
    ("kind", "market", "code"),
    [
        ("g6e.xlarge", "on-demand", "L-DB2E81BA"),
        ("gr6.4xlarge", "spot", "L-3819A6DF"),
        ("vt1.3xlarge", "spot", "L-3819A6DF"),
        ("p5.48xlarge", "on-demand", "L-417A185B"),
        ("p3.2xlarge", "spot", "L-7212CCBC"),
        ("p5.48xlarge", "spot", "L-7212CCBC"),
        ("trn1.2xlarge", "spot", "L-6B0D517C"),
        ("inf2.xlarge", "on-demand", "L-1945791B"),
        ("im4gn.large", "spot", "L-34B43A08"),
        ("t3.micro", "on-demand", "L-1216C47A"),
        ("x2idn.16xlarge", "spot", "L-E3A00192"),
        ("u-6tb1.56xlarge", "on-demand", "L-43DA4232"),
    ],
)
def test_which_quota_a_type_counts_against(kind: str, market: Market, code: str) -> None:
    rule = quotas.rule_of(kind, market)
    assert rule is not None
    assert rule.code == code


def test_p5_on_spot_has_a_quota_of_its_own_where_the_account_lists_it() -> None:
    listed = [{"QuotaCode": "L-7212CCBC", "Value": 400}, {"QuotaCode": "L-C4BD4855", "Value": 0}]
    p5 = offer("p5.48xlarge", cpus=192)
    own = quotas.lacking(p5, quotas.read(listed, REGION))
    assert own is not None
    assert "L-C4BD4855" in own
    assert quotas.lacking(p5, quotas.read(listed[:1], REGION)) is None


def test_every_rule_has_a_code_of_its_own() -> None:
    assert len(quotas.BY_CODE) == len(quotas.RULES)
