"""Our account beside the cloud's own bill, day by day, and what explains the difference.

    Cost Explorer's answer (JSON) ─┐
    CUR 2.0 or legacy CUR (CSV)   ─┼─► Line(day, kind, usd) … ─┐
    FOCUS (CSV)                   ─┘                           ├─► Day(ours, theirs, explained)
    mlcloud's costs by day ────────────────────────────────────┘

Ours is compute. What the bill has of storage, network, tax, credits and other services is told
apart, and explains its part of the difference; what is left over is `unexplained`, and worth a
look: a node that mlcloud does not know of, another price, seconds that the cloud rounds up.

Shapes: https://docs.aws.amazon.com/aws-cost-management/latest/APIReference/API_GetCostAndUsage.html
https://docs.aws.amazon.com/cur/latest/userguide/table-dictionary-cur2.html
https://focus.finops.org/focus-specification/
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple

from mlcloud.cluster.clouds.tags import CLUSTER
from mlcloud.errors import UsageError

COMPUTE, STORAGE, EGRESS, TAX, CREDIT, OTHER = (
    "compute", "storage", "egress", "tax", "credit", "other",
)  # fmt: skip
_ZERO = Decimal(0)


class Line(NamedTuple):
    """So many dollars of a kind on a day (UTC), as the cloud bills them."""

    day: date
    kind: str
    usd: Decimal


@dataclass
class Day:
    """`theirs` by kind; `ours` is compute alone."""

    day: date
    ours: Decimal = _ZERO
    theirs: dict[str, Decimal] = field(default_factory=dict)

    @property
    def billed(self) -> Decimal:
        return sum(self.theirs.values(), _ZERO)

    @property
    def difference(self) -> Decimal:
        """What the cloud bills beyond ours."""
        return self.billed - self.ours

    @property
    def explained(self) -> Decimal:
        """What of the difference is not compute."""
        return self.billed - self.theirs.get(COMPUTE, _ZERO)

    @property
    def unexplained(self) -> Decimal:
        return self.difference - self.explained


def reconcile(ours: Mapping[date, Decimal], lines: Iterable[Line]) -> list[Day]:
    """Each day that either knows, in order."""
    days = {day: Day(day, usd) for day, usd in ours.items()}
    for line in lines:
        theirs = days.setdefault(line.day, Day(line.day)).theirs
        theirs[line.kind] = theirs.get(line.kind, _ZERO) + line.usd
    return [days[day] for day in sorted(days)]


def read(path: str | Path, cluster: str | None = None) -> list[Line]:
    """The lines of a bill: JSON of Cost Explorer, CSV of CUR or FOCUS, also gzipped.

    With `cluster` only what carries that tag, where the file has tags at all. Raises `UsageError`.
    """
    path = Path(path).expanduser()
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UsageError(f"the bill {path} cannot be read: {error}") from None
    try:
        if text.lstrip().startswith("{"):
            return list(cost_explorer(json.loads(text)))
        return list(_csv(text, cluster))
    except (KeyError, TypeError, ValueError, InvalidOperation) as error:
        raise UsageError(
            f"{path} is not a bill in a form known here (Cost Explorer's JSON, CUR 2.0 or FOCUS "
            f"as CSV): {type(error).__name__} {error}"
        ) from None


# --- Cost Explorer --------------------------------------------------------------------------------


def from_aws(cluster: str, since: date, until: date, client: Any = None) -> list[Line]:
    """Ask Cost Explorer, by the tag that every resource of a cluster carries.

    The tag must be activated as a cost allocation tag in the billing console; each request costs
    $0.01. Raises what boto3 raises.
    """
    if client is None:
        import boto3

        client = boto3.client("ce", region_name="us-east-1")
    request: dict[str, Any] = {
        "TimePeriod": {"Start": since.isoformat(), "End": until.isoformat()},
        "Granularity": "DAILY",
        "Metrics": ["UnblendedCost"],
        "Filter": {"Tags": {"Key": CLUSTER, "Values": [cluster], "MatchOptions": ["EQUALS"]}},
        "GroupBy": [
            {"Type": "DIMENSION", "Key": "SERVICE"},
            {"Type": "DIMENSION", "Key": "USAGE_TYPE"},
        ],
    }
    lines: list[Line] = []
    while True:
        answer = client.get_cost_and_usage(**request)
        lines += cost_explorer(answer)
        token = answer.get("NextPageToken")
        if not token:
            return lines
        request["NextPageToken"] = token


def cost_explorer(answer: Mapping[str, Any]) -> Iterator[Line]:
    """Of an answer by SERVICE, USAGE_TYPE or RECORD_TYPE, or without groups (all compute)."""
    for result in answer["ResultsByTime"]:
        day = date.fromisoformat(result["TimePeriod"]["Start"][:10])
        for group in result.get("Groups") or []:
            yield Line(day, _kind(*group["Keys"]), _metric(group["Metrics"]))
        if not result.get("Groups") and result.get("Total"):
            yield Line(day, COMPUTE, _metric(result["Total"]))


def _metric(metrics: Mapping[str, Mapping[str, str]]) -> Decimal:
    name = next(n for n in ("UnblendedCost", "NetUnblendedCost", *metrics) if n in metrics)
    if metrics[name].get("Unit", "USD") != "USD":
        raise ValueError(f"an amount in {metrics[name]['Unit']}, not in USD")
    return Decimal(metrics[name]["Amount"])


def _kind(*words: str) -> str:
    """What a service and a usage type are."""
    text = " ".join(words).casefold()
    service = words[0].casefold() if words else ""
    if "tax" in text.split() or service == "tax":
        return TAX
    if any(word in text for word in ("credit", "refund", "discount")):
        return CREDIT
    if any(word in text for word in ("datatransfer", "out-bytes", "data transfer", "natgateway")):
        return EGRESS
    if any(word in text for word in ("ebs:", "storage", "s3", "snapshot")):
        return STORAGE
    if any(word in text for word in ("boxusage", "spotusage", "compute", "amazonec2", "usage")):
        return COMPUTE
    return OTHER


# --- CUR and FOCUS --------------------------------------------------------------------------------


def _csv(text: str, cluster: str | None) -> Iterator[Line]:
    reader = csv.DictReader(text.splitlines())
    names = set(reader.fieldnames or ())
    if "BilledCost" in names:
        rows = map(_focus, reader)
    elif "line_item_unblended_cost" in names or "lineItem/UnblendedCost" in names:
        rows = map(_cur, reader)
    else:
        raise ValueError("the CSV has neither BilledCost nor line_item_unblended_cost")
    for line, tags in rows:
        if cluster is None or tags is None or tags.get(CLUSTER) == cluster:
            yield line


def _focus(row: Mapping[str, str]) -> tuple[Line, dict[str, str] | None]:
    if row.get("BillingCurrency", "USD") != "USD":
        raise ValueError(f"an amount in {row['BillingCurrency']}, not in USD")
    category, service = row["ChargeCategory"], row.get("ServiceCategory", "")
    if category == "Tax":
        kind = TAX
    elif category in ("Credit", "Adjustment"):
        kind = CREDIT
    else:
        kinds = {"Compute": COMPUTE, "Storage": STORAGE, "Networking": EGRESS}
        kind = kinds.get(service, OTHER)
    line = Line(_day(row["ChargePeriodStart"]), kind, Decimal(row["BilledCost"]))
    return line, _tags(row.get("Tags")) if "Tags" in row else None


def _cur(row: Mapping[str, str]) -> tuple[Line, dict[str, str] | None]:
    new = "line_item_unblended_cost" in row

    def value(snake: str, legacy: str) -> str:
        return (row.get(snake if new else legacy) or "").strip()

    if value("line_item_currency_code", "lineItem/CurrencyCode") not in ("", "USD"):
        raise ValueError("an amount that is not in USD")
    type_ = value("line_item_line_item_type", "lineItem/LineItemType")
    usage = value("line_item_usage_type", "lineItem/UsageType")
    product = value("line_item_product_code", "lineItem/ProductCode")
    if type_ == "Tax":
        kind = TAX
    elif type_ in ("Credit", "Refund", "EdpDiscount", "BundledDiscount", "PrivateRateDiscount"):
        kind = CREDIT
    else:
        kind = _kind(product, usage)
    usd = Decimal(value("line_item_unblended_cost", "lineItem/UnblendedCost") or "0")
    line = Line(_day(value("line_item_usage_start_date", "lineItem/UsageStartDate")), kind, usd)
    if "resource_tags" in row:
        return line, {k.removeprefix("user_"): v for k, v in _tags(row["resource_tags"]).items()}
    for name in (f"resourceTags/user:{CLUSTER}", f"resource_tags_user_{CLUSTER.replace('-', '_')}"):
        if name in row:
            return line, {CLUSTER: row[name]}
    return line, None


def _tags(text: str | None) -> dict[str, str]:
    if not text:
        return {}
    found = json.loads(text)
    if isinstance(found, list):  # a map as some engines write it: pairs
        found = dict(found)
    return {str(key).replace("user_mlcloud_cluster", CLUSTER): str(v) for key, v in found.items()}


def _day(text: str) -> date:
    """The day of a time such as `2026-01-31T00:00:00Z`, or with a space, in UTC."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00").replace(" UTC", "+00:00"))
    return (moment.astimezone(timezone.utc) if moment.utcoffset() is not None else moment).date()


def days_between(since: date, until: date) -> list[date]:
    return [since + timedelta(days=n) for n in range((until - since).days)]
