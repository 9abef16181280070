"""Bills in the clouds' documented forms, beside our own account."""

from __future__ import annotations

import gzip
import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from mlcloud.cost import reconcile
from mlcloud.cost.reconcile import Line
from mlcloud.errors import UsageError

DAY = date(2026, 3, 1)


def group(service: str, usage: str, amount: str) -> dict[str, Any]:
    return {
        "Keys": [service, usage],
        "Metrics": {"UnblendedCost": {"Amount": amount, "Unit": "USD"}},
    }


# https://docs.aws.amazon.com/aws-cost-management/latest/APIReference/API_GetCostAndUsage.html
EXPLORED = {
    "GroupDefinitions": [
        {"Type": "DIMENSION", "Key": "SERVICE"},
        {"Type": "DIMENSION", "Key": "USAGE_TYPE"},
    ],
    "ResultsByTime": [
        {
            "TimePeriod": {"Start": "2026-03-01", "End": "2026-03-02"},
            "Total": {},
            "Groups": [
                group("Amazon Elastic Compute Cloud - Compute", "EUC1-SpotUsage:g5.xlarge", "10.1"),
                group("EC2 - Other", "EUC1-EBS:VolumeUsage.gp3", "0.8"),
                group("EC2 - Other", "EUC1-DataTransfer-Out-Bytes", "0.25"),
                group("Amazon Simple Storage Service", "EUC1-TimedStorage-ByteHrs", "0.05"),
                group("Tax", "NoUsageType", "2.0"),
            ],
            "Estimated": True,
        }
    ],
    "DimensionValueAttributes": [],
}


def test_what_explains_the_difference(tmp_path: Path) -> None:
    bill = tmp_path / "ce.json"
    bill.write_text(json.dumps(EXPLORED))
    ours = {DAY: Decimal("10"), date(2026, 3, 2): Decimal("1")}
    first, second = reconcile.reconcile(ours, reconcile.read(bill))
    assert first.theirs == {
        "compute": Decimal("10.1"),
        "storage": Decimal("0.85"),
        "egress": Decimal("0.25"),
        "tax": Decimal("2.0"),
    }
    assert (first.billed, first.difference) == (Decimal("13.20"), Decimal("3.20"))
    assert (first.explained, first.unexplained) == (Decimal("3.10"), Decimal("0.10"))
    assert (second.billed, second.unexplained) == (0, Decimal(-1))


CUR = """\
line_item_usage_start_date,line_item_line_item_type,line_item_product_code,line_item_usage_type,\
line_item_unblended_cost,line_item_currency_code,resource_tags
2026-03-01T10:00:00.000Z,Usage,AmazonEC2,EUC1-SpotUsage:g5.xlarge,1.5,USD,\
"{""user_mlcloud_cluster"": ""gpus""}"
2026-03-01T11:00:00.000Z,Usage,AmazonEC2,EUC1-EBS:VolumeUsage.gp3,0.1,USD,\
"{""user_mlcloud_cluster"": ""gpus""}"
2026-03-01T11:00:00.000Z,Usage,AmazonEC2,EUC1-BoxUsage:c5.large,7,USD,"{}"
2026-03-01T00:00:00.000Z,Tax,AmazonEC2,,0.3,USD,"{""user_mlcloud_cluster"": ""gpus""}"
"""
LEGACY = """\
lineItem/UsageStartDate,lineItem/LineItemType,lineItem/ProductCode,lineItem/UsageType,\
lineItem/UnblendedCost,lineItem/CurrencyCode,resourceTags/user:mlcloud-cluster
2026-03-01T10:00:00Z,Usage,AmazonEC2,EUC1-SpotUsage:g5.xlarge,1.5,USD,gpus
2026-03-01T11:00:00Z,Usage,AmazonEC2,EUC1-EBS:VolumeUsage.gp3,0.1,USD,gpus
2026-03-01T11:00:00Z,Usage,AmazonEC2,EUC1-BoxUsage:c5.large,7,USD,other
2026-03-01T00:00:00Z,Tax,AmazonEC2,,0.3,USD,gpus
"""
FOCUS = """\
BilledCost,BillingCurrency,ChargeCategory,ChargePeriodStart,ServiceCategory,Tags
1.5,USD,Usage,2026-03-01T10:00:00Z,Compute,"{""mlcloud-cluster"": ""gpus""}"
0.1,USD,Usage,2026-03-01T11:00:00Z,Storage,"{""mlcloud-cluster"": ""gpus""}"
7,USD,Usage,2026-03-01T11:00:00Z,Compute,"{""team"": ""x""}"
0.3,USD,Tax,2026-03-01T00:00:00Z,Other,"{""mlcloud-cluster"": ""gpus""}"
"""


@pytest.mark.parametrize("text", [CUR, LEGACY, FOCUS], ids=["cur2", "cur", "focus"])
@pytest.mark.parametrize("packed", [False, True])
def test_bills_as_csv(tmp_path: Path, text: str, packed: bool) -> None:
    bill = tmp_path / ("bill.csv.gz" if packed else "bill.csv")
    bill.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    lines = reconcile.read(bill, "gpus")
    assert lines == [
        Line(DAY, "compute", Decimal("1.5")),
        Line(DAY, "storage", Decimal("0.1")),
        Line(DAY, "tax", Decimal("0.3")),
    ]
    assert len(reconcile.read(bill)) == 4


@pytest.mark.parametrize(
    "text", ["a,b\n1,2\n", '{"x": 1}', FOCUS.replace("USD", "EUR"), FOCUS.replace("1.5", "x")]
)
def test_what_is_no_bill_is_said(tmp_path: Path, text: str) -> None:
    bill = tmp_path / "bill.csv"
    bill.write_text(text)
    with pytest.raises(UsageError, match="is not a bill in a form known here"):
        reconcile.read(bill)
    with pytest.raises(UsageError, match="cannot be read"):
        reconcile.read(tmp_path / "nowhere.csv")


def test_cost_explorer_is_asked_by_the_tag_and_page_by_page() -> None:
    """As botocore's own model of the service takes and gives it."""
    boto3 = pytest.importorskip("boto3")
    stub = pytest.importorskip("botocore.stub")
    client = boto3.client(
        "ce", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    request = {
        "TimePeriod": {"Start": "2026-03-01", "End": "2026-03-02"},
        "Granularity": "DAILY",
        "Metrics": ["UnblendedCost"],
        "Filter": {
            "Tags": {"Key": "mlcloud-cluster", "Values": ["gpus"], "MatchOptions": ["EQUALS"]}
        },
        "GroupBy": [
            {"Type": "DIMENSION", "Key": "SERVICE"},
            {"Type": "DIMENSION", "Key": "USAGE_TYPE"},
        ],
    }
    with stub.Stubber(client) as stubbed:
        first = {**EXPLORED, "NextPageToken": "more"}
        stubbed.add_response("get_cost_and_usage", first, request)
        stubbed.add_response("get_cost_and_usage", EXPLORED, {**request, "NextPageToken": "more"})
        lines = reconcile.from_aws("gpus", DAY, date(2026, 3, 2), client)
        stubbed.assert_no_pending_responses()
    assert len(lines) == 10
