"""Launch, list and terminate on Kubernetes, by changing one RayCluster. This is the head's side.

    launch(worker)   its secret, and a worker group of one replica in the RayCluster's list ─► the
                     operator makes a pod ─► its script starts the node's agent, which joins
    terminate()      the group's replica goes, and the group when its pod has gone

Who makes the RayCluster itself is `mlcloud up` (`client/podded`): its head is no node of this
cloud. The operator makes a pod anew that ended; a node that ended stays so: a pod that was made
long after its node was launched is none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from mlcloud.cluster.clouds import sold, tags
from mlcloud.cluster.clouds.base import (
    Cloud,
    CloudSettings,
    CloudThatPlans,
    CloudWithCredentials,
    CloudWithLeftovers,
    Instance,
    LaunchRequest,
    Leftover,
)
from mlcloud.cluster.clouds.kubernetes import beside, manifest, placing, pods
from mlcloud.cluster.clouds.kubernetes.api import Api
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.records import now
from mlcloud.errors import CloudRefused, NoCapacity, NotFound, UsageError

#: What `leftovers` looks for, in the order in which it is removed.
SWEPT = (
    "raycluster", "pod", "service", "network-policy", "secret", "config-map", "role-binding",
    "role", "service-account",
)  # fmt: skip


class KubernetesCloud(Cloud, CloudWithCredentials, CloudThatPlans, CloudWithLeftovers):
    """Pods in one namespace. `settings.network` knows `provider` (`gke`, `eks`, `aks`,
    `karpenter`), `namespace`, `context`, `service_account`, `pull_secret`, `priority_class` and
    `clients`; `settings.endpoints` knows `api`. `settings.image` is a container's."""

    name = "kubernetes"

    def __init__(
        self,
        settings: CloudSettings,
        offers: Iterable[Offer],
        *,
        now: Callable[[], datetime] = now,
    ) -> None:
        sold.require_names(settings.network, manifest.NETWORK, "kubernetes")
        placing.kind(settings.network.get("provider"))
        # One that nobody named is a region of its own.
        self.settings = replace(settings, regions=settings.regions or (placing.OWN,))
        self._offers = [offer for offer in offers if offer.region in self.settings.regions]
        self._now = now
        self.api = Api(
            settings.network.get("namespace"),
            context=settings.network.get("context"),
            url=settings.endpoints.get("api"),
        )

    def check(self) -> None:
        self.api.list("raycluster", f"{tags.CLUSTER}={self._label()}")

    def offers(self) -> list[Offer]:
        return list(self._offers)

    # --- launch -----------------------------------------------------------------------------------

    def configuration(self, offer: Offer, request: LaunchRequest) -> dict[str, Any]:
        """The RayCluster for the head; for a worker, its group in it."""
        sold.require(self.name, self.settings, self._offers, offer)
        if request.node_type == manifest.HEAD:
            return manifest.cluster(
                self.settings,
                offer,
                folder=f"{manifest.name(self.settings)}/head",
                wheel="",
                parts=(),
                most=1,
                now=self._now(),
            )
        return manifest.worker_group(self.settings, offer, request, self._now())

    def launch(self, offer: Offer, request: LaunchRequest) -> Instance:
        if request.node_type == manifest.HEAD or request.instance_id is None:
            raise UsageError("kubernetes: its head is made by `mlcloud up`, and makes its nodes")
        entry = self.configuration(offer, request)
        launched_at = self._now()
        present = self._present()
        node = request.instance_id
        self.api.create(
            "secret",
            beside.secret_of_node(self.settings, node, request.bootstrap, present, launched_at),
        )
        running = self._running()

        def grown(present: Mapping[str, Any]) -> Mapping[str, Any]:
            groups = _kept(present, running)
            most = int((present["metadata"].get("annotations") or {}).get(manifest.MOST, 64))
            if sum(bool(each["replicas"]) for each in groups) >= most:
                raise NoCapacity(
                    f"the cluster may have {most} nodes at once: raise `max` of its node groups "
                    "and run `mlcloud up` again"
                )
            return {"workerGroupSpecs": [*groups, entry]}

        self.api.change_cluster(manifest.name(self.settings), grown)
        return Instance(
            id=node,
            node_type=request.node_type,
            offer=offer,
            launched_at=launched_at,
            tags={**entry["template"]["metadata"]["labels"], **request.tags},
        )

    def _present(self) -> dict[str, Any]:
        try:
            return self.api.get("raycluster", manifest.name(self.settings))
        except NotFound as error:
            raise CloudRefused(f"{error}; the head comes first: mlcloud up") from error

    # --- list -------------------------------------------------------------------------------------

    def instances(self) -> list[Instance]:
        """The nodes that the RayCluster asks for."""
        try:
            present = self.api.get("raycluster", manifest.name(self.settings))
        except NotFound:
            return []
        running = self._running()
        found = [
            pods.instance(each, running.get(each["groupName"], []), self._offers, self.settings,
                          self._now())
            for each in present["spec"].get("workerGroupSpecs") or []
            if each.get("replicas")
        ]  # fmt: skip
        return sorted(found, key=lambda each: each.launched_at)

    def _label(self) -> str:
        return manifest.labels({tags.CLUSTER: tags.plain(self.settings.cluster)})[tags.CLUSTER]

    def _running(self) -> dict[str, list[dict[str, Any]]]:
        """Pods by worker group."""
        selector = f"ray.io/cluster={manifest.name(self.settings)}"
        found: dict[str, list[dict[str, Any]]] = {}
        for each in self.api.list("pod", selector):
            marked = each["metadata"].get("labels") or {}
            found.setdefault(str(marked.get("ray.io/group")), []).append(each)
        return found

    # --- the end ----------------------------------------------------------------------------------

    def terminate(self, instance_id: str, reason: str) -> None:
        running = self._running()

        def shrunk(present: Mapping[str, Any]) -> Mapping[str, Any] | None:
            groups = _kept(present, running)
            for each in groups:
                if each["groupName"] == instance_id and each["replicas"]:
                    going = [pod["metadata"]["name"] for pod in running.get(instance_id, [])]
                    each["replicas"] = 0
                    each["scaleStrategy"] = {"workersToDelete": going}
                    return {"workerGroupSpecs": groups}
            return None

        try:
            self.api.change_cluster(manifest.name(self.settings), shrunk)
        except NotFound:  # and all its nodes with it
            return

    def clear(self) -> None:
        """End all nodes, whoever launched them."""
        for each in self.instances():
            self.terminate(each.id, "of a head that is gone")

    def release(self) -> None:
        """The head gives itself back: its RayCluster goes, and what is beside it stays, so that
        `up` brings it again."""
        self.api.delete("raycluster", manifest.name(self.settings))

    def leftovers(self, now: datetime) -> list[Leftover]:
        """All that carries our labels: this cluster's, and that of expired ones."""
        found = []
        for kind in SWEPT:
            for each in self.api.list(kind, tags.CLUSTER):
                marked = each["metadata"].get("labels") or {}
                ours = marked.get(tags.CLUSTER) == self._label()
                if tags.CLUSTER not in marked or not (ours or tags.expired(marked, now)):
                    continue
                why = "of this cluster" if ours else "its cluster is past its lifetime"
                name = str(each["metadata"]["name"])
                price = tags.read_price(marked.get(tags.PRICE)) if kind == "pod" else Decimal(0)
                found.append(Leftover(kind, name, "", marked, price, why))
        return found

    def remove(self, leftover: Leftover) -> None:
        self.api.delete(leftover.kind, leftover.id)


def _kept(present: Mapping[str, Any], running: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The worker groups, without those whose node has ended and whose pod has gone."""
    groups = deepcopy(present["spec"].get("workerGroupSpecs") or [])
    return [each for each in groups if each.get("replicas") or running.get(each["groupName"])]
