"""Ray, as the gateway uses it: one driver connection, host actors by name, draining.

Host actors are detached and named `<session>-<epoch>`, so a gateway that was killed finds them
again. The epoch grows with every move: an old host that comes back from the dead has another name,
and nobody listens to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from mlcloud.cluster import lean
from mlcloud.cluster.shapes import HostRequest
from mlcloud.gateway import reservations

NAMESPACE = "mlcloud"


class Hosts:
    """The gateway's connection to Ray. `environment` is the cluster's own (token included)."""

    def __init__(self, address: str, environment: dict[str, str]) -> None:
        self.address = address
        self._names: dict[str, str] = {}  # of hosts, by their actors' ids
        self._reserved: set[str] = set()  # those that have a placement group
        # Ray reads its settings from the environment, at import and later.
        os.environ.update(environment)
        # For a driver this switch means: 127.0.0.1 is meant, listen there and nowhere else.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

    async def connect(self, timeout: float = 180.0) -> None:
        """Join the cluster as a driver, waiting for its head to answer."""
        lean.leave_out()
        import logging

        import ray

        until = asyncio.get_running_loop().time() + timeout
        while True:
            try:
                await asyncio.to_thread(
                    ray.init,
                    address=self.address,
                    namespace=NAMESPACE,
                    _node_ip_address=self.address.rpartition(":")[0],
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                    configure_logging=False,
                )
                return
            except (ConnectionError, RuntimeError, OSError):
                if asyncio.get_running_loop().time() > until:
                    raise
                with contextlib.suppress(Exception):
                    await asyncio.to_thread(ray.shutdown)
                await asyncio.sleep(0.3)

    def create(
        self,
        name: str,
        request: HostRequest,
        *,
        memory_bytes: int,
        arguments: dict[str, Any],
        avoid: Iterable[str] = (),
        node_type: str = "",
        runtime_env: dict[str, Any] | None = None,
        workers: int | None = None,
    ) -> Any:
        """Ask Ray for a host. Returns at once; the actor starts when a node can hold it.

        `avoid` are instances it must not be put on: Ray 2.60 still gave new actors to a node that
        had accepted to be drained, where they died with it. `node_type` is the only kind of node
        that it may be put on; without one, any that can hold it. `workers`: of a gang (`gangs.py`),
        whose host is rank 0's.
        """
        labels = _away_from(avoid)
        if node_type:
            labels["mlcloud.node-type"] = node_type
        import ray

        from mlcloud.kernel.host import Host

        options = _resources(request, memory_bytes)
        kind: Any = Host
        where: dict[str, Any] = {"label_selector": labels or None}
        if workers is not None:
            kind, where = reservations.leader(name, workers, options, labels, arguments)
            self._reserved.add(name)
        host = (
            ray.remote(kind)
            .options(
                name=name,
                namespace=NAMESPACE,
                lifetime="detached",
                max_restarts=0,
                max_task_retries=0,
                runtime_env=runtime_env,
                **options,
                **where,
            )
            .remote(**arguments)
        )
        self._names[host._actor_id.hex()] = name
        return host

    def find(self, name: str, *, gang: bool = False) -> Any | None:
        """The host actor of this name, None if there is none alive."""
        import ray

        if gang:
            self._reserved.add(name)
        try:
            host = ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            self._give_back(name)
            return None
        self._names[host._actor_id.hex()] = name
        return host

    def kill(self, host: Any) -> None:
        import ray

        with contextlib.suppress(Exception):  # it may be dead already, in any of Ray's ways
            ray.kill(host, no_restart=True)
        self._give_back(self._names.pop(host._actor_id.hex(), ""))

    def hold(
        self,
        name: str,
        request: HostRequest,
        memory_bytes: int,
        count: int,
        avoid: Iterable[str] = (),
    ) -> None:
        """Reserve places for `count` ranks, until `let_go`: Ray brings nodes for them now."""
        reservations.hold(name, _resources(request, memory_bytes), _away_from(avoid), count)

    def held(self, names: Iterable[str]) -> set[str]:
        """Of these reservations those that have their place. Blocks."""
        return reservations.held(names)

    def sweep(self, prefix: str) -> None:
        """Let go of what another gateway held by names that begin so. Blocks."""
        for name in reservations.named(prefix):
            self.let_go(name)

    def let_go(self, name: str) -> None:
        reservations.remove(name)

    def _give_back(self, name: str) -> None:
        """What a gang's hosts had reserved."""
        if name in self._reserved:
            self._reserved.discard(name)
            reservations.remove(name)

    async def drain(self, node_id: str, deadline: datetime) -> bool:
        """No new work for a node that is going away. False if Ray refuses."""
        return await asyncio.to_thread(self._drain, node_id, deadline)

    def _drain(self, node_id: str, deadline: datetime) -> bool:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
        from ray.core.generated import autoscaler_pb2

        accepted, _ = GcsClient(address=self.address).drain_node(
            node_id,
            autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "preemption notice",
            int(deadline.timestamp() * 1000),
        )
        return bool(accepted)

    async def node_of(self, instance_id: str) -> str | None:
        """Ray's id of the live node that runs on this instance."""
        import ray

        for node in await asyncio.to_thread(ray.nodes):
            if node["Alive"] and node.get("Labels", {}).get("mlcloud.instance") == instance_id:
                found: str = node["NodeID"]
                return found
        return None

    async def close(self) -> None:
        import ray

        with contextlib.suppress(Exception):
            await asyncio.to_thread(ray.shutdown)


def _away_from(instances: Iterable[str]) -> dict[str, str]:
    """A label selector; empty where there are none."""
    shunned = ", ".join(sorted(instances))
    return {"mlcloud.instance": f"!in({shunned})"} if shunned else {}


def _resources(request: HostRequest, memory_bytes: int) -> dict[str, Any]:
    return {
        "num_cpus": request.num_cpus,
        "num_gpus": request.num_gpus,
        "memory": memory_bytes or None,
        "resources": request.resources,
    }
