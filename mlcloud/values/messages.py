"""The two envelopes: a `Shipment` goes to the session before a cell, a `Return` comes back after.

    client.shipping ── Shipment ──► kernel.namespace.load ── the cell runs ──┐
    client.shipping ◄── Return ──── kernel.namespace.collect ◄───────────────┘

Both are plain data: `to_wire()` gives dicts, lists, strings, ints and bytes (what msgpack takes),
`from_wire()` reads them. Values are `Blob`s, named by the blake3 of their bytes. A blob above
`to_wire(inline=…)` bytes goes without its data: the sender stores it as an object under its digest
(`blobs()` lists them) and the receiver fetches it through `resolve(blob)`.

A *key* is a name of the namespace, or `class <id>` for a notebook class, which travels once and not
inside each of its instances. A *version* is an opaque number that grows; a side that knows an older
one has not seen the newest value.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from mlcloud import errors

Wire = dict[str, Any]


def name_conflict(names: Iterable[str]) -> errors.NameConflict:
    """The error for names that changed on both sides, with the two ways out."""
    listed = sorted(set(names))
    text, joined = ", ".join(f"`{name}`" for name in listed), ",".join(listed)
    return errors.NameConflict(
        f"{text} changed in the notebook and in the session since the two were last equal, so the "
        f"cell did not run. Run it with `--in {joined}` to use the notebook's value, or with "
        "`--keep-remote` to use the session's."
    )


def class_key(class_id: str) -> str:
    """The key of a notebook class (no name can contain a space)."""
    return f"class {class_id}"


def class_id(key: str) -> str | None:
    """The class's id, or None for the key of a name."""
    return key[6:] if key.startswith("class ") else None


def names_of(keys: Iterable[str]) -> list[str]:
    """The keys that are names, sorted."""
    return sorted(key for key in keys if class_id(key) is None)


@dataclass
class Blob:
    """Bytes and their name. `data` None: they are stored elsewhere, under `digest`.

    `chunks` are the names of its pieces, where they are known (`values.digests`). They stay here.
    """

    digest: str
    size: int
    data: bytes | memoryview | None = field(default=None, repr=False)
    chunks: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def to_wire(self, inline: int | None = None) -> Wire:
        leave = self.data is None or (inline is not None and self.size > inline)
        data = None if leave or self.data is None else bytes(self.data)
        return {"digest": self.digest, "size": self.size, "data": data}

    @classmethod
    def from_wire(cls, wire: Wire) -> Blob:
        return cls(wire["digest"], wire["size"], wire["data"])


# Writable memory that it gives is new memory, which becomes the value's.
ResolveBlob = Callable[[Blob], "bytes | bytearray | memoryview"]
# Hears beforehand which blobs will be asked for.
Prefetch = Callable[["Iterable[Blob]"], None]


def read(blob: Blob, resolve: ResolveBlob | None) -> bytes | bytearray | memoryview:
    """The blob's bytes, fetched where they did not travel along."""
    if blob.data is not None:
        return blob.data
    if resolve is None:
        raise LookupError(f"object {blob.digest} ({blob.size} bytes) is stored elsewhere")
    return resolve(blob)


@dataclass
class Group:
    """Keys that share objects, in one pickle of the tuple of their values.

    `digests` are the sender's own, by key: whoever loaded the same ones has this value already.
    """

    keys: tuple[str, ...]
    payload: Blob
    buffers: list[Blob] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The keys that are names."""
        return [key for key in self.keys if class_id(key) is None]

    @property
    def size(self) -> int:
        """Bytes, payload and buffers."""
        return self.payload.size + sum(buffer.size for buffer in self.buffers)

    @property
    def digest(self) -> str:
        """What is in it, and which keys share it."""
        parts = [*self.keys, *(blob.digest for blob in self.blobs())]
        return blake3(" ".join(parts).encode()).hexdigest()

    def blobs(self) -> Iterator[Blob]:
        yield self.payload
        yield from self.buffers

    def to_wire(self, inline: int | None = None) -> Wire:
        return {
            "keys": list(self.keys),
            "payload": self.payload.to_wire(inline),
            "buffers": [buffer.to_wire(inline) for buffer in self.buffers],
            "digests": self.digests,
        }

    @classmethod
    def from_wire(cls, wire: Wire) -> Group:
        return cls(
            tuple(wire["keys"]),
            Blob.from_wire(wire["payload"]),
            [Blob.from_wire(buffer) for buffer in wire["buffers"]],
            wire["digests"],
        )


@dataclass
class Import:
    """A name that is a module: it is imported there, with the submodules in use, not pickled."""

    name: str
    module: str
    submodules: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Stands where a value's digest would: it changes when another import is needed."""
        return " ".join(["module", self.module, *sorted(self.submodules)])

    def to_wire(self) -> Wire:
        return dataclasses.asdict(self)

    @classmethod
    def from_wire(cls, wire: Wire) -> Import:
        return cls(**wire)


@dataclass
class RemoteInfo:
    """What the notebook is told of a value that stays in the session."""

    name: str
    binding: int
    type: str
    text: str
    html: str | None = None
    shape: list[int] | None = None
    dtype: str | None = None
    nbytes: int | None = None
    why: str = ""
    facts: list[list[str]] = field(default_factory=list)  # [label, text] of what its kind is about

    def to_wire(self) -> Wire:
        return dataclasses.asdict(self)

    @classmethod
    def from_wire(cls, wire: Wire) -> RemoteInfo:
        return cls(**wire)


def _blobs(groups: list[Group]) -> Iterator[Blob]:
    for group in groups:
        yield from group.blobs()


@dataclass
class Shipment:
    """What a cell needs from the notebook, and what the notebook knows of the session."""

    groups: list[Group] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)
    deletes: list[str] = field(default_factory=list)  # deleted in the notebook, read by the cell
    known: dict[str, int] = field(default_factory=dict)  # every shared key: the version last seen
    reads: list[str] = field(default_factory=list)  # names the cell mentions
    binds: list[str] = field(default_factory=list)  # names the cell may bind
    optional: list[str] = field(default_factory=list)  # keys the cell only binds
    force: list[str] = field(default_factory=list)  # --in: the notebook's value wins
    temporary: list[str] = field(default_factory=list)  # keys that end with the cell
    released: list[str] = field(default_factory=list)  # results that nobody has a handle of
    result: str | None = None  # a temporary name the cell binds, which comes back like any other
    out: list[str] | None = None  # --out: exactly these come back
    keep_remote: bool = False  # the session's value wins
    star: bool = False  # the cell has `from m import *`
    max_return: int = 1 << 20  # bytes of a group above which it stays in the session
    epoch: str | None = None  # the kernel this was made for; None before the first Return
    notes: list[str] = field(default_factory=list)  # for the user
    modules: dict[str, str] = field(default_factory=dict)  # what must load: a name that needs it
    sender: str = ""  # which notebook
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def blobs(self) -> Iterator[Blob]:
        """Every blob: those that do not travel along must be stored before the cell starts."""
        return _blobs(self.groups)

    def to_wire(self, inline: int | None = None) -> Wire:
        wire = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        wire["groups"] = [group.to_wire(inline) for group in self.groups]
        wire["imports"] = [entry.to_wire() for entry in self.imports]
        return wire

    @classmethod
    def from_wire(cls, wire: Wire) -> Shipment:
        groups = [Group.from_wire(group) for group in wire["groups"]]
        imports = [Import.from_wire(entry) for entry in wire["imports"]]
        return cls(**{**wire, "groups": groups, "imports": imports})


@dataclass
class Return:
    """What changed in the session, as far as the notebook has not seen it."""

    id: str  # the Shipment's
    epoch: str
    loaded: dict[str, int] = field(default_factory=dict)  # shipped keys: their version once loaded
    versions: dict[str, int] = field(default_factory=dict)  # keys reported here: their version now
    groups: list[Group] = field(default_factory=list)
    remote: list[RemoteInfo] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    bindings: dict[str, int] = field(default_factory=dict)  # what a RemoteValue of it would name
    kept: list[str] = field(default_factory=list)  # --keep-remote: these replace the notebook's
    notes: list[str] = field(default_factory=list)  # for the user

    def blobs(self) -> Iterator[Blob]:
        """Every blob of the values that come back."""
        return _blobs(self.groups)

    def to_wire(self, inline: int | None = None) -> Wire:
        wire = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        wire["groups"] = [group.to_wire(inline) for group in self.groups]
        wire["imports"] = [entry.to_wire() for entry in self.imports]
        wire["remote"] = [entry.to_wire() for entry in self.remote]
        return wire

    @classmethod
    def from_wire(cls, wire: Wire) -> Return:
        groups = [Group.from_wire(group) for group in wire["groups"]]
        imports = [Import.from_wire(entry) for entry in wire["imports"]]
        remote = [RemoteInfo.from_wire(entry) for entry in wire["remote"]]
        return cls(**{**wire, "groups": groups, "imports": imports, "remote": remote})
