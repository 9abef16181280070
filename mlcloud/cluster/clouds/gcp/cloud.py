"""Launch, list and terminate on Compute Engine.

    launch()     network there? ─► insert ─► its operation, for a while: "no capacity" and "quota"
                 come there and not in the answer ─► Instance
    instances()  one aggregated list, filtered by the cluster's label
    terminate()  delete, wherever it is; gone already is fine

A machine's id is its name. Google forgets a machine when it is deleted, so of one that went away
while this process watched, the operations of its zone tell why (a preemption is one of them).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from mlcloud.cluster.clouds import sold, tags
from mlcloud.cluster.clouds.base import CloudSettings, Instance, LaunchRequest, Leftover
from mlcloud.cluster.clouds.gcp import body, leftovers
from mlcloud.cluster.clouds.gcp.api import URL, Compute
from mlcloud.cluster.clouds.gcp.network import Network
from mlcloud.cluster.clouds.named import NamedMachines
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.records import now
from mlcloud.errors import CloudRefused, Conflict, NotFound
from mlcloud.units import parse_moment

#: How long `launch` waits for the operation to tell a refusal. Those come within seconds; a
#: machine that takes longer counts as accepted.
ACCEPTED_S = 60.0
#: https://cloud.google.com/compute/docs/instances/preemptible#preemption-detection
_WHY = {
    "compute.instances.preempted": "preempted",
    "compute.instances.hostError": "the host failed",
    "compute.instances.guestTerminate": "shut down from inside",
    "delete": "deleted",
}


class GcpCloud(NamedMachines):
    """Machines in one project. `settings.network` knows `project`, `network`, `subnet`,
    `service_account`, `public_ip` (`head`, `all`, `none`) and `ssh_from` (ranges);
    `settings.endpoints` knows `compute`."""

    name = "gcp"

    def __init__(
        self,
        settings: CloudSettings,
        offers: Iterable[Offer],
        *,
        credentials: Any = None,
        now: Callable[[], datetime] = now,
        pause_s: float = 0.5,
        accepted_s: float = ACCEPTED_S,
    ) -> None:
        super().__init__(settings, offers, network=body.NETWORK, now=now, accepted_s=accepted_s)
        self.compute = Compute(
            settings.network.get("project"),
            credentials=credentials,
            url=settings.endpoints.get("compute", URL),
            pause_s=pause_s,
        )
        self._network = Network(self.compute, settings)

    def check(self) -> None:
        self.compute.call("GET", f"projects/{self.compute.project}", "gcp")

    # --- launch -----------------------------------------------------------------------------------

    def configuration(self, offer: Offer, request: LaunchRequest) -> dict[str, Any]:
        """The body of `instances.insert`."""
        sold.require(self.name, self.settings, self._offers, offer)
        name = body.new_name(self.settings, request)
        return body.instance(self.settings, offer, request, name, self._now())

    def launch(self, offer: Offer, request: LaunchRequest) -> Instance:
        sent = self.configuration(offer, request)
        launched_at = self._now()
        self._network.ensure(offer.region, launched_at)
        what = str(offer)
        path = self.compute.path(f"zones/{offer.zone}/instances")
        try:
            operation = self.compute.change("POST", path, what, body=sent)
            self.compute.wait(operation, what, self._accepted_s)
        except Conflict:
            return self._launched_before(f"{path}/{sent['name']}", what)
        except NotFound as error:
            # Not the machine is missing but what it is made of: a type, an image, a network.
            raise CloudRefused(str(error)) from error
        return self._launched(sent["name"], offer, request, launched_at)

    def _launched_before(self, path: str, what: str) -> Instance:
        """The machine that has this id already: the same launch, asked for twice."""
        found = self.compute.call("GET", path, what)
        if found.get("labels", {}).get(tags.CLUSTER) != tags.plain(self.settings.cluster):
            raise CloudRefused(f"{what}: another machine of the project is {found['name']!r}")
        return self._instance(found)

    # --- list -------------------------------------------------------------------------------------

    def _listed(self) -> list[Instance]:
        cluster = tags.plain(self.settings.cluster)
        found = self.compute.items(
            self.compute.path("aggregated/instances"),
            "instances",
            params={"filter": f"labels.{tags.CLUSTER}={cluster}"},
        )
        return [self._instance(each) for each in found]

    def _instance(self, found: Mapping[str, Any]) -> Instance:
        labels = found.get("labels", {})
        zone = str(found["zone"]).rsplit("/", 1)[-1]
        interface = (found.get("networkInterfaces") or [{}])[0]
        access = (interface.get("accessConfigs") or [{}])[0]
        spot = found.get("scheduling", {}).get("provisioningModel") == "SPOT"
        made = found.get("creationTimestamp")
        launched_at = tags.read_time(labels.get(tags.LAUNCHED)) or (
            parse_moment(made) if made else self._now()
        )
        ended_at, reason = None, ""
        if found.get("status") in leftovers.STOPPED:
            stopped = found.get("lastStopTimestamp") or found.get("lastSuspendedTimestamp")
            ended_at = parse_moment(stopped) if stopped else self._now()
            reason = (self._why(str(found["selfLink"])) or ("stopped", None))[0]
        return Instance(
            id=str(found["name"]),
            node_type=labels.get(tags.NODE_TYPE, ""),
            offer=sold.rebuilt(
                self._offers,
                cloud=self.name,
                region=zone.rsplit("-", 1)[0],
                zone=zone,
                instance_type=str(found["machineType"]).rsplit("/", 1)[-1],
                market="spot" if spot else "on-demand",
                labels=labels,
                launched_at=launched_at,
            ),
            launched_at=launched_at,
            ended_at=ended_at,
            reason=reason,
            tags=dict(labels),
            private_ip=interface.get("networkIP"),
            public_ip=access.get("natIP"),
        )

    def _gone(self, known: Instance, now: datetime) -> Instance:
        link = self.compute.path(f"zones/{known.offer.zone}/instances/{known.id}")
        outlived = (now - known.launched_at).total_seconds() >= self.settings.lifetime_s
        unknown = "past its lifetime" if outlived else "gone from the cloud"
        reason, at = self._why(link) or (unknown, None)
        return replace(known, ended_at=at or now, reason=reason)

    def _why(self, link: str) -> tuple[str, datetime | None] | None:
        """Why a machine ended, and when, from the operations of its zone."""
        path = link.split("/compute/v1/")[-1]
        zone = path.split("/instances/")[0]
        kinds = " OR ".join(f'(operationType="{kind}")' for kind in _WHY)
        for each in self.compute.items(
            f"{zone}/operations", "operations", params={"filter": kinds}
        ):
            if str(each.get("targetLink", "")).endswith(path):
                ended = each.get("endTime") or each.get("insertTime")
                kind = str(each["operationType"])
                return _WHY.get(kind, kind), parse_moment(ended) if ended else None
        return None

    # --- the end ----------------------------------------------------------------------------------

    def terminate(self, instance_id: str, reason: str) -> None:
        if self._has_ended(instance_id):
            return
        known = self._seen.get(instance_id) or next(
            (each for each in self.instances() if each.id == instance_id), None
        )
        if known is None:
            return
        path = self.compute.path(f"zones/{known.offer.zone}/instances/{instance_id}")
        with contextlib.suppress(NotFound):  # gone already
            self.compute.change("DELETE", path, f"machine {instance_id}")
        self._ended(known, reason)

    def leftovers(self, now: datetime) -> list[Leftover]:
        return leftovers.find(self.compute, tags.plain(self.settings.cluster), now)

    def remove(self, leftover: Leftover) -> None:
        leftovers.remove(self.compute, leftover)
