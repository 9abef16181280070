"""The memory of clouds that forget."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mlcloud.cluster import records as records_module
from mlcloud.cluster import register as register_module
from mlcloud.cluster.clouds.base import LaunchRequest
from mlcloud.cluster.register import LOOK_S, SETTLE_S, Register
from mlcloud.errors import CloudRefused, NotFound
from tests.cluster.recording import Clock, RecordingCloud, offer

REQUEST = LaunchRequest("cpu4", {"CPU": 4}, {"k": "v"}, {"tag": "1"})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(records_module, "now", clock)
    monkeypatch.setattr(register_module, "now", clock)
    return clock


@pytest.fixture
def cloud(tmp_path: Path, clock: Clock) -> RecordingCloud:
    return RecordingCloud(tmp_path, clock, [offer()])


@pytest.fixture
def register(tmp_path: Path, cloud: RecordingCloud) -> Register:
    return Register(cloud, tmp_path)


def test_an_ended_machine_is_remembered(
    register: Register, cloud: RecordingCloud, clock: Clock, tmp_path: Path
) -> None:
    made = register.launch(offer(), REQUEST)
    clock.forward(minutes=5)
    register.terminate(made.id, "idle")
    cloud.there.clear()
    clock.forward(days=3)
    for each in (register, Register(cloud, tmp_path)):  # of another process too
        (found,) = each.instances()
        assert (found.id, found.reason) == (made.id, "idle")
        assert found.ended_at is not None
        assert (found.ended_at - found.launched_at).total_seconds() == 300
        assert found.offer == made.offer
    with pytest.raises(NotFound, match="mlcloud status"):
        register.get("i-nothing")


def test_a_machine_that_vanished_has_ended(
    register: Register, cloud: RecordingCloud, clock: Clock
) -> None:
    made = register.launch(offer(), REQUEST)
    del cloud.there[made.id]  # not listed yet: that is no end
    for _ in range(3):
        clock.forward(seconds=LOOK_S)
        assert register.instances()[0].alive
    clock.forward(seconds=SETTLE_S)
    assert register.instances()[0].alive  # one look may be wrong
    clock.forward(seconds=LOOK_S)
    (found,) = register.instances()
    assert (found.alive, found.reason) == (False, "the cloud has it no more")


def test_its_own_words_are_the_reason(
    register: Register, cloud: RecordingCloud, clock: Clock
) -> None:
    made = register.launch(offer(), REQUEST)
    register.records.said(made.id, "undersized: it has 2 CPUs of 4")
    cloud.terminate(made.id, "instance-initiated shutdown")
    clock.forward(seconds=LOOK_S)
    assert register.instances()[0].reason == "undersized: it has 2 CPUs of 4"


def test_a_launch_that_a_crash_cut_off_is_taken_up(
    register: Register, cloud: RecordingCloud, clock: Clock
) -> None:
    lost = cloud.launch(offer(), REQUEST)  # the process died before it wrote the record
    (found,) = register.instances()
    assert (found.id, found.offer, found.launched_at) == (lost.id, lost.offer, lost.launched_at)


def test_a_cloud_that_does_not_answer_changes_nothing(
    register: Register, cloud: RecordingCloud, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    register.launch(offer(), REQUEST)

    def fail() -> None:
        raise CloudRefused("500 from the cloud")

    monkeypatch.setattr(cloud, "instances", fail)
    for _ in range(5):
        clock.forward(seconds=SETTLE_S)
        assert [each.alive for each in register.instances()] == [True]
    assert register.trouble == "CloudRefused: 500 from the cloud"
    monkeypatch.undo()


def test_the_cloud_is_not_asked_at_every_look(
    register: Register, cloud: RecordingCloud, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    inner = cloud.instances
    monkeypatch.setattr(cloud, "instances", lambda: asked.append(1) or inner())
    for _ in range(100):
        register.instances()
        clock.forward(seconds=0.5)
    assert len(asked) <= 100 * 0.5 / LOOK_S + 1


def test_addresses_come_later(register: Register, cloud: RecordingCloud, clock: Clock) -> None:
    made = register.launch(offer(), REQUEST)
    register.records.joined(made.id)
    cloud.there[made.id] = dataclasses.replace(cloud.there[made.id], private_ip="10.0.0.7")
    clock.forward(seconds=LOOK_S)
    (found,) = register.instances()
    assert (found.private_ip, found.joined_at is not None) == ("10.0.0.7", True)
