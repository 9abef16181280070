"""What Azure's refusals mean, and what an identity must be allowed to do.

Errors nest; the code that tells is often an inner one:

    {"error": {"code": "OperationNotAllowed", "message": "… exceeding approved
               standardNCADSA100v4Family Cores quota. … Location: westeurope, Current Limit: 0, …",
               "details": [{"code": …, "message": …}]}}

Codes: https://learn.microsoft.com/azure/azure-resource-manager/troubleshooting/common-deployment-errors
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlcloud.errors import (
    CloudCredentialsExpired,
    CloudRefused,
    MLCloudError,
    NoCapacity,
    QuotaExceeded,
)

_FULL = {
    "AllocationFailed",
    "OverconstrainedAllocationRequest",
    "OverconstrainedZonalAllocationRequest",
    "SkuNotAvailable",
    "SpotAllocationFailed",
    "ZonalAllocationFailed",
}
_QUOTA = {"QuotaExceeded", "ResourceQuotaExceeded", "PublicIPCountLimitReached"}
_EXPIRED = {"AuthenticationFailed", "ExpiredAuthenticationToken", "InvalidAuthenticationToken"}
_NOT_ALLOWED = {"AuthorizationFailed", "LinkedAuthorizationFailed", "RequestDisallowedByPolicy"}
_QUOTAS = "https://portal.azure.com/#view/Microsoft_Azure_Capacity/QuotaMenuBlade/~/myQuotas"


def refusal(error: Mapping[str, Any], *, what: str, status: int = 0) -> MLCloudError:
    """The exception that an error means. `what` says what was asked for."""
    found = dict(_flat(error))
    codes = found.keys()
    message = next((text for text in reversed(found.values()) if text), "no reason given")
    code = next(iter(codes), f"HTTP {status}")
    if quota := _quota(found):
        return QuotaExceeded(f"{what}: {quota}; raise it at {_QUOTAS}")
    if full := _FULL & codes:
        return NoCapacity(f"{what}: Azure has none free there now ({min(full)}: {message})")
    if _EXPIRED & codes or status == 401:
        return CloudCredentialsExpired(
            f"{what}: Azure does not take the credentials any more ({code}); renew them: az login"
        )
    if "MissingSubscriptionRegistration" in codes:
        return CloudRefused(
            f"{what}: the subscription does not use this part of Azure yet: az provider register "
            f"--namespace Microsoft.Compute (and Microsoft.Network). {message}"
        )
    if _NOT_ALLOWED & codes:
        return CloudRefused(f"{what}: not allowed: {message}")
    return CloudRefused(f"{what}: {message} ({code})")


def codes(error: Mapping[str, Any]) -> set[str]:
    return {code for code, _ in _flat(error)}


def _flat(error: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every code with its message, outside in."""
    yield str(error.get("code", "")), str(error.get("message", "")).strip()
    for inner in error.get("details") or []:
        yield from _flat(inner)
    if isinstance(error.get("innererror"), dict):
        yield from _flat(error["innererror"])


def _quota(found: Mapping[str, str]) -> str | None:
    """Which quota, with its limit, where one is what stands in the way."""
    for code, text in found.items():
        if code not in _QUOTA and not (code == "OperationNotAllowed" and "quota" in text.lower()):
            continue
        name = re.search(r"approved (.+?) quota", text)
        place = re.search(r"Location: ([\w-]+)", text)
        most = re.search(r"(?:Current Limit|Maximum allowed): (\d+)", text)
        needed = re.search(r"New Limit Required: (\d+)", text)
        if not most:
            return text
        parts = [f"limit {most[1]}", *([place[1]] if place else [])]
        parts += [f"{needed[1]} needed"] if needed else []
        called = f"quota {name[1]}" if name else "a quota of cores"
        return f"{called} is used up ({', '.join(parts)})"
    return None


def roles(subscription: str, resource_group: str) -> dict[str, dict[str, Any]]:
    """Role definitions, as `az role definition create --role-definition` takes them.

    `end_itself` is for the identity of nodes (`network: {identity: …}`), so that their dead-man
    switch can delete the machine; a head's needs `launch` too. Scope both to the cluster's resource
    group, or what a node may delete is every machine of the subscription.
    """
    scope = [f"/subscriptions/{subscription}/resourceGroups/{resource_group}"]
    compute, network = "Microsoft.Compute", "Microsoft.Network"
    end = [f"{compute}/virtualMachines/read", f"{compute}/virtualMachines/delete"]
    launch = [
        *end,
        f"{compute}/virtualMachines/write",
        f"{compute}/disks/read",
        f"{compute}/disks/write",
        f"{compute}/disks/delete",
        f"{network}/networkInterfaces/*",
        f"{network}/publicIPAddresses/*",
        f"{network}/networkSecurityGroups/*",
        f"{network}/virtualNetworks/*",
        f"{network}/natGateways/*",
        "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action",
        "Microsoft.Resources/subscriptions/resourceGroups/read",
        "Microsoft.Resources/subscriptions/resourceGroups/write",
        "Microsoft.Resources/subscriptions/resourceGroups/delete",
    ]
    return {
        name: {
            "Name": f"mlcloud {name.replace('_', ' ')}",
            "IsCustom": True,
            "Description": "What mlcloud needs.",
            "Actions": actions,
            "NotActions": [],
            "AssignableScopes": scope,
        }
        for name, actions in {"end_itself": end, "launch": launch}.items()
    }
