"""The local cloud's instance metadata service, as an EC2 instance sees it at 169.254.169.254.

A real one knows the caller by its address; here every instance has a secret path instead. Version 2
of the protocol: a token by PUT, then reads that carry it; no token is 401, nothing to say is 404.

Source: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from fastapi import APIRouter, Header, Request, Response

from mlcloud.cluster.clouds.base import Instance
from mlcloud.cluster.clouds.local import LocalCloud

TOKEN = "X-aws-ec2-metadata-token"
TTL = f"{TOKEN}-ttl-seconds"


def router(cloud: LocalCloud) -> APIRouter:
    routes = APIRouter(prefix="/imds/{key}", include_in_schema=False)
    tokens: dict[str, tuple[str, float]] = {}

    @routes.put("/latest/api/token")
    def token(key: str, ttl: str | None = Header(None, alias=TTL)) -> Response:
        if cloud.by_metadata_key(key) is None:
            return Response(status_code=404)
        if ttl is None or not ttl.isdigit() or not 1 <= int(ttl) <= 21600:
            return Response(status_code=400)
        value = secrets.token_urlsafe(32)
        tokens[value] = (key, time.monotonic() + int(ttl))
        return Response(value, media_type="text/plain", headers={TTL: ttl})

    @routes.get("/latest/meta-data/{path:path}")
    def read(key: str, path: str, request: Request) -> Response:
        owner, until = tokens.get(request.headers.get(TOKEN, ""), ("", 0.0))
        if not secrets.compare_digest(owner, key) or time.monotonic() > until:
            return Response(status_code=401)
        instance = cloud.by_metadata_key(key)
        answer = PATHS.get(path)
        text = answer(instance) if answer and instance else None
        if text is None:
            return Response(status_code=404)
        kind = "application/json" if text.startswith("{") else "text/plain"
        return Response(text, media_type=kind)

    return routes


def _action(instance: Instance) -> str | None:
    if instance.notice is None:
        return None
    at = instance.notice.deadline.strftime("%Y-%m-%dT%H:%M:%SZ")
    return f'{{"action":"{instance.notice.kind}","time":"{at}"}}'


PATHS: dict[str, Callable[[Instance], str | None]] = {
    "spot/instance-action": _action,
    "spot/termination-time": lambda each: (
        each.notice.deadline.strftime("%Y-%m-%dT%H:%M:%SZ") if each.notice else None
    ),
    "instance-id": lambda each: each.id,
    "instance-type": lambda each: each.offer.instance_type,
    "instance-life-cycle": lambda each: each.offer.market,
    "placement/availability-zone": lambda each: each.offer.zone,
    "placement/region": lambda each: each.offer.region,
}
