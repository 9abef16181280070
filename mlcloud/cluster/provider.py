"""The node provider: where Ray's autoscaler asks for a shape, and mlcloud decides where to buy it.

    Ray's autoscaler v2 ── create_node("cpu2") ──► OfferProvider ── walk the offers ──► cloud.launch
      (decides how many)                          (cheapest first, cooled-down ones skipped)

Ray loads this class inside the head's autoscaler process (`provider.type: external`). Every attempt
is appended to `attempts.jsonl` in the cloud's folder, which the gateway turns into lines a user can
read. Cool-downs follow from the records alone: an offer whose instance was taken back lately is
tried last.
"""

from __future__ import annotations

import json
import threading
from datetime import timedelta
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

from mlcloud.cluster import clouds
from mlcloud.cluster.clouds.base import Instance, LaunchRequest
from mlcloud.cluster.clouds.local import HEAD, now
from mlcloud.cluster.offers import Cooldown, Offer, Shape, key_of, walk
from mlcloud.errors import CloudRefused, NoCapacity

LISTED_AT_LEAST = 2  # times


class OfferProvider(NodeProvider):  # type: ignore[misc]  # Ray ships no types
    """Ray's v1 `NodeProvider` interface, which its autoscaler v2 wraps, over one `LocalCloud`."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self.cloud = clouds.at_head(Path(provider_config["root"]), provider_config.get("head_file"))
        self._cooldown = timedelta(seconds=provider_config["cooldown_s"])
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
        node_type = tags[TAG_RAY_USER_NODE_TYPE]
        tried: list[str] = []
        for offer in self._ranked(node_config):
            request = LaunchRequest(node_type, resources, labels, tags)
            try:
                instance = self.cloud.launch(offer, request)
            except (NoCapacity, CloudRefused) as error:
                tried.append(f"{offer.zone} {offer.market}: {error}")
                self._log(node_type, offer, "no capacity", str(error))
                continue
            self._unseen[instance.id] = LISTED_AT_LEAST
            self._log(node_type, offer, "launched", instance.id)
            return
        raise NoCapacity(f"no offer for {node_type} could be had: {'; '.join(tried) or 'none'}")

    def _ranked(self, node_config: dict[str, Any]) -> list[Offer]:
        """The node type's offers, cheapest first; where all were taken back lately, all again."""
        cooling = {
            key_of(instance.offer): Cooldown(
                instance.notice.given_at + self._cooldown, "taken back"
            )
            for instance in self.cloud.instances()
            if instance.notice is not None
        }
        shape = Shape(**node_config["shape"])
        # A GPU is bought for who asked for one, however its price compares.
        offers = [
            offer
            for offer in self.cloud.offers()
            if (offer.accelerator is None) == (shape.accelerator is None)
        ]
        market = node_config["market"]
        return walk(offers, shape, market, cooling, now()) or walk(offers, shape, market, {}, now())

    def _log(self, node_type: str, offer: Offer, what: str, detail: str) -> None:
        line = {
            "at": now().isoformat(),
            "node_type": node_type,
            "instance_type": offer.instance_type,
            "zone": offer.zone,
            "market": offer.market,
            "usd_per_hour": str(offer.usd_per_hour),
            "what": what,
            "detail": detail,
        }
        with open(self.cloud.root / "attempts.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

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
