"""Azure: scheduled events of the machines around, among them this one's.

    GET /metadata/scheduledevents?api-version=2020-07-01   (header `Metadata: true`, else 400)
    {"DocumentIncarnation": 2, "Events": [{"EventId": …, "EventType": "Preempt", "Resources": […],
     "EventStatus": "Scheduled", "NotBefore": "Mon, 19 Sep 2016 18:29:47 GMT", …}]}

The list is for everything in the scale set or availability set: an event is ours if `Resources`
names this machine. `NotBefore` is blank once an event has started; one that vanishes before it
started was called off. Preempt leaves 30 seconds, so Azure recommends to look once a second. The
first request switches the service on, and may be answered after two minutes only: one that was not
waited for has done so as well.

Events are never acknowledged (`StartRequests`). That lets an event begin before its `NotBefore`,
for every machine that it names, and gains nothing: it starts by itself at `NotBefore`, and a node
whose sessions have left is deleted by whoever launched it.

A Freeze stops the machine for some seconds, its memory stays; sessions save and stay, since a node
that is silent for long is given up by Ray.

Source: https://learn.microsoft.com/en-us/azure/virtual-machines/linux/scheduled-events
"""

from __future__ import annotations

import socket
from email.utils import parsedate_to_datetime
from typing import Any

from mlcloud.cluster.notices import notice
from mlcloud.cluster.notices.notice import Notice, Source
from mlcloud.cluster.notices.service import Answer, Endpoint, NoAnswer, Service

ENDPOINT = "http://169.254.169.254"
HEADERS = {"Metadata": "true"}
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"

POLL_S = 1.0
LEAST_S = {notice.PREEMPT: 30.0, notice.TERMINATE: 300.0, notice.REDEPLOY: 600.0}
REBOOT_S = 900.0

KINDS = {
    "Preempt": notice.PREEMPT,
    "Terminate": notice.TERMINATE,
    "Reboot": notice.REBOOT,
    "Redeploy": notice.REDEPLOY,
    "Freeze": notice.FREEZE,
}


class ScheduledEvents(Source):
    name = "Azure's scheduled events"
    final = False

    def __init__(self, endpoint: Endpoint, poll_s: float = POLL_S) -> None:
        self.poll_s = poll_s
        self._service = Service(endpoint, HEADERS)
        self._name = ""

    def look(self) -> list[Notice]:
        answer = self._service.get(EVENTS)
        if answer is None:
            raise NoAnswer("there are no scheduled events here")
        events = answer.json()["Events"]
        return [
            found
            for found in (_notice(answer, event) for event in events if self._is_ours(event))
            if found is not None
        ]

    def _is_ours(self, event: dict[str, Any]) -> bool:
        own = self._own_name().lower()
        return any(str(name).lower() == own for name in event["Resources"])

    def _own_name(self) -> str:
        """As Azure has it: `vm1`, or `set_0` in a scale set; the host's where it does not say."""
        if not self._name:
            try:
                answer = self._service.get(NAME)
            except NoAnswer:
                answer = None
            if answer is None or not answer.text.strip():
                return socket.gethostname()
            self._name = answer.text.strip()
        return self._name


def _notice(answer: Answer, event: dict[str, Any]) -> Notice | None:
    """None for an event that does not interrupt anything."""
    # What Azure may add one day is saved for, not run away from.
    kind = KINDS.get(str(event["EventType"]), notice.FREEZE)
    if kind == notice.FREEZE and event.get("DurationInSeconds") == 0:
        return None
    started = event.get("EventStatus") == "Started"
    at = str(event.get("NotBefore") or "").strip()
    if at:
        seconds = answer.until(parsedate_to_datetime(at))
    else:
        seconds = 0.0 if started else LEAST_S.get(kind, REBOOT_S)
    return Notice(str(event["EventId"]), kind, seconds, started)
