"""A node ends itself for good: what its dead-man switch and its lifetime lead to.

An operating system that shuts down is not a machine that is gone, and the clouds differ:

    aws     shutdown is enough: machines are launched with the shutdown behaviour `terminate`
    gcp     DELETE instances/<name>, with the token of the machine's service account; a shutdown
            leaves a stopped machine, whose disks bill
    azure   DELETE the machine through the resource manager, with its managed identity's token; a
            shutdown leaves an allocated machine, which bills as before

Where the API refuses (an identity without the right to delete), the node shuts down all the same
and says what is left to bill. Standard library only.

Sources:
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_ChangingInstanceInitiatedShutdownBehavior.html
https://cloud.google.com/compute/docs/reference/rest/v1/instances/delete
https://cloud.google.com/compute/docs/access/authenticate-workloads#applications
https://learn.microsoft.com/en-us/azure/virtual-machines/states-billing
https://learn.microsoft.com/en-us/rest/api/compute/virtual-machines/delete
https://learn.microsoft.com/en-us/entra/identity/managed-identities-azure-resources/how-to-use-vm-token
"""

from __future__ import annotations

import http.client
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

from mlcloud.cluster.notices import azure, gcp
from mlcloud.cluster.notices.clouds import ENDPOINTS
from mlcloud.cluster.notices.service import Endpoint, NoAnswer, Service
from mlcloud.errors import CloudRefused

COMPUTE = "https://compute.googleapis.com"
MANAGEMENT = "https://management.azure.com"
MANAGEMENT_SCOPE = "https://management.azure.com/"
MACHINES_VERSION = "2024-07-01"
LIMIT_S = 30.0

STILL_BILLS = {
    "gcp": "its disks bill until it is deleted",
    "azure": "it bills as before until it is deleted",
}


def end(
    cloud: str,
    *,
    metadata: Endpoint | None = None,
    api: str | None = None,
    shut_down: Callable[[], None] | None = None,
    log: Callable[[str], None] = print,
) -> None:
    """Have this machine deleted, and shut it down. Returns while the machine goes down.

    `metadata` and `api` are where the services are if not where the cloud has them. Raises
    `CloudRefused`, after the shutdown was begun, where the machine bills on.
    """
    refused = None
    at = metadata or (lambda: ENDPOINTS.get(cloud))
    try:
        if cloud == "gcp":
            delete_gcp(at, api or COMPUTE)
        elif cloud == "azure":
            delete_azure(at, api or MANAGEMENT)
    except CloudRefused as error:
        refused = error
        log(str(error))
    (shut_down or power_off)()
    if refused is not None:
        raise CloudRefused(f"{refused}; the machine is shut down, but {STILL_BILLS[cloud]}")


def delete_gcp(metadata: Endpoint, api: str = COMPUTE) -> None:
    """Ask Compute Engine to delete the machine this runs on. Raises `CloudRefused`."""
    service = Service(metadata, gcp.HEADERS)
    name = _read(service, f"{gcp.DATA}instance/name")
    zone = _read(service, f"{gcp.DATA}instance/zone").rpartition("/")[2]  # projects/1/zones/z
    project = _read(service, f"{gcp.DATA}project/project-id")
    token = _token(service, f"{gcp.DATA}instance/service-accounts/default/token")
    path = f"/compute/v1/projects/{quote(project)}/zones/{quote(zone)}/instances/{quote(name)}"
    _delete(api + path, token, f"{name} in {zone}")


def delete_azure(metadata: Endpoint, api: str = MANAGEMENT) -> None:
    """Ask Azure's resource manager to delete the machine this runs on. Raises `CloudRefused`."""
    service = Service(metadata, azure.HEADERS)
    machine = _read(
        service, "/metadata/instance/compute/resourceId?api-version=2021-02-01&format=text"
    )
    query = urlencode({"api-version": "2018-02-01", "resource": MANAGEMENT_SCOPE})
    token = _token(service, f"/metadata/identity/oauth2/token?{query}")
    query = urlencode({"api-version": MACHINES_VERSION, "forceDeletion": "true"})
    _delete(f"{api}{quote(machine)}?{query}", token, machine)


def power_off() -> None:
    """The operating system's shutdown, now. As root or not, as far as that is allowed."""
    for command in (["shutdown", "-h", "now"], ["sudo", "-n", "shutdown", "-h", "now"]):
        try:
            if subprocess.run(command, timeout=LIMIT_S, check=False).returncode == 0:
                return
        except (OSError, subprocess.TimeoutExpired):
            continue


def _read(service: Service, path: str) -> str:
    what = path.partition("?")[0]
    try:
        answer = service.get(path)
    except NoAnswer as error:
        raise CloudRefused(f"this machine cannot be deleted: {error}") from None
    if answer is None or not answer.text.strip():
        raise CloudRefused(f"this machine cannot be deleted: its metadata has no {what}")
    return answer.text.strip()


def _token(service: Service, path: str) -> str:
    try:
        answer = service.request("GET", path, limit_s=LIMIT_S)
        said: dict[str, Any] = answer.json()
        if answer.status == 200 and said.get("access_token"):
            return str(said["access_token"])
        why = f"status {answer.status}"
    except (NoAnswer, ValueError, AttributeError) as error:
        why = str(error)
    raise CloudRefused(
        f"this machine cannot be deleted: it has no token of its own ({why}); give nodes a service "
        "account or a managed identity that may delete them"
    )


def _delete(url: str, token: str, what: str) -> None:
    request = urllib.request.Request(
        url, method="DELETE", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=LIMIT_S):
            return
    except urllib.error.HTTPError as error:
        if error.code == 404:  # somebody else was faster
            return
        why = f"status {error.code}: {error.read(2000).decode(errors='replace')}"
    except (OSError, http.client.HTTPException) as error:
        why = str(error)
    raise CloudRefused(f"{what} cannot be deleted: {why}")
