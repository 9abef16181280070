"""The watchers against services that answer as the clouds document, and against some that fail."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlcloud
from mlcloud.cluster.notices import (
    WITHDRAWN,
    Notice,
    Source,
    Watcher,
    aws,
    azure,
    gcp,
    service,
    sources,
)
from mlcloud.cluster.notices.service import NoAnswer
from tests.cluster.metadata import Nasty, Reply, Request

POLL_S = 0.05
SLACK_S = 0.5  # what a notice may take beyond the poll
LIMIT_S = 0.4
HOUR = 3600.0

# As the clouds document them (the watchers' modules name the pages).
AWS_TERMINATE = '{"action": "terminate", "time": "2017-09-18T08:22:00Z"}'
AWS_STOP = '{"action": "stop", "time": "2017-09-18T08:22:00Z"}'
AWS_REBALANCE = '{"noticeTime": "2020-10-27T08:22:00Z"}'
AWS_REBOOT = """[
  {
    "NotBefore" : "21 Jan 2019 09:00:43 GMT",
    "Code" : "system-reboot",
    "Description" : "scheduled reboot",
    "EventId" : "instance-event-0d59937288b749b32",
    "NotAfter" : "21 Jan 2019 09:17:23 GMT",
    "State" : "active"
  }
]"""
AZURE_FREEZE = """{
    "DocumentIncarnation":  2,
    "Events":  [
                   {
                       "EventId":  "C7061BAC-AFDC-4513-B24B-AA5F13A16123",
                       "EventStatus":  "Scheduled",
                       "EventType":  "Freeze",
                       "ResourceType":  "VirtualMachine",
                       "Resources":  [
                                         "WestNO_0",
                                         "WestNO_1"
                                     ],
                       "NotBefore":  "Mon, 11 Apr 2022 22:26:58 GMT",
                       "Description":  "Virtual machine is being paused because of a memory-preserving Live Migration operation.",
                       "EventSource":  "Platform",
                       "DurationInSeconds":  5
                   }
               ]
}"""  # noqa: E501


@dataclass
class Ec2:
    """EC2's service: tokens that live as long as asked for, and what a test puts there."""

    paths: dict[str, str] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    clock: float = 0.0

    def __call__(self, request: Request) -> Reply:
        if request.method == "PUT":
            assert request.path == "/latest/api/token"
            assert 0 < int(request.headers["x-aws-ec2-metadata-token-ttl-seconds"]) <= 21600
            self.tokens.add(f"token-{len(self.tokens)}")
            return Reply(f"token-{len(self.tokens) - 1}")
        if request.headers.get("x-aws-ec2-metadata-token") not in self.tokens:
            return Reply("", 401)
        text = self.paths.get(request.path.removeprefix("/latest/meta-data/"))
        return Reply("", 404) if text is None else Reply(text, clock=self.clock)


@dataclass
class Gce:
    """Google's service: values that hang until they change."""

    values: dict[str, str]

    def __post_init__(self) -> None:
        self.changed = threading.Condition()

    def set(self, path: str, value: str) -> None:
        with self.changed:
            self.values[path] = value
            self.changed.notify_all()

    def __call__(self, request: Request) -> Reply:
        if request.headers.get("metadata-flavor") != "Google":
            return Reply("Missing Metadata-Flavor:Google header.", 403)
        path, _, query = request.path.removeprefix("/computeMetadata/v1/").partition("?")
        asked = dict(part.split("=") for part in query.split("&") if part)
        with self.changed:
            if asked.get("wait_for_change") == "true":
                self.changed.wait_for(
                    lambda: f"e{self.values[path]}" != asked["last_etag"],
                    float(asked["timeout_sec"]),
                )
            value = self.values[path]
        return Reply(value, headers={"Metadata-Flavor": "Google", "ETag": f"e{value}"})


@dataclass
class Azure:
    name: str = "WestNO_0"
    document: str = '{"DocumentIncarnation":1,"Events":[]}'
    clock: float = 0.0

    def __call__(self, request: Request) -> Reply:
        if request.headers.get("metadata") != "true":
            return Reply('{"error":"Bad request. Required metadata header not specified"}', 400)
        if request.path.startswith("/metadata/instance/compute/name?"):
            return Reply(self.name)
        assert request.path == "/metadata/scheduledevents?api-version=2020-07-01"
        return Reply(self.document, clock=self.clock)


class Gateway:
    """What was told, when, and whether it is taken."""

    def __init__(self) -> None:
        self.told: list[tuple[Notice, float | None, float]] = []
        self.tries = 0
        self.first: float | None = None
        self.up = True
        self.news = threading.Condition()

    def tell(self, notice: Notice, left: float | None) -> bool:
        with self.news:
            self.tries += 1
            self.first = left if self.tries == 1 else self.first
            if self.up:
                self.told.append((notice, left, time.monotonic()))
            self.news.notify_all()
            return self.up

    def wait(self, count: int, timeout: float = 5.0) -> list[tuple[Notice, float | None, float]]:
        with self.news:
            assert self.news.wait_for(lambda: len(self.told) >= count, timeout), self.told
            return list(self.told)

    @property
    def kinds(self) -> list[str]:
        return [notice.kind for notice, _, _ in self.told]


@contextmanager
def watching(*watched: Source) -> Iterator[Gateway]:
    gateway = Gateway()
    watcher = Watcher(watched, gateway.tell, log=lambda _: None)
    watcher.start()
    try:
        yield gateway
    finally:
        watcher.stop(0)


def soon(seconds: float, clock: float = 0.0) -> datetime:
    return datetime.now(timezone.utc) + timedelta(seconds=seconds + clock)


def action(seconds: float, kind: str = "terminate", clock: float = 0.0) -> str:
    at = soon(seconds, clock).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f'{{"action": "{kind}", "time": "{at}"}}'


def event(kind: str, seconds: float | None, clock: float = 0.0, **other: Any) -> str:
    at = "" if seconds is None else format_datetime(soon(seconds, clock), usegmt=True)
    one = {
        "EventId": "602d9444-d2cd-49c7-8624-8643e7171297",
        "EventType": kind,
        "ResourceType": "VirtualMachine",
        "Resources": ["WestNO_0"],
        "EventStatus": "Scheduled",
        "NotBefore": at,
        "Description": "",
        "EventSource": "Platform",
        "DurationInSeconds": -1,
    }
    return json.dumps({"DocumentIncarnation": 2, "Events": [one | other]})


# --- what the clouds document ---------------------------------------------------------------------


@pytest.mark.parametrize(("text", "kind"), [(AWS_TERMINATE, "terminate"), (AWS_STOP, "stop")])
def test_ec2s_interruption(text: str, kind: str) -> None:
    with Nasty(Ec2({"spot/instance-action": text})) as server:
        [notice] = aws.Ec2Notices(server.endpoint).look()
    assert (notice.kind, notice.seconds) == (kind, 0.0)  # it was in 2017


def test_ec2s_rebalance_recommendation() -> None:
    paths = {"events/recommendations/rebalance": AWS_REBALANCE}
    with Nasty(Ec2(paths)) as server:
        [notice] = aws.Ec2Notices(server.endpoint).look()
    assert (notice.kind, notice.seconds) == ("rebalance", None)


def test_ec2s_maintenance_of_a_machine_that_is_not_spot() -> None:
    """What is days ahead moves nobody."""
    with Nasty(Ec2({"events/maintenance/scheduled": AWS_REBOOT})) as server:
        [notice] = aws.Ec2Notices(server.endpoint).look()
        assert (notice.kind, notice.key) == ("reboot", "instance-event-0d59937288b749b32")
        ahead = soon(2 * 86400).strftime("%d %b %Y %H:%M:%S GMT")
        server.answer = Ec2(
            {"events/maintenance/scheduled": AWS_REBOOT.replace("21 Jan 2019 09:00:43 GMT", ahead)}
        )
        assert aws.Ec2Notices(server.endpoint).look() == []
        over = AWS_REBOOT.replace("active", "completed")
        server.answer = Ec2({"events/maintenance/scheduled": over})
        assert aws.Ec2Notices(server.endpoint).look() == []


def test_azures_documented_event_is_this_machines_or_not() -> None:
    with Nasty(Azure("WestNO_1", AZURE_FREEZE)) as server:
        [notice] = azure.ScheduledEvents(server.endpoint).look()
        assert notice == Notice("C7061BAC-AFDC-4513-B24B-AA5F13A16123", "freeze", 0.0)
        server.answer = Azure("WestNO_7", AZURE_FREEZE)
        assert azure.ScheduledEvents(server.endpoint).look() == []


@pytest.mark.parametrize(
    ("said", "at", "status", "kind", "left"),
    [
        ("Preempt", 30, "Scheduled", "preempt", 30),
        ("Preempt", None, "Scheduled", "preempt", 30),
        ("Preempt", None, "Started", "preempt", 0),
        ("Terminate", 300, "Scheduled", "terminate", 300),
        ("Reboot", 900, "Scheduled", "reboot", 900),
        ("Redeploy", 600, "Scheduled", "redeploy", 600),
        ("Invented", 600, "Scheduled", "freeze", 600),
    ],
)
def test_azures_kinds_and_times(
    said: str, at: float | None, status: str, kind: str, left: float
) -> None:
    with Nasty(Azure(document=event(said, at, EventStatus=status))) as server:
        [notice] = azure.ScheduledEvents(server.endpoint).look()
    assert notice.kind == kind
    assert notice.seconds is not None
    assert left - 3 <= notice.seconds <= left


def test_what_interrupts_nothing_is_nothing() -> None:
    with Nasty(Azure(document=event("Freeze", 900, DurationInSeconds=0))) as server:
        assert azure.ScheduledEvents(server.endpoint).look() == []


def test_azures_events_are_never_acknowledged() -> None:
    served = Azure(document=event("Preempt", 30))
    with (
        Nasty(served) as server,
        watching(azure.ScheduledEvents(server.endpoint, POLL_S)) as gateway,
    ):
        gateway.wait(1)
        served.document = event("Preempt", None, EventStatus="Started")
        seen = len(server.seen)
        while len(server.seen) < seen + 3:
            time.sleep(0.02)
        assert {request.method for request in server.seen} == {"GET"}
        assert gateway.kinds == ["preempt"]


# --- once, and in time ----------------------------------------------------------------------------


def told_once(gateway: Gateway, given: float, kind: str, poll_s: float = POLL_S) -> None:
    [(notice, _, at)] = gateway.wait(1)
    assert notice.kind == kind
    assert at - given <= poll_s + SLACK_S
    time.sleep(5 * POLL_S)
    assert gateway.kinds == [kind]


def test_ec2_once_within_a_poll() -> None:
    served = Ec2()
    with Nasty(served) as server, watching(*sources("aws", server.endpoint, poll_s=POLL_S)) as it:
        until_asked(server, 3)
        served.paths["spot/instance-action"] = action(120)
        told_once(it, time.monotonic(), "terminate")
        assert len(served.tokens) == 1


def test_gcp_once_and_without_a_poll() -> None:
    """The request hangs meanwhile: the poll is no part of it."""
    served = Gce({"instance/preempted": "FALSE", "instance/maintenance-event": "NONE"})
    with Nasty(served) as server, watching(*sources("gcp", server.endpoint)) as it:
        until_asked(server, 4)  # each value once, then again, hanging
        served.set("instance/preempted", "TRUE")
        told_once(it, time.monotonic(), "preempt", poll_s=0)
        [(_, left, _)] = it.told
        assert left is not None
        assert 29 <= left <= 30
        assert all("last_etag=e" in each.path for each in server.seen[2:4])


def test_gcp_as_long_as_it_was_launched_with() -> None:
    served = Gce({"instance/preempted": "TRUE", "instance/maintenance-event": "NONE"})
    with Nasty(served) as server:
        preempted, _ = sources("gcp", server.endpoint, notice_s=120)
        assert preempted.look() == [Notice("TRUE 1", "preempt", 120.0)]


def test_gcp_maintenance_comes_and_goes_and_comes_again() -> None:
    served = Gce({"instance/preempted": "FALSE", "instance/maintenance-event": "NONE"})
    path, migrate = "instance/maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE"
    with Nasty(served) as server, watching(*sources("gcp", server.endpoint, poll_s=0.05)) as it:
        for count, value in enumerate([migrate, "NONE", migrate], start=1):
            served.set(path, value)
            it.wait(count)
        served.set(path, "TERMINATE_ON_HOST_MAINTENANCE")
        it.wait(5)
        assert it.kinds[:3] == ["migrate", WITHDRAWN, "migrate"]
        assert sorted(it.kinds[3:]) == ["maintenance", WITHDRAWN]


def test_azure_once_within_a_poll_and_called_off() -> None:
    served = Azure()
    with Nasty(served) as server, watching(*sources("azure", server.endpoint, poll_s=POLL_S)) as it:
        until_asked(server, 3)
        served.document = event("Preempt", 30)
        told_once(it, time.monotonic(), "preempt")
        served.document = '{"DocumentIncarnation":3,"Events":[]}'
        it.wait(2)
        assert it.kinds == ["preempt", WITHDRAWN]
        time.sleep(3 * POLL_S)
        assert it.kinds == ["preempt", WITHDRAWN]
        served.document = event("Preempt", 30)  # it does come back
        it.wait(3)
        assert it.kinds[2] == "preempt"


def test_an_event_that_has_begun_is_not_called_off_when_it_is_over() -> None:
    served = Azure(document=event("Reboot", 900))
    with Nasty(served) as server, watching(*sources("azure", server.endpoint, poll_s=POLL_S)) as it:
        it.wait(1)
        served.document = event("Reboot", None, EventStatus="Started")
        until_asked(server, len(server.seen) + 3)
        served.document = '{"DocumentIncarnation":4,"Events":[]}'
        until_asked(server, len(server.seen) + 3)
        assert it.kinds == ["reboot"]


def test_what_is_called_off_before_anybody_was_told_is_not_told() -> None:
    served = Azure(document=event("Preempt", 30))
    with Nasty(served) as server:
        gateway = Gateway()
        gateway.up = False
        watcher = Watcher(sources("azure", server.endpoint, poll_s=POLL_S), gateway.tell, print)
        watcher.start()
        with gateway.news:
            gateway.news.wait_for(lambda: gateway.tries > 0, 5)
        served.document = '{"DocumentIncarnation":3,"Events":[]}'
        until_asked(server, len(server.seen) + 3)
        gateway.up = True
        time.sleep(5 * POLL_S)
        watcher.stop(1)
        assert gateway.told == []


def test_a_gateway_that_is_away_is_told_when_it_is_back() -> None:
    """With the seconds that are left by then."""
    with Nasty(Ec2({"spot/instance-action": action(120)})) as server:
        gateway = Gateway()
        gateway.up = False
        watcher = Watcher(sources("aws", server.endpoint, poll_s=POLL_S), gateway.tell, print)
        watcher.start()
        with gateway.news:
            gateway.news.wait_for(lambda: gateway.tries >= 5, 5)
        gateway.up = True
        [(_, left, _)] = gateway.wait(1)
        watcher.stop(1)
        assert left is not None
        assert gateway.first is not None
        assert left <= gateway.first - 2 * POLL_S
        assert len(gateway.told) == 1


@given(
    shown=st.lists(st.sampled_from(["", "404", "500", "garbage", "cut"]), max_size=6),
    again=st.integers(1, 4),
)
def test_each_notice_is_passed_on_exactly_once(shown: list[str], again: int) -> None:
    """Whatever comes before, between and after."""
    notice = [Notice("one", "terminate", 60.0)]
    script: list[Callable[[], list[Notice]]] = []

    def fail(what: str) -> list[Notice]:
        if what in ("500", "cut"):
            raise NoAnswer(what)
        if what == "garbage":
            raise KeyError(what)
        return []

    for what in shown:
        script.append(lambda what=what: fail(what))
    for _ in range(again):
        script.append(lambda: notice)
        script.append(lambda: fail("500"))
    done = threading.Event()

    class Scripted(Source):
        name = "scripted"
        poll_s = 0.0005

        def look(self) -> list[Notice]:
            if not script:
                done.set()
                return notice
            return script.pop(0)()

    with watching(Scripted()) as gateway:
        assert done.wait(5)
        assert gateway.kinds == ["terminate"]


def until_asked(server: Nasty, count: int) -> None:
    deadline = time.monotonic() + 5
    while len(server.seen) < count:
        assert time.monotonic() < deadline, f"{len(server.seen)} of {count} requests came"
        time.sleep(0.01)


# --- clocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("clock", [-HOUR, 0.0, HOUR])
def test_a_cloud_whose_clock_differs_from_the_nodes(clock: float) -> None:
    """The same as a node whose clock is wrong: what counts is how long is left by the cloud's."""
    with Nasty(Ec2({"spot/instance-action": action(120, clock=clock)}, clock=clock)) as server:
        [notice] = aws.Ec2Notices(server.endpoint).look()
        assert notice.seconds is not None
        assert 117 <= notice.seconds <= 121
        server.answer = Azure(document=event("Preempt", 30, clock), clock=clock)
        [notice] = azure.ScheduledEvents(server.endpoint).look()
        assert notice.seconds is not None
        assert 27 <= notice.seconds <= 31


def test_a_service_that_does_not_tell_its_time() -> None:
    def answer(request: Request) -> Reply:
        if request.method == "PUT":
            return Reply("token")
        return Reply(action(60), dated=False)

    with Nasty(answer) as server:
        [notice] = aws.Ec2Notices(server.endpoint).look()
        assert notice.seconds is not None
        assert 57 <= notice.seconds <= 61


# --- services that fail ---------------------------------------------------------------------------


def test_a_token_that_is_not_taken_any_more_is_replaced() -> None:
    served = Ec2()
    with Nasty(served) as server:
        metadata = aws.Metadata(server.endpoint)
        assert metadata.read("instance-id") is None
        served.tokens = {"another"}
        assert metadata.read("instance-id") is None
        assert [each.method for each in server.seen] == ["PUT", "GET", "GET", "PUT", "GET"]


def test_a_token_is_renewed_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws, "TOKEN_TTL_S", 0.2)
    tokens: list[float] = []

    def answer(request: Request) -> Reply:
        if request.method == "PUT":
            tokens.append(request.at)
            return Reply("token")
        return Reply("", 404)

    with Nasty(answer) as server:
        metadata = aws.Metadata(server.endpoint)
        while len(tokens) < 3:
            metadata.read("instance-id")
        assert all(later - earlier >= 0.15 for earlier, later in itertools.pairwise(tokens))


FAILURES = {
    "unauthorized for ever": Reply("", 401),
    "forbidden": Reply("", 403),
    "broken": Reply("", 500),
    "away": Reply("", 503),
    "hangs": Reply("{}", hang_s=30),
    "resets": Reply("{}", cut=True, headers={"Content-Length": "9"}),
    "a byte now and then": Reply("x" * 40, slow=0.1),
    "short": Reply("{}", headers={"Content-Length": "900"}),
    "no JSON": Reply("<html>captive portal</html>", headers={"Metadata-Flavor": "Google"}),
    "other JSON": Reply('["x", 1]', headers={"Metadata-Flavor": "Google"}),
    "empty": Reply("", headers={"Metadata-Flavor": "Google"}),
    "endless": Reply("x" * 500_000, headers={"Metadata-Flavor": "Google"}),
    "not text": Reply("\x00\udcff".encode("utf-8", "replace").decode()),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_a_service_that_fails_costs_seconds_and_no_notice(
    cloud: str, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "LIMIT_S", LIMIT_S)
    good: dict[str, Callable[[Request], Reply]] = {
        "aws": Ec2({"spot/instance-action": action(120)}),
        "gcp": Gce({"instance/preempted": "TRUE", "instance/maintenance-event": "NONE"}),
        "azure": Azure(document=event("Preempt", 30)),
    }
    with (
        Nasty(lambda _: FAILURES[failure]) as server,
        watching(*sources(cloud, server.endpoint, poll_s=POLL_S)) as gateway,
    ):
        until_asked(server, 2)
        assert gateway.told == []
        began = time.monotonic()
        server.answer = good[cloud]
        gateway.wait(1, 10)
        # The request that hangs, and the slower pace of one that has never had an answer.
        assert time.monotonic() - began <= 2 * LIMIT_S + 5 * POLL_S + SLACK_S
        assert gateway.kinds == [{"aws": "terminate"}.get(cloud, "preempt")]


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
def test_a_service_that_fails_for_a_while(cloud: str) -> None:
    """After it has answered it is asked at its pace, whatever it says meanwhile."""
    good: dict[str, Callable[[Request], Reply]] = {
        "aws": Ec2(),
        "gcp": Gce({"instance/preempted": "FALSE", "instance/maintenance-event": "NONE"}),
        "azure": Azure(),
    }
    with (
        Nasty(good[cloud]) as server,
        watching(*sources(cloud, server.endpoint, poll_s=POLL_S)) as gateway,
    ):
        until_asked(server, 4)
        server.answer = lambda _: Reply("", 500)
        if cloud == "gcp":  # what hangs is let go of
            good[cloud].set("instance/maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE")  # type: ignore[attr-defined]
            gateway.wait(1)
        until_asked(server, len(server.seen) + 3)
        given = time.monotonic()
        server.answer = {
            "aws": Ec2({"spot/instance-action": action(120)}),
            "gcp": Gce({"instance/preempted": "TRUE", "instance/maintenance-event": "NONE"}),
            "azure": Azure(document=event("Preempt", 30)),
        }[cloud]
        if cloud == "gcp":
            good[cloud].set("instance/preempted", "TRUE")  # type: ignore[attr-defined]
        deadline = given + POLL_S + SLACK_S
        while not {"terminate", "preempt"} & set(gateway.kinds):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_where_there_is_no_service_at_all() -> None:
    """Another cloud's machine, or one's own: connections are refused. It is said once."""
    said: list[str] = []
    watcher = Watcher(sources("aws", lambda: "http://127.0.0.1:9", poll_s=0.02), print, said.append)
    watcher.start()
    time.sleep(0.5)
    watcher.stop(1)
    assert len(said) == 1
    assert "cannot be read" in said[0]
    assert sources("ssh") == []
    assert sources("local") == []


def test_who_takes_notices_may_fail() -> None:
    """The watch goes on, and the notice is told when it can be."""
    tries: list[str] = []
    done = threading.Event()

    def tell(notice: Notice, left: float | None) -> bool:
        tries.append(notice.kind)
        if len(tries) == 1:
            raise KeyError("url")
        done.set()
        return True

    with Nasty(Ec2({"spot/instance-action": action(120)})) as server:
        Watcher(sources("aws", server.endpoint, poll_s=POLL_S), tell, lambda _: None).start()
        assert done.wait(5)


def test_what_runs_on_every_node_for_ever_is_the_standard_library_alone() -> None:
    code = (
        "import sys, mlcloud.cluster.agent\n"
        "files = [getattr(each, '__file__', None) or '' for each in list(sys.modules.values())]\n"
        "print([each for each in files if 'site-packages' in each])"
    )
    out = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(mlcloud.__file__).parents[1])},
    )
    assert out.stdout.strip() == "[]"


def test_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with Nasty(Ec2({"instance-id": "i-1"})) as server:
        answer = aws.Metadata(server.endpoint).read("instance-id")
        assert answer is not None
        assert answer.text == "i-1"


def test_where_nothing_may_hang() -> None:
    """Something between cuts every request that waits: values are asked for between these."""
    values = {"instance/preempted": "FALSE", "instance/maintenance-event": "NONE"}
    served = Gce(values)

    def answer(request: Request) -> Reply:
        return Reply(cut=True) if "wait_for_change" in request.path else served(request)

    with Nasty(answer) as server, watching(*sources("gcp", server.endpoint, poll_s=POLL_S)) as it:
        until_asked(server, 6)
        served.set("instance/preempted", "TRUE")
        it.wait(1)
        assert it.kinds == ["preempt"]


def test_another_clouds_service_is_not_googles() -> None:
    """EC2 answers at the same address, and may have a page there."""
    with Nasty(lambda _: Reply("TRUE")) as server:
        preempted, _ = gcp.gcp_notices(server.endpoint)
        with pytest.raises(NoAnswer, match="not from Google"):
            preempted.look()
