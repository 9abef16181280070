"""The specification that a cluster runs with, and the gateway's settings that it comes to.

    variables(it)   ─► MLCLOUD_MAX_NODES=8 … for the environment of a gateway that is to start
    overlay(it, settings) ─► the settings of one that runs, or that was started before a change
    home/cluster.json        the record: the specification beside what was made of it

What a specification does not name stays as the environment has it, until that field is changed
under the running cluster.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from mlcloud.cluster.records import write_json
from mlcloud.cluster.specification import Specification, specify
from mlcloud.cluster.specification.values import write_duration
from mlcloud.config import Settings
from mlcloud.errors import SpecificationError

MOST_NODES, MOST_SPARES = 64, 8  # of `Settings.max_nodes` and `warm_spares`
_IDLE = {"session": "idle_timeout", "node": "node_idle", "cluster": "idle_end"}
#: The specification's fields that settings come of.
FIELDS = ("nodes", "spares", "idle", "max_lifetime", "ssh")


def values(
    specification: Specification, fields: Iterable[str] | None = None
) -> dict[str, int | timedelta | str]:
    """By the names of `Settings`. `fields`: of these, whether they are named or not."""
    named = set(specification.model_fields_set if fields is None else fields)
    found: dict[str, int | timedelta | str] = {}
    if named & {"nodes", "ssh"}:
        found["max_nodes"] = most_nodes(specification)
    if "spares" in named:
        found["warm_spares"] = min(specification.spares, MOST_SPARES)
    if "max_lifetime" in named:
        found["node_lifetime"] = specification.max_lifetime
    if specification.store:
        found["store"] = specification.store
    idle = specification.idle
    for field in _IDLE if fields is not None and "idle" in named else idle.model_fields_set:
        found[_IDLE[field]] = getattr(idle, field)
    return found


def most_nodes(specification: Specification) -> int:
    """How many there may be at once."""
    machines = max(1, len(specification.ssh.hosts) - 1)
    if specification.nodes:
        most = sum(group.max for group in specification.nodes)
        return min(most, machines if specification.cloud == "ssh" else MOST_NODES, MOST_NODES)
    if specification.cloud == "ssh":
        return min(machines, MOST_NODES)
    default: int = Settings.model_fields["max_nodes"].default
    return default


def variables(specification: Specification, fields: Iterable[str] | None = None) -> dict[str, str]:
    """`values`, as a gateway's environment has them."""
    return {
        f"MLCLOUD_{name.upper()}": write_duration(value)
        if isinstance(value, timedelta)
        else str(value)
        for name, value in values(specification, fields).items()
    }


def overlay(specification: Specification, settings: Settings, fields: Iterable[str]) -> Settings:
    """`settings` as the specification has those of `fields`."""
    return settings.model_copy(update=values(specification, fields))


def of_settings(settings: Settings | None = None) -> Specification:
    """The embedded cluster as settings have it: this process's, if no others are given."""
    settings = settings or Settings()
    return specify(
        "the settings",
        None,
        name="embedded",
        nodes=[{"name": "any", "max": settings.max_nodes}],
        spares=min(settings.warm_spares, settings.max_nodes),
        idle={field: getattr(settings, name) for field, name in _IDLE.items()},
        **({"store": settings.store} if settings.store else {}),
    )


# --- the record -----------------------------------------------------------------------------------


def read_record(settings: Settings) -> dict[str, Any]:
    """What this home's cluster was brought up with. Empty: there is no record."""
    try:
        record = json.loads(settings.record_file.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(settings: Settings, record: dict[str, Any]) -> None:
    settings.make_folders()
    write_json(settings.record_file, record)


def recorded(record: dict[str, Any]) -> Specification | None:
    """The specification of a record; None where it has none that can be read."""
    if not isinstance(record.get("specification"), dict):
        return None
    try:
        return specify("the record", None, **record["specification"])
    except (SpecificationError, TypeError):
        return None
