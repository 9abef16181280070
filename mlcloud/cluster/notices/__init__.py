"""What a cloud says to a node that is about to lose it, read from inside the node.

    source.look() ── every `poll_s`, in a thread ──► Watcher ── once each ──► the gateway
      aws      spot/instance-action, events/recommendations/rebalance, events/maintenance/scheduled
      gcp      instance/preempted and instance/maintenance-event, each by a hanging request
      azure    scheduledevents, for this machine only

Three things can follow (`Notice.kind`): the node goes away and its sessions move; it may go away,
or stand still for a moment, and what is on it is saved (`SAVES`); or the cloud has thought better
of it (`WITHDRAWN`).

No clock is trusted: how long is left is told from the cloud's own time and the `Date` of its
answer, and travels as seconds. Standard library only: a watcher runs on every node for ever.
"""

from __future__ import annotations

from mlcloud.cluster.notices.clouds import sources
from mlcloud.cluster.notices.notice import (
    SAVES,
    SHUTDOWN_S,
    TERMINATE,
    WITHDRAWN,
    Notice,
    Source,
)
from mlcloud.cluster.notices.service import Endpoint
from mlcloud.cluster.notices.watcher import Watcher

__all__ = [
    "SAVES",
    "SHUTDOWN_S",
    "TERMINATE",
    "WITHDRAWN",
    "Endpoint",
    "Notice",
    "Source",
    "Watcher",
    "sources",
]
