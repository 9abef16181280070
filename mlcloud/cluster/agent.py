"""The agent: what runs first on every node, and ends with it.

    agent ── starts ──► ray start --block          (same process group: they live and die together)
      │
      ├── watches the cloud's metadata (`notices`) ──► POST /v1/nodes/<id>/notice
      ├── POST /v1/nodes/<id>/heartbeat every few seconds, with the notices that are in force;
      │      the answer says what to keep warm (`warmth`)
      ├── SIGTERM: the machine shuts down, so the sessions must leave; a notice like any other
      ├── as old as `lifetime_s`: a notice as well, and at its end the node ends itself
      └── no heartbeat answered for `dead_man_s`: nobody is left to stop this node: it ends itself

The gateway may be killed and come back on another port: the agent reads the gateway's address from
the connection file each time. On the local cloud the agent also plays the hypervisor: it kills its
own group at a notice's deadline, whether or not anybody is watching. On a real one it has the
machine deleted (`self_end`), since one that is only shut down may go on billing.

A node of a real cloud shares no disk with its head: what it needs comes in its node file and in
answer to its join (`nodefile.py`), and the gateway is reached at the head's private address by TLS
with a pinned certificate.

Started as `python -m mlcloud.cluster.agent RECORD_OR_NODE_FILE`; imports the standard library
alone, since one runs on every node for ever.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mlcloud.cluster import lean, machine, nodefile, notices, onlyhere, self_end, warmth
from mlcloud.cluster.load import Load
from mlcloud.cluster.notices import Notice
from mlcloud.cluster.notices.clouds import ENDPOINTS
from mlcloud.cluster.notices.notice import LIFETIME
from mlcloud.cluster.warmth import ForkServer
from mlcloud.errors import CloudRefused
from mlcloud.processes import become_subreaper, end_descendants

TICK = 0.25
HEARTBEAT = 3.0
TELL_S = 5.0  # so long the gateway is looked for when the machine shuts down
LIFETIME_NOTICE_S = 120.0
END_AGAIN_S = 60.0
FOREVER_S = 365 * 86400.0
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


class Told:
    """Which notices the gateway was told of, and which are still in force.

    These go along with each heartbeat: a gateway that was started meanwhile knows of none.
    """

    def __init__(self, record: dict[str, Any], settings: dict[str, Any]) -> None:
        self._record, self._settings = record, settings
        self._lock = threading.Lock()
        self._in_force: dict[str, tuple[Notice, float | None]] = {}
        self.shut_down_at: float | None = None  # on the monotonic clock

    def tell(self, notice: Notice, left: float | None) -> bool:
        """False where the gateway did not take it."""
        if _post(self._record, self._settings, "notice", _report(notice, left)) is None:
            return False
        with self._lock:
            if notice.kind == notices.WITHDRAWN:
                self._in_force.pop(notice.key, None)
            else:
                due = None if left is None else time.monotonic() + left
                self._in_force[notice.key] = (notice, due)
        return True

    def in_force(self) -> list[dict[str, Any]]:
        with self._lock:
            return [
                _report(notice, None if due is None else max(0.0, due - time.monotonic()))
                for notice, due in self._in_force.values()
            ]

    def shutting_down(self) -> None:
        """The operating system ends this process before long: so long sessions may leave."""
        if self.shut_down_at is not None:
            return
        began = time.monotonic()
        self.shut_down_at = began + notices.SHUTDOWN_S
        notice = Notice("shutdown", notices.TERMINATE, notices.SHUTDOWN_S)
        while not self.tell(notice, self.shut_down_at - time.monotonic()):
            if time.monotonic() > began + TELL_S:
                self.shut_down_at = 0.0  # nobody is there to move anything
                return
            time.sleep(TICK)


def _report(notice: Notice, left: float | None) -> dict[str, Any]:
    in_s = None if left is None else min(left, FOREVER_S)
    return {"key": notice.key[:200], "kind": notice.kind[:40], "in_s": in_s}


def main(record_path: str) -> int:
    path = Path(record_path)
    record = json.loads(path.read_text())
    if nodefile.is_one(record):
        settings = nodefile.join(record, path.parent)
        LEAVING.callback(nodefile.leave, settings, path)
    else:
        settings = json.loads((path.parent.parent / "cluster.json").read_text())
    told = Told(record, settings)
    signal.signal(signal.SIGTERM, lambda *_: _switched_off(path, told))
    become_subreaper()
    lacks = _lacks(record)
    if lacks is not None:
        _post(record, settings, "heartbeat", {"pid": os.getpid(), "ends": lacks})
        _leave(record, settings, lacks)
    server = ForkServer(Path(settings["ray_dir"]))
    LEAVING.callback(server.stop)
    environment = {**ray_environment(record, settings), warmth.VARIABLE: str(server.path)}
    node = subprocess.Popen(ray_command(record, settings), env=environment)
    notices.Watcher(_sources(record, settings), told.tell, _log).start()

    load = Load(HEARTBEAT, gpus=bool(record["resources"].get("GPU")))
    load.start()
    last_answer = time.monotonic()
    next_heartbeat = 0.0
    old_at = _ends_by_age(record, settings)
    warn_at = None if old_at is None else old_at - _lifetime_notice(record, settings)
    while node.poll() is None:
        now = time.monotonic()
        if now >= next_heartbeat:
            next_heartbeat = now + HEARTBEAT
            body = {"pid": os.getpid(), "notices": told.in_force(), "use": load.latest}
            answer = _post(record, settings, "heartbeat", body)
            if answer is not None:
                last_answer = time.monotonic()
                if record["node_type"] != "head":  # which has no sessions
                    server.keep(answer.get("warm"), lean.restored(environment))
        if time.monotonic() - last_answer > float(settings["dead_man_s"]):
            _leave(record, settings, "nobody answered the heartbeats")
        if old_at is not None and now >= old_at:
            _leave(record, settings, "this node is as old as it may become")
        if old_at is not None and warn_at is not None and now >= warn_at:
            left = old_at - now
            if told.tell(Notice("lifetime", LIFETIME, left), left):
                warn_at = None
        if told.shut_down_at is not None and now >= told.shut_down_at:
            _log("the machine shuts down")
            _end()
        if _overdue(path):
            _log("the notice's deadline has passed: taken back")
            _end()
        # A node that dies ends the wait at once; otherwise this is the tick of the polls.
        with contextlib.suppress(subprocess.TimeoutExpired):
            node.wait(TICK)
    end_descendants()
    if _is_rented(record):
        _leave(record, settings, "Ray has ended on this node")
    LEAVING.close()
    return node.returncode or 0


def _lacks(record: dict[str, Any]) -> str | None:
    """What this machine has less of than was declared for it. Simulated ones have what they say."""
    if record["offer"]["simulated"] or record["node_type"] == "head":
        return None
    return machine.shortfall(record["resources"], machine.measure())


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
        **settings.get("residency", {}),
        **settings.get("node_environment", {}),
        **_indexes(settings),
        "RAY_CLOUD_INSTANCE_ID": record["id"],
        "RAY_NODE_TYPE_NAME": record["node_type"],
    }


def _indexes(settings: dict[str, Any]) -> dict[str, str]:
    """The cluster's package indexes, where nodes share the gateway's disk. Others fetch them before
    they have an agent (`bootstrap`)."""
    path = Path(settings.get("pip_conf", ""))
    return {"PIP_CONFIG_FILE": str(path)} if path.is_file() else {}


def _sources(record: dict[str, Any], settings: dict[str, Any]) -> list[notices.Source]:
    """Where this node's cloud says what it is about to do. The local one says it as another would,
    at an address that moves with the gateway."""
    if _is_rented(record):
        return notices.sources(
            record["offer"]["cloud"],
            _endpoint(settings),
            notice_s=float(settings.get("preemption_notice_s") or 0.0),
        )
    if record["node_type"] == "head" and settings.get("head_cloud", "local") != "local":
        # Its record is one of the local cloud's, whatever it was bought of.
        cloud = settings["head_cloud"]
        return notices.sources(cloud, _endpoint(settings)) if cloud in ENDPOINTS else []
    if "metadata_key" not in record:
        return []

    def endpoint() -> str | None:
        gateway = _gateway(settings)
        return None if gateway is None else f"{gateway['url']}/imds/{record['metadata_key']}"

    flavour = str(settings.get("metadata", "aws"))
    return notices.sources(flavour, endpoint, poll_s=float(settings["notice_poll_s"]))


def _endpoint(settings: dict[str, Any]) -> notices.Endpoint | None:
    at = settings.get("metadata_endpoint")
    return None if at is None else lambda: str(at)


def _is_rented(record: dict[str, Any]) -> bool:
    """Whether this process has to end its machine. A head's is its keeper's to end."""
    return record["offer"]["cloud"] in ENDPOINTS and record.get("node_type") != "head"


def _ends_by_age(record: dict[str, Any], settings: dict[str, Any]) -> float | None:
    """When this node is as old as it may become, on the monotonic clock. The head of the embedded
    cluster is your own computer: it may become older."""
    lifetime = settings.get("lifetime_s")
    if not lifetime or not (_is_rented(record) or record["node_type"] != "head"):
        return None
    age = datetime.now(timezone.utc) - datetime.fromisoformat(record["launched_at"])
    return time.monotonic() + float(lifetime) - max(0.0, age.total_seconds())


def _lifetime_notice(record: dict[str, Any], settings: dict[str, Any]) -> float:
    return min(LIFETIME_NOTICE_S, float(settings["lifetime_s"]) / 4)


def _post(
    record: dict[str, Any], settings: dict[str, Any], what: str, body: dict[str, Any]
) -> dict[str, Any] | None:
    """The answer; None where there was none, or a refusal."""
    gateway = _gateway(settings)
    if gateway is None:
        return None
    request = urllib.request.Request(
        f"{gateway['url']}/v1/nodes/{record['id']}/{what}",
        data=json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {record['node_token']}",
            "Content-Type": "application/json",
        },
    )
    try:
        context = nodefile.pinned(settings)
        with urllib.request.urlopen(request, timeout=2, context=context) as answer:
            told: dict[str, Any] = json.loads(answer.read() or b"{}")
            return told
    except urllib.error.HTTPError as error:
        if error.code == GIVEN_UP and what == "heartbeat":
            _leave(record, settings, "this node was given up")
        return None
    except (OSError, ValueError, http.client.HTTPException):
        return None


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


def _switched_off(path: Path, told: Told) -> None:
    """SIGTERM: whoever ends a node has written so, and it ends at once. Else the machine shuts down
    under it, without having said a word before, and what is on it may still leave."""
    if _has_ended(path):
        _end()
    # Not here: what was interrupted may hold the lock.
    threading.Thread(target=told.shutting_down, daemon=True).start()


def _has_ended(path: Path) -> bool:
    try:
        return json.loads(path.read_text()).get("ended_at") is not None
    except (OSError, ValueError):
        return False


def _leave(record: dict[str, Any], settings: dict[str, Any], why: str) -> None:
    """End this node for good: on a cloud the machine too, however often that must be asked for."""
    _log(f"{why}: this node ends itself")
    if not _is_rented(record):
        _end()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # of the shutdown that we ask for
    end_descendants()
    while True:
        with contextlib.suppress(CloudRefused):  # which has been said
            self_end.end(
                record["offer"]["cloud"],
                metadata=_endpoint(settings),
                api=settings.get("cloud_api"),
                log=_log,
            )
        time.sleep(END_AGAIN_S)


def _log(text: str) -> None:
    print(text, flush=True)


def _end() -> None:
    """All at once, as when a machine is switched off; reaped, so that nothing of it stays."""
    end_descendants()
    LEAVING.close()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
