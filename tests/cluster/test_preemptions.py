"""How long a spot node lasts on average, by what happened to this cluster's."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

import pytest

from mlcloud.checkpoint.schedule import Schedule
from mlcloud.cluster.clouds.base import Instance, Notice
from mlcloud.cluster.offers import Offer
from mlcloud.cluster.preemptions import ON_DEMAND_S, PRIOR_S, Preemptions

NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)
SPOT = Offer(
    *("local", "local", "local-a", "local.cpu2", 2, 2**32, None, 0, "spot"),
    *(Decimal(1), True, "test", date(2026, 1, 1)),
)


def node(
    name: str,
    began: datetime,
    ended: datetime | None = None,
    reason: str = "",
    market: str = "spot",
) -> Instance:
    offer = replace(SPOT, market=market)  # type: ignore[arg-type]
    return Instance(name, "cpu", offer, launched_at=began, ended_at=ended, reason=reason)


def mean(*instances: Instance) -> float:
    rate = Preemptions()
    rate.see(instances, NOW)
    return rate.spot_s


def test_without_data_it_is_the_prior() -> None:
    assert Preemptions().mean_time_s("i-unseen") == mean() == PRIOR_S


def test_quiet_nodes_make_it_longer_and_preemptions_shorter() -> None:
    quiet = [node("a", NOW - 10 * HOUR), node("b", NOW - 8 * HOUR, NOW - 2 * HOUR, "idle")]
    assert mean(*quiet) == PRIOR_S + 16 * 3600
    taken = [node(f"t{n}", NOW - HOUR, NOW, "preempted") for n in range(3)]
    assert mean(*taken) == (PRIOR_S + 3 * 3600) / 4
    # The first one, in its first minute, is no reason to save every few seconds.
    assert mean(node("a", NOW - HOUR / 60, NOW, "preempted")) > PRIOR_S / 2
    before, after = (Schedule("auto", each, 0.0) for each in (mean(*quiet), mean(*taken)))
    before.saved(1.0, 1.0)
    after.saved(1.0, 1.0)
    assert before.interval_s is not None
    assert after.interval_s is not None
    assert after.interval_s < before.interval_s / 2


def test_a_notice_counts_before_the_node_has_ended() -> None:
    noticed = replace(node("a", NOW - HOUR), notice=Notice(NOW, NOW + HOUR / 30))
    assert mean(noticed) == pytest.approx((PRIOR_S + 3600) / 2)


def test_what_is_long_ago_does_not_count() -> None:
    old = node("a", NOW - timedelta(days=40), NOW - timedelta(days=39), "preempted")
    assert mean(old) == PRIOR_S
    long = node("b", NOW - timedelta(days=40))
    assert mean(long) == PRIOR_S + 7 * 24 * 3600


def test_on_demand_nodes_only_fail() -> None:
    rate = Preemptions()
    own = node("mine", NOW - HOUR, market="on-demand")
    rate.see([own, node("a", NOW - HOUR, NOW, "preempted")], NOW)
    assert rate.mean_time_s("mine") == ON_DEMAND_S
    assert rate.mean_time_s("a") == (PRIOR_S + 3600) / 2
