"""A changed specification for a cluster that runs: what of it is applied, and what is refused.

    GET /v1/specification ─► split(what runs, what is wanted) ─┬─ applied ─► PUT, of that alone
                                                               └─ refused ─► Conflict, by field

The gateway knows what runs; what it cannot take up while it does needs `down`, then `up`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlcloud.client.connection import Connection
from mlcloud.client.packages import Packages
from mlcloud.cluster.specification import (
    OTHER_LOCK,
    ChangeList,
    Specification,
    Split,
    specify,
    split,
)
from mlcloud.cluster_models import SpecificationInfo
from mlcloud.errors import Conflict

PATH = "/v1/specification"
#: What the head of a cluster elsewhere is told anew (`HeadRequest`), of what is to be in force.
Head = Callable[[Specification], dict[str, Any]]


def present(connection: Connection) -> tuple[Specification, bool]:
    """What the cluster runs with, and whether it was brought up by a specification."""
    info = SpecificationInfo.model_validate(connection.get(PATH))
    return specify("the running cluster", None, **info.specification), info.named


def compare(connection: Connection, wanted: Specification) -> Split:
    """What `change` would do."""
    old, named = present(connection)
    if not named:  # one that was brought up by none takes any name
        old = old.model_copy(update={"name": wanted.name})
    return split(old, wanted)


def change(
    connection: Connection,
    wanted: Specification,
    head: Head | None = None,
    packages: Packages | None = None,
) -> ChangeList:
    """Apply what can be; that is what it gives. What is behind the names in it, a password or the
    content of a lock, is told also where nothing differs.

    Raises `Conflict` for what needs `down` and `up`, when the rest has been applied, with both.
    """
    found = compare(connection, wanted)
    applied = list(found.applied)
    if found.applied or not found.refused:
        body = {
            "specification": found.merged.model_dump(mode="json"),
            "head": None if head is None else head(found.merged),
            "packages": None if packages is None else packages.wire(),
        }
        answer = SpecificationInfo.model_validate(connection.put(PATH, body))
        applied += [each for each in (OTHER_LOCK,) if str(each) in answer.applied]
    if found.refused:
        raise Conflict(found.refusal())
    return ChangeList(applied)
