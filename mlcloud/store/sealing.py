"""Sealing: what leaves this process is encrypted, and only who has the key can read it.

A sealed chunk is a file 48 bytes longer than its content, and a sealed manifest has a body of its
own (`manifest`), made the same way:

    │ magic 8 │ key's fingerprint 8 │ nonce 12 │ crc32 of these 4 │ AES-256-GCM of it … │ tag 16 │

Additional data of a chunk is its name, and of a manifest its place, time and objects, so nothing
that was sealed passes for another. A chunk's name is the keyed blake3 of its content: what is equal
is still stored once, and the name tells nothing to who has no key. What can be seen without one:
kinds, names, steps and times, how many chunks there are, which steps share them, and their sizes.

One key gives three by blake3's key derivation: to name, to seal, and the fingerprint that says
which key is needed. Nonces are random: 2^32 chunks and manifests are safe under one key (NIST SP
800-38D), which is 64 EiB in full ones.

Sealing hides; it does not tell who wrote. A store with a key also reads steps that are not sealed,
so whoever may write to the bucket can put plain ones there.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import os
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from blake3 import blake3

from mlcloud import errors
from mlcloud.store import manifest as manifests
from mlcloud.store.manifest import Manifest, canonical

KEY_BYTES = 32
MAGIC = b"mlcseal\x01"
FINGERPRINT_BYTES, NONCE_BYTES, TAG_BYTES = 8, 12, 16
HEADER_BYTES = len(MAGIC) + FINGERPRINT_BYTES + NONCE_BYTES + 4
OVERHEAD = HEADER_BYTES + TAG_BYTES

_CONTEXT = "mlcloud 2026-01 store: "
_NONCE = slice(len(MAGIC) + FINGERPRINT_BYTES, HEADER_BYTES - 4)
_CRC = slice(HEADER_BYTES - 4, HEADER_BYTES)
# Between two of these other threads may run, such as the training's.
_PIECE = 2**20
_KEPT = 4  # buffers for the sealed form: fresh memory costs as much as sealing


class Key:
    """A key and what is derived from it. Shows its fingerprint only, and cannot be pickled."""

    __slots__ = ("_naming", "_sealing", "fingerprint")

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise errors.UsageError(f"a store's key has {KEY_BYTES} bytes, this has {len(key)}")
        _library()  # said here, not at the first chunk

        def derive(purpose: str, size: int = KEY_BYTES) -> bytes:
            return blake3(key, derive_key_context=_CONTEXT + purpose).digest(size)

        self._naming, self._sealing = derive("names of chunks"), derive("sealing")
        self.fingerprint = derive("fingerprint of the key", FINGERPRINT_BYTES).hex()

    def __repr__(self) -> str:
        return f"Key({self.fingerprint})"

    def __reduce__(self) -> NoReturn:
        raise errors.NotPicklable(
            f"the key {self.fingerprint} of a store is not pickled, lest it lies where it should "
            "not: load it where it is used (a file, env:VARIABLE or a function)"
        )

    def naming(self) -> blake3:
        """To be given a chunk's content: its `hexdigest` is what the chunk is called."""
        return blake3(key=self._naming)

    def seal(self, name: bytes, data: memoryview, into: memoryview) -> None:
        """Write the sealed form of `data` into memory that is `OVERHEAD` longer."""
        nonce = os.urandom(NONCE_BYTES)
        head = MAGIC + bytes.fromhex(self.fingerprint) + nonce
        into[:HEADER_BYTES] = head + zlib.crc32(head).to_bytes(4, "little")
        work = self._cipher(nonce).encryptor()
        work.authenticate_additional_data(name)
        body = into[HEADER_BYTES:-TAG_BYTES]
        for start in range(0, data.nbytes, _PIECE):
            work.update_into(data[start : start + _PIECE], body[start : start + _PIECE])
        work.finalize()
        into[-TAG_BYTES:] = work.tag

    def open(self, name: bytes, raw: memoryview, into: memoryview) -> bool:
        """Write the content of a sealed form into memory of its size; False: it is damaged.

        What is in `into` then is of no meaning.
        """
        work = self._cipher(bytes(raw[_NONCE])).decryptor()
        work.authenticate_additional_data(name)
        body = raw[HEADER_BYTES:-TAG_BYTES]
        for start in range(0, body.nbytes, _PIECE):
            work.update_into(body[start : start + _PIECE], into[start : start + _PIECE])
        try:
            work.finalize_with_tag(bytes(raw[-TAG_BYTES:]))
        except _library().InvalidTag:
            return False
        return True

    def _cipher(self, nonce: bytes) -> Any:
        library = _library()
        return library.Cipher(library.AES(self._sealing), library.GCM(nonce))


class Keys:
    """The keys of one store: the first seals, any of them opens."""

    def __init__(self, keys: Sequence[Key]) -> None:
        if not keys:
            raise errors.UsageError("key=[] holds no key; leave it out for a store without one")
        self._seals = keys[0]
        self._by_fingerprint = {key.fingerprint: key for key in keys}
        self._free: deque[bytearray] = deque(maxlen=_KEPT)

    def __repr__(self) -> str:
        return f"Keys({', '.join(self._by_fingerprint)})"

    @property
    def fingerprint(self) -> str:
        """Of the key that seals."""
        return self._seals.fingerprint

    def naming(self) -> blake3:
        return self._seals.naming()

    @contextlib.contextmanager
    def sealed(self, name: str, data: memoryview) -> Iterator[memoryview]:
        """The sealed form of a chunk, for as long as it is written."""
        with self.memory(data.nbytes + OVERHEAD) as into:
            self._seals.seal(name.encode(), data, into)
            yield into

    @contextlib.contextmanager
    def memory(self, size: int) -> Iterator[memoryview]:
        """Memory for a while; what is large is used again by the next one."""
        if size <= _PIECE:
            yield memoryview(bytearray(size))
            return
        try:
            made = self._free.pop()
        except IndexError:
            made = bytearray()
        if len(made) < size:
            made = bytearray(size)
        try:
            yield memoryview(made)[:size]
        finally:
            self._free.append(made)

    def open(self, where: str, name: str, raw: memoryview, into: memoryview) -> bool:
        """The content of a sealed chunk into memory of its size; False where it is damaged.

        Raises Sealed where none of these keys sealed it.
        """
        fingerprint = sealed_with(raw)
        if fingerprint is None:
            return False
        return self._key(fingerprint, where).open(name.encode(), raw, into)

    def close_body(self, made: Manifest) -> Manifest:
        """The manifest as it is stored: a body that only its key opens, and the chunks it names."""
        plain = canonical(made.body)
        objects = sorted(map(str, manifests.refs_in(plain)))
        raw = memoryview(bytearray(len(plain) + OVERHEAD))
        self._seals.seal(_place(made, objects), memoryview(plain), raw)
        body: dict[str, Any] = {
            "key": self.fingerprint,
            "objects": objects,
            "sealed": base64.b64encode(raw).decode(),
        }
        return replace(made, body=body, sealed=self.fingerprint)

    def open_body(self, stored: Manifest, where: str) -> Manifest:
        """The manifest as it was committed. Raises Sealed, or Damaged."""
        key = self._key(stored.sealed, where)
        try:
            raw = memoryview(base64.b64decode(stored.body["sealed"], validate=True))
            into = memoryview(bytearray(raw.nbytes - OVERHEAD))
        except (binascii.Error, ValueError) as error:
            raise _altered(where) from error
        place = _place(stored, stored.body["objects"])
        if sealed_with(raw) != stored.sealed or not key.open(place, raw, into):
            raise _altered(where)
        return replace(stored, body=manifests.body_of(bytes(into), where))

    def _key(self, fingerprint: str, where: str) -> Key:
        key = self._by_fingerprint.get(fingerprint)
        if key is None:
            raise refusal(where, fingerprint, self)
        return key


def sealed_with(raw: memoryview | bytes) -> str | None:
    """The fingerprint of the key that sealed it; None where this is not the header of a seal."""
    head = bytes(raw[:HEADER_BYTES])
    checksum = zlib.crc32(head[: _CRC.start]).to_bytes(4, "little")
    if len(head) < HEADER_BYTES or not head.startswith(MAGIC) or head[_CRC] != checksum:
        return None
    return head[len(MAGIC) : _NONCE.start].hex()


def refusal(where: str, fingerprint: str, keys: Keys | None) -> errors.Sealed:
    """What to tell who has not the key."""
    has = "no key was given" if keys is None else f"the key given is another one ({keys!r})"
    return errors.Sealed(
        f"{where} is sealed with the key {fingerprint[:64]}, and {has}. Give that one: "
        "Store(url, key=…) takes a file, env:VARIABLE or 32 bytes, and `mlcloud checkpoints` "
        "--key FILE or the variable MLCLOUD_ENCRYPTION_KEY"
    )


def _place(made: Manifest, objects: list[str]) -> bytes:
    """What a sealed body holds for, and nowhere else."""
    return canonical([made.kind, made.name, made.step, made.id, made.created_text, objects])


def _altered(where: str) -> errors.Damaged:
    return errors.Damaged(f"manifest {where} is damaged: what its key sealed was altered")


@dataclass(frozen=True)
class _Library:
    Cipher: Any
    AES: Any
    GCM: Any
    InvalidTag: type[Exception]


@functools.cache
def _library() -> _Library:
    try:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers import Cipher
        from cryptography.hazmat.primitives.ciphers.algorithms import AES
        from cryptography.hazmat.primitives.ciphers.modes import GCM
    except ImportError as error:
        raise errors.UsageError(
            "a store with a key needs cryptography: pip install 'mlcloud[encryption]'"
        ) from error
    return _Library(Cipher, AES, GCM, InvalidTag)
