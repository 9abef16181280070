"""What AWS says no with, as mlcloud's errors: capacity, quota, credentials and rights told apart.

Codes: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html. Every message
names the region, and the zone, type and market where there are any.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlcloud.cluster.clouds.aws import quotas
from mlcloud.cluster.offers import Offer
from mlcloud.errors import (
    CloudCredentialsExpired,
    CloudRefused,
    CredentialsMissing,
    MLCloudError,
    NoCapacity,
    QuotaExceeded,
    UsageError,
)
from mlcloud.units import suggest

Decode = Callable[[str], str | None]

# The zone has none, or cannot have any: another zone, type or market may.
CAPACITY = {
    "InsufficientInstanceCapacity",
    "InsufficientCapacity",
    "InsufficientHostCapacity",
    "InsufficientFreeAddressesInSubnet",
    "ReservationCapacityExceeded",
    "SpotMaxPriceTooLow",
    "UnfulfillableCapacity",
    "Unsupported",
}
QUOTA = {
    "AddressLimitExceeded",
    "InstanceLimitExceeded",
    "MaxIOPSLimitExceeded",
    "MaxSpotInstanceCountExceeded",
    "SecurityGroupLimitExceeded",
    "VcpuLimitExceeded",
    "VolumeLimitExceeded",
}
MISSING = {
    "AuthFailure",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "MissingAuthenticationToken",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
FORBIDDEN = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"}
THROTTLED = {
    "EC2ThrottledException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}
# The server's own trouble: the same request may do a moment later.
TRANSIENT = {"InternalError", "InternalFailure", "ServiceUnavailable", "Unavailable"}

# The account's very first spot instance makes a role of AWS's own.
SPOT_ROLE = "AuthFailure.ServiceLinkedRoleCreationNotPermitted"

_ENCODED = re.compile(r"Encoded authorization failure message: (\S+)")


@dataclass(frozen=True)
class Errand:
    """What was being done, and where. `types` are the instance types that the catalogue knows."""

    doing: str
    region: str
    offer: Offer | None = None
    types: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        if self.offer is None:
            return self.region
        return (
            f"{self.offer.instance_type} {self.offer.market} in {self.offer.zone} "
            f"(region {self.region})"
        )

    def __str__(self) -> str:
        return f"{self.doing}{' ' if self.offer else ' in '}{self.place}"


def code_of(error: BaseException) -> str:
    """AWS's error code, empty for an error that is none of its answers."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", ""))
    return code.removeprefix("Server.").removeprefix("Client.")


def message_of(error: BaseException) -> str:
    response: dict[str, Any] = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Message", "") or error)


def passing(error: BaseException) -> bool:
    """Whether the same request may be answered a moment later: throttled, a server's or a line's
    trouble; never for want of capacity."""
    from botocore.exceptions import ConnectionError, HTTPClientError
    from botocore.parsers import ResponseParserError

    if isinstance(error, ConnectionError | HTTPClientError | ResponseParserError):
        return True
    code = code_of(error)
    if code in THROTTLED or code in TRANSIENT:
        return True
    response: dict[str, Any] = getattr(error, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status >= 500 and code not in CAPACITY | QUOTA


def told(error: Exception, errand: Errand, decode: Decode | None = None) -> MLCloudError:
    """The error of ours that says what `error`, one of botocore's, means."""
    from botocore import exceptions

    expired: tuple[type[Exception], ...] = (
        exceptions.SSOError,
        exceptions.TokenRetrievalError,
        exceptions.LoginError,
    )
    missing: tuple[type[Exception], ...] = (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.CredentialRetrievalError,
        exceptions.NoAuthTokenError,
        exceptions.ProfileNotFound,
    )
    if isinstance(error, expired):
        return _expired(errand, str(error))
    if isinstance(error, missing):
        return _missing(errand, str(error))
    if isinstance(error, exceptions.ParamValidationError):
        return UsageError(f"{errand}: AWS's own schema does not take this request: {error}")
    if not isinstance(error, exceptions.ClientError):
        return CloudRefused(
            f"AWS was not reached, {errand}: {error}. What runs goes on; it is tried again with "
            "the next request. Behind a proxy set HTTPS_PROXY."
        )
    code, message = code_of(error), message_of(error)
    said = f"{code}: {message}"
    if code in CAPACITY:
        return NoCapacity(f"AWS has no {errand.place} now ({said})")
    if code in QUOTA:
        return _quota(code, errand, said)
    if code in EXPIRED:
        return _expired(errand, said)
    if code in MISSING:
        return _missing(errand, said)
    if code in FORBIDDEN or code == SPOT_ROLE:
        return _forbidden(error, errand, message, decode)
    if code in THROTTLED:
        return CloudRefused(f"AWS takes no more requests for a while, {errand} ({said})")
    return CloudRefused(f"AWS refused, {errand}: {said}{_hint(code, message, errand)}")


def _quota(code: str, errand: Errand, said: str) -> QuotaExceeded:
    vcpus = code in {"InstanceLimitExceeded", "MaxSpotInstanceCountExceeded", "VcpuLimitExceeded"}
    rule = quotas.rule_of(errand.offer.instance_type, errand.offer.market) if errand.offer else None
    if not (vcpus and rule):
        return QuotaExceeded(
            f"the account's quota is reached, {errand} ({said}); raise it at "
            f"{quotas.console(errand.region)}"
        )
    return QuotaExceeded(
        f"the account may have no more vCPUs for {errand.place}: quota {rule.code} "
        f"({rule.name!r}) is reached; raise it at {quotas.console(errand.region, rule.code)} "
        f"({said})"
    )


def _expired(errand: Errand, said: str) -> CloudCredentialsExpired:
    return CloudCredentialsExpired(
        f"AWS does not take the credentials any more, {errand} ({said}). Renew them (`aws sso "
        "login`, or new keys) and go on; they are read again. Where they are fresh, look at the "
        "clock: AWS takes no request that is more than five minutes off."
    )


def _missing(errand: Errand, said: str) -> CredentialsMissing:
    return CredentialsMissing(
        f"AWS has no valid credentials from here, {errand} ({said}): set AWS_PROFILE, or "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`; `aws sts "
        "get-caller-identity` tells whether they work"
    )


def _forbidden(
    error: Exception, errand: Errand, message: str, decode: Decode | None
) -> CloudRefused:
    encoded = _ENCODED.search(message)
    plain = decode(encoded[1]) if encoded and decode else None
    context: dict[str, Any] = {}
    denied = "explicit deny" in message.lower()
    if plain:
        decoded = json.loads(plain)
        context = decoded.get("context", {})
        denied = bool(decoded.get("explicitDeny"))
    action = context.get("action") or _action(error, message)
    resource = context.get("resource") or "*"
    who = (context.get("principal") or {}).get("arn") or "this identity"
    text = f"AWS does not let {who} do {action} on {resource}, {errand}. "
    if denied:
        return CloudRefused(
            text + "A Deny says so (in a policy, a boundary or the organisation's): an "
            "administrator must lift it."
        )
    line: dict[str, Any] = {"Effect": "Allow", "Action": action, "Resource": resource}
    if not action.startswith(("iam:", "sts:")):
        line["Condition"] = {"StringEquals": {"aws:RequestedRegion": errand.region}}
    return CloudRefused(
        f"{text}Add to its policy: {json.dumps(line)} (all that mlcloud needs: "
        "mlcloud.cluster.clouds.aws.policies.user_policy)"
    )


def _action(error: Exception, message: str) -> str:
    if code_of(error) == SPOT_ROLE:
        return "iam:CreateServiceLinkedRole"
    named = re.search(r"not authorized to perform:? (\S+:\w+)", message)
    if named:
        return named[1]
    operation = str(getattr(error, "operation_name", "") or "?")
    return f"ec2:{operation}"


def _hint(code: str, message: str, errand: Errand) -> str:
    offer = errand.offer
    if offer is None:
        return ""
    if offer.instance_type in message and "InstanceType" in message:
        known = set(errand.types) - {offer.instance_type}
        return f"{suggest(offer.instance_type, known)}. EC2 has no type of this name in the region."
    if code == "OptInRequired":
        return f". Enable {errand.region} for the account, or accept the image's terms."
    if code == "PendingVerification":
        return ". AWS is still looking at this account; it takes minutes to hours."
    return ""
