"""Launch, list and terminate on Azure.

launch()     network there? ─► PUT the machine, if there is none of its name ─► its operation,
             for a while: allocation fails there and not in the answer, and leaves a failed
             machine, which is deleted ─► Instance
instances()  machines, network cards and addresses of the resource group: three lists
terminate()  DELETE, with its disk, card and address; gone already is fine
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from mlcloud.cluster.clouds import sold, tags
from mlcloud.cluster.clouds.azure import body, leftovers
from mlcloud.cluster.clouds.azure.api import URL, Arm
from mlcloud.cluster.clouds.azure.network import Network
from mlcloud.cluster.clouds.base import CloudSettings, Instance, LaunchRequest, Leftover
from mlcloud.cluster.clouds.named import NamedMachines
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.records import now
from mlcloud.errors import CloudRefused, Conflict, MLCloudError, NotFound

#: How long `launch` waits for the operation to tell a refusal; a machine that takes longer counts
#: as accepted.
ACCEPTED_S = 90.0


class AzureCloud(NamedMachines):
    """Machines in one subscription. `settings.network` knows `subscription`, `resource_group`,
    `subnet`, `security_group`, `identity` (resource ids, or names in the group), `public_ip`
    (`head`, `all`, `none`) and `ssh_from` (ranges); `settings.endpoints` knows `management`."""

    name = "azure"

    def __init__(
        self,
        settings: CloudSettings,
        offers: Iterable[Offer],
        *,
        credential: Any = None,
        now: Callable[[], datetime] = now,
        pause_s: float = 2.0,
        accepted_s: float = ACCEPTED_S,
    ) -> None:
        super().__init__(settings, offers, network=body.NETWORK, now=now, accepted_s=accepted_s)
        self.arm = Arm(
            settings.network.get("subscription"),
            credential=credential,
            url=settings.endpoints.get("management", URL),
            pause_s=pause_s,
        )
        self._network = Network(self.arm, settings)

    def check(self) -> None:
        self.arm.call("GET", self.arm.path(), "azure")

    # --- launch -----------------------------------------------------------------------------------

    def configuration(self, offer: Offer, request: LaunchRequest) -> dict[str, Any]:
        """The body of the machine's PUT."""
        name = body.new_name(self.settings, request)
        return self._configuration(offer, request, name, self._now())

    def _configuration(
        self, offer: Offer, request: LaunchRequest, name: str, now: datetime
    ) -> dict[str, Any]:
        sold.require(self.name, self.settings, self._offers, offer)
        return body.machine(
            self.settings,
            offer,
            request,
            name,
            now,
            subnet=self._network.subnet(offer.region),
            security_group=self._network.security_group(offer.region),
        )

    def launch(self, offer: Offer, request: LaunchRequest) -> Instance:
        launched_at = self._now()
        name = body.new_name(self.settings, request)
        sent = self._configuration(offer, request, name, launched_at)
        self._network.ensure(offer.region, launched_at)
        what = str(offer)
        try:
            self.arm.change(
                "PUT", self._path(name), what, body=sent, seconds=self._accepted_s, only_new=True
            )
        except Conflict:
            return self._launched_before(name, what)
        except NotFound as error:
            # Not the machine is missing but what it is made of: an image, a subnet, a group.
            raise CloudRefused(str(error)) from error
        except MLCloudError:
            # Azure keeps a machine that it could not place, with its disk and its card.
            with contextlib.suppress(MLCloudError):
                self._delete(name, only_failed=True)
            raise
        return self._launched(name, offer, request, launched_at)

    def _launched_before(self, name: str, what: str) -> Instance:
        """The machine that has this id already: the same launch, asked for twice."""
        params = {"$expand": "instanceView"}
        found = self.arm.call("GET", self._path(name), what, params=params)
        if (found.get("tags") or {}).get(tags.CLUSTER) != tags.plain(self.settings.cluster):
            raise CloudRefused(f"{what}: another machine of the resource group is {name!r}")
        return self._instance(found, self._addresses())

    def _path(self, name: str = "") -> str:
        kind = "providers/Microsoft.Compute/virtualMachines"
        return self._network.within(f"{kind}/{name}" if name else kind)

    # --- list -------------------------------------------------------------------------------------

    def _listed(self) -> list[Instance]:
        cluster = tags.plain(self.settings.cluster)
        machines = self.arm.items(self._path(), "machines", params={"$expand": "instanceView"})
        found = [m for m in machines if (m.get("tags") or {}).get(tags.CLUSTER) == cluster]
        addresses = self._addresses() if found else {}
        return [self._instance(each, addresses) for each in found]

    def _gone(self, known: Instance, now: datetime) -> Instance:
        # Azure keeps no record that tells an eviction from a deletion.
        spot = known.offer.market == "spot"
        reason = "gone from the cloud: evicted, or deleted" if spot else "gone from the cloud"
        return replace(known, ended_at=now, reason=reason)

    def _addresses(self) -> dict[str, tuple[str | None, str | None]]:
        """Private and public address, by the machine's id in lower case (Azure changes case)."""
        network = self._network.within("providers/Microsoft.Network")
        public = {
            each["id"].lower(): each["properties"].get("ipAddress")
            for each in self.arm.items(f"{network}/publicIPAddresses", "addresses")
        }
        found = {}
        for card in self.arm.items(f"{network}/networkInterfaces", "network cards"):
            machine = card["properties"].get("virtualMachine")
            for address in card["properties"].get("ipConfigurations", [])[:1] if machine else []:
                of = address["properties"]
                mine = public.get(of.get("publicIPAddress", {}).get("id", "").lower())
                found[machine["id"].lower()] = (of.get("privateIPAddress"), mine)
        return found

    def _instance(
        self,
        found: Mapping[str, Any],
        addresses: Mapping[str, tuple[str | None, str | None]],
    ) -> Instance:
        marked = found.get("tags") or {}
        properties = found["properties"]
        launched_at = tags.read_time(marked.get(tags.LAUNCHED)) or self._now()
        region = str(found["location"])
        number = next(iter(found.get("zones") or []), None)
        spot = properties.get("priority") == "Spot"
        private_ip, public_ip = addresses.get(str(found["id"]).lower(), (None, None))
        ended_at, reason = None, ""
        state = leftovers.power(found)
        # A machine that was shut down from inside ("stopped") is alive: it bills in full.
        if state == "deallocated" or (
            properties.get("provisioningState") == "Failed" and not state
        ):
            ended_at, reason = self._now(), state or "Azure could not start it"
        return Instance(
            id=str(found["name"]),
            node_type=marked.get(tags.NODE_TYPE, ""),
            offer=sold.rebuilt(
                self._offers,
                cloud=self.name,
                region=region,
                zone=self._zone(region, number),
                instance_type=str(properties["hardwareProfile"]["vmSize"]),
                market="spot" if spot else "on-demand",
                labels=marked,
                launched_at=launched_at,
            ),
            launched_at=launched_at,
            ended_at=ended_at,
            reason=reason,
            tags=dict(marked),
            private_ip=private_ip,
            public_ip=public_ip,
        )

    def _zone(self, region: str, number: str | None) -> str:
        """A zone in the words of the offers (`westeurope-1`, or just `1`)."""
        words = (offer for offer in self._offers if offer.region == region)
        known = next((each.zone for each in words if body.zone(each) == number), None)
        return known or (f"{region}-{number}" if number else region)

    # --- the end ----------------------------------------------------------------------------------

    def terminate(self, instance_id: str, reason: str) -> None:
        if self._has_ended(instance_id):
            return
        known = self._seen.get(instance_id)
        self._delete(instance_id)
        if known is not None:
            self._ended(known, reason)

    def _delete(self, name: str, *, only_failed: bool = False) -> None:
        """Asks for the deletion; Azure carries it out by itself. Gone already is fine."""
        path = self._path(name)
        what = f"machine {name}"
        with contextlib.suppress(NotFound):
            found = self.arm.call("GET", path, what)
            failed = found["properties"].get("provisioningState") == "Failed"
            ours = (found.get("tags") or {}).get(tags.CLUSTER) == tags.plain(self.settings.cluster)
            if ours and (failed or not only_failed):
                self.arm.change("DELETE", path, what, seconds=0)

    def leftovers(self, now: datetime) -> list[Leftover]:
        return leftovers.find(self.arm, tags.plain(self.settings.cluster), now)

    def remove(self, leftover: Leftover) -> None:
        leftovers.remove(self.arm, leftover)
