"""On which market a job's workers are asked for: as it was asked, or by its deadline.

    every `STEP_S`: work left (measured, else as it took last time, else as the user expects), and
                    what was seen of spot here (cluster.sightings)
                    ─► cluster.policy.decide ─► spot | on-demand | wait

Without any idea of how long the work takes, half of the deadline is taken for it. Workers of
another market than the present one get no new items, and end with what they have: an item is not
broken off.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from mlcloud.cluster import policy
from mlcloud.cluster.lifetimes import Sighting
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.offers import Shape as OfferShape
from mlcloud.cluster.records import now
from mlcloud.cluster.sightings import sightings
from mlcloud.errors import MLCloudError
from mlcloud.units import parse_duration

if TYPE_CHECKING:
    from mlcloud.gateway.embedded import EmbeddedCluster
    from mlcloud.gateway.jobs.job import Job

log = logging.getLogger(__name__)

STEP_S = 30.0
CHANGEOVER = timedelta(minutes=3)


class _Looking:
    """What a decision takes, worked out in a thread: what was seen of spot, and the table."""

    def __init__(self, kind: policy.Job, offers: list[Offer], cluster: EmbeddedCluster) -> None:
        self.kind, self.offers, self._cluster = kind, offers, cluster
        self.history: Mapping[str, Sequence[Sighting]] = {}
        self.thread = threading.Thread(target=self._look, name="a job's market", daemon=True)
        self.thread.start()

    def _look(self) -> None:
        cluster = self._cluster
        with contextlib.suppress(MLCloudError):  # to decide says it
            self.history = sightings(
                self.offers,
                cluster.attempts.recent(),
                cluster.cloud.instances(),
                now(),
                cluster.settings.offer_cooldown,
            )
            policy.prepare(self.kind, self.offers, self.history)


class Market:
    """Of one job. `wanted` is looked at by its shape."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.wanted: str = job.request.market
        self.waits = False
        self.reason = ""
        self._at = 0.0
        self._looking: _Looking | None = None
        self._decided = False
        deadline = job.request.deadline
        self.deadline = None if deadline is None else job.created_at + parse_duration(deadline)
        self._span = None if deadline is None else parse_duration(deadline)
        expect = job.request.expect
        self._expected = None if expect is None else parse_duration(expect)

    def look(self, *, at_once: bool = False) -> None:
        """Decide anew, where it is time to."""
        job = self._job
        if self.deadline is None or job.over or job.request.market == "on-demand":
            return
        every_s = 1.0 if at_once else STEP_S
        try:
            if self._looking is None and time.monotonic() - self._at >= every_s:
                self._looking = self._begin()
            if self._looking is not None and not self._looking.thread.is_alive():
                looked, self._looking, self._at = self._looking, None, time.monotonic()
                self._decide(looked)
            elif not self._decided:
                self.waits = True
        except MLCloudError as error:
            self.wanted, self.waits, self.reason = "on-demand", False, str(error)
            self._at, self._decided = time.monotonic(), True

    def _begin(self) -> _Looking:
        """What it takes to decide is worked out in a thread: the gateway's loop does not wait. What
        was decided last holds meanwhile, and a job that is new waits for it."""
        job, span = self._job, self._span
        assert span is not None
        work, _ = self.work(span)
        shape = OfferShape(**job.shape.request(job.services).node_type.node_config["shape"])
        cluster = job.services.cluster
        offers = [
            each
            for each in cluster.cloud.offers()
            if each.dominates(shape) and (each.accelerator is None) == (shape.accelerator is None)
        ]
        kind = policy.Job(
            work=min(work, span), deadline=span, changeover=min(CHANGEOVER, span / 20)
        )
        return _Looking(kind, offers, cluster)

    def _decide(self, looked: _Looking) -> None:
        job, span = self._job, self._span
        assert span is not None
        assert self.deadline is not None
        _, left = self.work(span)
        found = policy.decide(
            looked.kind,
            policy.Progress(now=now(), deadline=self.deadline, work_left=left, on=self._on()),
            looked.history,
            looked.offers,
        )
        self._decided = True
        before = (self.wanted, self.waits)
        self.waits = found.action == "wait"
        if not self.waits:
            self.wanted = found.action
        self.reason = found.reason
        if (self.wanted, self.waits) != before:
            log.info("job %s: %s, %s", job.id, found.action, found.reason)

    def _on(self) -> str | None:
        """Where its workers are: a spot zone, on demand, or nowhere."""
        job = self._job
        cloud = job.services.cluster.cloud
        crews = job.crews
        for worker in crews.of(job) if crews is not None else ():
            offer = cloud.get(worker.instance).offer
            return offer.zone if offer.market == "spot" else "on-demand"
        return None

    def work(self, span: timedelta) -> tuple[timedelta, timedelta]:
        """(all of the work, what is left of it), on the workers that it may have."""
        job = self._job
        items = job.items
        open_items = max(items.total - items.ended, 0 if job.complete else 1)
        if self._expected is not None:
            each_s = self._expected.total_seconds() / max(1, items.total)
        elif job.mean_s is not None:
            each_s = job.mean_s
        else:
            return span / 2, span / 2 if open_items else timedelta(0)
        at_once = min(job.request.max_workers, max(1, items.total))
        whole = timedelta(seconds=max(1.0, each_s * max(1, items.total) / at_once))
        return whole, timedelta(seconds=each_s * open_items / at_once)
