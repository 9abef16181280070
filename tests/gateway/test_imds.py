"""The local cloud's metadata services say what the clouds' own say, byte for byte where those
document it, and the watchers find there what they look for."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from mlcloud.cluster.clouds.base import LaunchRequest
from mlcloud.cluster.clouds.local import LocalCloud, write_json
from mlcloud.cluster.notices import Notice, Watcher, sources
from mlcloud.gateway import imds

TOKEN = "X-aws-ec2-metadata-token"
GOOGLE = {"Metadata-Flavor": "Google"}
AZURE = {"Metadata": "true"}
EVENTS = "/metadata/scheduledevents"
AT = datetime(2017, 9, 18, 8, 22, tzinfo=timezone.utc)
SLACK_S = 0.5


class Machine:
    """One instance of a local cloud that starts no processes, and its metadata over HTTP."""

    def __init__(self, cloud: LocalCloud, url: str) -> None:
        self.cloud = cloud
        [offer, *_] = [each for each in cloud.offers() if each.market == "spot"]
        self.id = cloud.launch(offer, LaunchRequest("cpu2", {"CPU": 2})).id
        self.key = cloud.records.secrets_of(self.id)["metadata_key"]
        self.url = f"{url}/imds/{self.key}"

    def get(self, path: str, headers: dict[str, str] | None = None, **query: str) -> httpx.Response:
        return httpx.get(self.url + path, headers=headers, params=query or None, timeout=10)

    def token(self, ttl: str = "60") -> str:
        answer = httpx.put(f"{self.url}/latest/api/token", headers={f"{TOKEN}-ttl-seconds": ttl})
        return answer.text

    def data(self, path: str) -> httpx.Response:
        return self.get(f"/latest/meta-data/{path}", {TOKEN: self.token()})

    def note(self, **values: Any) -> None:
        """Write into the record what a test wants it to have been."""
        path = self.cloud.records.path(self.id)
        write_json(path, json.loads(path.read_text()) | values)

    def notice(self, deadline: datetime, kind: str = "terminate") -> None:
        given = deadline - timedelta(minutes=2)
        times = {"given_at": given.isoformat(), "deadline": deadline.isoformat()}
        self.note(notice={**times, "kind": kind})


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    class Process:
        pid = os.getpid()

        def poll(self) -> None:
            return None

    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: Process())
    cloud = LocalCloud(tmp_path)
    app = FastAPI()
    app.include_router(imds.router(cloud))
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    yield Machine(cloud, f"http://127.0.0.1:{listener.getsockname()[1]}")
    server.should_exit = True
    thread.join(5)
    listener.close()


# --- EC2 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["terminate", "stop"])
def test_ec2s_interruption_is_the_documented_sample(machine: Machine, kind: str) -> None:
    """https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html"""
    assert machine.data("spot/instance-action").status_code == 404
    machine.notice(AT, kind)
    answer = machine.data("spot/instance-action")
    assert answer.status_code == 200
    assert answer.content == b'{"action": "%s", "time": "2017-09-18T08:22:00Z"}' % kind.encode()
    assert machine.data("spot/termination-time").content == b"2017-09-18T08:22:00Z"


def test_ec2s_rebalance_recommendation_is_the_documented_sample(machine: Machine) -> None:
    """https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html"""
    path = "events/recommendations/rebalance"
    assert machine.data(path).status_code == 404
    machine.note(warned_at="2020-10-27T08:22:00+00:00")
    assert machine.data(path).content == b'{"noticeTime": "2020-10-27T08:22:00Z"}'
    machine.cloud.withdraw(machine.id)
    machine.cloud.warn(machine.id)
    assert machine.data(path).status_code == 200


def test_ec2s_tokens(machine: Machine) -> None:
    """https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html"""
    path, put = "/latest/meta-data/instance-id", f"{machine.url}/latest/api/token"
    assert machine.get(path).status_code == 401
    assert machine.get(path, {TOKEN: "made-up"}).status_code == 401
    assert httpx.put(put).status_code == 400
    for bad in ("0", "21601", "soon"):
        assert httpx.put(put, headers={f"{TOKEN}-ttl-seconds": bad}).status_code == 400
    ttl = {f"{TOKEN}-ttl-seconds": "21600"}
    given = httpx.put(put, headers=ttl)
    assert given.headers[f"{TOKEN}-ttl-seconds"] == "21600"
    assert httpx.put(put, headers={**ttl, "X-Forwarded-For": "10.0.0.1"}).status_code == 403
    assert machine.get(path, {TOKEN: given.text}).text == machine.id
    short = machine.token("1")
    assert machine.get(path, {TOKEN: short}).status_code == 200
    deadline = time.monotonic() + 3
    while machine.get(path, {TOKEN: short}).status_code != 401:
        assert time.monotonic() < deadline


def test_another_machines_token_opens_nothing(machine: Machine) -> None:
    other = Machine(machine.cloud, machine.url.rpartition("/imds/")[0])
    assert machine.get("/latest/meta-data/instance-id", {TOKEN: other.token()}).status_code == 401
    guessed = machine.url.replace(machine.key, "guessed")
    ttl = {f"{TOKEN}-ttl-seconds": "60"}
    assert httpx.put(f"{guessed}/latest/api/token", headers=ttl).status_code == 404


# --- Google ---------------------------------------------------------------------------------------


def test_google_answers_who_sends_its_header(machine: Machine) -> None:
    """https://cloud.google.com/compute/docs/metadata/querying-metadata"""
    path = "/computeMetadata/v1/instance/preempted"
    assert machine.get(path).status_code == 403
    assert machine.get(path, {"Metadata-Flavor": "google"}).status_code == 403
    assert machine.get(path, {**GOOGLE, "X-Forwarded-For": "10.0.0.1"}).status_code == 403
    assert machine.get("/computeMetadata/v1/instance/nothing", GOOGLE).status_code == 404
    answer = machine.get(path, GOOGLE)
    assert (answer.status_code, answer.content) == (200, b"FALSE")
    assert answer.headers["Metadata-Flavor"] == "Google"
    assert answer.headers["Content-Type"] == "application/text"
    assert len(answer.headers["ETag"]) == 16
    event = machine.get("/computeMetadata/v1/instance/maintenance-event", GOOGLE)
    assert event.content == b"NONE"


def test_google_waits_for_a_change(machine: Machine) -> None:
    path = "/computeMetadata/v1/instance/preempted"
    wait = {"wait_for_change": "true"}
    first = machine.get(path, GOOGLE)
    etag = first.headers["ETag"]
    began = time.monotonic()
    same = machine.get(path, GOOGLE, **wait, timeout_sec="1", last_etag=etag)
    assert (same.content, same.headers["ETag"]) == (b"FALSE", etag)
    assert 0.9 <= time.monotonic() - began < 3
    assert machine.get(path, GOOGLE, **wait, timeout_sec="soon").status_code == 400
    given: list[float] = []

    def preempt() -> None:
        machine.cloud.preempt(machine.id, 30)
        given.append(time.monotonic())

    timer = threading.Timer(0.3, preempt)
    timer.start()
    changed = machine.get(path, GOOGLE, **wait, timeout_sec="9", last_etag=etag)
    assert changed.content == b"TRUE"
    assert time.monotonic() - given[0] < SLACK_S
    assert changed.headers["ETag"] != etag
    at_once = machine.get(path, GOOGLE, **wait, timeout_sec="9", last_etag=etag)
    assert at_once.content == b"TRUE"
    machine.cloud.warn(machine.id)
    event = machine.get("/computeMetadata/v1/instance/maintenance-event", GOOGLE)
    assert event.content == b"MIGRATE_ON_HOST_MAINTENANCE"


# --- Azure ----------------------------------------------------------------------------------------


def test_azure_answers_who_sends_its_header(machine: Machine) -> None:
    """https://learn.microsoft.com/en-us/azure/virtual-machines/linux/scheduled-events"""
    version = {"api-version": "2020-07-01"}
    assert machine.get(EVENTS, **version).status_code == 400
    assert machine.get(EVENTS, AZURE).status_code == 400
    assert machine.get(EVENTS, AZURE, **{"api-version": "latest"}).status_code == 400
    answer = machine.get(EVENTS, AZURE, **version)
    assert answer.content == b'{"DocumentIncarnation":1,"Events":[]}'
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    name = machine.get(
        "/metadata/instance/compute/name", AZURE, **{"api-version": "2021-02-01", "format": "text"}
    )
    assert name.text == machine.id


def test_azures_events_have_the_documented_form(machine: Machine) -> None:
    def events() -> dict[str, Any]:
        found: dict[str, Any] = machine.get(EVENTS, AZURE, **{"api-version": "2020-07-01"}).json()
        return found

    assert events()["DocumentIncarnation"] == events()["DocumentIncarnation"] == 1
    machine.note(warned_at="2022-04-11T22:11:58+00:00")
    document = events()
    assert document["DocumentIncarnation"] == 2
    [freeze] = document["Events"]
    assert list(freeze) == [
        *("EventId", "EventType", "ResourceType", "Resources", "EventStatus", "NotBefore"),
        *("Description", "EventSource", "DurationInSeconds"),
    ]
    # It was in 2022: under way, and then there is no time any more.
    assert (freeze["EventStatus"], freeze["NotBefore"]) == ("Started", "")
    # The page's own sample, with this machine in the place of its two.
    assert freeze | {"EventStatus": "Scheduled", "NotBefore": "Mon, 11 Apr 2022 22:26:58 GMT"} == {
        "EventId": freeze["EventId"],
        "EventStatus": "Scheduled",
        "EventType": "Freeze",
        "ResourceType": "VirtualMachine",
        "Resources": [machine.id],
        "NotBefore": "Mon, 11 Apr 2022 22:26:58 GMT",
        "Description": "Virtual machine is being paused because of a memory-preserving Live "
        "Migration operation.",
        "EventSource": "Platform",
        "DurationInSeconds": 5,
    }
    machine.cloud.withdraw(machine.id)
    later = datetime(2094, 4, 9, 22, 26, 58, tzinfo=timezone.utc)
    machine.notice(later)
    [preempt] = events()["Events"]
    assert (preempt["EventType"], preempt["EventStatus"]) == ("Preempt", "Scheduled")
    assert preempt["NotBefore"] == "Fri, 09 Apr 2094 22:26:58 GMT"
    machine.cloud.withdraw(machine.id)
    assert events() == {"DocumentIncarnation": 4, "Events": []}


# --- and who watches them -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cloud", "risk", "notice"),
    [
        ("aws", "rebalance", "terminate"),
        ("gcp", "migrate", "preempt"),
        ("azure", "freeze", "preempt"),
    ],
)
def test_a_watcher_passes_each_on_once_and_in_time(
    machine: Machine, cloud: str, risk: str, notice: str
) -> None:
    told: list[tuple[str, float | None, float]] = []
    news = threading.Condition()

    def tell(what: Notice, left: float | None) -> bool:
        with news:
            told.append((what.kind, left, time.monotonic()))
            news.notify_all()
        return True

    poll_s = 0.2
    watcher = Watcher(sources(cloud, lambda: machine.url, poll_s=poll_s), tell, lambda _: None)
    watcher.start()
    time.sleep(3 * poll_s)
    drills: list[Callable[[], object]] = [
        lambda: machine.cloud.warn(machine.id),
        lambda: machine.cloud.preempt(machine.id, 30),
    ]
    given = []
    for count, drill in enumerate(drills, start=1):
        drill()
        given.append(time.monotonic())
        with news:
            assert news.wait_for(lambda count=count: len(told) >= count, 5)  # type: ignore[misc]
    time.sleep(5 * poll_s)
    watcher.stop(0)
    assert [kind for kind, _, _ in told] == [risk, notice]
    for (_, _, at), drilled in zip(told, given, strict=True):
        assert at - drilled <= poll_s + SLACK_S
    left = told[1][1]
    assert left is not None
    assert 27 <= left <= 32  # by a `Date` header of whole seconds
