"""What a failure of a disk or of a cloud client means: full, already there, or worth another try.

Disks raise `OSError` with an errno. fsspec's cloud filesystems raise `OSError`s too, made from the
client's own exception, which stays reachable as the cause and often knows more.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}
_FULL_CODES = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"}
_EXISTS_CODES = {"PreconditionFailed", "412"}
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
)
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
    """The error code of a cloud client's exception (botocore's form), or ''."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        detail = response.get("Error")
        if isinstance(detail, dict):
            return str(detail.get("Code", ""))
    return ""


def says_full(error: BaseException) -> bool:
    """True when the error means that there is no room left."""
    return any(
        (isinstance(e, OSError) and e.errno in _FULL_ERRNOS) or _code(e) in _FULL_CODES
        for e in causes(error)
    )


def says_exists(error: BaseException) -> bool:
    """True for a refused conditional create.

    s3fs says FileExistsError only when the server names the failed condition; several servers do
    not, and then it is an EINVAL caused by a 412.
    """
    return isinstance(error, FileExistsError) or any(
        _code(e) in _EXISTS_CODES for e in causes(error)
    )


def is_transient(error: BaseException) -> bool:
    """True when the same request may succeed a little later."""
    if isinstance(error, _DEFINITE) or says_full(error):
        return False
    return not (isinstance(error, OSError) and error.errno in _DEFINITE_ERRNOS)
