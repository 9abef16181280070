"""Azure's: scheduled events, for whoever sends `Metadata: true` and an api-version (else 400).

Sources:
https://learn.microsoft.com/en-us/azure/virtual-machines/linux/scheduled-events
https://learn.microsoft.com/en-us/azure/virtual-machines/instance-metadata-service
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from fastapi import APIRouter, Request, Response

from mlcloud.cluster.clouds.local import LocalCloud

VERSIONS = {"2019-01-01", "2019-04-01", "2019-08-01", "2020-07-01"}
FREEZE_NOTICE = timedelta(minutes=15)
FREEZE_TEXT = (
    "Virtual machine is being paused because of a memory-preserving Live Migration operation."
)
PREEMPT_TEXT = "Spot virtual machine is being evicted."


def router(cloud: LocalCloud) -> APIRouter:
    routes = APIRouter()
    documents: dict[str, tuple[int, str]] = {}

    @routes.get("/metadata/scheduledevents")
    def events(key: str, request: Request) -> Response:
        bad = _bad(request)
        if bad or request.query_params["api-version"] not in VERSIONS:
            return bad or _error(400, "Bad request. api-version is invalid.")
        record = cloud.metadata_of(key)
        if record is None:
            return _error(404, "Not found")
        shown = [each for each in (preempt(record), freeze(record)) if each is not None]
        text = json.dumps(shown, separators=(",", ":"))
        incarnation, before = documents.get(key, (0, ""))
        if text != before:
            incarnation += 1
            documents[key] = (incarnation, text)
        return _json(f'{{"DocumentIncarnation":{incarnation},"Events":{text}}}')

    @routes.get("/metadata/instance/compute/name")
    def name(key: str, request: Request) -> Response:
        record = cloud.metadata_of(key)
        bad = _bad(request)
        if bad or record is None:
            return bad or _error(404, "Not found")
        return Response(str(record["id"]), headers={"Content-Type": "text/plain; charset=utf-8"})

    return routes


def _bad(request: Request) -> Response | None:
    if (
        request.headers.get("Metadata", "").lower() != "true"
        or "x-forwarded-for" in request.headers
    ):
        return _error(400, "Bad request. Required metadata header not specified")
    if "api-version" not in request.query_params:
        return _error(400, "Bad request. api-version was not specified in the request.")
    return None


def _json(text: str, status: int = 200) -> Response:
    return Response(text, status, {"Content-Type": "application/json; charset=utf-8"})


def _error(status: int, text: str) -> Response:
    return _json(json.dumps({"error": text}, separators=(",", ":")), status)


def preempt(record: dict[str, Any]) -> dict[str, Any] | None:
    if record["notice"] is None:
        return None
    at = datetime.fromisoformat(record["notice"]["deadline"])
    return _event(record, "Preempt", record["notice"]["given_at"], at, PREEMPT_TEXT, -1)


def freeze(record: dict[str, Any]) -> dict[str, Any] | None:
    warned = record.get("warned_at")
    if warned is None:
        return None
    at = datetime.fromisoformat(warned) + FREEZE_NOTICE
    return _event(record, "Freeze", warned, at, FREEZE_TEXT, 5)


def _event(
    record: dict[str, Any], kind: str, given: str, at: datetime, text: str, seconds: int
) -> dict[str, Any]:
    not_before = at.astimezone(timezone.utc).replace(microsecond=0)
    started = datetime.now(timezone.utc) >= at
    return {
        "EventId": str(uuid5(NAMESPACE_URL, f"{record['id']}/{kind}/{given}")).upper(),
        "EventType": kind,
        "ResourceType": "VirtualMachine",
        "Resources": [record["id"]],
        "EventStatus": "Started" if started else "Scheduled",
        "NotBefore": "" if started else format_datetime(not_before, usegmt=True),
        "Description": text,
        "EventSource": "Platform",
        "DurationInSeconds": seconds,
    }
