"""EC2's, version 2: no token is 401, nothing to say is 404, a bad lifetime of a token 400, and a
request for a token that came through a proxy (`X-Forwarded-For`) 403.

Sources:
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-returns.html
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Header, Request, Response

from mlcloud.cluster.clouds.local import LocalCloud

TOKEN = "X-aws-ec2-metadata-token"
TTL = f"{TOKEN}-ttl-seconds"
LONGEST_S = 21600

REASONS = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}
PAGE = """<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
\t"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>{0}</title>
 </head>
 <body>
  <h1>{0}</h1>
 </body>
</html>
"""


def router(cloud: LocalCloud) -> APIRouter:
    routes = APIRouter()
    tokens: dict[str, tuple[str, float]] = {}

    @routes.put("/latest/api/token")
    def token(key: str, request: Request, ttl: str | None = Header(None, alias=TTL)) -> Response:
        if cloud.metadata_of(key) is None:
            return _refused(404)
        if "x-forwarded-for" in request.headers:
            return _refused(403)
        if ttl is None or not ttl.isdigit() or not 1 <= int(ttl) <= LONGEST_S:
            return _refused(400)
        value = secrets.token_urlsafe(32)
        tokens[value] = (key, time.monotonic() + int(ttl))
        return _text(value, {TTL: ttl})

    @routes.get("/latest/meta-data/{path:path}")
    def read(key: str, path: str, request: Request) -> Response:
        owner, until = tokens.get(request.headers.get(TOKEN, ""), ("", 0.0))
        if not secrets.compare_digest(owner, key) or time.monotonic() > until:
            return _refused(401)
        record = cloud.metadata_of(key)
        answer = PATHS.get(path)
        text = answer(record) if answer and record else None
        return _refused(404) if text is None else _text(text)

    return routes


def _text(text: str, headers: dict[str, str] | None = None) -> Response:
    return Response(
        text, headers={"Content-Type": "text/plain", "Server": "EC2ws", **(headers or {})}
    )


def _refused(status: int) -> Response:
    page = PAGE.format(f"{status} - {REASONS[status]}")
    return Response(page, status, {"Content-Type": "text/html", "Server": "EC2ws"})


def _time(text: str) -> str:
    return datetime.fromisoformat(text).strftime("%Y-%m-%dT%H:%M:%SZ")


def interruption(record: dict[str, Any]) -> str | None:
    notice = record["notice"]
    if notice is None:
        return None
    return f'{{"action": "{notice["kind"]}", "time": "{_time(notice["deadline"])}"}}'


def rebalance(record: dict[str, Any]) -> str | None:
    at = record.get("warned_at")
    return None if at is None else f'{{"noticeTime": "{_time(at)}"}}'


PATHS: dict[str, Callable[[dict[str, Any]], str | None]] = {
    "spot/instance-action": interruption,
    "spot/termination-time": lambda each: (
        _time(each["notice"]["deadline"]) if each["notice"] else None
    ),
    "events/recommendations/rebalance": rebalance,
    "events/maintenance/scheduled": lambda _: "[]",
    "instance-id": lambda each: str(each["id"]),
    "instance-type": lambda each: str(each["offer"]["instance_type"]),
    "instance-life-cycle": lambda each: str(each["offer"]["market"]),
    "placement/availability-zone": lambda each: str(each["offer"]["zone"]),
    "placement/region": lambda each: str(each["offer"]["region"]),
}
