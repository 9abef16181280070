"""The specification in force, and a changed one applied while the cluster runs.

    PUT /v1/specification ─► split(old, new) ─┬─ needs down and up ─► refused, nothing is done
                                              └─ else: the record, then
        settings   idle times, how many nodes, lifetime ─► in force with their next look
        node types min, max, groups ─► autoscaling.yaml, which Ray reads each second
        cloud      tags, image, offers, machines ─► head.json, for nodes launched from now on
        budgets    put, or removed
        packages   pip.conf (0600), for nodes launched from now on; the lock, for new sessions
        regions    nodes outside of them are left: their sessions move, then they end

The record is `home/cluster.json`: a gateway that follows goes on with it. A type of node that no
group names any more stays known to Ray for as long as there is one, so that none is taken from
under a session; it ends when it is idle.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

from mlcloud.cluster import in_force
from mlcloud.cluster.clouds.headed import Headed
from mlcloud.cluster.headspec import HeadSpec
from mlcloud.cluster.records import now, write_json
from mlcloud.cluster.specification import (
    OTHER_LOCK,
    Change,
    ChangeList,
    Specification,
    specify,
    split,
)
from mlcloud.cluster_models import PackagesRequest, SpecificationInfo, SpecificationRequest
from mlcloud.config import Settings
from mlcloud.environment import index
from mlcloud.errors import Conflict
from mlcloud.gateway import environments
from mlcloud.gateway.billing import is_worker
from mlcloud.gateway.given import Given
from mlcloud.gateway.notices import Leaving
from mlcloud.gateway.payers import CLUSTER
from mlcloud.models import EnvironmentSpec

if TYPE_CHECKING:
    from mlcloud.gateway.core import Gateway

log = logging.getLogger(__name__)

LEAVING_S = 60.0  # for sessions on nodes where nothing may be any more
_OWN = ("head",)
_RUNTIME = ("setup", "indexes")  # of a node's runtime, what a specification says


class Specified:
    """Of one gateway. `specification` is None where the cluster was brought up without one."""

    def __init__(self, settings: Settings) -> None:
        self._record = in_force.read_record(settings)
        self.specification = in_force.recorded(self._record)
        told = self._record.get("environment")
        self._environment = None if told is None else EnvironmentSpec.model_validate(told)
        self._changing = asyncio.Lock()

    def settings(self, settings: Settings) -> Settings:
        """`settings`, with what was changed since this process was first started."""
        if self.specification is None or not self._record.get("changed"):
            return settings
        return in_force.overlay(self.specification, settings, in_force.FIELDS)

    def present(self, settings: Settings) -> Specification:
        return self.specification or in_force.of_settings(settings)

    def given(self) -> Given:
        """To every session that is made."""
        return Given.of(self.specification, self._environment)

    def begin(self, gateway: Gateway) -> None:
        """What a gateway that starts has to do for it."""
        if self.specification is not None:
            self._put_budgets(gateway, self.specification)

    async def change(
        self,
        gateway: Gateway,
        wanted: Specification,
        head: Mapping[str, Any] | None,
        packages: PackagesRequest | None = None,
    ) -> ChangeList:
        """Apply it; what has changed. `head` has `settings` and `runtime` as of `head.json`.

        Raises `Conflict`, and then nothing was changed, for what needs `down` and `up`.
        """
        async with self._changing:
            old = self.present(gateway.settings)
            if self.specification is None:  # the default one takes any name
                old = old.model_copy(update={"name": wanted.name})
            differs = split(old, wanted)
            if differs.refused:
                raise Conflict(differs.refusal())
            found = differs.applied
            if packages is not None:
                environments.check_spec(packages.environment)
            if not found and self.specification is not None:
                return ChangeList(self._take(gateway, packages))
            self._refuse(gateway, wanted, head)
            found = ChangeList([*found, *self._take(gateway, packages)])
            await asyncio.to_thread(self._write, gateway, wanted, head)
            self.specification = wanted
            gateway.settings = in_force.overlay(wanted, gateway.settings, in_force.FIELDS)
            await gateway.cluster.respecify(gateway.settings, wanted)
            gateway.billing.sold(gateway.cluster.cloud.offers())
            gateway.sessions.respecify(gateway.settings.idle_timeout.total_seconds())
            self._put_budgets(gateway, wanted)
            self._leave_regions(gateway, wanted)
            for each in found:
                log.info("specification: %s", each)
            return found

    def _refuse(
        self, gateway: Gateway, wanted: Specification, head: Mapping[str, Any] | None
    ) -> None:
        """Raises `Conflict` for what cannot be as things stand now."""
        cloud = gateway.cluster.cloud
        if not isinstance(cloud, Headed):
            return
        regions = wanted.node_regions
        if regions and cloud.spec.region and cloud.spec.region not in regions:
            raise Conflict(
                f"regions: the head is in {cloud.spec.region}, which may not be left out while it "
                f"runs: `mlcloud down`, then `up` puts it into {', '.join(regions)}. Nothing was "
                "changed"
            )
        if head is None or "machines" not in head["settings"]:
            return
        machines = {each["host"] for each in head["settings"]["machines"]}
        used = {
            each.offer.zone: each.id
            for each in cloud.instances()
            if each.alive and is_worker(each) and each.offer.zone not in machines
        }
        if used:
            held = ", ".join(f"{host} ({node})" for host, node in used.items())
            raise Conflict(
                f"ssh.hosts: {held} is a node now: park its sessions (`mlcloud park NAME`) and try "
                "again when it is idle, or leave the machine in. Nothing was changed"
            )

    def _write(
        self, gateway: Gateway, wanted: Specification, head: Mapping[str, Any] | None
    ) -> None:
        settings, cloud = gateway.settings, gateway.cluster.cloud
        if isinstance(cloud, Headed) and head is not None and settings.head_file is not None:
            told = {name: value for name, value in head["runtime"].items() if name in _RUNTIME}
            # What the head itself is, it stays.
            kept = {name: cloud.spec.settings[name] for name in _OWN if name in cloud.spec.settings}
            spec = asdict(replace(cloud.spec, settings={**kept, **head["settings"]}))
            spec["runtime"] |= told
            # Ray's autoscaler looks at the time of this file before it launches.
            write_json(settings.head_file, spec)
            cloud.tell(HeadSpec.read(settings.head_file), settings.home)
        self._record = {
            **in_force.read_record(settings),
            "url": gateway.url,
            "specification": wanted.model_dump(mode="json"),
            "variables": in_force.variables(wanted, in_force.FIELDS),
            "changed": now().isoformat(),
        }
        in_force.write_record(settings, self._record)

    def _take(self, gateway: Gateway, packages: PackagesRequest | None) -> list[Change]:
        """What is behind the names in the specification, which may be the same as before."""
        if packages is None:
            return []
        settings, before = gateway.settings, self._environment
        index.write(settings.home / index.FILE, packages.pip_conf)
        self._environment = packages.environment
        told = None if packages.environment is None else packages.environment.model_dump()
        self._record = {**in_force.read_record(settings), "environment": told}
        in_force.write_record(settings, self._record)
        if before is None or packages.environment in (None, before):
            return []
        return [OTHER_LOCK]

    def _put_budgets(self, gateway: Gateway, wanted: Specification) -> None:
        """Those of the specification; once, so that what a user sets later stays."""
        texts = [f"{each.usd:f}" if each.per == "total" else str(each) for each in wanted.budget]
        budgets = gateway.budgets
        # A head made anew has no record of its own: the store's says.
        put = self._record.get("budgets", budgets.told)
        budgets.told = texts
        if texts == put:
            return
        for number, text in enumerate(texts):
            budgets.put(of_cluster(number), text)
        for number in range(len(texts), len(put)):
            budgets.remove(of_cluster(number))
        self._record = {**in_force.read_record(gateway.settings), "budgets": texts}
        in_force.write_record(gateway.settings, self._record)

    def _leave_regions(self, gateway: Gateway, wanted: Specification) -> None:
        regions = wanted.node_regions
        for each in gateway.cluster.cloud.instances():
            if regions and each.alive and is_worker(each) and each.offer.region not in regions:
                log.info("node %s is in %s, where nothing may be", each.id, each.offer.region)
                deadline = now() + timedelta(seconds=LEAVING_S)
                gateway.notices.leave(each.id, Leaving(deadline, "region"), "its region was left")


def of_cluster(index: int) -> str:
    """Whose a specification's budgets are: the first is the one that `%mlcloud budget` sets."""
    return f"{CLUSTER}/{index}" if index else CLUSTER


def routes(gateway: Gateway, log_change: Callable[[str, str], None]) -> APIRouter:
    routes = APIRouter(prefix="/specification")
    of = gateway.specified

    def info(applied: ChangeList | None = None) -> SpecificationInfo:
        told = of.present(gateway.settings).model_dump(mode="json")
        return SpecificationInfo(
            specification=told,
            named=of.specification is not None,
            applied=[str(each) for each in applied or ()],
        )

    @routes.get("")
    async def get_specification() -> SpecificationInfo:
        return info()

    @routes.put("")
    async def change_specification(request: SpecificationRequest) -> SpecificationInfo:
        wanted = specify("the specification", None, **request.specification)
        head = None if request.head is None else request.head.model_dump()
        applied = await of.change(gateway, wanted, head, request.packages)
        log_change("cluster.specification", "; ".join(map(str, applied)) or "as it was")
        return info(applied)

    return routes
