"""A manifest: the small JSON file whose existence means "this step is committed".

It holds what was committed (`body`), where it belongs (`kind`, `name`, `step`), when, and a blake3
of its own canonical JSON, so that a flipped bit in the manifest is noticed like one in a chunk:

    {"blake3": "…", "body": {…}, "created": "2026-01-02T03:04:05.000006+00:00", "format": 1,
     "id": "…", "kind": "checkpoint", "name": "exp/7", "signature": "hmac-sha256:…", "step": 40}

`blake3` and `signature` are over the canonical JSON of the other fields. `id` is random: a writer
whose conditional create was refused reads the winner back and knows whether it was itself.

Bodies name chunks as strings, `blake3:<hash>:<size>` (`ChunkRef`), anywhere and at any depth. So
whoever collects garbage or verifies a step finds the chunks of every kind of manifest without
knowing its body.

A store with a key (`sealing`) hides the body. Its manifests have format 2, the other fields in the
clear, and this body, whose `objects` are the chunks that the hidden one names:

    {"key": "<fingerprint>", "objects": ["blake3:<hash>:<size>", …], "sealed": "<base64>"}
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from blake3 import blake3

from mlcloud import errors

FORMAT = 1
SEALED = 2

#: More steps than any loop will see; twelve digits keep the names in the order of the numbers.
MAX_STEP = 10**12 - 1

Sign = Callable[[bytes], str]
Verify = Callable[[bytes, str], bool]

_REF = re.compile(r"blake3:([0-9a-f]{64}):([0-9]{1,9})")
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@=+-]{0,199}")
_FIELDS = {"format", "id", "created", "kind", "name", "step", "body"}
_SEALED_BODY = {"key": str, "objects": list, "sealed": str}


@dataclass(frozen=True)
class ChunkRef:
    """A chunk by its content: blake3 (64 hex digits) and size in bytes.

    `new` says whether this call uploaded it; it is no part of the reference.
    """

    hash: str
    size: int
    new: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"blake3:{self.hash}:{self.size}"

    @property
    def short(self) -> str:
        """`hash:size`, as the wire names chunks."""
        return f"{self.hash}:{self.size}"

    @classmethod
    def of_short(cls, text: str) -> ChunkRef:
        """What `short` gave. Raises Damaged."""
        return cls.parse(f"blake3:{text}")

    @classmethod
    def parse(cls, text: str) -> ChunkRef:
        """What `str` gave. Raises Damaged."""
        match = _REF.fullmatch(text)
        if match is None:
            raise errors.Damaged(f"{text[:100]!r} is no reference to a chunk")
        return cls(match.group(1), int(match.group(2)))


@dataclass(frozen=True)
class Manifest:
    """A committed step. `sealed`: the fingerprint of the key that its body takes, or empty."""

    kind: str
    name: str
    step: int
    created: datetime
    body: dict[str, Any]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    sealed: str = ""

    @property
    def created_text(self) -> str:
        return self.created.astimezone(timezone.utc).isoformat(timespec="microseconds")

    def to_bytes(self, sign: Sign | None = None) -> bytes:
        content = {
            "format": SEALED if self.sealed else FORMAT,
            "id": self.id,
            "created": self.created_text,
            "kind": self.kind,
            "name": self.name,
            "step": self.step,
            "body": self.body,
        }
        plain = canonical(content)
        content["blake3"] = blake3(plain).hexdigest()
        if sign is not None:
            content["signature"] = sign(plain)
        return canonical(content)


def parse(
    raw: bytes, where: str, kind: str, name: str, step: int, verify: Verify | None
) -> Manifest:
    """Check signature, checksum, format and place, in this order; raise Damaged at the first wrong.

    Raises StoreError (not Damaged: nothing is wrong with it) for a newer format.
    """

    def damaged(why: str) -> errors.Damaged:
        return errors.Damaged(f"manifest {where} is damaged: {why}")

    try:
        document = json.loads(raw)
        if not isinstance(document, dict):
            raise ValueError("not an object")
        again = canonical(document)
    except (ValueError, RecursionError) as error:
        raise damaged(f"it is no JSON ({error})") from error
    signature = document.pop("signature", None)
    checksum = document.pop("blake3", None)
    plain = canonical(document)
    if verify is not None and not (isinstance(signature, str) and verify(plain, signature)):
        raise damaged("it is not signed by the key that is trusted here")
    # Byte for byte, so that no flipped bit can hide in an equivalent spelling.
    if again != raw or checksum != blake3(plain).hexdigest():
        raise damaged("its checksum does not match")
    version = document.get("format")
    if isinstance(version, int) and version > SEALED:
        raise errors.StoreError(
            f"manifest {where} has format {version}, this mlcloud reads up to {SEALED}: "
            "upgrade mlcloud"
        )
    if set(document) != _FIELDS or not isinstance(document["body"], dict):
        raise damaged("its fields are not those of a manifest")
    if (document["kind"], document["name"], document["step"]) != (kind, name, step):
        raise damaged(
            f"it belongs to {document['kind']}/{document['name']} step {document['step']}"
        )
    try:
        created = datetime.fromisoformat(document["created"])
    except (ValueError, TypeError) as error:
        raise damaged("its time is no time") from error
    body, sealed = document["body"], ""
    if version == SEALED:
        if {key: type(value) for key, value in body.items()} != _SEALED_BODY:
            raise damaged("its body is not that of a sealed one")
        sealed = body["key"]
    return Manifest(kind, name, step, created, body, str(document["id"]), sealed)


def body_of(text: bytes, where: str) -> dict[str, Any]:
    """A body that was sealed, from its JSON."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise errors.Damaged(f"manifest {where} is damaged: what is sealed in it is no body")
    return body


def canonical(value: Any) -> bytes:
    """The one JSON spelling of a value: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def refs_in(text: bytes | str) -> set[ChunkRef]:
    """Every chunk that a manifest's text names."""
    if isinstance(text, bytes):
        text = text.decode("ascii", errors="replace")
    return {ChunkRef(hash_, int(size)) for hash_, size in _REF.findall(text)}


def path_of(kind: str, name: str, step: int) -> str:
    """Where a manifest lies. Raises UsageError for an unsafe name or a step out of range."""
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step <= MAX_STEP:
        raise errors.UsageError(f"step {step!r} is not a whole number from 0 to {MAX_STEP}")
    return f"{folder_of(kind, name)}/{step:012d}.json"


def folder_of(kind: str, name: str) -> str:
    """The folder of a name's manifests. `name` may have several segments, joined by `/`."""
    if not _SEGMENT.fullmatch(kind):
        raise errors.UsageError(f"{kind!r} is no kind of manifest: letters, digits, _ and -")
    for segment in name.split("/"):
        if not _SEGMENT.fullmatch(segment) or segment.endswith(".json"):
            raise errors.UsageError(
                f"{name!r} cannot be a name in a store: each part between slashes starts with a "
                "letter, digit or _ and holds letters, digits and _ . @ = + - (at most 200)"
            )
    return f"manifests/{kind}/{name}"
