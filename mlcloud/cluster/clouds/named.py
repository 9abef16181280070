"""Clouds whose machines are known by a name that we give them: what Google Cloud and Azure share.

    launch     a name, the request's or a new one ─► the cloud's own call ─► `_launched`
    instances  the cloud's list, and what this process knows: a machine of a moment ago is not in
               the list yet, one that ended may be in it a while longer, and of one that is gone
               the cloud tells why (`_gone`), or nobody does
    terminate  the cloud's own call ─► `_ended`

How an API is called, what its operations are and what its refusals mean is each cloud's own.
"""

from __future__ import annotations

import re
import secrets
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from mlcloud.cluster.clouds import reach, sold
from mlcloud.cluster.clouds.base import (
    Cloud,
    CloudSettings,
    CloudThatPlans,
    CloudWithCredentials,
    CloudWithLeftovers,
    Instance,
    LaunchRequest,
)
from mlcloud.cluster.offers import Offer
from mlcloud.errors import UsageError

#: How long a machine may be missing from the lists after it was launched.
UNSEEN = timedelta(seconds=60)


class NamedMachines(Cloud, CloudWithCredentials, CloudThatPlans, CloudWithLeftovers):
    """`network` is what `settings.network` may say on this cloud. An instance's id is its name."""

    def __init__(
        self,
        settings: CloudSettings,
        offers: Iterable[Offer],
        *,
        network: Iterable[str],
        now: Callable[[], datetime],
        accepted_s: float,
    ) -> None:
        sold.require_names(settings.network, network, self.name)
        reach.check(settings.network)
        self.settings = settings
        self._offers = [offer for offer in offers if offer.region in settings.regions]
        self._now = now
        self._accepted_s = accepted_s
        self._seen: dict[str, Instance] = {}
        self._changing = threading.RLock()

    def offers(self) -> list[Offer]:
        return list(self._offers)

    @abstractmethod
    def _listed(self) -> list[Instance]:
        """The cluster's machines, as the cloud lists them now."""

    @abstractmethod
    def _gone(self, known: Instance, now: datetime) -> Instance:
        """A machine that is in no list any more: when it ended, and why."""

    def instances(self) -> list[Instance]:
        listed = {each.id: each for each in self._listed()}
        with self._changing:
            names = [*listed, *(name for name in self._seen if name not in listed)]
            self._seen = {name: self._settled(listed.get(name), name) for name in names}
            return sorted(self._seen.values(), key=lambda each: each.launched_at)

    def _settled(self, listed: Instance | None, name: str) -> Instance:
        """A machine as it is now, from the list and from what was known before."""
        known, now = self._seen.get(name), self._now()
        if listed is None:
            assert known is not None
            unseen = now - known.launched_at < UNSEEN  # the lists lag behind
            return self._gone(known, now) if known.alive and not unseen else known
        if known is None:
            return listed
        if not known.alive:
            return known  # it may be listed a while longer
        return replace(listed, tags={**listed.tags, **known.tags})

    def _launched(
        self, name: str, offer: Offer, request: LaunchRequest, launched_at: datetime
    ) -> Instance:
        """A machine that the cloud has accepted."""
        instance = Instance(
            id=name,
            node_type=request.node_type,
            offer=offer,
            launched_at=launched_at,
            tags=dict(request.tags),
        )
        with self._changing:
            self._seen[name] = instance
        return instance

    def _has_ended(self, name: str) -> bool:
        """Whether it is known to: nothing is asked of the cloud for it again."""
        known = self._seen.get(name)
        return known is not None and not known.alive

    def _ended(self, known: Instance, reason: str) -> None:
        with self._changing:
            self._seen[known.id] = replace(known, ended_at=self._now(), reason=reason)


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9-]", "-", text.lower()).strip("-")


def new_name(request: LaunchRequest, cluster: str, pattern: str, rule: str) -> str:
    """The machine's name: the request's, or a new one that begins with `cluster`.

    Raises `UsageError` with `rule` where the request's is not of `pattern`.
    """
    if request.instance_id is None:
        kind = slug(request.node_type)[:12].strip("-")
        return f"{cluster}-{kind}-{secrets.token_hex(4)}"
    if not re.fullmatch(pattern, request.instance_id):
        raise UsageError(f"{request.instance_id!r} is no name for a machine on {rule}")
    return request.instance_id


def require_short(request: LaunchRequest, limit: int, whose: str) -> None:
    """Raises `UsageError` where the bootstrap script has more bytes than the cloud takes."""
    size = len(request.bootstrap.encode())
    if size > limit:
        raise UsageError(f"the bootstrap script has {size} bytes; {whose} takes {limit}")
