"""The embedded cluster by a specification: its settings, and what the running one was started with.

    Cluster("try", cloud="local", nodes=[{"max": 8}], spares=1).up()
        variables()  ─► MLCLOUD_MAX_NODES=8 MLCLOUD_WARM_SPARES=1 ─► the gateway's environment
        home/cluster.json   the specification, beside the address of the gateway that has it

Settings that the specification does not name stay those of the environment. What the local cloud
does not act upon is said, once.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

from mlcloud.client import embedded
from mlcloud.client.connection import Connection
from mlcloud.cluster.specification import Specification, changes, specify
from mlcloud.cluster.specification.values import write_duration
from mlcloud.config import Settings
from mlcloud.errors import Conflict

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
    made = _connection(settings, variables(specification))
    record = {
        "url": made.address.url,
        "specification": specification.model_dump(mode="json", exclude_defaults=True),
    }
    settings.record_file.write_text(json.dumps(record))
    return made


def _connection(settings: Settings, named: dict[str, str] | None = None) -> Connection:
    return Connection(
        lambda: embedded.find(settings, named),
        embedded=True,
        look=lambda: embedded.running(settings),
    )


def _require_same(specification: Specification, url: str) -> None:
    recorded = _recorded(url)
    if recorded is None:
        if variables(specification).items() <= variables(of_settings()).items():
            return
        recorded = of_settings()
    differences = changes(recorded, specification)
    if differences:
        raise Conflict(
            f"the embedded cluster is up as {recorded.name!r}, and differs:\n{differences!r}\n"
            "Nothing was changed. `mlcloud down`, then `up` starts it anew; its sessions stay in "
            "the store"
        )


def _recorded(url: str) -> Specification | None:
    """What was written down, if it is of the gateway at this address."""
    try:
        record: dict[str, Any] = json.loads(Settings().record_file.read_text())
        if record["url"] != url:
            return None
        return specify("the record", None, **record["specification"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
