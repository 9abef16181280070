"""How long a node lasts on average before its cloud takes it back: from what happened here so far.

Preemptions are taken for a Poisson process whose rate has a Gamma prior: as if one preemption had
been seen in `PRIOR_S` hours of spot nodes before anything was seen. With k preemptions in T seconds
of all spot nodes together, the rate's expectation is (1 + k) / (PRIOR_S + T), and its inverse

    mean time to preemption = (PRIOR_S + T) / (1 + k)

So few data give no wild values: two quiet hours double the prior, one preemption in the first
minutes halves it. What is older than `WINDOW` does not count: markets change. A notice counts as a
preemption, whether or not its node has ended yet. Nodes that are no spot nodes only fail.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from mlcloud.cluster.clouds.base import Instance

PRIOR_S = 2 * 3600.0
WINDOW = timedelta(days=7)
ON_DEMAND_S = 30 * 24 * 3600.0


class Preemptions:
    """Of one cluster. `see` it all now and then; asking is cheap."""

    def __init__(self) -> None:
        self.spot_s = PRIOR_S
        self._spot: dict[str, bool] = {}

    def see(self, instances: Iterable[Instance], now: datetime) -> None:
        """Take in what the cloud's records say."""
        since, seconds, taken = now - WINDOW, 0.0, 0
        spot = {}
        for each in instances:
            spot[each.id] = each.offer.market == "spot"
            if not spot[each.id]:
                continue
            end = min(each.ended_at or now, now)
            seconds += max((end - max(each.launched_at, since)).total_seconds(), 0.0)
            taken += end >= since and (each.notice is not None or each.reason == "preempted")
        self._spot = spot
        self.spot_s = (PRIOR_S + seconds) / (1 + taken)

    def mean_time_s(self, instance_id: str) -> float:
        """Seconds that a node like this one lasts on average. One that was not seen yet may be a
        spot node."""
        return self.spot_s if self._spot.get(instance_id, True) else ON_DEMAND_S
