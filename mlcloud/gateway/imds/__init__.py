"""The local cloud's instance metadata services: EC2's, Google's and Azure's, as their machines see
them at 169.254.169.254.

    /imds/<key>/latest/…            ec2      a token by PUT, then reads that carry it
    /imds/<key>/computeMetadata/v1  google   a header both ways, requests that hang until a change
    /imds/<key>/metadata/…          azure    a header, JSON

A real one knows who asks by the address; here every instance has a secret path instead. Paths,
status codes, headers and bodies are those that the clouds document (each module names the pages),
so that the watchers of `cluster/notices` find here what they find there.
"""

from __future__ import annotations

from fastapi import APIRouter

from mlcloud.cluster.clouds.local import LocalCloud
from mlcloud.gateway.imds import azure, ec2, google


def router(cloud: LocalCloud) -> APIRouter:
    routes = APIRouter(prefix="/imds/{key}", include_in_schema=False)
    for service in (ec2, google, azure):
        routes.include_router(service.router(cloud))
    return routes
