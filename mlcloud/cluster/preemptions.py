"""How long a node lasts on average before its cloud takes it back: from what happened here so far.

Preemptions are taken for a Poisson process whose rate has a Gamma prior: as if one preemption had
been seen in `PRIOR_S` hours of spot nodes before anything was seen. With k preemptions in T seconds
of all spot nodes together, the rate's expectation is (1 + k) / (PRIOR_S + T), and its inverse

    mean time to preemption = (PRIOR_S + T) / (1 + k)

So few data give no wild values: two quiet hours double the prior, one preemption in the first
minutes halves it. What is older than `WINDOW` does not count: markets change. A notice counts as a
preemption, whether or not its node has ended yet. Nodes that are no spot nodes only fail.

Of one offer (this type, in this zone) the rate has the cluster's as its prior, with that weight:

    per hour = (PRIOR_S · rate of all + k of it) / (PRIOR_S + T of it)
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from mlcloud.cluster.clouds.base import Instance
from mlcloud.cluster.offers import Offer

PRIOR_S = 2 * 3600.0
WINDOW = timedelta(days=7)
ON_DEMAND_S = 30 * 24 * 3600.0


class Preemptions:
    """Of one cluster. `see` it all now and then; asking is cheap."""

    def __init__(self) -> None:
        self.spot_s = PRIOR_S
        self._spot: dict[str, bool] = {}
        self._of: dict[tuple[str, str], tuple[float, int]] = {}  # seconds, preemptions

    def see(self, instances: Iterable[Instance], now: datetime) -> None:
        """Take in what the cloud's records say."""
        since, seconds, taken = now - WINDOW, 0.0, 0
        spot = {}
        of: dict[tuple[str, str], tuple[float, int]] = {}
        for each in instances:
            spot[each.id] = each.offer.market == "spot"
            if not spot[each.id]:
                continue
            end = min(each.ended_at or now, now)
            lived = max((end - max(each.launched_at, since)).total_seconds(), 0.0)
            lost = int(end >= since and (each.notice is not None or each.reason == "preempted"))
            seconds, taken = seconds + lived, taken + lost
            key = (each.offer.zone, each.offer.instance_type)
            before = of.get(key, (0.0, 0))
            of[key] = (before[0] + lived, before[1] + lost)
        self._spot, self._of = spot, of
        self.spot_s = (PRIOR_S + seconds) / (1 + taken)

    def mean_time_s(self, instance_id: str) -> float:
        """Seconds that a node like this one lasts on average. One that was not seen yet may be a
        spot node."""
        return self.spot_s if self._spot.get(instance_id, True) else ON_DEMAND_S

    def per_hour(self, offer: Offer) -> float:
        """Preemptions an hour that are to be expected of a spot node of this offer."""
        seconds, taken = self._of.get((offer.zone, offer.instance_type), (0.0, 0))
        return (PRIOR_S / self.spot_s + taken) / (PRIOR_S + seconds) * 3600
