"""Compute Engine's REST API, as far as a cluster needs it: machines, networks, operations.

It refuses what the published schema does not have, runs operations in the background (they are done
when they were asked for `slow` times), fails those in zones that are full, lists page by page, and
may list a new machine late.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from tests.cluster.clouds import discovery
from tests.cluster.clouds.http_server import Answer, ControlPlane, Request

_SCHEMAS = {
    "instances": "Instance",
    "networks": "Network",
    "subnetworks": "Subnetwork",
    "firewalls": "Firewall",
    "routers": "Router",
}


class ComputeEngine(ControlPlane):
    def __init__(self, project: str = "lab") -> None:
        super().__init__()
        self.project = project
        self.base = f"{self.url}/compute/v1"
        self.resources: dict[str, dict[str, Any]] = {}  # by their path after the project
        self.operations: dict[str, dict[str, Any]] = {}
        self.errors: dict[str, dict[str, Any]] = {}  # an operation's error, by zone
        self.refusals: list[tuple[int, dict[str, Any]]] = []  # the next answers to changes
        self.slow = 0
        self.page = 500
        self.unlisted: set[str] = set()
        self._seen: dict[str, str] = {}

    def handle(self, request: Request, headers: Mapping[str, str]) -> Answer:
        prefix = f"/compute/v1/projects/{self.project}"
        if not request.path.startswith(prefix):
            return _error(404, "notFound", f"no project in {request.path}")
        path = request.path[len(prefix) :].lstrip("/")
        if request.method == "GET":
            return self._get(path, request)
        if path.endswith("/wait"):
            return 200, self._advance(path.removesuffix("/wait")), {}
        if self.refusals:
            status, error = self.refusals.pop(0)
            return status, {"error": error}, {}
        again = self._seen.get(request.query["requestId"])
        if again:
            return 200, self.operations[again], {}
        answer = self._change(path, request)
        if answer[0] == 200:
            self._seen[request.query["requestId"]] = _after(answer[1]["selfLink"], self.project)
        return answer

    # --- changes ----------------------------------------------------------------------------------

    def _change(self, path: str, request: Request) -> Answer:
        scope = re.match(r"global|(zones|regions)/[^/]+", path).group(0)  # type: ignore[union-attr]
        if request.method == "POST":
            collection = path.rsplit("/", 1)[-1]
            wrong = discovery.faults(request.body, _SCHEMAS[collection])
            if wrong:
                return _error(400, "invalid", "; ".join(wrong))
            target = f"{path}/{request.body['name']}"
            if target in self.resources:
                return _error(409, "alreadyExists", f"The resource '{target}' already exists")
            missing = self._missing(scope, request.body)
            if missing:
                return _error(404, "notFound", f"The resource '{missing}' was not found")
            error = self.errors.get(scope.rsplit("/", 1)[-1])
            if error is None or collection != "instances":
                self._insert(collection, target, request.body)
                error = None
            return 200, self._operation("insert", scope, target, error), {}
        if path not in self.resources:
            return _error(404, "notFound", f"The resource '{path}' was not found")
        if request.method == "PATCH":
            self.resources[path].update(request.body)
            return 200, self._operation("patch", scope, path), {}
        users = [p for p, r in self.resources.items() if p != path and self._uses(r, path)]
        if users:
            return _error(400, "resourceInUseByAnotherResource", f"in use by {users[0]}")
        del self.resources[path]
        return 200, self._operation("delete", scope, path), {}

    def _insert(self, collection: str, target: str, body: Mapping[str, Any]) -> None:
        made = deepcopy(dict(body))
        made["selfLink"] = f"https://www.googleapis.com/compute/v1/projects/{self.project}/{target}"
        made.setdefault("creationTimestamp", "2026-01-01T00:00:00.000-07:00")
        scope, _, rest = target.partition("/")
        where = rest.split("/")[0]
        if scope == "zones":
            made["zone"] = f"https://www.googleapis.com/compute/v1/projects/x/zones/{where}"
        if collection == "instances":
            made["status"] = "RUNNING"
            number = sum("/instances/" in path for path in self.resources) + 2
            first = made["networkInterfaces"][0]
            first["networkIP"] = f"10.100.0.{number}"
            for access in first.get("accessConfigs", []):
                access["natIP"] = f"198.51.100.{number}"
        self.resources[target] = made

    def _missing(self, scope: str, body: Mapping[str, Any]) -> str | None:
        for interface in body.get("networkInterfaces", []):
            subnet = interface.get("subnetwork")
            if subnet and subnet not in self.resources:
                return str(subnet)
        network = body.get("network")
        return network if network and network not in self.resources else None

    @staticmethod
    def _uses(resource: Mapping[str, Any], path: str) -> bool:
        interfaces = [each.get("subnetwork") for each in resource.get("networkInterfaces", [])]
        return path in [resource.get("network"), *interfaces]

    def _operation(
        self, kind: str, scope: str, target: str, error: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        name = f"operation-{len(self.operations)}"
        link = f"https://www.googleapis.com/compute/v1/projects/{self.project}/"
        path = f"{scope}/operations/{name}"
        operation = {
            "name": name,
            "operationType": kind,
            "status": "RUNNING",
            "selfLink": link + path,
            "targetLink": link + target,
            "insertTime": "2026-01-01T01:00:00.000-07:00",
            "left": self.slow,
            "fails": error,
        }
        self.operations[path] = operation
        return {key: operation[key] for key in operation if key not in ("left", "fails")}

    def _advance(self, path: str) -> dict[str, Any]:
        operation = self.operations[path]
        if operation["left"] > 0:
            operation["left"] -= 1
        else:
            operation["status"] = "DONE"
            if operation["fails"]:
                operation["error"] = operation["fails"]
        return {key: operation[key] for key in operation if key not in ("left", "fails")}

    def system(self, kind: str, target: str) -> None:
        """Something that Google itself did to a machine: it is gone, and the operation stays."""
        zone = target.split("/instances")[0]
        self.resources.pop(target)
        self._operation(kind, zone, target)

    # --- looking ----------------------------------------------------------------------------------

    def _get(self, path: str, request: Request) -> Answer:
        if path == "":
            return 200, {"name": self.project}, {}
        if path in self.resources:
            return 200, self.resources[path], {}
        collection = path.rsplit("/", 1)[-1]
        if collection == "operations":
            found = [each for p, each in self.operations.items() if p.startswith(path)]
            kinds = re.findall(r'"([^"]+)"', request.query.get("filter", ""))
            return 200, {"items": [each for each in found if each["operationType"] in kinds]}, {}
        if collection not in (*_SCHEMAS, "disks"):
            return _error(404, "notFound", f"The resource '{path}' was not found")
        start = int(request.query.get("pageToken", 0))
        every = [
            (where, each)
            for where, each in self.resources.items()
            if f"/{collection}/" in where and self._passes(each, request.query.get("filter"))
        ]
        some = every[start : start + self.page]
        answer: dict[str, Any] = {}
        if start + self.page < len(every):
            answer["nextPageToken"] = str(start + self.page)
        if path.startswith("aggregated/"):
            scopes: dict[str, Any] = {"zones/empty-a": {"warning": {"code": "NO_RESULTS_ON_PAGE"}}}
            for where, each in some:
                scope = where.rsplit(f"/{collection}/")[0]
                scopes.setdefault(scope, {}).setdefault(collection, []).append(each)
            answer["items"] = scopes
        else:
            answer["items"] = [each for _, each in some]
        return 200, answer, {}

    def _passes(self, each: Mapping[str, Any], wanted: str | None) -> bool:
        if each["name"] in self.unlisted:
            return False
        if wanted is None:
            return True
        label = re.fullmatch(r"labels\.([\w-]+)(=|:)(.+)", wanted)
        if label:
            key, how, value = label.groups()
            held = each.get("labels", {}).get(key)
            return held is not None if how == ":" else bool(held == value)
        field, how, value = re.fullmatch(r"(name)(=|:)(.+)", wanted).groups()  # type: ignore[union-attr]
        if how == "=":
            return bool(each[field] == value)
        return str(each[field]).startswith(value.rstrip("*"))


def _after(link: str, project: str) -> str:
    return link.split(f"/projects/{project}/")[-1]


def _error(status: int, reason: str, message: str) -> Answer:
    error = {"code": status, "message": message, "errors": [{"reason": reason, "message": message}]}
    return status, {"error": error}, {}
