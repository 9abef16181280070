"""Signatures over manifests: who may say "load this".

A hash says that bytes are what was written; it does not say who wrote them. Pickled parts of a
session are loaded only from a manifest that the gateway signed. The key stays on the gateway:
`Store.commit(sign=signer.sign)` and `Store.read(verify=signer.verify)` are called there, and no
worker, where users' code runs, ever holds it.

HMAC-SHA256 (RFC 2104) over the manifest's canonical JSON, compared in constant time.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
import uuid
from pathlib import Path

from mlcloud import errors

KEY_BYTES = 32


class Signer:
    """Signs and verifies with one secret key of at least 16 bytes."""

    def __init__(self, key: bytes) -> None:
        if len(key) < 16:
            raise errors.UsageError(f"a signing key needs at least 16 bytes, this has {len(key)}")
        self._key = key

    def sign(self, data: bytes) -> str:
        return "hmac-sha256:" + hmac.new(self._key, data, hashlib.sha256).hexdigest()

    def verify(self, data: bytes, signature: str) -> bool:
        return hmac.compare_digest(self.sign(data).encode(), signature.encode(errors="replace"))

    @property
    def fingerprint(self) -> str:
        """Which key this is, without telling anything of it."""
        return self.sign(b"mlcloud: which key is this?").removeprefix("hmac-sha256:")[:16]

    def __repr__(self) -> str:  # never the key
        return "Signer(…)"


def load_or_create_key(path: str | os.PathLike[str]) -> bytes:
    """The key in the file, made with mode 0600 when there is none.

    Processes that race get the same key. Raises StoreError when the file is damaged or when others
    may read it.
    """
    path = Path(path)
    if not path.exists():
        write_private(path, secrets.token_bytes(KEY_BYTES), "the signing key")
    key = read_private(path, "the signing key")
    if len(key) != KEY_BYTES:
        raise errors.StoreError(
            f"the signing key {path} is damaged: {len(key)} bytes, expected {KEY_BYTES}. Restore "
            "it from a backup; with a new key, what the old one signed is no longer trusted"
        )
    return key


def read_private(path: Path, what: str) -> bytes:
    """A secret file. Raises StoreError where others may read it, or it cannot be read."""
    try:
        if os.name != "nt" and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise errors.StoreError(
                f"{what} {path} can be read by others; run: chmod 600 {path} "
                "(and make a new one if somebody may have read it)"
            )
        return path.read_bytes()
    except OSError as error:
        raise errors.StoreError(f"{what} {path} cannot be read: {error}") from error


def write_private(path: Path, data: bytes, what: str) -> bool:
    """Write a secret file with mode 0600; False, and nothing is written, where there is one."""
    temp = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # A link, not a rename: the first of several processes wins and all read its key.
        try:
            os.link(temp, path)
        except FileExistsError:
            return False
        return True
    except OSError as error:
        raise errors.StoreError(f"{what} {path} cannot be made: {error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temp.unlink()
