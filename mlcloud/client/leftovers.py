"""`mlcloud gc`: what clusters left in a cloud's account, and its removal.

    a cluster.yaml, or a cloud and regions ─► the cloud ─► leftovers(now) ─► a table
                                                              └─ remove, one after the other

Everything that mlcloud makes in a cloud carries tags: which cluster, whose, until when. So what a
laptop left that crashed in the middle of `up`, or never came back, is found without any record of
it. Only what has expired, or is of the cluster that is named, is listed; nothing without our tags.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

from mlcloud.client.planning import cloud_of, specification_of
from mlcloud.cluster.clouds.base import CloudWithCredentials, CloudWithLeftovers, Leftover
from mlcloud.errors import MLCloudError, UsageError
from mlcloud.units import format_usd_per_hour
from mlcloud.widgets.tables import table

HEADS = ("what", "id", "region", "cluster", "$/h", "why")


class Leftovers:
    """What was found; shows itself as a table. `remove()` removes it."""

    def __init__(self, cloud: CloudWithLeftovers, found: list[Leftover]) -> None:
        self._cloud = cloud
        self.found = found

    def __iter__(self) -> Iterator[Leftover]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    @property
    def usd_per_hour(self) -> Decimal:
        """What it costs to leave it, as far as that is known."""
        return sum((each.usd_per_hour or Decimal(0) for each in self.found), Decimal(0))

    def remove(
        self, told: Callable[[Leftover, str], None] = lambda each, error: None
    ) -> list[tuple[Leftover, str]]:
        """Remove all of it, in the order in which it can go; what could not be, with the reason.

        `told` hears of each as it goes (the error is empty where it went). What waits for another
        thing to end (a network for its machines) is tried once more when the rest is gone.
        """
        left = self._pass(self.found, told)
        return self._pass([each for each, _ in left], told) if left else []

    def _pass(
        self, found: Iterable[Leftover], told: Callable[[Leftover, str], None]
    ) -> list[tuple[Leftover, str]]:
        left = []
        for each in found:
            error = ""
            try:
                self._cloud.remove(each)
            except MLCloudError as failure:
                error = str(failure)
                left.append((each, error))
            told(each, error)
        return left

    def record(self) -> list[dict[str, Any]]:
        """For JSON."""
        return [
            {
                "kind": each.kind,
                "id": each.id,
                "region": each.region,
                "cluster": each.tags.get("mlcloud-cluster", ""),
                "usd_per_hour": None if each.usd_per_hour is None else str(each.usd_per_hour),
                "why": each.why,
            }
            for each in self.found
        ]

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                each.kind,
                each.id,
                each.region or "-",
                each.tags.get("mlcloud-cluster", "?"),
                "?" if each.usd_per_hour is None else format_usd_per_hour(each.usd_per_hour),
                each.why,
            )
            for each in self.found
        ]

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        if not self.found:
            return {"text/plain": repr(self)}
        return table(HEADS, self._rows(), numbers=["$/h"])

    def __repr__(self) -> str:
        if not self.found:
            return "nothing is left over"
        shown = table(HEADS, self._rows(), numbers=["$/h"])["text/plain"]
        return f"{shown}\nleft alone, it costs {format_usd_per_hour(self.usd_per_hour)} or more"


def leftovers(
    target: object = None, *, cloud: str | None = None, regions: Iterable[str] = ()
) -> Leftovers:
    """What is left over of a `cluster.yaml`'s or a `Cluster`'s machines, or of any expired cluster
    in `cloud` and `regions`. Removes nothing.

    Raises `CredentialsMissing`, `UsageError` for a cloud in which nothing can be left over.
    """
    specification = specification_of(target, cloud, tuple(regions))
    nowhere = specification.cloud in ("local", "ssh")
    made: Any = None if nowhere else cloud_of(specification)
    if not isinstance(made, CloudWithLeftovers):
        raise UsageError(
            f"nothing can be left over on {specification.cloud}: `mlcloud down` ends all of it"
        )
    if isinstance(made, CloudWithCredentials):
        made.check()
    return Leftovers(made, made.leftovers(datetime.now(timezone.utc)))
