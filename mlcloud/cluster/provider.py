"""The node provider: where Ray's autoscaler asks for a shape, and mlcloud decides where to buy it.

    Ray's autoscaler v2 ── create_node("cpu2") ──► OfferProvider ── walk the offers ──► cloud.launch
      (decides how many)                          (cheapest effective price first)

Ray loads this class inside the head's autoscaler process (`provider.type: external`). Every try is
appended to `attempts.jsonl` in the cluster's folder, which the gateway turns into lines a user can
read, and from which this process, started anew, knows what is cooling down. An offer that could not
be had is left alone for a while (`attempts`); one whose instance was taken back lately is tried
last; nodes that come to nothing are not bought a third time (`breaker`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from mlcloud.cluster import attempts, breaker, ceiling, clouds, groups
from mlcloud.cluster.attempts import Attempt, AttemptLog, What
from mlcloud.cluster.clouds.base import CloudWithMachines, Instance, LaunchRequest
from mlcloud.cluster.clouds.headed import Headed
from mlcloud.cluster.clouds.local import HEAD
from mlcloud.cluster.effective import Expectations, pricing
from mlcloud.cluster.headspec import HeadSpec
from mlcloud.cluster.offers import Cooldown, Offer, OfferKey, Shape, key_of, walk
from mlcloud.cluster.preemptions import Preemptions
from mlcloud.cluster.records import now
from mlcloud.cost.prices import OnDemand
from mlcloud.errors import (
    CloudCredentialsExpired,
    CloudRefused,
    CredentialsMissing,
    NoCapacity,
    QuotaExceeded,
)

LISTED_AT_LEAST = 2  # times
TRIES, TRYING_S = 12, 20.0  # in one request of Ray's, which comes again; beyond, later


class OfferProvider(NodeProvider):  # type: ignore[misc]  # Ray ships no types
    """Ray's v1 `NodeProvider` interface, which its autoscaler v2 wraps, over one `LocalCloud`."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self.cloud = provider_config.get("cloud") or clouds.at_head(
            Path(provider_config["root"]), provider_config.get("head_file")
        )
        head_file = provider_config.get("head_file")
        self._head_file = Path(head_file) if head_file else None
        self._told_at = self._head_file.stat().st_mtime_ns if self._head_file else 0
        self._cooldown = timedelta(seconds=provider_config["cooldown_s"])
        self._expected = Expectations(**provider_config.get("expected", {}))
        self._root = Path(provider_config["root"])
        self._log = AttemptLog(self._root / "attempts.jsonl")
        self._cooling: dict[OfferKey, Cooldown] = attempts.cooling(
            self._log.recent(), self.cloud.offers()
        )
        self._in_a_row: dict[OfferKey, int] = {}
        self._failed: set[str] = set()  # ended nodes that were looked at
        self._waiting: dict[str, str] = {}  # what was last said of a node type that waits
        self._lock = threading.Lock()
        self._unseen: dict[str, int] = {}  # launched here: how often they are still to be listed

    # --- what Ray reads ---------------------------------------------------------------------------

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """The live nodes; and one that ended before Ray saw it, so that Ray sees it end.

        It waits ten minutes else for what it asked for, before it asks for another.
        """
        found = []
        for instance in self.cloud.instances():
            left = self._unseen.get(instance.id, 0)
            if (instance.alive or left) and _matches(_tags(instance), tag_filters):
                found.append(instance.id)
                self._unseen[instance.id] = left - 1
                if left <= 1:
                    del self._unseen[instance.id]
        return found

    def is_running(self, node_id: str) -> bool:
        return self.cloud.get(node_id).alive

    def is_terminated(self, node_id: str) -> bool:
        return not self.is_running(node_id)

    def node_tags(self, node_id: str) -> dict[str, str]:
        return _tags(self.cloud.get(node_id))

    def external_ip(self, node_id: str) -> str:
        return self.cloud.get(node_id).private_ip or "127.0.0.1"

    internal_ip = external_ip

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        """Ray's updaters are off (`disable_node_updaters`): nothing reads changed tags."""

    # --- what Ray asks for ------------------------------------------------------------------------

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> None:
        self.create_node_with_resources_and_labels(node_config, tags, count, {}, {})

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        for _ in range(count):
            with self._lock:
                self._launch_one(node_config, tags, resources, labels)

    def _launch_one(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        self._read_head_file()
        node_type = tags[TAG_RAY_USER_NODE_TYPE]
        request = LaunchRequest(node_type, resources, labels, tags)
        instances = self.cloud.instances()
        self._note_failures(instances)
        stopped = breaker.look(instances, node_type, now())
        if stopped is not None:
            self._wait(node_type, stopped.why, stopped.until)
        tried: list[str] = []
        most = ceiling.read(self._root)
        left, too_dear, dear = None, "", None
        if most is not None:
            # A price of spot may rise while a node is billed its least time; not above this.
            dearest = OnDemand(self.cloud.offers()).of
            left, too_dear = most.left(instances, node_type, dearest)
        until = time.monotonic() + TRYING_S
        for offer in self._ranked(node_config, instances):
            if isinstance(self.cloud, CloudWithMachines) and not self.cloud.free(offer):
                continue
            if left is not None and most is not None and most.least(offer, dearest(offer)) >= left:
                dear = dear or offer
                continue  # one that costs more now may cost less at most
            if len(tried) >= TRIES or time.monotonic() > until:
                break
            if self._cools(offer):
                continue  # by what another of them was just refused for
            failure = self._try(offer, request)
            if failure is None:
                self._waiting.pop(node_type, None)
                return
            tried.append(f"{offer.zone} {offer.market}: {failure}")
        if dear is not None and not tried:
            self._wait(node_type, f"{too_dear} for {dear}", None)
        if not tried:
            self._wait(node_type, *self._next(node_config, instances))
        raise NoCapacity(f"no offer for {node_type} could be had: {'; '.join(tried)}")

    def _read_head_file(self) -> None:
        """What the cloud is told may have been changed while the cluster runs."""
        if self._head_file is None or not isinstance(self.cloud, Headed):
            return
        told_at = self._head_file.stat().st_mtime_ns
        if told_at != self._told_at:
            self.cloud.tell(HeadSpec.read(self._head_file), self._head_file.parent)
            self._told_at = told_at

    def _try(self, offer: Offer, request: LaunchRequest) -> str | None:
        """Buy it; the reason where it could not be had, which is written down."""
        try:
            instance = self.cloud.launch(offer, request)
        except (CloudCredentialsExpired, CredentialsMissing) as error:
            self._wait(request.node_type, str(error), None)  # no other offer would be sold either
        except QuotaExceeded as error:
            return self._cool(offer, request.node_type, "quota", str(error))
        except NoCapacity as error:
            return self._cool(offer, request.node_type, "no capacity", str(error))
        except CloudRefused as error:
            return self._cool(offer, request.node_type, "refused", str(error))
        self._unseen[instance.id] = LISTED_AT_LEAST
        self._in_a_row.pop(key_of(offer), None)
        self._cooling.pop(key_of(offer), None)
        self._log.append(Attempt.of(offer, request.node_type, "launched", instance.id, now()))
        return None

    def _cools(self, offer: Offer) -> bool:
        cooldown = self._cooling.get(key_of(offer))
        return cooldown is not None and now() < cooldown.until

    def _cool(self, offer: Offer, node_type: str, what: What, why: str) -> str:
        key = key_of(offer)
        self._in_a_row[key] = self._in_a_row.get(key, 0) + 1
        until = now() + attempts.lasts(what, self._in_a_row[key], self._cooldown)
        for other in attempts.also_cooled(what, offer, self.cloud.offers()):
            self._cooling[key_of(other)] = Cooldown(until, why)
        self._log.append(Attempt.of(offer, node_type, what, why, now(), until))
        return why

    def _wait(self, node_type: str, why: str, until: datetime | None) -> None:
        """Nothing is bought now. Said once, not each time Ray asks. Raises `NoCapacity`."""
        if self._waiting.get(node_type) != why:
            self._waiting[node_type] = why
            self._log.append(Attempt(now(), node_type, "waiting", why, until=until))
        raise NoCapacity(why)

    def _note_failures(self, instances: list[Instance]) -> None:
        """Nodes that ended by themselves before they held a session: their offer cools down."""
        for each in instances:
            if each.ended_at is None or each.id in self._failed or each.node_type == HEAD:
                continue
            self._failed.add(each.id)
            why = breaker.futile(each, now())
            if why is not None and now() - each.ended_at < self._cooldown:
                what: What = "undersized" if why.startswith("undersized") else "failed"
                self._cool(each.offer, each.node_type, what, why)

    def _ranked(self, node_config: dict[str, Any], instances: list[Instance]) -> list[Offer]:
        """The node type's offers, the cheapest to work on first. Those that cool down are left
        out; those that were taken back lately come last."""
        preemptions = Preemptions()
        preemptions.see(instances, now())
        price = pricing(self._expected, preemptions.per_hour)
        taken = {
            key_of(each.offer)
            for each in instances
            if each.notice is not None and now() < each.notice.given_at + self._cooldown
        }
        shape, market = Shape(**node_config["shape"]), node_config["market"]
        suitable = filter(self._open(node_config, instances), self._suitable(node_config))
        ranked = walk(suitable, shape, market, self._cooling, now(), price)
        return sorted(ranked, key=lambda offer: key_of(offer) in taken)

    def _suitable(self, node_config: dict[str, Any]) -> list[Offer]:
        shape = Shape(**node_config["shape"])
        # A GPU is bought for who asked for one, however its price compares.
        return [
            offer
            for offer in self.cloud.offers()
            if (offer.accelerator is None) == (shape.accelerator is None)
            and (node_config.get("fallback", True) or offer.market == node_config["market"])
        ]

    def _open(
        self, node_config: dict[str, Any], instances: list[Instance]
    ) -> Callable[[Offer], bool]:
        """Whether the specification's node groups let one more be bought of an offer."""
        alive = [each for each in instances if each.alive and each.node_type != HEAD]
        return groups.open_to(groups.read(node_config.get("groups", ())), alive)

    def _next(
        self, node_config: dict[str, Any], instances: list[Instance]
    ) -> tuple[str, datetime | None]:
        """Why nothing can be tried now, and when something can."""
        shape, market = Shape(**node_config["shape"]), node_config["market"]
        fitting = walk(self._suitable(node_config), shape, market, {}, now())
        is_open = self._open(node_config, instances)
        if fitting and not any(map(is_open, fitting)):
            return f"the node groups with {shape} have all the nodes that they may (max)", None
        fitting = [each for each in fitting if is_open(each)]
        cooling = [self._cooling[key_of(each)] for each in fitting if key_of(each) in self._cooling]
        if not cooling:
            used = f"all {len(fitting)} machines with {shape} are in use"
            return used if fitting else f"no offer has {shape}", None
        first = min(cooling, key=lambda each: each.until)
        return (
            f"all {len(fitting)} offers for {shape} are cooling down ({first.reason})",
            first.until,
        )

    # --- the end ----------------------------------------------------------------------------------

    def terminate_node(self, node_id: str) -> None:
        self.cloud.terminate(node_id, "idle")

    def terminate_nodes(self, node_ids: list[str]) -> None:
        for node_id in node_ids:
            self.terminate_node(node_id)

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        return cluster_config


def _tags(instance: Instance) -> dict[str, str]:
    head = instance.node_type == HEAD
    return {
        **instance.tags,
        TAG_RAY_NODE_KIND: NODE_KIND_HEAD if head else NODE_KIND_WORKER,
        TAG_RAY_USER_NODE_TYPE: instance.node_type,
        TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
        TAG_RAY_NODE_NAME: instance.id,
    }


def _matches(tags: dict[str, str], wanted: dict[str, str]) -> bool:
    return all(tags.get(key) == value for key, value in wanted.items())
