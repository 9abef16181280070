"""The FOCUS file has the specification's columns, values and sums.

https://focus.finops.org/focus-specification/v1-1/ , as far as it concerns usage of machines.
"""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import date
from decimal import Decimal

from mlcloud.cost import focus
from mlcloud.cost.focus import Machine, Usage

_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
_DECIMAL = r"\d+(\.\d+)?"
#: Column: what it must match. Those that may be null are not here, but for the list below.
SCHEMA = {
    "BilledCost": _DECIMAL,
    "BillingAccountId": r".+",
    "BillingCurrency": r"[A-Z]{3}",
    "BillingPeriodStart": _TIME,
    "BillingPeriodEnd": _TIME,
    "ChargeCategory": r"Usage|Purchase|Tax|Credit|Adjustment",
    "ChargeClass": r"|Correction",
    "ChargeDescription": r".+",
    "ChargeFrequency": r"One-Time|Recurring|Usage-Based",
    "ChargePeriodStart": _TIME,
    "ChargePeriodEnd": _TIME,
    "ContractedCost": _DECIMAL,
    "ContractedUnitPrice": _DECIMAL,
    "EffectiveCost": _DECIMAL,
    "InvoiceIssuerName": r".+",
    "ListCost": _DECIMAL,
    "ListUnitPrice": _DECIMAL,
    "PricingCategory": r"Standard|Dynamic|Committed|Other",
    "PricingQuantity": _DECIMAL,
    "PricingUnit": r"Hours",
    "ConsumedQuantity": _DECIMAL,
    "ConsumedUnit": r"Hours",
    "ProviderName": r".+",
    "PublisherName": r".+",
    "RegionId": r".+",
    "ResourceId": r".+",
    "ResourceType": r".+",
    "ServiceCategory": r"Compute",
    "ServiceName": r".+",
    "ServiceSubcategory": r"Virtual Machines",
    "SkuId": r".+",
    "SkuPriceId": r".+",
    "Tags": r"\{.*\}",
}
NULL = {"BillingAccountName", "CommitmentDiscountId", "SubAccountId", "SubAccountName"}

MACHINE = Machine("i-1", "aws", "eu-central-1", "eu-central-1a", "g5.xlarge", "spot", False)
USAGES = [
    Usage(
        date(2026, 1, 31), MACHINE, "exp", {"team": "nlp"},
        Decimal("0.4211"), Decimal("3.018"), Decimal("3.000000001"),
    ),
    Usage(date(2026, 12, 1), MACHINE._replace(market="on-demand", cloud="local", simulated=True),
          None, {}, Decimal(1), Decimal(1), Decimal(24)),
]  # fmt: skip


def written() -> list[dict[str, str]]:
    file = io.StringIO(newline="")
    assert focus.write(USAGES, "gpus", file) == 2
    return list(csv.DictReader(io.StringIO(file.getvalue(), newline="")))


def test_every_charge_conforms() -> None:
    for row in written():
        for column, pattern in SCHEMA.items():
            assert re.fullmatch(pattern, row[column]), (column, row[column])
        assert all(not row[column] for column in NULL)
        # FOCUS has no other columns but those that begin with x_.
        known = {*SCHEMA, *NULL, "AvailabilityZone", "RegionName", "ResourceName", "SkuMeter"}
        assert all(name in known or name.startswith("x_") for name in row)
        for unit_price, cost in (("List", "ListCost"), ("Contracted", "ContractedCost")):
            product = Decimal(row[f"{unit_price}UnitPrice"]) * Decimal(row["PricingQuantity"])
            assert product == Decimal(row[cost])


def test_a_charge_says_what_whose_and_when() -> None:
    spot, idle = written()
    assert spot["PricingCategory"] == "Dynamic"
    assert idle["PricingCategory"] == "Standard"
    assert (spot["BillingPeriodStart"], spot["BillingPeriodEnd"]) == (
        "2026-01-01T00:00:00Z",
        "2026-02-01T00:00:00Z",
    )
    assert idle["BillingPeriodEnd"] == "2027-01-01T00:00:00Z"
    assert (spot["ChargePeriodStart"], spot["ChargePeriodEnd"]) == (
        "2026-01-31T00:00:00Z",
        "2026-02-01T00:00:00Z",
    )
    assert json.loads(spot["Tags"]) == {
        "mlcloud-cluster": "gpus",
        "mlcloud-session": "exp",
        "team": "nlp",
    }
    assert (spot["x_Simulated"], idle["x_Simulated"]) == ("false", "true")
    assert spot["ProviderName"] == "Amazon Web Services"
