"""The embedded cluster as the gateway runs it: started, or found again; watched; ended.

start() ─┬─ no head alive: new settings on disk, launch the head, join Ray
         └─ a head is alive (a gateway was killed): read its settings, join Ray again
watch()    every half second: which nodes ended, what the autoscaler tried  ─► callbacks
preempt()  the drill: the cloud gives the notice, the node's agent reports it, the cloud kills
end()      every node, the head last, and Ray's folder
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

from mlcloud.cluster import clouds, groups, raycluster
from mlcloud.cluster.attempts import Attempt, AttemptLog
from mlcloud.cluster.clouds.base import Instance, LaunchRequest, Notice
from mlcloud.cluster.clouds.headed import Headed
from mlcloud.cluster.clouds.local import HEAD, LocalCloud
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.records import write_json
from mlcloud.cluster.shapes import HostRequest, NodeType, node_types
from mlcloud.cluster.specification import NodeGroup, Specification
from mlcloud.config import Settings
from mlcloud.environment import index
from mlcloud.errors import NoSuchResources, SessionFailed
from mlcloud.gateway.hosts import Hosts
from mlcloud.store import residency

log = logging.getLogger(__name__)
WATCH_S = 0.5

HEAD_OFFER = Offer(
    cloud="local",
    region="local",
    zone="local",
    instance_type="this-computer",
    cpus=1,
    memory_bytes=2**30,
    accelerator=None,
    accelerator_count=0,
    market="on-demand",
    usd_per_hour=Decimal(0),
    simulated=True,
    source="the head runs on your own computer",
    as_of=date(2026, 11, 1),
)


class EmbeddedCluster:
    """One Ray cluster of local processes under `settings.home`."""

    def __init__(
        self,
        settings: Settings,
        *,
        on_end: Callable[[Instance], None],
        on_attempt: Callable[[Attempt], None],
        specification: Specification | None = None,
    ) -> None:
        self.settings = settings
        self.cloud = clouds.at_head(settings.cloud_root, settings.head_file, watching=True)
        # Ray reads its token when it is first imported, and the first may be who ends what a head
        # before this one has left, by Ray's own provider.
        self._ray_token = self.cloud.ray_token or _kept_token(self.cloud.root)
        os.environ.update(raycluster.ray_environment(self._ray_token))
        self.name = self.cloud.spec.name if isinstance(self.cloud, Headed) else "embedded"
        self._residency = _residency(specification)
        self.groups: tuple[NodeGroup, ...] = specification.nodes if specification else ()
        self.types: list[NodeType] = []
        self._read_types()
        self._autoscaling: dict[str, Any] = {}  # as it was written last
        self.state = "starting"
        self.detail = ""
        self.hosts: Hosts | None = None
        self._on_end = on_end
        self._on_attempt = on_attempt
        self._alive: set[str] = set()
        self.attempts = AttemptLog(self.cloud.root / "attempts.jsonl")
        self._attempts_read = 0
        self._joined: asyncio.Future[Hosts] = asyncio.get_running_loop().create_future()

    @property
    def up(self) -> bool:
        return self._joined.done()

    async def joined(self) -> Hosts:
        """Ray, once the cluster is up. Raises `SessionFailed` if it does not come up."""
        return await asyncio.shield(self._joined)

    async def start(self) -> None:
        """Bring the cluster up. Adopts a running one; clears away the remains of a dead one."""
        try:
            await self._start()
        except Exception as error:
            log.exception("the cluster did not start")
            self.state, self.detail = "failed", str(error)
            self._joined.set_exception(
                SessionFailed(
                    f"the embedded cluster did not start: {error}; see {self.settings.log_file} "
                    f"and {self.cloud.root}; `mlcloud down` clears it away"
                )
            )
        else:
            self.state = "running"
            assert self.hosts is not None
            self._joined.set_result(self.hosts)

    async def _start(self) -> None:
        head = self._live_head()
        self._alive = {each.id for each in self.cloud.instances() if each.alive}
        if head is None:
            await asyncio.to_thread(self._end_instances, "left over from an earlier cluster")
            settings = await asyncio.to_thread(self._launch_head)
        else:
            log.info("adopting the running cluster, head %s", head.id)
            settings = json.loads((self.cloud.root / "cluster.json").read_text())
            await asyncio.to_thread(self._write_autoscaling, self.cloud.instances())
        self._alive = {each.id for each in self.cloud.instances() if each.alive}
        self._attempts_read = self.attempts.size()
        self.hosts = Hosts(
            f"{settings['node_ip']}:{settings['gcs_port']}", settings["ray_environment"]
        )
        joining = asyncio.create_task(self.hosts.connect())
        while not joining.done():
            await asyncio.wait({joining}, timeout=WATCH_S)
            if not joining.done() and self._live_head() is None:
                joining.cancel()
                raise SessionFailed("Ray's head ended while it started")
        joining.result()

    def _live_head(self) -> Instance | None:
        for instance in self.cloud.instances():
            if instance.alive and instance.node_type == HEAD:
                return instance
        return None

    def _launch_head(self) -> dict[str, Any]:
        ray_dir = self.settings.ray_dir
        shutil.rmtree(ray_dir, ignore_errors=True)
        ray_dir.mkdir(parents=True, mode=0o700)
        head_id = LocalCloud.new_id()
        cluster = raycluster.write(
            self.cloud.root,
            types=self.types,
            head_instance_id=head_id,
            ray_dir=ray_dir,
            connection_file=self.settings.connection_file,
            limits=self._limits(),
            node_idle_s=self.settings.node_idle.total_seconds(),
            cooldown_s=self.settings.offer_cooldown.total_seconds(),
            dead_man_s=self.settings.dead_man.total_seconds(),
            notice_poll_s=self.settings.notice_poll.total_seconds(),
            metadata=self.settings.metadata,
            lifetime_s=self.settings.node_lifetime.total_seconds(),
            node_ip=self.cloud.address,
            head_file=self.settings.head_file,
            store_url=self.settings.store_url,
            gcs_port=self.cloud.gcs_port,
            ray_token=self._ray_token,
            residency=self._residency,
            head_cloud=self.cloud.name,
            pip_conf=self.settings.home / index.FILE,
        )
        bought = self.cloud.head_offer if isinstance(self.cloud, Headed) else None
        self.cloud.launch(
            bought or HEAD_OFFER,
            LaunchRequest(HEAD, {"CPU": 0}, instance_id=cluster["head_instance_id"]),
        )
        return cluster

    # --- another specification --------------------------------------------------------------------

    def _read_types(self) -> None:
        self.types = node_types(groups.bought(self.groups, self.cloud.offers()))

    def _limits(self) -> groups.Limits:
        return groups.limits(
            self.groups,
            self.cloud.offers(),
            total=self.settings.max_nodes,
            spares=self.settings.warm_spares,
        )

    def require(self, request: HostRequest) -> None:
        """Raises `NoSuchResources` where the specification in force has no such node."""
        wanted = request.node_type
        if not any(each.name == wanted.name for each in self.types):
            shapes = ", ".join(sorted({each.describe() for each in self.types}))
            raise NoSuchResources(
                f"the cluster's specification has no node of {wanted.describe()} any more; there "
                f"are: {shapes}. `resume` with one of these puts the session there, or add a node "
                "group and `up` again"
            )

    async def respecify(self, settings: Settings, specification: Specification) -> None:
        """From now on by these: Ray's autoscaler reads what is written here within a second."""
        self.settings, self.groups = settings, specification.nodes
        self._residency = _residency(specification)
        self._read_types()
        path = self.cloud.root / "cluster.json"
        if not path.exists():  # it has not begun to start
            return
        told = json.loads(path.read_text())
        told |= {
            "lifetime_s": settings.node_lifetime.total_seconds(),
            "residency": self._residency,
        }
        write_json(path, told)
        await asyncio.to_thread(self._write_autoscaling, self.cloud.instances())

    def _write_autoscaling(self, instances: list[Instance]) -> None:
        """For Ray's autoscaler, which ends at once what exceeds a limit. So nodes that are up, of
        types that are gone or of groups that have become smaller, are let be: they end when they
        are idle."""
        path = self.cloud.root / "autoscaling.yaml"
        before = self._autoscaling or json.loads(path.read_text())
        head = before["provider"]["head_node_id"]
        config = raycluster.autoscaling_config(
            self.cloud.root,
            types=self.types,
            head_instance_id=head,
            limits=self._limits(),
            node_idle_s=self.settings.node_idle.total_seconds(),
            cooldown_s=self.settings.offer_cooldown.total_seconds(),
            head_file=self.settings.head_file,
        )
        alive: dict[str, int] = {}
        for each in instances:
            if each.alive and each.node_type != HEAD:
                alive[each.node_type] = alive.get(each.node_type, 0) + 1
        types = config["available_node_types"]
        for name, count in alive.items():
            known = types.get(name)
            if known is None and name in before["available_node_types"]:
                known = types[name] = dict(before["available_node_types"][name])
                known |= {"min_workers": 0, "max_workers": 0}
            if known is not None:
                known["max_workers"] = max(known["max_workers"], count)
        config["max_workers"] = max(config["max_workers"], sum(alive.values()))
        if config != before:
            write_json(path, config)
        self._autoscaling = config

    # --- watching ---------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Report ended nodes and the autoscaler's attempts, for ever."""
        while True:
            await asyncio.sleep(WATCH_S)
            instances = await asyncio.to_thread(self.cloud.instances)
            alive = {each.id for each in instances if each.alive}
            for instance in instances:
                if instance.id in self._alive and not instance.alive:
                    log.info("node %s ended: %s", instance.id, instance.reason)
                    if instance.node_type == HEAD and self.state == "running":
                        self.state, self.detail = "failed", "the head node ended"
                    self._on_end(instance)
            if self._autoscaling and alive != self._alive:
                await asyncio.to_thread(self._write_autoscaling, instances)
            self._alive = alive
            attempts, self._attempts_read = self.attempts.read(self._attempts_read)
            for attempt in attempts:
                self._on_attempt(attempt)

    # --- ending nodes -----------------------------------------------------------------------------

    async def preempt(self, instance_id: str, seconds: float) -> Notice:
        return await asyncio.to_thread(self.cloud.preempt, instance_id, seconds)

    async def end(self) -> None:
        """Take everything down and leave nothing of it behind."""
        self.state = "stopping"
        if self._joined.done() and self.hosts is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.hosts.close(), 10)
        await asyncio.to_thread(self._end_instances, "the cluster was taken down")
        shutil.rmtree(self.settings.ray_dir, ignore_errors=True)
        with contextlib.suppress(OSError):  # another home's may be there
            self.settings.ray_dir.parent.rmdir()

    def _end_instances(self, reason: str) -> None:
        end_instances(self.cloud, reason)


def _kept_token(root: Path) -> str:
    """That of the cluster before, which may run, or a new one."""
    try:
        told = json.loads((root / "cluster.json").read_text())
        return str(told["ray_environment"]["RAY_AUTH_TOKEN"])
    except (OSError, ValueError, KeyError):
        return secrets.token_hex(32)


def _residency(specification: Specification | None) -> dict[str, str]:
    """What nodes are told of where data may be. The local cloud is wherever this computer is."""
    if specification is None or specification.cloud == "local":
        return {}
    return residency.variables(specification.regions, specification.cloud)


def end_instances(cloud: LocalCloud, reason: str) -> int:
    """End every live instance, the head first so that its autoscaler replaces none."""
    alive = sorted(
        (each for each in cloud.instances() if each.alive), key=lambda each: each.node_type != HEAD
    )
    for instance in alive:
        cloud.terminate(instance.id, reason)
    return len(alive)
