"""The agent: what runs first on every node, and ends with it.

    agent ── starts ──► ray start --block          (same process group: they live and die together)
      │
      ├── polls the cloud's metadata for a notice ──► POST /v1/nodes/<id>/notice
      ├── POST /v1/nodes/<id>/heartbeat every few seconds
      └── none answered for `dead_man_s`: nobody is left to stop this node, so it ends itself

The gateway may be killed and come back on another port: the agent reads the gateway's address from
the connection file each time. On the local cloud the agent also plays the hypervisor: it kills its
own group at a notice's deadline, whether or not anybody is watching.

A node of a real cloud shares no disk with its head: what it needs comes in its node file and in
answer to its join (`nodefile.py`), and the gateway is reached at the head's private address by TLS
with a pinned certificate.

Started as `python -m mlcloud.cluster.agent RECORD_OR_NODE_FILE`; imports the standard library
alone, since one runs on every node for ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mlcloud.cluster import lean, nodefile, onlyhere
from mlcloud.processes import become_subreaper, end_descendants

TICK = 0.25
HEARTBEAT = 3.0
LEAVING = contextlib.ExitStack()
GIVEN_UP = 410  # what the gateway answers a node that it believes to have ended

# Ray's raylet waits 15 s for each agent of its own to say on which port it listens, and aborts: too
# short on a busy machine, where their imports take longer. A port that is given is not waited for.
AGENT_PORTS = (
    "dashboard-agent-grpc-port",
    "dashboard-agent-listen-port",
    "metrics-export-port",
    "runtime-env-agent-port",
)


class Metadata:
    """A client of the EC2 instance metadata service, version 2 (token, then reads).

    Source: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._token = ""
        self._token_until = 0.0

    def get(self, path: str) -> str | None:
        """The text at `path`, None where the service answers 404."""
        if time.monotonic() > self._token_until:
            self._token = self._request(
                "PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "600"}
            )
            self._token_until = time.monotonic() + 540
        try:
            return self._request("GET", path, {"X-aws-ec2-metadata-token": self._token})
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            if error.code == 401:
                self._token_until = 0.0
            raise

    def notice(self) -> dict[str, str] | None:
        text = self.get("/latest/meta-data/spot/instance-action")
        return None if text is None else json.loads(text)

    def _request(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(self.endpoint + path, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=2) as answer:
            text: str = answer.read().decode()
            return text


def main(record_path: str) -> int:
    path = Path(record_path)
    record = json.loads(path.read_text())
    signal.signal(signal.SIGTERM, lambda *_: _end())
    become_subreaper()
    if nodefile.is_one(record):
        settings = nodefile.join(record, path.parent)
        LEAVING.callback(nodefile.leave, settings, path)
    else:
        settings = json.loads((path.parent.parent / "cluster.json").read_text())
    node = subprocess.Popen(ray_command(record, settings), env=ray_environment(record, settings))

    last_answer = time.monotonic()
    next_heartbeat = 0.0
    next_poll = 0.0
    told = False
    while node.poll() is None:
        if time.monotonic() >= next_poll:
            next_poll = time.monotonic() + float(settings["notice_poll_s"])
            if not told and record["offer"]["market"] == "spot":
                told = _forward_notice(record, settings)
        if time.monotonic() >= next_heartbeat:
            next_heartbeat = time.monotonic() + HEARTBEAT
            if _post(record, settings, "heartbeat", {"pid": os.getpid()}):
                last_answer = time.monotonic()
        if time.monotonic() - last_answer > float(settings["dead_man_s"]):
            print("nobody answered the heartbeats: this node ends itself", flush=True)
            _end()
        if _overdue(path):
            print("the notice's deadline has passed: taken back", flush=True)
            _end()
        # A node that dies ends the wait at once; otherwise this is the tick of the polls.
        with contextlib.suppress(subprocess.TimeoutExpired):
            node.wait(TICK)
    end_descendants()
    LEAVING.close()
    return node.returncode or 0


def ray_command(record: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """`ray start`: exactly the declared resources, on the loopback or private address only."""
    resources = dict(record["resources"])
    command = [
        sys.executable,
        "-m",
        "mlcloud.cluster.ray_node",
        "start",
        "--block",
        f"--node-ip-address={settings['node_ip']}",
        f"--num-cpus={int(resources.pop('CPU', 0))}",
        f"--num-gpus={int(resources.pop('GPU', 0))}",
        f"--object-store-memory={settings['object_store_bytes']}",
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--include-log-monitor=false",
        "--disable-usage-stats",
        f"--temp-dir={settings['ray_dir']}",
        f"--labels={_labels(record)}",
    ]
    ports = _free_ports(settings["node_ip"])
    command += [f"--{name}={port}" for name, port in zip(AGENT_PORTS, ports, strict=True)]
    if "memory" in resources:
        command.append(f"--memory={int(resources.pop('memory'))}")
    if resources:
        command.append(f"--resources={json.dumps(resources)}")
    if record["node_type"] == "head":
        return [
            *command,
            "--head",
            f"--port={settings['gcs_port']}",
            f"--autoscaling-config={settings['autoscaling_config']}",
            "--include-dashboard=false",
        ]
    return [*command, f"--address={settings['head_ip']}:{settings['gcs_port']}"]


def _free_ports(address: str) -> list[int]:
    """Ports that are free now, one for each of `AGENT_PORTS`."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in AGENT_PORTS]
        for probe in probes:
            probe.bind((address, 0))
        return [probe.getsockname()[1] for probe in probes]


def _labels(record: dict[str, Any]) -> str:
    labels = {**record["labels"], "mlcloud.instance": record["id"]}
    return ",".join(f"{key}={value}" for key, value in labels.items())


def ray_environment(record: dict[str, Any], settings: dict[str, Any]) -> dict[str, str]:
    variables = lean.environment({**os.environ, **settings["ray_environment"]})
    return {
        **variables,
        **onlyhere.preload(settings["node_ip"], Path(settings["ray_dir"]), variables),
        **settings.get("node_environment", {}),
        "RAY_CLOUD_INSTANCE_ID": record["id"],
        "RAY_NODE_TYPE_NAME": record["node_type"],
    }


def _forward_notice(record: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Look for a notice; True once the gateway has been told of one."""
    gateway = _gateway(settings)
    if gateway is None:
        return False
    try:
        notice = Metadata(f"{gateway['url']}/imds/{record['metadata_key']}").notice()
    except (OSError, ValueError):
        return False
    return notice is not None and _post(
        record, settings, "notice", {"kind": notice["action"], "deadline": notice["time"]}
    )


def _post(
    record: dict[str, Any], settings: dict[str, Any], what: str, body: dict[str, Any]
) -> bool:
    gateway = _gateway(settings)
    if gateway is None:
        return False
    request = urllib.request.Request(
        f"{gateway['url']}/v1/nodes/{record['id']}/{what}",
        data=json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {record['node_token']}",
            "Content-Type": "application/json",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=2, context=nodefile.pinned(settings)):
            return True
    except urllib.error.HTTPError as error:
        if error.code == GIVEN_UP:
            print("this node was given up: it ends itself", flush=True)
            _end()
        return False
    except OSError:
        return False


def _gateway(settings: dict[str, Any]) -> dict[str, str] | None:
    if "gateway" in settings:
        return {"url": settings["gateway"]["url"]}
    try:
        connection: dict[str, str] = json.loads(Path(settings["connection_file"]).read_text())
    except (OSError, ValueError):
        return None
    return connection


def _overdue(path: Path) -> bool:
    try:
        notice = json.loads(path.read_text()).get("notice")
    except (OSError, ValueError):
        return False
    return notice is not None and datetime.now(timezone.utc) >= datetime.fromisoformat(
        notice["deadline"]
    )


def _end() -> None:
    """All at once, as when a machine is switched off; reaped, so that nothing of it stays."""
    end_descendants()
    LEAVING.close()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
