"""The parts of a specification: node groups, the head, SSH, data, packages, idle times.

Each field says, beside what it is, what a change of it does to a running cluster (`OnChange`), so
that no field can be forgotten there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from mlcloud.cluster.offers import Market, Offer, Shape
from mlcloud.cluster.specification.problems import Several
from mlcloud.cluster.specification.values import (
    Count,
    Cpus,
    Disk,
    Duration,
    Gpu,
    Size,
    Usd,
    check_url,
    check_word,
)
from mlcloud.units import parse_duration, parse_gpu

# --- what a change does ---------------------------------------------------------------------------


Effect = Literal["in place", "new nodes", "new sessions", "down and up"]


@dataclass(frozen=True)
class OnChange:
    """What a change of a field does to a running cluster. Metadata of the field's type."""

    effect: Effect


IN_PLACE = OnChange("in place")
NEW_NODES = OnChange("new nodes")
NEW_SESSIONS = OnChange("new sessions")
DOWN_AND_UP = OnChange("down and up")


class Part(BaseModel):
    """What all parts share: no unknown fields, nothing changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# --- nodes ----------------------------------------------------------------------------------------


class NodeGroup(Part):
    """Nodes of one kind: the least that each has (`gpu`, `cpus`, `memory`), or an `instance_type`.

    A shape is better than a type: every type in every allowed zone that has at least that much is
    then tried, the cheapest first.
    """

    name: Annotated[str | None, DOWN_AND_UP] = Field(
        None, description="In messages and tags. Default: from the shape or the type, `a10g-1`."
    )
    gpu: Annotated[Gpu | None, NEW_NODES] = Field(
        None, description="The accelerator, `A10G:1`. Default: none."
    )
    cpus: Annotated[Cpus | None, NEW_NODES] = Field(None, description="vCPUs at least. Default: 1.")
    memory: Annotated[Size | None, NEW_NODES] = Field(
        None, description="Memory at least, `32GB`. Default: any."
    )
    instance_type: Annotated[str | None, NEW_NODES] = Field(
        None, description="Exactly this type of the cloud, instead of a shape: `g5.xlarge`."
    )
    market: Annotated[Market, NEW_NODES] = Field(
        "spot", description="`spot`, which may be taken back, or `on-demand`."
    )
    fallback: Annotated[Literal["on-demand", "none"], NEW_NODES] = Field(
        "on-demand", description="What spot nodes become where there is no spot: `none`, wait."
    )
    min: Annotated[Count, IN_PLACE] = Field(
        0, description="Nodes that are kept, used or not; they bill."
    )
    max: Annotated[int, IN_PLACE] = Field(
        4,
        ge=1,
        le=1000,
        validate_default=True,
        description="Nodes of this group that may be up at once.",
    )
    disk: Annotated[Disk, NEW_NODES] = Field(
        100 * 10**9, description="The root disk of each node, `100GB`."
    )

    @field_validator("name")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        what = "lower-case letters, digits and `-`, a letter first, at most 40"
        return value if value is None else check_word(value, "[a-z][a-z0-9-]{0,39}", what)

    @field_validator("instance_type")
    @classmethod
    def _either(cls, value: str | None, info: ValidationInfo) -> str | None:
        given = [name for name in ("gpu", "cpus", "memory") if info.data.get(name) is not None]
        if value is not None and given:
            raise ValueError(
                f"a type says its own {' and '.join(given)}: leave {' and '.join(given)} out, or "
                "leave instance_type out and any type that has as much is tried"
            )
        return value

    @field_validator("max", mode="before")
    @classmethod
    def _whole(cls, value: object) -> object:
        if isinstance(value, bool):
            raise ValueError("a whole number is expected, not yes or no")
        return value

    @field_validator("max")
    @classmethod
    def _not_below_min(cls, value: int, info: ValidationInfo) -> int:
        least = info.data.get("min", 0)
        if value < least:
            raise ValueError(f"{value} is below min, which is {least}: raise max or lower min")
        return value

    @property
    def key(self) -> str:
        """Its name, or the one it gets: `a10g-1`, `g5-xlarge`, `cpu4`."""
        if self.name:
            return self.name
        if self.instance_type:
            text = self.instance_type
        elif self.gpu:
            text = self.gpu.replace(":", "-")
        else:
            text = f"cpu{self.cpus or 1:g}"
        return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")

    @property
    def shape(self) -> Shape:
        """The least that a node has; of a type alone, nothing is known without its offers."""
        name, count = parse_gpu(self.gpu) if self.gpu else (None, 0)
        return Shape(self.cpus or 1, self.memory or 0, name, count)

    def takes(self, offer: Offer) -> bool:
        """Whether a node of this group may be bought as `offer`, wherever that is."""
        only = self.market == "on-demand" or self.fallback == "none"
        if only and offer.market != self.market:
            return False
        if self.instance_type is not None:
            return offer.instance_type == self.instance_type
        # Nobody wants to pay for a GPU that was not asked for. On this computer nobody pays: there
        # a group that asks for nothing is for whatever its cells ask for.
        asked = self.gpu is not None or (offer.cloud == "local" and self._is_any)
        return offer.dominates(self.shape) and (asked or offer.accelerator is None)

    @property
    def _is_any(self) -> bool:
        return self.cpus is None and self.memory is None

    def __str__(self) -> str:
        return self.instance_type or str(self.shape)


class Head(Part):
    """The machine of the gateway and of Ray's head. It is on demand: it must not be taken back."""

    instance_type: Annotated[str | None, DOWN_AND_UP] = Field(
        None, description="Exactly this type, instead of `cpus` and `memory`."
    )
    cpus: Annotated[Cpus, DOWN_AND_UP] = Field(2, description="vCPUs at least.")
    memory: Annotated[Size, DOWN_AND_UP] = Field(8 * 10**9, description="Memory at least, `8GB`.")
    disk: Annotated[Disk, DOWN_AND_UP] = Field(50 * 10**9, description="Its root disk, `50GB`.")

    def takes(self, offer: Offer) -> bool:
        """Whether the head may be bought as `offer`."""
        if offer.market != "on-demand":
            return False
        if self.instance_type is not None:
            return offer.instance_type == self.instance_type
        return offer.dominates(Shape(self.cpus, self.memory)) and offer.accelerator is None


# --- ssh ------------------------------------------------------------------------------------------


class Machine(Part):
    """A machine that you own, for `cloud: ssh`."""

    host: Annotated[str, DOWN_AND_UP] = Field(description="its name or address")
    cpus: Annotated[Cpus, NEW_NODES] = Field(description="how many vCPUs it has (`nproc` tells)")
    memory: Annotated[Size, NEW_NODES] = Field(
        description="how much memory it has, such as '64GB' (`free -h` tells)"
    )
    gpu: Annotated[Gpu | None, NEW_NODES] = Field(
        None, description="Its accelerators, `RTX4090:2`. Default: none."
    )
    usd_per_hour: Annotated[Usd, IN_PLACE] = Field(
        Decimal(0), description="What an hour of it is taken to cost. Default: nothing."
    )
    user: Annotated[str | None, NEW_NODES] = Field(None, description="Default: `ssh.user`.")
    port: Annotated[int, NEW_NODES] = Field(22, ge=1, le=65535, description="Of its sshd.")
    key: Annotated[str | None, NEW_NODES] = Field(None, description="Default: `ssh.key`.")
    host_key: Annotated[str | None, NEW_NODES] = Field(
        None, description="Its public host key, to be pinned. Default: from known_hosts."
    )
    address: Annotated[str | None, NEW_NODES] = Field(
        None, description="How the other machines reach it, if not by `host`."
    )
    sudo: Annotated[bool, NEW_NODES] = Field(
        False, description="Whether `setup` runs by sudo, for a user who is not root."
    )
    region: Annotated[str | None, DOWN_AND_UP] = Field(
        None, description="Where it stands; needed where `regions` are given."
    )

    @field_validator("host")
    @classmethod
    def _host(cls, value: str) -> str:
        return check_word(value, r"[A-Za-z0-9][A-Za-z0-9.:_-]*", "a host name or an address")

    @field_validator("key")
    @classmethod
    def _key(cls, value: str | None) -> str | None:
        return _key_file(value)


class SSH(Part):
    """How machines are reached."""

    user: Annotated[str, NEW_NODES] = Field("ubuntu", description="Who logs in.")
    key: Annotated[str | None, NEW_NODES] = Field(
        None, description="The file of the private key. Default: one is made for the cluster."
    )
    jump: Annotated[str | None, IN_PLACE] = Field(
        None, description="A host on the way, `user@bastion:22`, as ssh's ProxyJump."
    )
    hosts: Annotated[tuple[Machine, ...], IN_PLACE] = Field(
        (), description="The machines of `cloud: ssh`; the first is the head."
    )

    @field_validator("key")
    @classmethod
    def _key(cls, value: str | None) -> str | None:
        return _key_file(value)

    @field_validator("hosts")
    @classmethod
    def _hosts(cls, value: tuple[Machine, ...]) -> tuple[Machine, ...]:
        seen: dict[tuple[str, int], int] = {}
        problems = []
        for index, each in enumerate(value):
            first = seen.setdefault((each.host, each.port), index)
            if first != index:
                text = f"{each.host!r} is hosts[{first}] already: name each machine once"
                problems.append(((index, "host"), text))
        if problems:
            raise Several(problems)
        return value


def _key_file(value: str | None) -> str | None:
    if value is not None and ("\n" in value or "PRIVATE KEY" in value):
        raise ValueError("the file of the key is expected, not the key (which is not repeated)")
    return value


# --- data, packages, idle times -------------------------------------------------------------------

DATA_SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "abfss", "https", "http", "file")


class Mount(Part):
    """Data that every node has under a path, read through a cache on its disk."""

    url: Annotated[str, NEW_NODES] = Field(
        description="where the data is, such as s3://bucket/data"
    )
    path: Annotated[str, NEW_NODES] = Field(description="where nodes have it, such as /data")
    cache: Annotated[Size, NEW_NODES] = Field(
        20 * 10**9, description="How much of each node's disk holds what was read, `20GB`."
    )

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        return check_url(value, DATA_SCHEMES)

    @field_validator("path")
    @classmethod
    def _path(cls, value: str) -> str:
        path = PurePosixPath(value)
        if not path.is_absolute() or len(path.parts) < 2 or ".." in path.parts:
            raise ValueError(f"{value!r} cannot be: an absolute path below /, such as /data")
        return str(path)


class Packages(Part):
    """Where nodes get their packages from."""

    index_urls: Annotated[tuple[str, ...], NEW_NODES] = Field(
        (),
        description="Package indexes, the first asked first. A password in one is written "
        "`https://${USER}:${TOKEN}@…`, with both under `secrets`.",
    )
    lock: Annotated[str | None, NEW_SESSIONS] = Field(
        None,
        description="A requirements file with pinned versions, for sessions and jobs that name no "
        "packages themselves; nodes cache it by its hash.",
    )

    @field_validator("index_urls")
    @classmethod
    def _index_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        problems = []
        for index, each in enumerate(value):
            try:
                check_url(each, ("https", "http", "file"))
            except ValueError as error:
                problems.append(((index,), str(error)))
        if problems:
            raise Several(problems)
        return value


class Idle(Part):
    """What is given back after how long without use."""

    session: Annotated[Duration, IN_PLACE] = Field(
        parse_duration("15m"), description="A session is parked: its node is given back."
    )
    node: Annotated[Duration, IN_PLACE] = Field(
        parse_duration("1m"), description="A node without a session ends."
    )
    cluster: Annotated[Duration, IN_PLACE] = Field(
        parse_duration("30m"), description="A cluster in which nothing runs ends, its head too."
    )
