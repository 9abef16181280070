"""Which quota an instance counts against, and how much of it the account has.

Instances are limited by vCPUs, for each region and market apart, by groups of families. A new
account has 0 for GPUs on spot, so the answer to "why not" is very often here.

Names and families: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-quotas.html,
spot: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/using-spot-limits.html. Codes: the tables
of https://docs.aws.amazon.com/general/latest/gr/ec2-service.html.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlcloud.cluster.offers import Market, Offer


@dataclass(frozen=True)
class Rule:
    """One quota: its code, its name in the console, and the families that count against it."""

    code: str
    name: str
    market: Market
    families: tuple[str, ...]


@dataclass(frozen=True)
class Quota:
    """What the account may have of it in one region, in vCPUs."""

    rule: Rule
    region: str
    vcpus: float

    @property
    def url(self) -> str:
        return console(self.region, self.rule.code)


_STANDARD = ("a", "c", "d", "h", "i", "im", "is", "m", "r", "t", "z")

RULES: tuple[Rule, ...] = (
    Rule(
        "L-1216C47A",
        "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances",
        "on-demand",
        _STANDARD,
    ),
    Rule("L-DB2E81BA", "Running On-Demand G and VT instances", "on-demand", ("g", "gr", "vt")),
    Rule("L-417A185B", "Running On-Demand P instances", "on-demand", ("p",)),
    Rule("L-74FC7D96", "Running On-Demand F instances", "on-demand", ("f",)),
    Rule("L-1945791B", "Running On-Demand Inf instances", "on-demand", ("inf",)),
    Rule("L-2C3B7624", "Running On-Demand Trn instances", "on-demand", ("trn",)),
    Rule("L-6E869C2A", "Running On-Demand DL instances", "on-demand", ("dl",)),
    Rule("L-7295265B", "Running On-Demand X instances", "on-demand", ("x",)),
    Rule("L-F7808C92", "Running On-Demand HPC instances", "on-demand", ("hpc",)),
    Rule("L-43DA4232", "Running On-Demand High Memory instances", "on-demand", ("u",)),
    Rule(
        "L-34B43A08",
        "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests",
        "spot",
        _STANDARD,
    ),
    Rule("L-3819A6DF", "All G and VT Spot Instance Requests", "spot", ("g", "gr", "vt")),
    # P5 had a quota of its own (L-C4BD4855) and is counted here where the account no longer has it.
    Rule("L-7212CCBC", "All P Spot Instance Requests", "spot", ("p",)),
    Rule("L-C4BD4855", "All P5 Spot Instance Requests", "spot", ("p5",)),
    Rule("L-88CF9481", "All F Spot Instance Requests", "spot", ("f",)),
    Rule("L-B5D1601B", "All Inf Spot Instance Requests", "spot", ("inf",)),
    Rule("L-6B0D517C", "All Trn Spot Instance Requests", "spot", ("trn",)),
    Rule("L-85EED4F7", "All DL Spot Instance Requests", "spot", ("dl",)),
    Rule("L-E3A00192", "All X Spot Instance Requests", "spot", ("x",)),
)
BY_CODE = {rule.code: rule for rule in RULES}
_P5_SPOT = BY_CODE["L-C4BD4855"]


def family(instance_type: str) -> str:
    """The letters before the generation: `g` of `g5.xlarge`, `trn` of `trn1.2xlarge`."""
    match = re.match(r"[a-z]+", instance_type)
    return match[0] if match else ""


def rule_of(instance_type: str, market: Market) -> Rule | None:
    """The quota that a type counts against; None for one that no rule names."""
    letters = family(instance_type)
    return next(
        (rule for rule in RULES if rule.market == market and letters in rule.families), None
    )


def console(region: str, code: str = "") -> str:
    """Where the quota is raised."""
    path = f"quotas/{code}" if code else "quotas"
    return f"https://{region}.console.aws.amazon.com/servicequotas/home/services/ec2/{path}"


def read(listed: Iterable[Mapping[str, Any]], region: str) -> dict[str, Quota]:
    """The quotas on vCPUs among what `service-quotas list-service-quotas` lists, by code."""
    return {
        rule.code: Quota(rule, region, float(each["Value"]))
        for each in listed
        if (rule := BY_CODE.get(str(each["QuotaCode"]))) is not None
    }


def lacking(offer: Offer, quotas: Mapping[str, Quota]) -> str | None:
    """Why not even one machine of `offer` can be had under `quotas`; None where one can, or where
    it is not known."""
    rule = rule_of(offer.instance_type, offer.market)
    if rule is None:
        return None
    if offer.market == "spot" and re.match(r"p5\w*\.", offer.instance_type):
        rule = _P5_SPOT if _P5_SPOT.code in quotas else rule
    quota = quotas.get(rule.code)
    if quota is None or quota.vcpus >= offer.cpus:
        return None
    return (
        f"{offer.instance_type} {offer.market} in {offer.region} needs {offer.cpus:g} vCPUs, and "
        f"the account's quota {rule.code} ({rule.name!r}) is {quota.vcpus:g}; raise it "
        f"at {quota.url}"
    )
