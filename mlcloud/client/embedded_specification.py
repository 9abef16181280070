"""The embedded cluster by a specification: its settings, and what the running one was started with.

    Cluster("try", cloud="local", nodes=[{"max": 8}], spares=1).up()
        variables()  ─► MLCLOUD_MAX_NODES=8 MLCLOUD_WARM_SPARES=1 ─► the gateway's environment
        home/cluster.json   the specification, beside the address of the gateway that has it

The record holds until `down`: a cluster that ended itself when nobody used it comes back with the
same store and limits, whoever connects. Settings that the specification does not name stay those of
the environment. What the local cloud does not act upon is said, once.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

from mlcloud.client import embedded
from mlcloud.client.connection import Connection
from mlcloud.cluster.specification import ChangeList, Specification, changes, specify
from mlcloud.cluster.specification.values import write_duration
from mlcloud.config import Settings
from mlcloud.errors import Conflict, MLCloudError, SpecificationError

#: Fields that the local cloud acts upon; of the others there is nothing that it could do.
ACTED_UPON = {"name", "cloud", "regions", "nodes", "store", "spares", "idle", "owner"}
_MOST_NODES = 64  # of `Settings.max_nodes`


def variables(specification: Specification) -> dict[str, str]:
    """The settings that the specification names, as the gateway's environment has them."""
    found: dict[str, str] = {}
    if specification.nodes:
        most = sum(group.max for group in specification.nodes)
        found["MLCLOUD_MAX_NODES"] = str(min(most, _MOST_NODES))
    if "spares" in specification.model_fields_set:
        found["MLCLOUD_WARM_SPARES"] = str(specification.spares)
    if specification.store:
        found["MLCLOUD_STORE"] = specification.store
    idle = specification.idle
    names = {"session": "IDLE_TIMEOUT", "node": "NODE_IDLE", "cluster": "IDLE_END"}
    for field in idle.model_fields_set:
        found[f"MLCLOUD_{names[field]}"] = write_duration(getattr(idle, field))
    return found


def of_settings() -> Specification:
    """The embedded cluster as the settings of this process have it."""
    settings = Settings()
    idle = {
        "session": settings.idle_timeout,
        "node": settings.node_idle,
        "cluster": settings.idle_end,
    }
    return specify(
        "the settings",
        None,
        name="embedded",
        nodes=[{"name": "any", "max": settings.max_nodes}],
        spares=min(settings.warm_spares, settings.max_nodes),
        idle=idle,
        **({"store": settings.store} if settings.store else {}),
    )


def running() -> Specification | None:
    """What the embedded cluster that runs was started with; None where none runs, or by default."""
    address = embedded.running(Settings())
    return None if address is None else _recorded(address.url)


def connection() -> Connection | None:
    """To the embedded cluster, if it is up."""
    settings = Settings()
    return _connection(settings) if embedded.running(settings) is not None else None


def up(specification: Specification) -> Connection:
    """Start the embedded cluster with the specification, or find it running with the same.

    Raises `Conflict` with the differences where it runs with another.
    """
    settings = Settings()
    address = embedded.running(settings)
    if address is not None:
        _require_same(specification, address.url)
        return _connection(settings)
    ignored = sorted(specification.model_fields_set - ACTED_UPON)
    if ignored:
        warnings.warn(
            f"the local cloud does not act upon {', '.join(ignored)}: these are for real clouds",
            stacklevel=3,
        )
    embedded.write_record(
        settings,
        {
            "url": "",
            "variables": variables(specification),
            "specification": specification.model_dump(mode="json", exclude_defaults=True),
        },
    )
    try:
        return _connection(settings)
    except MLCloudError:
        settings.record_file.unlink(missing_ok=True)  # else no plain `connect()` would start either
        raise


def differences(old: Specification, new: Specification) -> ChangeList:
    """As `changes`; but the embedded cluster reads its settings only when it starts."""
    return ChangeList([replace(each, effect="down and up") for each in changes(old, new)])


def _connection(settings: Settings) -> Connection:
    return Connection(
        lambda: embedded.find(settings),
        embedded=True,
        look=lambda: embedded.running(settings),
    )


def _require_same(specification: Specification, url: str) -> None:
    recorded = _recorded(url)
    if recorded is None:
        if variables(specification).items() <= variables(of_settings()).items():
            return
        recorded = of_settings()
    found = differences(recorded, specification)
    if found:
        raise Conflict(
            f"the embedded cluster is up as {recorded.name!r}, and differs:\n{found!r}\n"
            "Nothing was changed. `mlcloud down`, then `up` starts it anew; its sessions stay in "
            "the store"
        )


def _recorded(url: str) -> Specification | None:
    """What was written down, if it is of the gateway at this address."""
    record = embedded.read_record(Settings())
    if record.get("url") != url or not isinstance(record.get("specification"), dict):
        return None
    try:
        return specify("the record", None, **record["specification"])
    except (SpecificationError, TypeError):
        return None
