"""What a user gives a cloud's own client: encryption by the server, endpoints, profiles, tokens.

    Store("s3://…", options={"s3_additional_kwargs": {"ServerSideEncryption": "aws:kms", …}})
    Store("gs://…", options={"token": "/path/to/service-account.json"})
    Store("s3://…", options=lambda: {"key": …, "secret": …, "token": …})    asked anew when expired

They go to fsspec's filesystem as they are (`s3fs.S3FileSystem`, `gcsfs.GCSFileSystem`,
`adlfs.AzureBlobFileSystem`), and what may be a secret among them is never shown.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeAlias

from mlcloud import errors

OptionsSource: TypeAlias = Mapping[str, Any] | Callable[[], Mapping[str, Any]]

# Values that help in a message and open no door. All others are taken for secrets.
_PUBLIC = {
    *("endpoint_url", "region_name", "profile", "project", "account_name", "account_host", "anon"),
    *("ServerSideEncryption", "SSEKMSKeyId", "SSECustomerAlgorithm", "addressing_style"),
    *("signature_version", "default_location", "access", "consistency", "StorageClass", "ACL"),
}
_SHORT = 6  # shorter ones would be found in any text


class Options:
    """Options for a filesystem. Shows their names only, and cannot be pickled."""

    def __init__(self, given: OptionsSource) -> None:
        if not callable(given) and not isinstance(given, Mapping):
            raise errors.UsageError(
                f"a store's options are a dict or a function that gives one, "
                f"not a {type(given).__name__}"
            )
        self._given = given
        self._secrets: set[str] = set()

    def __repr__(self) -> str:
        names = "…" if callable(self._given) else ", ".join(map(str, self._given))
        return f"Options({names})"

    def __reduce__(self) -> NoReturn:
        raise errors.NotPicklable("a store's options are not pickled: they may hold secrets")

    def now(self) -> dict[str, Any]:
        """As they are now: a function is asked again."""
        found = dict(self._given() if callable(self._given) else self._given)
        self._secrets |= set(_secrets(found))
        return found

    def hides(self, text: str) -> bool:
        """Whether a text has one of the secrets in it."""
        return any(secret in text for secret in self._secrets)

    def without_secrets(self, text: str) -> str:
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, "…")
        return text


def _secrets(value: Any, name: str = "") -> Iterator[str]:
    """The texts by which secrets in it could be shown."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _secrets(item, str(key))
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _secrets(item, name)
    elif name in _PUBLIC or not isinstance(value, str | bytes) or len(value) < _SHORT:
        return
    elif isinstance(value, str):
        yield value
        yield repr(value)[1:-1]
    else:
        yield repr(value)[2:-1]
        yield base64.b64encode(value).decode()
        yield value.hex()
