"""A Kubernetes API server with KubeRay's operator, as far as mlcloud asks it: over real HTTP.

    ApiServer   objects of one namespace, checked against the published schemas; create, apply,
                merge patch with versions, delete with what is owned, lists by label and field,
                logs, and port-forward by WebSocket (`v4.channel.k8s.io`)
    operate()   the operator: a pod for the head, one for each replica, none for `workersToDelete`
    Machines    the kubelet, where a test has one: a pod's own command runs in a network namespace

https://kubernetes.io/docs/reference/using-api/api-concepts/
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

from aiohttp import WSMsgType, web

from tests import netns
from tests.cluster.clouds import discovery

NAMESPACE = "lab"
SCHEMAS = {
    "rayclusters": "RayCluster",
    "secrets": "V1Secret",
    "configmaps": "V1ConfigMap",
    "services": "V1Service",
    "serviceaccounts": "V1ServiceAccount",
    "roles": "V1Role",
    "rolebindings": "V1RoleBinding",
    "networkpolicies": "V1NetworkPolicy",
}
MAPS_HOLD = 2**20
Body = dict[str, Any]
Starts = Callable[[Body], None]


class ApiServer:
    """`objects[plural][name]`. `refuse[(method, plural)]` is what is answered instead."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host, self.url = host, ""
        self.objects: dict[str, dict[str, Body]] = {}
        self.refuse: dict[tuple[str, str], tuple[int, str]] = {}
        self.once: dict[tuple[str, str], int] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.logs: dict[str, str] = {}
        self.token = ""  # who has none is let in, as by `kubectl proxy`
        self.works = True  # the operator
        self.starts: Starts = running
        self.ends: Callable[[str], None] = lambda name: None
        self.connects: Callable[[str, int], socket.socket] = _to_loopback
        self.forwards = 0
        self._version = 0
        self._pods = 0
        self._lock = threading.RLock()
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> ApiServer:
        listening = threading.Event()

        async def serve() -> None:
            app = web.Application(client_max_size=4 * 2**20)
            for root in ("/api", "/apis/{group}"):
                base = f"{root}/{{version}}/namespaces/{NAMESPACE}/{{plural}}"
                app.router.add_route("*", base, self._answer)
                app.router.add_route("*", f"{base}/{{name}}", self._answer)
                app.router.add_route("*", f"{base}/{{name}}/{{sub}}", self._answer)
            self._runner = runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
            await runner.setup()
            site = web.TCPSite(runner, self.host, 0)
            await site.start()
            assert site._server is not None
            port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
            self.url = f"http://{self.host}:{port}"
            listening.set()

        self._loop.create_task(serve())
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        assert listening.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        ending = asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop)
        with contextlib.suppress(TimeoutError):
            ending.result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)

    def all(self, plural: str) -> dict[str, Body]:
        with self._lock:
            return dict(self.objects.get(plural, {}))

    def put(self, plural: str, body: Body) -> None:
        """As somebody else in the cluster would."""
        with self._lock:
            self._store(plural, body)

    def lose(self, pod: str) -> None:
        """Its node is gone, and the operator makes another once there is room."""
        with self._lock:
            self._delete("pods", pod)

        def again() -> None:
            with self._lock:
                self.operate()

        threading.Timer(3.0, again).start()

    def event(self, of: str, reason: str, message: str, kind: str = "Warning") -> None:
        name = f"{of}.{len(self.all('events')):04}"
        self.put(
            "events",
            {
                "metadata": {"name": name},
                "involvedObject": {"name": of},
                "reason": reason,
                "message": message,
                "type": kind,
                "lastTimestamp": _now(),
            },
        )

    def status(self, pod: str, **status: Any) -> None:
        with self._lock:
            self.objects["pods"][pod]["status"] = status

    # --- requests ---------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        plural, name = request.match_info["plural"], request.match_info.get("name", "")
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return _refused(401, "Unauthorized")
        method = request.method
        self.asked.append((method, plural, name))
        refusal = self.refuse.get((method, plural))
        if refusal is not None and self.once.get((method, plural), 1) > 0:
            self.once[method, plural] = self.once.get((method, plural), 10**6) - 1
            return _refused(*refusal)
        if request.match_info.get("sub") == "log":
            return web.Response(text=self.logs.get(name, ""))
        if request.match_info.get("sub") == "portforward":
            return await self._forward(request, name)
        body = await request.read()
        told = json.loads(body) if body else {}
        with self._lock:
            answer = self._do(method, plural, name, told, request)
            if plural != "events" and method != "GET" and self.works:
                self.operate()
            return answer

    def _do(
        self, method: str, plural: str, name: str, told: Body, request: web.Request
    ) -> web.Response:
        there = self.objects.setdefault(plural, {})
        if method == "GET" and not name:
            items = [each for each in there.values() if _selected(each, request.query)]
            return web.json_response({"items": items})
        if method == "POST":
            name = told["metadata"]["name"]
            if name in there:
                return _refused(409, f'{plural} "{name}" already exists')
            return self._written(plural, told)
        applies = request.content_type == "application/apply-patch+yaml"
        if name not in there:
            if applies:
                assert request.query["fieldManager"]
                return self._written(plural, told)
            return _refused(404, f'{plural} "{name}" not found')
        present = there[name]
        if method == "PATCH":
            version = told.get("metadata", {}).pop("resourceVersion", None)
            if version not in (None, present["metadata"]["resourceVersion"]):
                return _refused(409, "the object has been modified")
            return self._written(plural, _merged(present, told))
        if method == "DELETE":
            self._delete(plural, name)
        return web.json_response(present)

    def _written(self, plural: str, body: Body) -> web.Response:
        own = ("uid", "resourceVersion", "creationTimestamp", "namespace")
        metadata = {k: text for k, text in body["metadata"].items() if k not in own}
        checked = {**{k: v for k, v in body.items() if k != "status"}, "metadata": metadata}
        found = discovery.faults(checked, SCHEMAS[plural], discovery.RAY)
        if plural == "configmaps":
            size = sum(len(b64decode(each)) for each in body.get("binaryData", {}).values())
            found += ["Too long: must have at most 1048576 bytes"] * (size > MAPS_HOLD)
        if found:
            return _refused(422, "; ".join(found))
        return web.json_response(self._store(plural, body))

    def _store(self, plural: str, body: Body) -> Body:
        self._version += 1
        name = body["metadata"]["name"]
        before = self.objects.setdefault(plural, {}).get(name)
        kept = copy.deepcopy(body)
        old = before["metadata"] if before else {}
        kept["metadata"] |= {
            "namespace": NAMESPACE,
            "uid": old.get("uid", str(uuid4())),
            "creationTimestamp": body["metadata"].get("creationTimestamp")
            or old.get("creationTimestamp", _now()),
            "resourceVersion": str(self._version),
        }
        self.objects[plural][name] = kept
        return kept

    def _delete(self, plural: str, name: str) -> None:
        gone = self.objects[plural].pop(name, None)
        if gone is None:
            return
        if plural == "pods":
            self.ends(name)
        for kind, there in list(self.objects.items()):
            for each in list(there.values()):
                owners = each["metadata"].get("ownerReferences", [])
                if gone["metadata"]["uid"] in [owner["uid"] for owner in owners]:
                    self._delete(kind, each["metadata"]["name"])

    # --- the operator -----------------------------------------------------------------------------

    def operate(self) -> None:
        """What KubeRay's operator does when something has changed."""
        for cluster in self.all("rayclusters").values():
            spec = cluster["spec"]
            self._scale(cluster, "headgroup", "head", spec["headGroupSpec"]["template"], 1)
            for group in spec.get("workerGroupSpecs", []):
                for doomed in group.get("scaleStrategy", {}).get("workersToDelete", []):
                    self._delete("pods", doomed)
                name, template = group["groupName"], group["template"]
                self._scale(cluster, name, "worker", template, group["replicas"])

    def _scale(self, cluster: Body, group: str, kind: str, template: Body, wanted: int) -> None:
        owner = cluster["metadata"]["name"]
        labels = {"ray.io/cluster": owner, "ray.io/group": group, "ray.io/node-type": kind}
        mine = [p for p in self.all("pods").values() if labels.items() <= _labels(p).items()]
        for each in mine[wanted:]:
            self._delete("pods", each["metadata"]["name"])
        for _ in range(wanted - len(mine)):
            self._pods += 1
            name = f"{owner}-{group}-{kind}-{self._pods}"
            reference = {"uid": cluster["metadata"]["uid"], "kind": "RayCluster", "name": owner}
            metadata = {
                "name": name,
                "labels": {**template["metadata"]["labels"], **labels},
                "ownerReferences": [reference],
            }
            spec = copy.deepcopy(template["spec"])
            pod = self._store("pods", {"metadata": metadata, "spec": spec})
            self.starts(pod)

    # --- port-forward -----------------------------------------------------------------------------

    async def _forward(self, request: web.Request, name: str) -> web.StreamResponse:
        """Channel 0 carries data, channel 1 errors; each begins with the port, little-endian.
        https://github.com/kubernetes/kubernetes/blob/v1.31.0/pkg/kubelet/cri/streaming/portforward/
        websocket.go"""
        port = int(request.query["ports"])
        channel = web.WebSocketResponse(protocols=("v4.channel.k8s.io",), max_msg_size=0)
        await channel.prepare(request)
        self.forwards += 1
        for number in (0, 1):
            await channel.send_bytes(bytes([number]) + port.to_bytes(2, "little"))
        try:
            there = await asyncio.to_thread(self.connects, name, port)
        except OSError as error:
            await channel.send_bytes(b"\x01" + f"error forwarding port {port}: {error}".encode())
            await channel.close()
            return channel
        reader, writer = await asyncio.open_connection(sock=there)

        async def back() -> None:
            while data := await reader.read(65536):
                await channel.send_bytes(b"\x00" + data)
            await channel.close()

        task = asyncio.create_task(back())
        async for message in channel:
            if message.type == WSMsgType.BINARY and message.data[0] == 0:
                writer.write(message.data[1:])
                await writer.drain()
        task.cancel()
        writer.close()
        return channel


def running(pod: Body) -> None:
    """A pod that is up at once, without a process."""
    pod["status"] = {
        "phase": "Running",
        "podIP": "10.8.0.5",
        "conditions": [{"type": "Ready", "status": "True"}],
    }


def _to_loopback(pod: str, port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 5)


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _labels(each: Body) -> dict[str, str]:
    return dict(each["metadata"].get("labels") or {})


def _selected(each: Body, query: Mapping[str, str]) -> bool:
    marked = _labels(each)
    for part in filter(None, query.get("labelSelector", "").split(",")):
        key, equals, wanted = part.partition("=")
        if key not in marked or (equals and marked[key] != wanted):
            return False
    for part in filter(None, query.get("fieldSelector", "").split(",")):
        path, _, wanted = part.partition("=")
        found: Any = each
        for step in path.split("."):
            found = (found or {}).get(step)
        if found != wanted:
            return False
    return True


def _merged(present: Any, told: Any) -> Any:
    """RFC 7396; server-side apply does the same with what is given, but for removals."""
    if not isinstance(told, dict) or not isinstance(present, dict):
        return copy.deepcopy(told)
    found = copy.deepcopy(present)
    for key, each in told.items():
        if each is None:
            found.pop(key, None)
        else:
            found[key] = _merged(found.get(key), each)
    return found


def _refused(status: int, message: str) -> web.Response:
    body = {"kind": "Status", "status": "Failure", "message": message, "code": status}
    return web.json_response(body, status=status)


# --- the kubelet ----------------------------------------------------------------------------------


class Machines:
    """Nodes with room for one pod each. A pod's mounts are put under its machine's folder, since
    the machines share a file system, and its command reads them there."""

    def __init__(
        self, server: ApiServer, there: Mapping[str, netns.Machine], variables: Mapping[str, str]
    ) -> None:
        self._server, self._variables = server, dict(variables)
        self.free = list(there.values())
        self.of: dict[str, netns.Machine] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ending: list[threading.Thread] = []
        server.starts, server.ends, server.connects = self.start, self.end, self.connect

    def start(self, pod: Body) -> None:
        name, machine = pod["metadata"]["name"], self.free.pop(0)
        self.of[name] = machine
        machine.home.mkdir(exist_ok=True)
        container = pod["spec"]["containers"][0]
        folder = machine.folder / "mlcloud"
        self._mount(pod, folder)
        values = {each["name"]: self._value(each, machine) for each in container["env"]}
        script = container["args"][0].replace("/mlcloud/", f"{folder}/")
        with open(machine.folder / "container.log", "ab") as log:
            self._running[name] = subprocess.Popen(
                ["ip", "netns", "exec", machine.namespace, *container["command"], script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    "PATH": os.environ["PATH"],
                    **values,
                    **self._variables,
                    "HOME": str(machine.home),
                    "TMPDIR": str(machine.folder / "tmp"),
                },
                start_new_session=True,
            )
        pod["status"] = {"phase": "Running", "podIP": machine.address}
        threading.Thread(target=self._probe, args=(name, container), daemon=True).start()

    def _mount(self, pod: Body, folder: Path) -> None:
        (folder / "wheel").mkdir(parents=True, exist_ok=True)
        for volume in pod["spec"]["volumes"]:
            for source in volume.get("projected", {}).get("sources", []):
                found = self._server.objects["configmaps"][source["configMap"]["name"]]
                for key, text in found["binaryData"].items():
                    (folder / "wheel" / key).write_bytes(b64decode(text))
            if "secret" in volume:
                found = self._server.objects["secrets"][volume["secret"]["secretName"]]
                for item in volume["secret"]["items"]:
                    (folder / item["path"]).write_bytes(b64decode(found["data"][item["key"]]))

    def _value(self, each: Body, machine: netns.Machine) -> str:
        source = each.get("valueFrom", {})
        if "fieldRef" in source:
            assert source["fieldRef"]["fieldPath"] == "status.podIP"
            return machine.address
        if "secretKeyRef" in source:
            told = source["secretKeyRef"]
            text = self._server.objects["secrets"][told["name"]]["data"][told["key"]]
            return b64decode(text).decode()
        return str(each["value"])

    def _probe(self, name: str, container: Body) -> None:
        """Ready when the port of its probe is open; ended with its process."""
        port = container["readinessProbe"].get("tcpSocket", {}).get("port")
        process, machine = self._running[name], self.of[name]
        while process.poll() is None:
            with contextlib.suppress(OSError):
                if port is not None:
                    socket.create_connection((machine.address, port), 1).close()
                conditions = [{"type": "Ready", "status": "True"}]
                with contextlib.suppress(KeyError):
                    self._server.objects["pods"][name]["status"]["conditions"] = conditions
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
        process.wait()
        with contextlib.suppress(KeyError):
            self._server.logs[name] = (machine.folder / "container.log").read_text()
            ended = {"terminated": {"exitCode": process.returncode, "reason": "Completed"}}
            self._server.objects["pods"][name]["status"] |= {
                "phase": "Failed" if process.returncode else "Succeeded",
                "containerStatuses": [{"state": ended, "restartCount": 3}],
                "conditions": [],
            }

    def end(self, name: str) -> None:
        process, machine = self._running.pop(name, None), self.of.pop(name, None)
        if process is not None and machine is not None:
            ending = threading.Thread(target=self._end, args=(process, machine))
            self._ending.append(ending)
            ending.start()

    def close(self) -> None:
        for each in list(self._running):
            self.end(each)
        for ending in self._ending:
            ending.join()

    def _end(self, process: subprocess.Popen[bytes], machine: netns.Machine) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        machine.kill()
        shutil.rmtree(machine.home / ".mlcloud-node", ignore_errors=True)  # an emptyDir
        self.free.append(machine)

    def connect(self, name: str, port: int) -> socket.socket:
        """To the pod's own loopback address, as the kubelet does."""
        with _inside(self.of[name].namespace):
            made = socket.socket()
        made.settimeout(5)
        made.connect(("127.0.0.1", port))
        made.setblocking(False)
        return made


@contextlib.contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """This thread in another network namespace: sockets made there stay there."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as here, open(f"/run/netns/{namespace}") as there:
        assert libc.setns(there.fileno(), 0x40000000) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            libc.setns(here.fileno(), 0x40000000)
