"""The files Ray's head needs: its cluster config, and the settings every agent reads.

`write()` fixes a cluster on disk; `LocalCloud.launch(head offer, head request)` then starts it. The
same files are read again by a gateway that adopts the cluster after a crash, so nothing about a
running cluster lives only in a process.

Ray's autoscaler v2 reads its config anew each time that it looks (a second): what is written there
again is in force at once, but for `provider`, which it reads when it starts.

Learnt about Ray 2.60 (each cost an hour): the external provider needs every empty key of the
schema; autoscaler v2 matches nodes by RAY_CLOUD_INSTANCE_ID, v1 by IP and loses those that share
one; Ray binds all interfaces unless told otherwise; token authentication must be set on both sides;
socket paths end at 107 bytes, so the temp directory is short.
"""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlcloud.cluster.clouds.local import HEAD
from mlcloud.cluster.groups import Limits
from mlcloud.cluster.records import write_json
from mlcloud.cluster.shapes import NodeType

OBJECT_STORE_BYTES = 128 * 2**20
NODE_IP = "127.0.0.1"


def write(
    root: Path,
    *,
    types: list[NodeType],
    head_instance_id: str,
    ray_dir: Path,
    connection_file: Path,
    limits: Limits,
    node_idle_s: float,
    cooldown_s: float,
    dead_man_s: float,
    notice_poll_s: float,
    metadata: str,
    lifetime_s: float,
    node_ip: str = NODE_IP,
    head_file: Path | None = None,
    store_url: str = "",
    gcs_port: int = 0,
    ray_token: str = "",
    residency: Mapping[str, str] | None = None,
    head_cloud: str = "local",
    pip_conf: Path | None = None,
) -> dict[str, Any]:
    """Write `autoscaling.json` and `cluster.json` under `root`; returns the latter."""
    autoscaling = root / "autoscaling.yaml"
    config = autoscaling_config(
        root,
        types=types,
        head_instance_id=head_instance_id,
        limits=limits,
        node_idle_s=node_idle_s,
        cooldown_s=cooldown_s,
        head_file=head_file,
    )
    write_json(autoscaling, config)  # JSON is YAML
    settings = {
        "node_ip": node_ip,
        "head_ip": node_ip,
        "gcs_port": gcs_port or free_port(node_ip),
        "store_url": store_url,
        "ray_dir": str(ray_dir),
        "autoscaling_config": str(autoscaling),
        "connection_file": str(connection_file),
        "object_store_bytes": OBJECT_STORE_BYTES,
        "dead_man_s": dead_man_s,
        "notice_poll_s": notice_poll_s,
        "metadata": metadata,
        "lifetime_s": lifetime_s,
        "residency": dict(residency or {}),
        "head_cloud": head_cloud,
        "pip_conf": str(pip_conf or ""),
        "head_instance_id": head_instance_id,
        "ray_environment": ray_environment(ray_token),
    }
    write_json(root / "cluster.json", settings)
    return settings


def ray_environment(token: str = "") -> dict[str, str]:
    """The environment that makes Ray's processes one authenticated, loopback-only cluster."""
    return {
        "RAY_enable_autoscaler_v2": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token or secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "AUTOSCALER_METRIC_PORT": "0",
        # A killed node is noticed in seconds, not after Ray's default of a minute.
        "RAY_health_check_initial_delay_ms": "2000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "5",
        # Ray lowers its workers' priority by 15. Here they are hosts and kernels, and a cell gets
        # what a local kernel gets.
        "RAY_worker_niceness": "0",
        # Who was given no GPU sees none: another's kernel has it.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        # Prestarted workers are for task storms; a session needs one.
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_DEDUP_LOGS": "0",
        # Its agents import slowly on a busy machine; a node that gives up on them is lost.
        "RAY_agent_register_timeout_ms": "180000",
        "RAY_memory_monitor_refresh_ms": "0",
        # Sessions' environments. One that cannot be made is said at once: pip has its own retries,
        # and whoever runs the cell again means to try again.
        "RAY_RUNTIME_ENV_PLUGINS": json.dumps([{"class": "mlcloud.kernel.overlay.Overlay"}]),
        "RUNTIME_ENV_RETRY_TIMES": "1",
        "BAD_RUNTIME_ENV_CACHE_TTL_SECONDS": "1",
    }


def autoscaling_config(
    root: Path,
    *,
    types: list[NodeType],
    head_instance_id: str,
    limits: Limits,
    node_idle_s: float,
    cooldown_s: float,
    head_file: Path | None = None,
) -> dict[str, Any]:
    available: dict[str, Any] = {
        HEAD: {"resources": {"CPU": 0}, "node_config": {}, "min_workers": 0, "max_workers": 0}
    }
    for each in types:
        least, most = limits.of(each.name)
        available[each.name] = {
            "resources": each.resources,
            "node_config": {**each.node_config, "groups": list(limits.groups)},
            "labels": {"mlcloud.node-type": each.name},
            "min_workers": least,
            "max_workers": most,
        }
    return {
        "cluster_name": "mlcloud",
        "max_workers": limits.total,
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": node_idle_s / 60,
        "provider": {
            "type": "external",
            "module": "mlcloud.cluster.provider.OfferProvider",
            "root": str(root),
            "head_file": str(head_file) if head_file else None,
            "cooldown_s": cooldown_s,
            "head_node_id": head_instance_id,
            "disable_node_updaters": True,
            "launch_multiple": True,
        },
        "auth": {},
        "docker": {},
        "available_node_types": available,
        "head_node_type": HEAD,
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


def free_port(address: str = NODE_IP) -> int:
    """A port of this address that is free now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port
