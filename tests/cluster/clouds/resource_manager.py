"""Azure Resource Manager, as far as a cluster needs it: machines, networks, groups, operations.

It refuses what the SDK's models do not have, needs a bearer token, runs the operation of a machine
in the background (done when it was asked for `slow` times), keeps a machine that it could not place
as Azure does, makes cards, addresses and disks beside machines and deletes them with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from tests.cluster.clouds import discovery
from tests.cluster.clouds.http_server import Answer, ControlPlane, Request

_MODELS = {
    "virtualmachines": "compute.VirtualMachine",
    "networksecuritygroups": "network.NetworkSecurityGroup",
    "virtualnetworks": "network.VirtualNetwork",
    "natgateways": "network.NatGateway",
    "publicipaddresses": "network.PublicIPAddress",
}


class ResourceManager(ControlPlane):
    def __init__(self, subscription: str = "0000-1111") -> None:
        super().__init__()
        self.subscription = subscription
        self.root = f"/subscriptions/{subscription}"
        self.resources: dict[str, dict[str, Any]] = {}  # by their id in lower case
        self.operations: dict[str, dict[str, Any]] = {}
        self.error: dict[str, Any] | None = None  # of the next machines' operations
        self.refusals: list[tuple[int, dict[str, Any]]] = []  # the next answers to changes
        self.slow = 0
        self.page = 500
        self.unlisted: set[str] = set()

    def handle(self, request: Request, headers: Mapping[str, str]) -> Answer:
        if headers.get("Authorization") != "Bearer good":
            return _error(401, "ExpiredAuthenticationToken", "The access token expiry is in 2026.")
        if request.path.startswith("/operations/"):
            return self._advance(request.path)
        if "api-version" not in request.query:
            return _error(400, "MissingApiVersionParameter", "The api-version query parameter")
        path = request.path.lower()
        if request.method == "GET":
            return self._get(path, request)
        if self.refusals:
            status, error = self.refusals.pop(0)
            return status, {"error": error}, {}
        if request.method == "PUT":
            return self._put(path, request, headers)
        if path not in self.resources:
            return 204, None, {}
        return self._delete(path)

    # --- changes ----------------------------------------------------------------------------------

    def _put(self, path: str, request: Request, headers: Mapping[str, str]) -> Answer:
        if headers.get("If-None-Match") == "*" and path in self.resources:
            return _error(412, "PreconditionFailed", "the resource exists")
        kind = path.split("/")[-2]
        if kind in _MODELS:
            wrong = discovery.faults(request.body, _MODELS[kind], discovery.AZURE)
            if wrong:
                return _error(400, "InvalidRequestContent", "; ".join(wrong))
            group = re.match(r".*?/resourcegroups/[^/]+", path).group(0)  # type: ignore[union-attr]
            if group not in self.resources:
                return _error(404, "ResourceGroupNotFound", f"Resource group '{group}' not found.")
        for missing in self._references(request.body):
            if missing.lower() not in self.resources:
                return _error(404, "NotFound", f"Resource {missing} not found.")
        made = {
            **deepcopy(request.body),
            "id": request.path,
            "name": request.path.rsplit("/", 1)[-1],
        }
        self.resources[path] = made
        if kind == "virtualnetworks":
            for subnet in made["properties"]["subnets"]:
                self.resources[f"{path}/subnets/{subnet['name']}"] = {"id": "", "name": ""}
        if kind != "virtualmachines":
            return 200, made, {}
        self._place(path, made)
        return 201, made, self._operation()

    def _references(self, body: Any) -> list[str]:
        if isinstance(body, list):
            return [each for item in body for each in self._references(item)]
        if not isinstance(body, dict):
            return []
        mine = [body["id"]] if set(body) == {"id"} else []
        return mine + [each for item in body.values() for each in self._references(item)]

    def _place(self, path: str, made: dict[str, Any]) -> None:
        properties = made["properties"]
        group = path.split("/providers/")[0]
        properties["provisioningState"] = "Failed" if self.error else "Succeeded"
        status = [] if self.error else [{"code": "PowerState/running"}]
        properties["instanceView"] = {"statuses": [{"code": "ProvisioningState/x"}, *status]}
        number = sum("/networkinterfaces/" in each for each in self.resources) + 4
        card = properties["networkProfile"].pop("networkInterfaceConfigurations")[0]
        address = card["properties"]["ipConfigurations"][0]["properties"]
        address["privateIPAddress"] = f"10.100.0.{number}"
        public = address.pop("publicIPAddressConfiguration", None)
        if public:
            name = f"{group}/providers/microsoft.network/publicipaddresses/{public['name']}"
            self.resources[name] = {
                "id": name,
                "name": public["name"],
                "tags": public["tags"],
                "location": made["location"],
                "properties": {"ipAddress": f"198.51.100.{number}", "ipConfiguration": {}},
                "of": path,
            }
            address["publicIPAddress"] = {"id": name.upper()}
        name = f"{group}/providers/microsoft.network/networkinterfaces/{card['name']}"
        card["properties"]["virtualMachine"] = {"id": made["id"].upper()}
        self.resources[name] = {**card, "id": name, "location": made["location"], "of": path}
        disk = properties["storageProfile"]["osDisk"]["name"]
        name = f"{group}/providers/microsoft.compute/disks/{disk}"
        self.resources[name] = {
            "id": name, "name": disk, "tags": made["tags"], "managedBy": made["id"],
            "location": made["location"], "properties": {}, "of": path,
        }  # fmt: skip

    def _delete(self, path: str) -> Answer:
        below = [p for p, r in self.resources.items() if r.get("of") == path or p == path]
        if path.split("/")[-2] == "resourcegroups":
            below = [p for p in self.resources if f"{p}/".startswith(f"{path}/")]
        for each in below:
            del self.resources[each]
        return 202, None, self._operation(done=True)

    def _operation(self, done: bool = False) -> dict[str, str]:
        path = f"/operations/{len(self.operations)}"
        error = None if done else self.error
        self.operations[path] = {"left": self.slow, "error": error}
        return {"Azure-AsyncOperation": f"{self.url}{path}", "Retry-After": "0"}

    def _advance(self, path: str) -> Answer:
        operation = self.operations[path]
        if operation["left"] > 0:
            operation["left"] -= 1
            return 200, {"status": "InProgress"}, {"Retry-After": "30"}
        if operation["error"]:
            return 200, {"status": "Failed", "error": operation["error"]}, {}
        return 200, {"status": "Succeeded"}, {}

    # --- looking ----------------------------------------------------------------------------------

    def _get(self, path: str, request: Request) -> Answer:
        if path == self.root:
            return 200, {"subscriptionId": self.subscription}, {}
        if path in self.resources:
            return 200, self.resources[path], {}
        kind = path.rsplit("/", 1)[-1]
        if kind not in (*_MODELS, "networkinterfaces", "disks", "resourcegroups"):
            return _error(404, "ResourceNotFound", f"The Resource '{path}' was not found.")
        scope = path.split("/providers/")[0]
        if scope != self.root and "/providers/" in path and scope not in self.resources:
            return _error(404, "ResourceGroupNotFound", f"Resource group '{scope}' not found.")
        every = [
            each
            for where, each in self.resources.items()
            if where.startswith(scope if "/providers/" in path else self.root)
            and where.split("/")[-2] == kind
            and each["name"] not in self.unlisted
        ]
        if kind == "resourcegroups":
            every = [each for each in every if "mlcloud-cluster" in each.get("tags", {})]
        start = int(request.query.get("$skiptoken", 0))
        answer: dict[str, Any] = {"value": every[start : start + self.page]}
        if start + self.page < len(every):
            query = f"api-version={request.query['api-version']}&$skiptoken={start + self.page}"
            answer["nextLink"] = f"{self.url}{request.path}?{query}"
        return 200, answer, {}

    def switch_off(self, name: str, state: str) -> None:
        machine = next(r for p, r in self.resources.items() if p.endswith(f"machines/{name}"))
        machine["properties"]["instanceView"] = {"statuses": [{"code": f"PowerState/{state}"}]}


def _error(status: int, code: str, message: str) -> Answer:
    return status, {"error": {"code": code, "message": message}}, {}
