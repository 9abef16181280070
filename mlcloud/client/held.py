"""A cluster elsewhere is held to the budget of its specification, from its first moment.

budget: 50/day ── limit_of ── checked before anything is bought ── up ── hold_to ──► gateway
"""

from __future__ import annotations

from typing import Any

from mlcloud.client.connection import Connection
from mlcloud.cost.budgets import Limit
from mlcloud.errors import UsageError


def limit_of(specification: Any) -> str | None:
    """The specification's budget as the gateway takes it; None for none.

    Raises `UsageError` for what a cluster cannot be held to: more than one limit, weeks.
    """
    limits = specification.budget
    if len(limits) > 1:
        raise UsageError(
            f"budget: a cluster is held to one limit, and there are {len(limits)} "
            f"({', '.join(map(str, limits))}): leave one, and give sessions their own"
        )
    for limit in limits:
        text = f"{limit.usd:f}" if limit.per == "total" else f"{limit.usd:f}/{limit.per}"
        Limit.parse(text)
        return text
    return None


def hold_to(connection: Connection, limit: str) -> None:
    """Put the limit into force, unless the cluster has one: what was set meanwhile holds."""
    infos = connection.get("/v1/budgets")
    if not any(each["session"] is None for each in infos):
        connection.put("/v1/budgets", {"session": None, "limit": limit})
