"""What Compute Engine's refusals mean.

A refusal comes in one of two forms, an HTTP error or the `error` of an operation that was accepted
and failed later, and both hold a list of codes:

    HTTP       {"error": {"code": 403, "message": …, "errors": [{"reason": "quotaExceeded"}],
                          "details": [{"@type": "…ErrorInfo", "reason": "SERVICE_DISABLED"}]}}
    operation  {"error": {"errors": [{"code": "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
                                      "message": …, "errorDetails": [{"quotaInfo": {…}}]}]}}

Codes: https://cloud.google.com/compute/docs/troubleshooting/troubleshooting-vm-creation and
https://cloud.google.com/compute/docs/troubleshooting/troubleshooting-resource-availability
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlcloud.errors import (
    CloudCredentialsExpired,
    CloudRefused,
    MLCloudError,
    NoCapacity,
    QuotaExceeded,
)

#: The zone (or region) has none left of what was asked.
_FULL = re.compile(
    r"(?:ZONE_|REGION_)?RESOURCE_POOL_EXHAUSTED(?:_WITH_DETAILS)?"
    r"|(?:[A-Z]+_)?STOCKOUT|insufficientCapacity|resourcePoolExhausted"
)
_QUOTA = {"QUOTA_EXCEEDED", "quotaExceeded", "LIMIT_EXCEEDED", "limitExceeded"}
_OFF = {"accessNotConfigured", "SERVICE_DISABLED"}
_EXPIRED = {"authError", "ACCESS_TOKEN_EXPIRED", "UNAUTHENTICATED", "CREDENTIALS_MISSING"}
#: Too many calls: worth another try in a moment.
RATE = {"rateLimitExceeded", "userRateLimitExceeded", "RATE_LIMIT_EXCEEDED"}


def codes(error: Mapping[str, Any]) -> list[str]:
    """Every code in an error of either form, the most telling first."""
    found = [str(each.get("code") or each.get("reason")) for each in error.get("errors", [])]
    found += [str(each["reason"]) for each in error.get("details", []) if "reason" in each]
    return [*found, *([str(error["status"])] if "status" in error else [])]


def refusal(error: Mapping[str, Any], *, what: str, project: str) -> MLCloudError:
    """The exception that an error of either form means. `what` says what was asked for."""
    found = codes(error)
    message = _message(error)
    if any(_FULL.fullmatch(code) for code in found):
        return NoCapacity(f"{what}: Google has none free there now ({found[0]}: {message})")
    if _QUOTA.intersection(found):
        return QuotaExceeded(
            f"{what}: {_quota(error) or message}; raise it at "
            f"https://console.cloud.google.com/iam-admin/quotas?project={project}"
        )
    if _EXPIRED.intersection(found) or error.get("code") == 401:
        return CloudCredentialsExpired(
            f"{what}: Google does not take the credentials any more ({message}); renew them: "
            "gcloud auth application-default login"
        )
    if _OFF.intersection(found):
        return CloudRefused(
            f"{what}: the Compute Engine API is off in project {project!r}; switch it on at "
            f"https://console.cloud.google.com/apis/library/compute.googleapis.com?project={project}"
        )
    if error.get("code") == 403:
        return CloudRefused(f"{what}: not allowed in project {project!r}: {message}")
    return CloudRefused(f"{what}: {message}{f' ({found[0]})' if found else ''}")


def _message(error: Mapping[str, Any]) -> str:
    parts = [error.get("message")] + [each.get("message") for each in error.get("errors", [])]
    return next((str(part).strip() for part in parts if part), "no reason given")


def _quota(error: Mapping[str, Any]) -> str | None:
    """Name, limit and region of the quota, which the error holds in parts or in words."""
    for each in error.get("errors", []):
        for detail in each.get("errorDetails", []):
            info = detail.get("quotaInfo")
            if info:
                name = info.get("limitName") or info.get("metricName")
                return _in_words(name, info.get("limit"), info.get("dimensions", {}).get("region"))
    said = re.search(r"Quota '([\w-]+)' exceeded\.\s+Limit: ([\d.]+)(?: in region ([\w-]+))?",
                     _message(error))  # fmt: skip
    return _in_words(*said.groups()) if said else None


def _in_words(name: object, limit: object, region: object) -> str:
    most = f"{float(str(limit)):g}" if limit is not None else "unknown"
    return f"quota {name} is used up (limit {most}, {region or 'all regions'})"
