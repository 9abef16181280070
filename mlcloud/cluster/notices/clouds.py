"""Which sources a node of which cloud has."""

from __future__ import annotations

from mlcloud.cluster.notices import aws, azure, gcp
from mlcloud.cluster.notices.notice import Source
from mlcloud.cluster.notices.service import Endpoint

ENDPOINTS = {"aws": aws.ENDPOINT, "gcp": gcp.ENDPOINT, "azure": azure.ENDPOINT}


def sources(
    cloud: str,
    endpoint: Endpoint | None = None,
    *,
    poll_s: float | None = None,
    notice_s: float = 0.0,
) -> list[Source]:
    """What to look at on a node of `cloud`; nothing on one that says nothing (`ssh`, your own).

    `endpoint` is where its metadata service is if not where the cloud has it, `poll_s` how often
    to look if not as often as the cloud recommends. `notice_s` is GCP's notice, as launched.
    """
    at = endpoint or (lambda: ENDPOINTS.get(cloud))
    if cloud == "aws":
        return [aws.Ec2Notices(at, poll_s or aws.POLL_S)]
    if cloud == "gcp":
        return gcp.gcp_notices(at, notice_s=notice_s, poll_s=poll_s or gcp.POLL_S)
    if cloud == "azure":
        return [azure.ScheduledEvents(at, poll_s or azure.POLL_S)]
    return []
