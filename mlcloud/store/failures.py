"""What a failure of a disk or of a cloud client means: full, already there, expired, or worth
another try; and what to tell the user of it.

Disks raise `OSError` with an errno. fsspec's cloud filesystems raise `OSError`s too, made from the
client's own exception, which stays reachable as the cause and often knows more.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from datetime import datetime, timezone

from mlcloud import errors

_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}
_FULL_CODES = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"}
_RANGE_CODES = {"InvalidRange", "416"}
_EXISTS_CODES = {"PreconditionFailed", "412"}
# Credentials that were good and are not any more: of S3, of Azure; and exceptions of clients that
# could not renew them.
_EXPIRED_CODES = {
    *("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidAccessKeyId"),
    *("ExpiredAuthenticationToken", "InvalidAuthenticationInfo"),
}
_EXPIRED_ERRORS = {
    *("UnauthorizedSSOTokenError", "SSOTokenLoadError", "CredentialRetrievalError"),  # botocore
    "RefreshError",  # google.auth
}
# What arrived is not what was sent, or not all of it. s3fs makes an EINVAL of some.
_BROKEN_CODES = {"BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"}
_SKEWED_CODES = {"RequestTimeTooSkewed", "RequestInTheFuture", "RequestExpired"}
# What no repetition changes.
_DEFINITE = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    ValueError,
    TypeError,
    LookupError,
    ImportError,
    NotImplementedError,
    errors.MLCloudError,
)
# Of botocore, which has no base class for them.
_DEFINITE_ERRORS = {"ParamValidationError", "NoCredentialsError", "ProfileNotFound"}
_DEFINITE_ERRNOS = {errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENAMETOOLONG, errno.EMSGSIZE}


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, nearest first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _code(error: BaseException) -> str:
    """The error code of a cloud client's exception (botocore's form, or azure.core's), or ''."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        detail = response.get("Error")
        if isinstance(detail, dict):
            return str(detail.get("Code", ""))
    code = getattr(error, "error_code", "")
    return str(getattr(code, "value", code) or "")


def says_full(error: BaseException) -> bool:
    """True when the error means that there is no room left."""
    return any(
        (isinstance(e, OSError) and e.errno in _FULL_ERRNOS) or _code(e) in _FULL_CODES
        for e in causes(error)
    )


def says_beyond(error: BaseException) -> bool:
    """True when a range begins where the file has ended."""
    return any(_code(e) in _RANGE_CODES for e in causes(error))


def says_exists(error: BaseException) -> bool:
    """True for a refused conditional create.

    s3fs says FileExistsError only when the server names the failed condition; several servers do
    not, and then it is an EINVAL caused by a 412.
    """
    return isinstance(error, FileExistsError) or any(
        _code(e) in _EXISTS_CODES for e in causes(error)
    )


def says_expired(error: BaseException) -> bool:
    """True when credentials have expired or were withdrawn: others may do."""
    return any(
        _code(e) in _EXPIRED_CODES or type(e).__name__ in _EXPIRED_ERRORS for e in causes(error)
    )


def says_skewed(error: BaseException) -> bool:
    """True when the cloud refused a request because of the time that this machine put on it."""
    return any(_code(e) in _SKEWED_CODES for e in causes(error))


def says_only_no(error: BaseException) -> bool:
    """True for a refusal without a reason: the answer to a HEAD request has no room for one."""
    # Of the nearest that says something: those behind it may be of earlier requests.
    code = next(filter(None, map(_code, causes(error))), "")
    return isinstance(error, PermissionError) and code == "403"


def is_transient(error: BaseException) -> bool:
    """True when the same request may succeed a little later."""
    if isinstance(error, _DEFINITE) or type(error).__name__ in _DEFINITE_ERRORS:
        return False
    if says_full(error):
        return False
    if any(_code(e) in _BROKEN_CODES for e in causes(error)):
        return True
    return not (isinstance(error, OSError) and error.errno in _DEFINITE_ERRNOS)


def told(verb: str, url: str, error: BaseException, brief: str) -> errors.StoreError:
    """The error for the user. `brief`: the cause in words that may be shown."""
    brief = brief.strip().rstrip(".")[:300]
    if says_full(error):
        return errors.StoreFull(
            f"the store at {url} is full ({brief}); free space or pass store=...; what was "
            "committed before is intact"
        )
    if says_expired(error):
        return errors.CredentialsExpired(
            f"could not {verb} the store at {url}: the credentials have expired or were withdrawn "
            f"({brief}). What was committed before is intact. Renew them where they come from "
            "(`aws sso login`, environment, profile) and try again, in this process if you like"
        )
    if says_skewed(error):
        return errors.StoreError(
            f"could not {verb} the store at {url}: this machine's clock is wrong, it says "
            f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, and the server takes no request so "
            f"far from its own time ({brief}). Set it (`timedatectl set-ntp true`) and try again; "
            "what was committed before is intact"
        )
    return errors.StoreError(f"could not {verb} the store at {url}: {brief}")
