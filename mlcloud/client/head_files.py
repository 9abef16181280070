"""What a head of rented machines, or of one's own, is given: files, and an environment to make.

    SSHCluster ─► files       head.json, cluster.json, pip.conf, the cluster's key, known hosts
               ─► with_wheel  the very mlcloud and Ray that are here, for nodes that shall have them

Secrets are in the files alone, which go through ssh's stdin: on no command line, in no log.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from mlcloud.client.access import known_hosts
from mlcloud.client.machines import SSHCluster
from mlcloud.client.notes import Note
from mlcloud.cluster.headspec import HeadSpec
from mlcloud.environment import index
from mlcloud.environment.wheels import own_wheel

EXTRAS = ("aws", "gcp", "azure")
STORE_EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "aws"),
    **dict.fromkeys(("gs", "gcs"), "gcp"),
    **dict.fromkeys(("az", "abfs", "abfss"), "azure"),
}


def files(wanted: SSHCluster, note: Note, folder: Path) -> dict[str, str]:
    """By name. `folder`: the cluster's here, with its key."""
    head = wanted.machines[0]
    spec = HeadSpec(
        name=wanted.name,
        cluster_id=note.cluster_id,
        cloud=wanted.cloud,
        address=head.private,
        settings=head_settings(wanted),
        port=wanted.port,
        runtime=wanted.runtime,
        region="" if wanted.cloud == "ssh" else head.region,
    )
    record = {
        "url": "",
        "specification": wanted.specification,
        "environment": wanted.packages.environment,
        "variables": {},
    }
    return {
        index.FILE: wanted.packages.pip_conf,
        "head.json": spec.write(),
        **({"cluster.json": json.dumps(record)} if wanted.specification else {}),
        "id_ed25519": (folder / "id_ed25519").read_text(),
        "known_hosts": known_hosts(folder / "known_hosts", wanted.machines),
    }


def head_settings(wanted: SSHCluster) -> dict[str, Any]:
    """What its cloud is told at the head (`clouds.make`)."""
    return wanted.cloud_settings or {
        "machines": [asdict(replace(each, key=None)) for each in wanted.workers],
        "known_hosts": "known_hosts",
        "key": "id_ed25519",
    }


def with_wheel(wanted: SSHCluster) -> tuple[SSHCluster, dict[str, bytes]]:
    """Where nodes shall make an environment, they get the very mlcloud and Ray that are here."""
    given = wanted.runtime.requirements
    if wanted.runtime.python is not None or any(each.startswith("mlcloud") for each in given or ()):
        return wanted, {}
    name, data, digest = own_wheel()
    runtime = replace(
        wanted.runtime,
        requirements=(f"ray[default]=={metadata.version('ray')}",) if given is None else given,
        wheel=name,
        digest=digest,
        extras=_extras(wanted),
        minor=f"{sys.version_info[0]}.{sys.version_info[1]}",
    )
    return replace(wanted, runtime=runtime), {name: data}


def _extras(wanted: SSHCluster) -> tuple[str, ...]:
    """Those of mlcloud with which nodes reach their cloud, and their store."""
    store = STORE_EXTRAS.get(wanted.store.partition("://")[0])
    return tuple(sorted({each for each in (wanted.cloud, store) if each in EXTRAS}))
