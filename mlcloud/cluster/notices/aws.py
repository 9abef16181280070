"""EC2: two minutes' notice of a spot interruption, and softer signs before it.

    spot/instance-action              {"action": "terminate", "time": "…Z"}: `stop`, `hibernate` too
    events/recommendations/rebalance  {"noticeTime": "…Z"}: an elevated risk, nothing decided
    events/maintenance/scheduled      a list, also of machines that are not spot, mostly days ahead

Each is 404 while there is nothing to say. AWS recommends to look every 5 seconds and never takes an
interruption back. IMDSv2: a token by PUT, which lives 6 hours at most, then reads that carry it;
401 says that it has expired. Its answer has a hop limit of 1 unless the machine says otherwise, so
in a container nothing comes.

Sources:
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/viewing_scheduled_events.html
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
"""

from __future__ import annotations

import time
from datetime import datetime

from mlcloud.cluster.notices import notice
from mlcloud.cluster.notices.notice import Notice, Source
from mlcloud.cluster.notices.service import Answer, Endpoint, NoAnswer, Service, found
from mlcloud.units import parse_moment

ENDPOINT = "http://169.254.169.254"
POLL_S = 5.0
TOKEN_TTL_S = 21600
TOKEN = "X-aws-ec2-metadata-token"
TTL = f"{TOKEN}-ttl-seconds"
DATA = "/latest/meta-data/"

MAINTENANCE_EVERY_S = 60.0
MAINTENANCE_AHEAD_S = 15 * 60.0  # a reboot that is days ahead moves nobody today
STOPPING = {"instance-stop": notice.STOP, "instance-retirement": notice.TERMINATE}


class Metadata:
    """A client of the instance metadata service, version 2."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._service = Service(endpoint)
        self._token = ""
        self._renew_at = 0.0

    def read(self, path: str) -> Answer | None:
        """What is at `/latest/meta-data/<path>`, None where nothing is. Raises `NoAnswer`."""
        answer = self._get(path)
        if answer.status == 401:  # expired before its time: another machine's, or a new service
            self._renew_at = 0.0
            answer = self._get(path)
        return found(answer, path)

    def _get(self, path: str) -> Answer:
        if time.monotonic() >= self._renew_at:
            answer = self._service.request("PUT", "/latest/api/token", {TTL: str(TOKEN_TTL_S)})
            if answer.status != 200:
                raise NoAnswer(f"status {answer.status} for a token")
            self._token = answer.text.strip()
            self._renew_at = time.monotonic() + 0.9 * TOKEN_TTL_S
        return self._service.request("GET", DATA + path, {TOKEN: self._token})


class Ec2Notices(Source):
    """All three paths, the strongest first: once a machine is taken back, the others are quiet."""

    name = "EC2's metadata"

    def __init__(self, endpoint: Endpoint, poll_s: float = POLL_S) -> None:
        self.poll_s = poll_s
        self._metadata = Metadata(endpoint)
        self._maintenance: list[Notice] = []
        self._maintenance_at = 0.0

    def look(self) -> list[Notice]:
        answer = self._metadata.read("spot/instance-action")
        if answer is not None:
            said = answer.json()
            return [_interruption(answer, str(said["action"]), str(said["time"]))]
        answer = self._metadata.read("events/recommendations/rebalance")
        if answer is not None:
            at = str(answer.json()["noticeTime"])
            return [Notice(f"rebalance {at}", notice.REBALANCE, None), *self._scheduled()]
        return self._scheduled()

    def _scheduled(self) -> list[Notice]:
        if time.monotonic() >= self._maintenance_at:
            answer = self._metadata.read("events/maintenance/scheduled")
            self._maintenance_at = time.monotonic() + MAINTENANCE_EVERY_S
            events = [] if answer is None else answer.json()
            self._maintenance = [
                each
                for each in (_event(answer, event) for event in events if answer is not None)
                if each is not None
            ]
        return self._maintenance


def _interruption(answer: Answer, action: str, at: str) -> Notice:
    return Notice(f"{action} {at}", action, answer.until(parse_moment(at)))


def _event(answer: Answer | None, event: dict[str, str]) -> Notice | None:
    """One of events/maintenance/scheduled, if it is to come, and soon: `system-reboot` and others.

    Times are like `21 Jan 2019 09:00:43 GMT`.
    """
    if answer is None or event.get("State", "active") != "active":
        return None
    begins = datetime.strptime(event["NotBefore"], "%d %b %Y %H:%M:%S GMT")
    left = answer.until(begins)
    if left > MAINTENANCE_AHEAD_S:
        return None
    code = event["Code"]
    kind = STOPPING.get(code, notice.REBOOT if "reboot" in code else notice.MAINTENANCE)
    return Notice(event.get("EventId", f"{code} {event['NotBefore']}"), kind, left)
