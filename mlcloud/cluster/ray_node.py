"""`ray start` on the loopback address alone: `python -m mlcloud.cluster.ray_node start …`.

Ray listens on every interface unless its node's address is exactly 127.0.0.1, and its command line
takes that address for a mistake and replaces it by a network card's. The check has a switch for
other systems (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0), which then forbids worker nodes. So the one
function that replaces the address is replaced here, in the process that runs `ray start` and
nowhere else.

The raylet waits 15 s for each of its agents to write down the port it listens on, and aborts: too
short on a busy machine, where their imports take longer. It does not wait for ports that it is
given (`agent.AGENT_PORTS`), but of the dashboard agent's only that agent is told (Ray 2.60): so it
is written down here before the raylet looks.

The sockets of nodes of one machine are named by numbers, each the first for which there is no file:
nodes that start at the same moment took the same ones, and one of them never joined. Here they are
named by the process.

A head also starts what nobody here may reach or needs, and offers no switch against it: a server
for Ray Client (8 s of CPU, 90 MB), and without a dashboard still its process, for usage statistics
that are switched off (5 s). Both are left out, and so are the commands of Ray Serve and Ray jobs.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from mlcloud.cluster import lean


def main() -> None:
    lean.leave_out("ray.serve.scripts", "ray.util.state.state_cli", "ray.dashboard.modules.job.cli")
    from ray._private import node, services
    from ray._raylet import (  # type: ignore[attr-defined]  # compiled
        DASHBOARD_AGENT_LISTEN_PORT_NAME,
        persist_port,
    )
    from ray.scripts import scripts

    services.resolve_ip_for_localhost = lambda host: host
    start_raylet = services.start_raylet

    def start(
        redis_address: str, gcs_address: str, node_id: str, *rest: Any, **options: Any
    ) -> Any:
        port = options.get("dashboard_agent_listen_port")
        if port:
            session_dir = rest[SESSION_DIR]
            persist_port(session_dir, node_id, DASHBOARD_AGENT_LISTEN_PORT_NAME, port)
        return start_raylet(redis_address, gcs_address, node_id, *rest, **options)

    prepare = node.Node._prepare_socket_file

    def prepare_own(self: Any, socket_path: str | None, default_prefix: str) -> Any:
        # No longer than Ray's own: a socket's path has 107 bytes.
        return prepare(self, socket_path, f"{default_prefix[0]}{os.getpid()}")

    node.Node._prepare_socket_file = prepare_own
    services.start_raylet = start
    services.start_api_server = lambda *_, **__: ("", None)
    node.Node.start_ray_client_server = lambda _: None
    sys.exit(scripts.main())


SESSION_DIR = 8  # its place among the arguments after the node's id


if __name__ == "__main__":
    main()
