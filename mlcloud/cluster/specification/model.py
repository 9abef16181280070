"""A cluster's specification: what may be launched, where, for how much, and with what on it.

    Cluster("gpus", cloud="aws", …)   cluster.yaml
             └────── Specification ──────┘
                          │ check.py: against what the cloud sells
                          │ changes.py: against the one that runs
                          └► settings(): what a cloud is told; groups: what the offers are asked

`regions` is a residency list: nothing is launched, stored or copied outside it. A region of the
cluster's own cloud is written as that cloud writes it, one of another cloud (where only the store
is) with the cloud's name before it, `aws:eu-central-1`.

A specification holds no secret: `secrets` says where each one is kept.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from mlcloud.cluster.clouds.base import CloudSettings
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.specification.parts import (
    DOWN_AND_UP,
    IN_PLACE,
    NEW_NODES,
    NEW_SESSIONS,
    SSH,
    Head,
    Idle,
    Mount,
    NodeGroup,
    Packages,
    Part,
)
from mlcloud.cluster.specification.places import (
    ANY_TAG,
    CLOUDS,
    IN_REGIONS,
    NETWORK,
    STORES,
    TAGS,
    CloudName,
    allowed,
    outside,
    own,
    region_told,
    store_cloud,
)
from mlcloud.cluster.specification.problems import Path, Problem, Several, refusal, translated
from mlcloud.cluster.specification.values import (
    Count,
    Duration,
    Limits,
    Secret,
    check_url,
    check_word,
    placeholders,
)
from mlcloud.units import parse_duration, suggest


def _owner() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an id without a name, in a container
        return "unknown"


class Specification(Part):
    """A cluster as its user wants it. Raises `SpecificationError` through `specify()`."""

    name: Annotated[str, DOWN_AND_UP] = Field(description="what the cluster is called, `gpus`")
    cloud: Annotated[CloudName, DOWN_AND_UP] = Field("local", description="Where its nodes run.")
    regions: Annotated[tuple[str, ...], IN_PLACE] = Field(
        (),
        validate_default=True,
        description="Residency: nothing is launched, stored or copied outside these.",
    )
    head: Annotated[Head, DOWN_AND_UP] = Field(
        default_factory=Head, description="The machine of the gateway."
    )
    nodes: Annotated[tuple[NodeGroup, ...], IN_PLACE] = Field(
        (), description="What may be launched. Default: any shape that the cloud sells."
    )
    image: Annotated[str | None, NEW_NODES] = Field(
        None, description="A machine image (Kubernetes: a container's). Default: the cloud's own."
    )
    setup: Annotated[tuple[str, ...], NEW_NODES] = Field(
        (), description="Shell commands that a node runs once, before Ray starts."
    )
    ssh: Annotated[SSH, NEW_NODES] = Field(
        default_factory=SSH, validate_default=True, description="How machines are reached."
    )
    network: Annotated[dict[str, str], DOWN_AND_UP] = Field(
        default_factory=dict, description="Names of what is there already, as the cloud has them."
    )
    tags: Annotated[dict[str, str], IN_PLACE] = Field(
        default_factory=dict, description="On everything that is made, beside mlcloud's own."
    )
    store: Annotated[str | None, DOWN_AND_UP] = Field(
        None,
        validate_default=True,
        description="Where sessions, checkpoints and the record are kept: `s3://bucket/x`.",
    )
    store_region: Annotated[str | None, DOWN_AND_UP] = Field(
        None, description="Where the store's bucket is, so that it is held to `regions`."
    )
    budget: Annotated[Limits, IN_PLACE] = Field(
        (), description="Hard limits in dollars: `50/day`, or a list of such."
    )
    spares: Annotated[Count, IN_PLACE] = Field(
        0, description="Nodes of the smallest group that wait for work; they bill."
    )
    secrets: Annotated[dict[str, Secret], NEW_SESSIONS] = Field(
        default_factory=dict,
        description="Environment variables of sessions, and where each value is kept.",
    )
    data: Annotated[tuple[Mount, ...], NEW_SESSIONS] = Field(
        (), description="Data that every node has under a path."
    )
    environment: Annotated[Packages, NEW_NODES] = Field(
        default_factory=Packages, description="Where nodes get their packages from."
    )
    max_lifetime: Annotated[Duration, NEW_NODES] = Field(
        parse_duration("7d"), description="A node ends this long after its launch, come what may."
    )
    owner: Annotated[str, NEW_NODES] = Field(
        default_factory=_owner, description="Whose it is, as a tag. Default: the user."
    )
    idle: Annotated[Idle, IN_PLACE] = Field(
        default_factory=Idle, description="What is given back after how long without use."
    )
    endpoints: Annotated[dict[str, str], DOWN_AND_UP] = Field(
        default_factory=dict, description="Other URLs of a cloud's services: `ec2: https://…`."
    )

    # --- what contradicts what --------------------------------------------------------------------
    # Validators of fields, not of the whole: so each problem has its field, and all are found. What
    # a field above has wrong is not in `info.data`, and nothing more is said of it.

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        what = "lower-case letters, digits and `-`, a letter first, at most 40"
        return check_word(value, "[a-z][a-z0-9-]{0,39}", what)

    @field_validator("regions")
    @classmethod
    def _regions(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        cloud = info.data.get("cloud")
        problems: list[tuple[Path, str]] = []
        for index, region in enumerate(value):
            of, colon, name = region.partition(":")
            if colon and of not in CLOUDS:
                problems.append(((index,), f"no cloud {of!r}{suggest(of, CLOUDS)}"))
            elif not re.fullmatch("[a-z][a-z0-9-]*", name if colon else of):
                problems.append(((index,), f"{region!r} is not a region's name"))
            elif region in value[:index]:
                problems.append(((index,), f"{region!r} is in the list already"))
        if cloud == "local" and value and value != ("local",):
            problems.append(((), "the local cloud is this computer: leave regions out"))
        if cloud in IN_REGIONS and not any(own(region, cloud) for region in value):
            example = {"aws": "eu-central-1", "gcp": "europe-west4", "azure": "westeurope"}[cloud]
            text = f"name where nodes and data may be, such as [{example}]: nothing leaves them"
            problems.append(((), text))
        if problems:
            raise Several(problems)
        return value

    @field_validator("nodes")
    @classmethod
    def _nodes(cls, value: tuple[NodeGroup, ...]) -> tuple[NodeGroup, ...]:
        seen: dict[str, int] = {}
        problems = []
        for index, group in enumerate(value):
            first = seen.setdefault(group.key, index)
            if first != index:
                text = f"{group.key!r} is nodes[{first}] already: give each group its own name"
                problems.append(((index, "name"), text))
        if problems:
            raise Several(problems)
        return value

    @field_validator("setup", mode="before")
    @classmethod
    def _setup(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("ssh")
    @classmethod
    def _ssh(cls, value: SSH, info: ValidationInfo) -> SSH:
        cloud, regions = info.data.get("cloud"), info.data.get("regions", ())
        if cloud == "ssh" and not value.hosts:
            text = "name your machines, each with host, cpus and memory"
            raise Several([(("hosts",), text)])
        if cloud not in (None, "ssh") and value.hosts:
            raise Several([(("hosts",), f"these are for `cloud: ssh`, and the cloud is {cloud}")])
        problems: list[tuple[Path, str]] = [
            (
                ("hosts", index, "region"),
                outside("the machine", each.region, None, regions, cloud)
                if each.region
                else f"say where the machine stands: it may only be in {', '.join(regions)}",
            )
            for index, each in enumerate(value.hosts)
            if regions and each.region not in regions
        ]
        if problems:
            raise Several(problems)
        return value

    @field_validator("network")
    @classmethod
    def _network(cls, value: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        cloud = info.data.get("cloud")
        if cloud is None:
            return value
        known = NETWORK[cloud]
        there = f"{cloud} has {', '.join(known)}" if known else f"{cloud} has no network to name"
        problems: list[tuple[Path, str]] = [
            ((key,), f"no such name{suggest(key, known)}; {there}")
            for key in value
            if key not in known
        ]
        if problems:
            raise Several(problems)
        return value

    @field_validator("tags")
    @classmethod
    def _tags(cls, value: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        pattern, what = TAGS.get(info.data.get("cloud", "local"), ANY_TAG)
        problems: list[tuple[Path, str]] = []
        for key, text in value.items():
            if key.casefold().startswith("mlcloud"):
                problems.append(((key,), "tags that begin with mlcloud are its own: rename it"))
            elif not re.fullmatch("[a-z][a-z0-9_-]{0,62}", key):
                what_name = "lower-case letters, digits, `-` and `_`, a letter first, at most 63"
                problems.append(((key,), f"cannot be a tag's name: {what_name}"))
            if not re.fullmatch(pattern, text):
                problems.append(((key,), f"{text!r} cannot be its value: {what}"))
        if problems:
            raise Several(problems)
        return value

    @field_validator("store")
    @classmethod
    def _store(cls, value: str | None, info: ValidationInfo) -> str | None:
        cloud, regions = info.data.get("cloud"), info.data.get("regions", ())
        if cloud is None or (cloud == "local" and value is None):
            return value
        if value is None:
            raise ValueError("name where sessions are kept when nodes go: s3://…, gs://… or az://…")
        schemes = [*STORES, *(("file",) if cloud in ("local", "ssh") else ())]
        if value.startswith("file:") and "file" not in schemes:
            raise ValueError(
                "a file:// is on one machine, and nodes go: use s3://…, gs://…, az://…"
            )
        check_url(value, schemes)
        told = region_told(value)
        if told and regions and not allowed(told, store_cloud(value), regions, cloud):
            raise ValueError(outside("the store", told, store_cloud(value), regions, cloud))
        return value

    @field_validator("store_region")
    @classmethod
    def _store_region(cls, value: str | None, info: ValidationInfo) -> str | None:
        store, regions = info.data.get("store"), info.data.get("regions", ())
        if value is None or "cloud" not in info.data or "regions" not in info.data:
            return value
        if store is None:
            raise ValueError("there is no store whose region this would be: set store")
        told = region_told(store)
        if told and told != value:
            raise ValueError(f"the store's own URL says {told}: leave store_region out")
        of, cloud = store_cloud(store), info.data["cloud"]
        if regions and not allowed(value, of, regions, cloud):
            raise ValueError(outside("the store", value, of, regions, cloud))
        return value

    @field_validator("spares")
    @classmethod
    def _spares(cls, value: int, info: ValidationInfo) -> int:
        groups = info.data.get("nodes", ())
        most = sum(group.max for group in groups)
        if groups and value > most:
            raise ValueError(f"{value} is more than all groups may have together, which is {most}")
        return value

    @field_validator("secrets", mode="before")
    @classmethod
    def _secret_names(cls, value: object) -> object:
        if isinstance(value, (list, tuple, str)):
            raise ValueError("names with where each is kept are expected: HF_TOKEN: keyring:hf/me")
        if isinstance(value, Mapping):
            problems: list[tuple[Path, str]] = []
            for name in value:
                if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", str(name)):
                    text = "cannot be the name of an environment variable, such as HF_TOKEN"
                    problems.append(((str(name),), text))
            if problems:
                raise Several(problems)
        return value

    @field_validator("data")
    @classmethod
    def _data(cls, value: tuple[Mount, ...]) -> tuple[Mount, ...]:
        seen: dict[str, int] = {}
        problems = []
        for index, mount in enumerate(value):
            first = seen.setdefault(mount.path, index)
            if first != index:
                text = f"{mount.path!r} is data[{first}]'s already: choose another path"
                problems.append(((index, "path"), text))
        if problems:
            raise Several(problems)
        return value

    @field_validator("environment")
    @classmethod
    def _environment(cls, value: Packages, info: ValidationInfo) -> Packages:
        known = info.data.get("secrets")
        if known is None:
            return value
        problems: list[tuple[Path, str]] = [
            (("index_urls", index), f"${{{name}}} is not under `secrets`{suggest(name, known)}")
            for index, url in enumerate(value.index_urls)
            for name in placeholders(url)
            if name not in known
        ]
        if problems:
            raise Several(problems)
        return value

    @field_validator("endpoints")
    @classmethod
    def _endpoints(cls, value: dict[str, str]) -> dict[str, str]:
        problems: list[tuple[Path, str]] = []
        for key, url in value.items():
            try:
                check_url(url, ("https", "http"))
            except ValueError as error:
                problems.append(((key,), str(error)))
        if problems:
            raise Several(problems)
        return value

    # --- what it comes to -------------------------------------------------------------------------

    @property
    def node_regions(self) -> tuple[str, ...]:
        """The regions in which nodes may be, as the cloud calls them. Empty: it has none."""
        return tuple(name for each in self.regions if (name := own(each, self.cloud)))

    @property
    def known_store_region(self) -> str | None:
        """Where the store is, as far as the specification says."""
        return self.store_region or (region_told(self.store) if self.store else None)

    def allows(self, offer: Offer) -> bool:
        """Whether `offer` is in this cloud, and in a region where nodes may be."""
        regions = self.node_regions
        return offer.cloud == self.cloud and (not regions or offer.region in regions)

    def require_store_in(self, region: str) -> None:
        """Raises `SpecificationError` where the store, found to be in `region`, may not be."""
        of = store_cloud(self.store or "")
        if self.regions and not allowed(region, of, self.regions, self.cloud):
            text = outside("the store", region, of, self.regions, self.cloud)
            raise refusal([Problem(("store",), text)])

    def group(self, key: str) -> NodeGroup | None:
        """The node group of that name."""
        return next((each for each in self.nodes if each.key == key), None)

    def settings(
        self, group: NodeGroup | None = None, *, ssh_public_key: str | None = None
    ) -> CloudSettings:
        """What the cloud is told for the nodes of `group`, or for the head."""
        disk = self.head.disk if group is None else group.disk
        return CloudSettings(
            cluster=self.name,
            owner=self.owner,
            regions=self.node_regions,
            image=self.image,
            disk_gb=-(-disk // 10**9),
            ssh_user=self.ssh.user,
            ssh_public_key=ssh_public_key,
            network=dict(self.network),
            tags=dict(self.tags),
            endpoints=dict(self.endpoints),
            lifetime_s=self.max_lifetime.total_seconds(),
            store=self.store or "",
        )


def specify(
    source: str = "", lines: Mapping[Path, int] | None = None, /, **fields: Any
) -> Specification:
    """A `Specification` of these fields.

    Raises `SpecificationError` with all that is wrong; `source` and `lines` say where it stands.
    """
    try:
        return Specification.model_validate(fields)
    except ValidationError as error:
        raise refusal(translated(error, Specification), source, lines) from None
