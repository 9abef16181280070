"""One warning, and a place to look for warnings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

TERMINATE, STOP, HIBERNATE, PREEMPT = "terminate", "stop", "hibernate", "preempt"
REBOOT, REDEPLOY, MAINTENANCE, LIFETIME = "reboot", "redeploy", "maintenance", "lifetime"
REBALANCE, FREEZE, MIGRATE = "rebalance", "freeze", "migrate"
WITHDRAWN = "withdrawn"

#: The node stays, or most likely does: what is on it is saved, and nothing moves.
SAVES = frozenset({REBALANCE, FREEZE, MIGRATE})

#: What a machine has between its shutdown's beginning and its end. GCP gives spot machines "best
#: effort and up to 30 seconds" (https://cloud.google.com/compute/docs/instances/spot).
SHUTDOWN_S = 30.0


@dataclass(frozen=True)
class Notice:
    """A warning as it was read: `seconds` are what was left then, None where nobody knows.

    `key` is the same for the same event, however often it is read. One that has `started` is not
    withdrawn any more: when it is not shown any longer, it is over.
    """

    key: str
    kind: str
    seconds: float | None
    started: bool = False


class Source(ABC):
    """One thing to look at, at most every `poll_s` seconds.

    `final`: a notice stays true, also when it is not shown any longer.
    """

    name: str
    poll_s: float
    final: bool = True

    @abstractmethod
    def look(self) -> list[Notice]:
        """All that is shown now. May block (`Service.request` bounds it).

        Raises `OSError` where there is no answer, `ValueError` for one that makes no sense.
        """
