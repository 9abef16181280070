"""What a cluster with machines of its own is told at its head: one JSON file beside its gateway.

    the client's specification ── HeadSpec ── head.json (0600, on the head) ──► gateway, provider

It is the one place where the specification that users write (`cluster.yaml`) and what the head
needs of it meet. Nothing in it is secret but where files of secrets are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: Where a head is told its own address that had none when its file was written: a pod.
ADDRESS = "MLCLOUD_ADDRESS"


@dataclass(frozen=True)
class Machine:
    """A machine that you own. `address` is how others of the cluster reach it, `host` how you do.

    `memory` in bytes, `gpu` `(NAME, COUNT)`, `usd_per_hour` what an hour of it is taken to cost,
    `host_key` its public one (`ssh-ed25519 AAAA…`); of none, the first that it shows is kept.
    """

    host: str
    cpus: float
    memory: int
    gpu: tuple[str, int] | None = None
    usd_per_hour: str = "0"
    user: str = "root"
    port: int = 22
    key: str | None = None
    address: str = ""
    sudo: bool = False
    region: str = "owned"
    host_key: str = ""

    @property
    def private(self) -> str:
        return self.address or self.host


@dataclass(frozen=True)
class Runtime:
    """What a node runs mlcloud with.

    `python` None: a virtual environment of its own is made, with `pythonX.Y` of `minor` where there
    is one, and `requirements` (of None, this computer's Ray) are installed into it by pip, with
    `options`; and `wheel`, a file of the head's home with the blake3 `digest`, which the other
    nodes fetch from there: this computer's mlcloud, unless `requirements` name one, with its
    `extras` (the clients of the cloud and of the store). Else an
    interpreter that has mlcloud already, on `variables["PYTHONPATH"]` if need be. With `inherit`
    what the machine's (an image's) own Python has is not installed again. `indexes`: which package
    indexes there are is in `pip.conf` of the head's home, and nodes fetch it from there.
    `variables` are set for all processes of a node. `setup` are shell commands that run before
    anything else.
    """

    python: str | None = None
    requirements: tuple[str, ...] | None = None
    index_url: str = ""
    options: tuple[str, ...] = ()
    wheel: str = ""
    digest: str = ""
    extras: tuple[str, ...] = ()
    minor: str = ""
    inherit: bool = False
    indexes: bool = False
    variables: dict[str, str] = field(default_factory=dict)
    setup: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeadSpec:
    """`cloud` and its `settings` are for `clouds.make`; `address` is the head's own, as its nodes
    reach it (empty: as `MLCLOUD_ADDRESS` says), and `region` where it is, of a rented one;
    `cluster_id` marks every process of the cluster, wherever it runs. `gcs_port` is Ray's (0: any
    free one), `ray_token` the file of Ray's token in the gateway's home (empty: one is made)."""

    name: str
    cluster_id: str
    cloud: str
    address: str
    settings: dict[str, Any]
    port: int = 8443
    runtime: Runtime = field(default_factory=Runtime)
    gcs_port: int = 0
    ray_token: str = ""
    region: str = ""

    def write(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def read(cls, path: Path) -> HeadSpec:
        return cls.of(json.loads(path.read_text()))

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> HeadSpec:
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in told["runtime"].items()
        }
        runtime = Runtime(**given)
        address = told["address"] or os.environ.get(ADDRESS, "")
        return cls(**{**told, "runtime": runtime, "address": address})


def machine_of(told: Mapping[str, Any]) -> Machine:
    """A `Machine` as it comes back from JSON."""
    gpu = told.get("gpu")
    return Machine(**{**told, "gpu": (gpu[0], int(gpu[1])) if gpu else None})
