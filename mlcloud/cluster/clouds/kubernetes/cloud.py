"""Launch, list and terminate on Kubernetes, by changing one RayCluster.

    launch(head)     token's secret, network policy, RayCluster ─► the operator makes the head's pod
    launch(worker)   its group's `replicas` + 1 (a group that is not there is added) ─► the operator
                     makes a pod, whose name is the instance's id
    terminate()      a worker: its pod into `workersToDelete`, `replicas` - 1; the head: the
                     RayCluster, and all with it

The protocol is that of Ray's own KubeRay provider, which runs beside the head and scales the same
groups by demand.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import datetime, timezone
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
from mlcloud.cluster.clouds.kubernetes import manifest, placing, pods
from mlcloud.cluster.clouds.kubernetes.api import Api
from mlcloud.cluster.clouds.kubernetes.manifest import Group
from mlcloud.cluster.offers import Offer
from mlcloud.errors import CloudRefused, Conflict, NotFound, UsageError

#: How long the operator may take to make a pod. It does not wait for a node.
POD_S = 60.0
_CLUSTER, _GROUP = "ray.io/cluster", "ray.io/group"
_KIND = "ray.io/node-type"


def _utc() -> datetime:
    return datetime.now(timezone.utc)


class KubernetesCloud(Cloud, CloudWithCredentials, CloudThatPlans, CloudWithLeftovers):
    """Pods in one namespace. `settings.network` knows `provider` (`gke`, `eks`, `aks`,
    `karpenter`), `namespace`, `context`, `service_account`, `token_secret`, `pull_secret` and
    `priority_class`; `settings.endpoints` knows `api`. `settings.image` is a container's."""

    name = "kubernetes"

    def __init__(
        self,
        settings: CloudSettings,
        offers: Iterable[Offer],
        *,
        now: Callable[[], datetime] = _utc,
        pod_s: float = POD_S,
    ) -> None:
        sold.require_names(settings.network, manifest.NETWORK, "kubernetes")
        placing.kind(settings.network.get("provider"))
        self.settings = settings
        self._offers = [offer for offer in offers if offer.region in settings.regions]
        self._now = now
        self._pod_s = pod_s
        self.api = Api(
            settings.network.get("namespace"),
            context=settings.network.get("context"),
            url=settings.endpoints.get("api"),
        )
        self._seen: dict[str, Instance] = {}
        self._launching = threading.RLock()

    def check(self) -> None:
        self.api.clusters(f"{tags.CLUSTER}={self._label()}")

    def offers(self) -> list[Offer]:
        return list(self._offers)

    # --- launch -----------------------------------------------------------------------------------

    def configuration(self, offer: Offer, request: LaunchRequest) -> dict[str, Any]:
        """The RayCluster for the head; for a worker, its group in it."""
        sold.require(self.name, self.settings, self._offers, offer)
        if request.node_type == manifest.HEAD:
            return self.manifest((offer, request), [])
        return manifest.worker_group(self.settings, Group(offer, request, 1), self._now())

    def manifest(
        self, head: tuple[Offer, LaunchRequest], groups: Sequence[Group]
    ) -> dict[str, Any]:
        """The whole RayCluster, as `kubectl apply -f` takes it too."""
        for offer in (head[0], *(group.offer for group in groups)):
            sold.require(self.name, self.settings, self._offers, offer)
        return manifest.cluster(self.settings, head, groups, self._now())

    def up(self, head: tuple[Offer, LaunchRequest], groups: Sequence[Group] = ()) -> Instance:
        """Make the cluster with its groups, which Ray's autoscaler then scales between `least` and
        `most`. Where it is there already its groups become these; running pods stay."""
        body = self.manifest(head, groups)
        self._make_beside()
        with self._launching:
            try:
                self.api.create_cluster(body)
            except Conflict:
                self.api.change_cluster(body["metadata"]["name"], _regrouped(body["spec"]))
            return self._pod(f"{_KIND}=head", set(), head[1], str(head[0]))

    def launch(self, offer: Offer, request: LaunchRequest) -> Instance:
        if request.instance_id is not None:
            raise UsageError("kubernetes: the operator names its pods; leave instance_id out")
        if request.node_type == manifest.HEAD:
            return self.up((offer, request))
        entry = self.configuration(offer, request)
        group = entry["groupName"]
        selector = f"{_GROUP}={group}"
        with self._launching:  # two at once could take each other's pod for theirs
            before = self._names(selector)
            self._scale(lambda groups: _grown(groups, entry))
            try:
                return self._pod(selector, before, request, str(offer))
            except CloudRefused:
                self._scale(lambda groups: _shrunk(groups, group, None))
                raise

    def _make_beside(self) -> None:
        """What a RayCluster refers to: the token's secret, unless it is the user's own."""
        marked = manifest.labels(tags.of_resource(self.settings, self._now()))
        if "token_secret" not in self.settings.network:
            token = b64encode(secrets.token_hex(32).encode()).decode()
            metadata = {"name": manifest.token_secret(self.settings), "labels": marked}
            with contextlib.suppress(Conflict):
                self.api.create_secret({"metadata": metadata, "data": {manifest.TOKEN_KEY: token}})
        with contextlib.suppress(Conflict):
            self.api.create_policy(manifest.network_policy(self.settings, self._now()))

    def _scale(self, change: Callable[[list[dict[str, Any]]], bool]) -> None:
        """`change` is given the groups and says whether it changed them."""

        def patch(present: Mapping[str, Any]) -> Mapping[str, Any] | None:
            groups = deepcopy(present["spec"].get("workerGroupSpecs") or [])
            return {"workerGroupSpecs": groups} if change(groups) else None

        try:
            self.api.change_cluster(manifest.name(self.settings), patch)
        except NotFound as error:
            raise CloudRefused(f"{error}; the head comes first: mlcloud up") from error

    def _pod(self, selector: str, before: set[str], request: LaunchRequest, what: str) -> Instance:
        """The pod that the operator makes: one that was not there `before`."""
        until = time.monotonic() + self._pod_s
        pause = 0.02
        while True:
            found = sorted(self._names(selector) - before)
            if found:
                break
            if time.monotonic() >= until:
                raise CloudRefused(
                    f"{what}: KubeRay's operator made no pod in {self._pod_s:g} s: kubectl "
                    f"describe raycluster {manifest.name(self.settings)} says why"
                )
            time.sleep(pause)
            pause = min(pause * 2, 1.0)
        pod = next(each for each in self._pods(selector) if each["metadata"]["name"] == found[0])
        made = pods.instance(pod, self._offers, self.settings)
        made = replace(made, tags={**made.tags, **request.tags})
        self._seen[made.id] = made
        return made

    # --- list -------------------------------------------------------------------------------------

    def instances(self) -> list[Instance]:
        listed = {
            each["metadata"]["name"]: pods.instance(each, self._offers, self.settings)
            for each in self._pods()
        }
        with self._launching:
            for name, known in list(self._seen.items()):
                if not known.alive:
                    listed[name] = known
                elif name in listed:
                    listed[name] = replace(listed[name], tags={**listed[name].tags, **known.tags})
                else:
                    listed[name] = replace(known, ended_at=self._now(), reason="its pod is gone")
            self._seen = listed
            return sorted(listed.values(), key=lambda each: each.launched_at)

    def _label(self) -> str:
        return manifest.labels({tags.CLUSTER: tags.plain(self.settings.cluster)})[tags.CLUSTER]

    def _pods(self, selector: str = "") -> list[dict[str, Any]]:
        wanted = f"{_CLUSTER}={manifest.name(self.settings)}{f',{selector}' if selector else ''}"
        pairs = [part.split("=") for part in wanted.split(",")]
        return [
            each
            for each in self.api.pods(wanted)
            if all((each["metadata"].get("labels") or {}).get(k) == v for k, v in pairs)
        ]

    def _names(self, selector: str) -> set[str]:
        return {each["metadata"]["name"] for each in self._pods(selector)}

    # --- the end ----------------------------------------------------------------------------------

    def terminate(self, instance_id: str, reason: str) -> None:
        known = self._seen.get(instance_id)
        if known is not None and not known.alive:
            return
        pod = next((p for p in self._pods() if p["metadata"]["name"] == instance_id), None)
        if pod is None:
            return
        labels = pod["metadata"]["labels"]
        if labels.get(_KIND) == "head":
            self.api.delete_cluster(manifest.name(self.settings))
        else:
            group = str(labels.get(_GROUP))
            self._scale(lambda groups: _shrunk(groups, group, instance_id))
        ended = known or pods.instance(pod, self._offers, self.settings)
        with self._launching:
            self._seen[instance_id] = replace(ended, ended_at=self._now(), reason=reason)

    def leftovers(self, now: datetime) -> list[Leftover]:
        """RayClusters with their pods, secrets and policies: this cluster's, and expired ones."""
        found = []
        for kind, ask in (
            ("raycluster", self.api.clusters),
            ("secret", self.api.secrets),
            ("network-policy", self.api.policies),
        ):
            for each in ask(tags.CLUSTER):
                marked = each["metadata"].get("labels") or {}
                ours = marked.get(tags.CLUSTER) == self._label()
                if tags.CLUSTER not in marked or not (ours or tags.expired(marked, now)):
                    continue
                why = "of this cluster" if ours else "its cluster is past its lifetime"
                name = str(each["metadata"]["name"])
                price = None if kind == "raycluster" else Decimal(0)
                found.append(Leftover(kind, name, "", marked, price, why))
        return found

    def remove(self, leftover: Leftover) -> None:
        delete = {
            "raycluster": self.api.delete_cluster,
            "secret": self.api.delete_secret,
            "network-policy": self.api.delete_policy,
        }
        delete[leftover.kind](leftover.id)


# --- changes to worker groups ---------------------------------------------------------------------


def _grown(groups: list[dict[str, Any]], entry: Mapping[str, Any]) -> bool:
    """One replica more of the group, which is added where it is not there."""
    for each in groups:
        if each["groupName"] == entry["groupName"]:
            each["replicas"] = (each.get("replicas") or 0) + 1
            each["maxReplicas"] = max(each.get("maxReplicas") or 0, each["replicas"])
            return True
    groups.append(dict(entry))
    return True


def _shrunk(groups: list[dict[str, Any]], name: str, pod: str | None) -> bool:
    """One replica less, and `pod` named as the one that goes. False where it goes already."""
    for each in groups:
        if each["groupName"] == name:
            going = list((each.get("scaleStrategy") or {}).get("workersToDelete") or [])
            if pod in going:
                return False
            least = each.get("minReplicas") or 0
            each["replicas"] = max(least, (each.get("replicas") or 0) - 1)
            if pod is not None:
                each["scaleStrategy"] = {"workersToDelete": [*going, pod]}
            return True
    return False


def _regrouped(spec: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """The groups of `spec`, with the replicas that run; what was left out goes to none."""

    def change(present: Mapping[str, Any]) -> Mapping[str, Any]:
        running = {g["groupName"]: g for g in present["spec"].get("workerGroupSpecs") or []}
        groups = []
        for each in deepcopy(spec["workerGroupSpecs"]):
            before = running.pop(each["groupName"], None)
            if before is not None:
                most = each["maxReplicas"]
                each["replicas"] = min(max(before.get("replicas") or 0, each["minReplicas"]), most)
            groups.append(each)
        gone = [{**g, "replicas": 0, "minReplicas": 0, "maxReplicas": 0} for g in running.values()]
        return {"workerGroupSpecs": [*groups, *gone]}

    return change
