"""A gang's placement group in Ray: all of its ranks get their place, or none does.

It is detached and has the name of rank 0's host, so a gateway that was killed finds it again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

LOOK_S = 20.0  # how long a rank may sit in a collective that others have left


def leader(
    name: str,
    workers: int,
    options: dict[str, Any],
    labels: dict[str, str],
    arguments: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """Reserve places for all ranks; the class of rank 0's host, and where it is put.

    Completes `arguments` for that class.
    """
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from mlcloud.kernel.gang import Gang

    group = placement_group(
        [_bundle(options) for _ in range(workers)],
        strategy="PACK",
        name=name,
        lifetime="detached",
        bundle_label_selector=[dict(labels) for _ in range(workers)] if labels else None,
    )
    arguments.update(workers=workers, rank_options=options, look_s=LOOK_S)
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    return Gang, {"scheduling_strategy": strategy}


def hold(name: str, options: dict[str, Any], labels: dict[str, str], count: int) -> None:
    """Reserve so many places, for which Ray brings nodes, until that is removed."""
    from ray.util.placement_group import placement_group

    placement_group(
        [_bundle(options) for _ in range(count)],
        strategy="PACK",
        name=name,
        lifetime="detached",
        bundle_label_selector=[dict(labels) for _ in range(count)] if labels else None,
    )


def _bundle(options: dict[str, Any]) -> dict[str, float]:
    bundle = {
        "CPU": options["num_cpus"],
        "GPU": options["num_gpus"],
        "memory": options["memory"],
        **options["resources"],
    }
    return {key: value for key, value in bundle.items() if value}


def held(names: Iterable[str]) -> set[str]:
    """Those of these reservations that have all their places."""
    from ray.util.placement_group import placement_group_table

    created = {
        each["name"] for each in placement_group_table().values() if each["state"] == "CREATED"
    }
    return created & set(names)


def named(prefix: str) -> list[str]:
    """Reservations that there are of a gateway that was killed."""
    from ray.util.placement_group import placement_group_table

    every = placement_group_table().values()
    return [
        each["name"]
        for each in every
        if each["state"] != "REMOVED" and str(each["name"]).startswith(prefix)
    ]


def remove(name: str) -> None:
    """Give the places back; who is on them ends."""
    from ray.util.placement_group import get_placement_group, remove_placement_group

    with contextlib.suppress(Exception):  # it is gone
        remove_placement_group(get_placement_group(name))
