"""The embedded cluster by a specification: its settings, and what the running one was started with.

    Cluster("try", cloud="local", nodes=[{"max": 8}], spares=1).up()
        variables()  ─► MLCLOUD_MAX_NODES=8 MLCLOUD_WARM_SPARES=1 ─► the gateway's environment
        home/cluster.json   the specification, beside the address of the gateway that has it
    .up() with another one while it runs ─► the gateway applies what it can (`respecifying`)

The record holds until `down`: a cluster that ended itself when nobody used it comes back with the
same store and limits, whoever connects. Settings that the specification does not name stay those of
the environment. What the local cloud does not act upon is said, once.
"""

from __future__ import annotations

import warnings

from mlcloud.client import embedded, respecifying
from mlcloud.client.connection import Connection
from mlcloud.client.packages import of_specification as packages_of
from mlcloud.cluster.in_force import of_settings, read_record, recorded, variables, write_record
from mlcloud.cluster.specification import ChangeList, Specification
from mlcloud.config import Settings
from mlcloud.environment import index
from mlcloud.errors import MLCloudError

#: Fields that the local cloud acts upon; of the others there is nothing that it could do.
ACTED_UPON = {
    *("name", "cloud", "regions", "nodes", "store", "spares", "idle", "owner"),
    *("budget", "max_lifetime", "secrets", "data", "environment"),
}
__all__ = ["connection", "of_settings", "running", "up", "variables"]


def running() -> Specification | None:
    """What the embedded cluster runs with; None where none runs, or by default."""
    settings = Settings()
    address = embedded.running(settings)
    record = read_record(settings)
    if address is None or record.get("url") != address.url:
        return None
    return recorded(record)


def connection() -> Connection | None:
    """To the embedded cluster, if it is up."""
    settings = Settings()
    return embedded.connection(settings) if embedded.running(settings) is not None else None


def up(specification: Specification) -> tuple[Connection, ChangeList]:
    """Start the embedded cluster with the specification, or find it running; and what was applied
    to one that ran with another.

    Raises `Conflict` for what cannot be applied while it runs, when the rest has been.
    """
    settings = Settings()
    ignored = sorted(specification.model_fields_set - ACTED_UPON)
    if ignored:
        warnings.warn(
            f"the local cloud does not act upon {', '.join(ignored)}: these are for real clouds",
            stacklevel=3,
        )
    packages = packages_of(specification)
    if embedded.running(settings) is not None:
        found = embedded.connection(settings)
        return found, respecifying.change(found, specification, packages=packages)
    settings.make_folders()
    index.write(settings.home / index.FILE, packages.pip_conf)
    write_record(
        settings,
        {
            "url": "",
            "variables": variables(specification),
            "specification": specification.model_dump(mode="json", exclude_defaults=True),
            "environment": packages.environment,
        },
    )
    try:
        return embedded.connection(settings), ChangeList(())
    except MLCloudError:
        (settings.home / index.FILE).unlink(missing_ok=True)
        settings.record_file.unlink(missing_ok=True)  # else no plain `connect()` would start either
        raise
