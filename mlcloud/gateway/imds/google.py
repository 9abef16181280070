"""Google's: `Metadata-Flavor: Google` asked for (else 403) and given, and values that may be waited
for (`wait_for_change`, `last_etag`, `timeout_sec`), each with an ETag of its content. A request
that came through a proxy (`X-Forwarded-For`) is refused.

Sources:
https://cloud.google.com/compute/docs/metadata/querying-metadata
https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from mlcloud.cluster.clouds.local import LocalCloud

FLAVOR = "Metadata-Flavor"
LOOK_S = 0.05
LONGEST_S = 3600.0
HEADERS = {
    "Server": "Metadata Server for VM",
    "X-XSS-Protection": "0",
    "X-Frame-Options": "SAMEORIGIN",
}


def router(cloud: LocalCloud) -> APIRouter:
    routes = APIRouter()

    @routes.get("/computeMetadata/v1/{path:path}")
    async def read(key: str, path: str, request: Request) -> Response:
        asked = request.headers.get(FLAVOR)
        if asked != "Google" or "x-forwarded-for" in request.headers:
            return _page(403, "Missing Metadata-Flavor:Google header.")
        record = await asyncio.to_thread(cloud.metadata_of, key)
        value = PATHS.get(path)
        if record is None or value is None:
            return _page(404, "Not Found")
        query = request.query_params
        text = value(record)
        if query.get("wait_for_change", "").lower() == "true":
            last = query.get("last_etag", etag(text))  # without one, what is now is known
            hang = query.get("timeout_sec", f"{LONGEST_S:.0f}")
            if not hang.isdigit():
                return _page(400, "Bad Request")
            until = time.monotonic() + min(float(hang), LONGEST_S)
            seen = (0, 0)
            while etag(text) == last and time.monotonic() < until:
                if await request.is_disconnected():
                    break
                revision = cloud.revision(record["id"])
                if revision != seen:
                    seen, now = revision, await asyncio.to_thread(cloud.metadata_of, key)
                    text = text if now is None else value(now)
                    continue
                await asyncio.sleep(LOOK_S)
        headers = {FLAVOR: "Google", "Content-Type": "application/text", "ETag": etag(text)}
        return Response(text, headers={**headers, **HEADERS})

    return routes


def etag(text: str) -> str:
    """Like Google's: 16 hexadecimal digits, without quotation marks."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _page(status: int, text: str) -> Response:
    headers = {FLAVOR: "Google", "Content-Type": "text/html; charset=UTF-8", **HEADERS}
    return Response(text, status, headers)


def maintenance(record: dict[str, Any]) -> str:
    return "MIGRATE_ON_HOST_MAINTENANCE" if record.get("warned_at") else "NONE"


PATHS: dict[str, Callable[[dict[str, Any]], str]] = {
    "instance/preempted": lambda each: "TRUE" if each["notice"] else "FALSE",
    "instance/maintenance-event": maintenance,
    "instance/name": lambda each: str(each["id"]),
    "instance/machine-type": lambda each: (
        f"projects/0/machineTypes/{each['offer']['instance_type']}"
    ),
    "instance/zone": lambda each: f"projects/0/zones/{each['offer']['zone']}",
    "instance/scheduling/preemptible": lambda each: (
        "TRUE" if each["offer"]["market"] == "spot" else "FALSE"
    ),
    "project/project-id": lambda _: "local",
}
