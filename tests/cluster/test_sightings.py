"""What was seen of spot here: from tries and from nodes that were taken back."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from mlcloud.cluster.attempts import Attempt, What
from mlcloud.cluster.clouds.base import Instance, Notice
from mlcloud.cluster.lifetimes import Sighting
from mlcloud.cluster.policy import Job, Progress, decide
from mlcloud.cluster.sightings import sightings
from tests.cluster.test_policy import HOUR, NOW, OFFERS, offer

A, B = OFFERS[1], OFFERS[2]
COOLDOWN = timedelta(minutes=10)


def ago(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


def tried(what: What, minutes: float, of: object = A) -> Attempt:
    until = ago(minutes) + COOLDOWN if what != "launched" else None
    return Attempt.of(of, "cpu4", what, "", ago(minutes), until)  # type: ignore[arg-type]


def node(launched: float, *, noticed: float | None = None, ended: float | None = None) -> Instance:
    notice = None if noticed is None else Notice(ago(noticed), ago(noticed - 2))
    ends = None if ended is None else ago(ended)
    reason = "" if ended is None else "preempted"
    return Instance("i-1", "cpu4", A, ago(launched), ended_at=ends, reason=reason, notice=notice)


def test_a_refusal_holds_until_it_is_tried_again() -> None:
    found = sightings(
        OFFERS,
        [
            tried("launched", 90),
            tried("no capacity", 60),
            tried("quota", 55),  # that says nothing of what there is
            tried("launched", 20),
            tried("no capacity", 5),
            tried("no capacity", 5, offer("on-demand")),
            tried("launched", 5, replace(B, instance_type="other")),
        ],
        [],
        NOW,
        COOLDOWN,
    )
    assert found == {
        "z-a": [
            Sighting(ago(90), True),
            Sighting(ago(60), False),
            Sighting(ago(50), True),
            Sighting(ago(5), False),
        ]
    }, "nothing is known of z-b"


def test_a_zone_has_spot_while_any_of_its_types_has() -> None:
    other = replace(A, instance_type="n")
    found = sightings(
        [*OFFERS, other],
        [tried("launched", 30, other), tried("no capacity", 20), tried("no capacity", 15, other)],
        [],
        NOW,
        timedelta(hours=1),
    )
    assert found["z-a"] == [
        Sighting(ago(30), True),
        Sighting(ago(15), False),
        Sighting(ago(10), True),
    ]


def test_nodes_that_are_taken_back() -> None:
    told = sightings(OFFERS, [], [node(50, noticed=30, ended=28)], NOW, COOLDOWN)
    assert told["z-a"] == [Sighting(ago(30), False), Sighting(ago(20), True)]
    sudden = sightings(OFFERS, [], [node(50, ended=3)], NOW, COOLDOWN)
    assert sudden["z-a"] == [Sighting(ago(3), False)]
    ended = replace(node(50, ended=3), reason="idle")
    assert sightings(OFFERS, [], [ended], NOW, COOLDOWN) == {}


def test_who_is_on_a_node_stays_where_no_second_one_is_to_be_had() -> None:
    tries = [tried("launched", 50), tried("no capacity", 3)]
    found = sightings(OFFERS, tries, [node(50)], NOW, COOLDOWN)
    assert found["z-a"][-1] == Sighting(NOW, True)
    job = Job(40 * HOUR, 60 * HOUR, timedelta(minutes=12))
    progress = Progress(NOW, NOW + 50 * HOUR, 39 * HOUR, "z-a")
    assert decide(job, progress, found, OFFERS).zone == "z-a"
    # Where that is all that there was, and it is taken, the next zone is tried.
    taken = sightings(OFFERS, tries, [node(50, noticed=1)], NOW, COOLDOWN)
    assert decide(job, progress, taken, OFFERS).zone == "z-b"
