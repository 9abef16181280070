"""Compute Engine: values of the metadata server that hang until they change.

    instance/preempted          FALSE, then TRUE
    instance/maintenance-event  NONE, MIGRATE_ON_HOST_MAINTENANCE (a live migration: the machine
                                stands still for a moment), TERMINATE_ON_HOST_MAINTENANCE (machines
                                with GPUs are stopped)

`wait_for_change=true&last_etag=…&timeout_sec=…` is answered when the value differs from the one
that had this ETag, or when the time is over. Time is short: 30 seconds, unless the machine was
launched with `preemptionNoticeDuration` 120 s; nothing in the metadata says how much of it is left.
So a request hangs for 10 s only: one whose connection has silently broken must not take longer than
a notice. Every request carries `Metadata-Flavor: Google`, and every answer does: one without is
somebody else's. During maintenance the server may answer 503 for a second.

Sources:
https://cloud.google.com/compute/docs/metadata/querying-metadata
https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption
https://cloud.google.com/compute/docs/instances/spot#preemption-process
https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice
"""

from __future__ import annotations

from urllib.parse import urlencode

from mlcloud.cluster.notices import notice, service
from mlcloud.cluster.notices.notice import SHUTDOWN_S, Notice, Source
from mlcloud.cluster.notices.service import Endpoint, NoAnswer, Service, found

ENDPOINT = "http://169.254.169.254"  # as metadata.google.internal, and no name to be resolved
HEADERS = {"Metadata-Flavor": "Google"}
DATA = "/computeMetadata/v1/"

POLL_S = 1.0  # the least between two requests, where one is answered at once
HANG_S = 10.0
MAINTENANCE_S = 60.0

Kinds = dict[str, tuple[str, float | None]]


class HangingValue(Source):
    """One value: `quiet` is what it has while nothing happens, `kinds` what else it means."""

    def __init__(
        self,
        endpoint: Endpoint,
        path: str,
        quiet: str,
        kinds: Kinds,
        *,
        poll_s: float = POLL_S,
        hang_s: float = HANG_S,
        final: bool = True,
    ) -> None:
        self.name = f"GCP's {path}"
        self.poll_s = poll_s
        self.final = final
        self._service = Service(endpoint, HEADERS)
        self._path, self._quiet, self._kinds = path, quiet, kinds
        self._hang_s = hang_s
        self._etag = ""
        self._value = quiet
        self._number = 0  # the same words twice, with quiet between, are two events

    def look(self) -> list[Notice]:
        query, limit_s = "", service.LIMIT_S
        if self._etag and self._value == self._quiet:
            wait = {"wait_for_change": "true", "timeout_sec": f"{self._hang_s:.0f}"}
            query = "?" + urlencode({**wait, "last_etag": self._etag})
            limit_s += self._hang_s
        try:
            answer = self._service.request("GET", DATA + self._path + query, limit_s=limit_s)
            there = found(answer, self._path)
            if answer.headers.get("metadata-flavor") != "Google":
                raise NoAnswer("the answer is not from Google's metadata server")
        except NoAnswer:
            self._etag = ""  # ask for the value itself next: it may have changed meanwhile
            raise
        value = self._quiet if there is None else there.text.strip()
        if value != self._quiet and value not in self._kinds:
            raise ValueError(f"{value[:40]!r} is none of {', '.join(self._kinds)}")
        self._etag = "" if there is None else there.headers.get("etag", "")
        self._number += value != self._value
        self._value = value
        if value == self._quiet:
            return []
        kind, seconds = self._kinds[value]
        return [Notice(f"{value} {self._number}", kind, seconds)]


def gcp_notices(
    endpoint: Endpoint, *, notice_s: float = 0.0, poll_s: float = POLL_S, hang_s: float = HANG_S
) -> list[Source]:
    """`notice_s` is the `preemptionNoticeDuration` that the machine was launched with."""
    left = max(notice_s, SHUTDOWN_S)
    preempted = HangingValue(
        endpoint,
        "instance/preempted",
        "FALSE",
        {"TRUE": (notice.PREEMPT, left)},
        poll_s=poll_s,
        hang_s=hang_s,
    )
    maintenance = HangingValue(
        endpoint,
        "instance/maintenance-event",
        "NONE",
        {
            "MIGRATE_ON_HOST_MAINTENANCE": (notice.MIGRATE, None),
            "TERMINATE_ON_HOST_MAINTENANCE": (notice.MAINTENANCE, MAINTENANCE_S),
        },
        poll_s=poll_s,
        hang_s=hang_s,
        final=False,
    )
    return [preempted, maintenance]
