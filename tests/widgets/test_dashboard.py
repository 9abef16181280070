"""The dashboard and the prices as an exported notebook shows them, without a browser."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import pytest

pytest.importorskip("anywidget")

import mlcloud
from mlcloud.cluster_models import AttemptInfo, ClusterInfo, NodeInfo
from mlcloud.cost_models import BudgetInfo, Spend
from mlcloud.errors import UsageError
from mlcloud.models import SessionInfo, SessionState
from mlcloud.widgets.dashboard import NO_CLUSTER, Dashboard

NOW = datetime.now(timezone.utc)


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long run collects its tests minutes before it comes to them."""
    monkeypatch.setattr(sys.modules[__name__], "NOW", datetime.now(timezone.utc))


def info() -> ClusterInfo:
    node = NodeInfo(
        id="i-1",
        node_type="gpu",
        instance_type="g5.xlarge",
        zone="eu-central-1a",
        market="spot",
        usd_per_hour=Decimal("0.42"),
        simulated=True,
        launched_at=NOW,
        ended_at=None,
        reason="",
        notice_deadline=None,
        sessions=[],
        idle_since=NOW - timedelta(minutes=3, seconds=10),
    )
    session = SessionInfo(
        id="s-1",
        name="<b>exp</b>",
        state=SessionState.PARKED,
        gpu="A10G:1",
        cpus=4,
        memory=None,
        market="spot",
        created_at=NOW,
        node=None,
        instance_type=None,
        zone=None,
        usd_per_hour=Decimal(0),
        usd=Decimal("1.2345"),
        simulated=True,
        running=None,
        queued=0,
        last_event=9,
        finished_cells=7,
        safe_cells=6,
    )
    budget = BudgetInfo(
        session=None,
        limit="50/day",
        limit_usd=Decimal(50),
        spent_usd=Decimal(10),
        period="day",
        ends_at=None,
        alerts=[0.5],
        refuses="",
    )
    attempt = AttemptInfo(
        at=NOW,
        node_type="gpu",
        what="no capacity",
        detail="InsufficientInstanceCapacity",
        instance_type="g5.xlarge",
        zone="eu-central-1b",
        market="spot",
    )
    return ClusterInfo(
        name="gpus",
        state="running",
        detail="",
        cloud="aws",
        nodes=[node],
        sessions=[session],
        store="s3://b",
        usd=Decimal("12.5"),
        usd_per_hour=Decimal("0.52"),
        simulated=True,
        offers=[],
        budgets=[budget],
        attempts=[attempt],
        standing_usd_per_hour=Decimal("0.10"),
    )


def test_the_static_form_has_the_figures() -> None:
    board = Dashboard()
    spend = Spend(begins_at=NOW, step_s=60, of=[], usd_before_today=Decimal("2.5"))
    board.take(info().model_dump_json(), spend.model_dump_json())
    bundle = board._repr_mimebundle_()
    assert bundle is not None
    data, _ = bundle
    assert "application/vnd.jupyter.widget-view+json" in data
    for kind in ("text/plain", "text/html"):
        shown = data[kind].replace("<span>$</span>", "$")
        assert kind == "text/plain" or "$" not in data[kind].replace("<span>$</span>", "")
        for words in (
            "cluster gpus on aws: running",
            "$0.52/h now",
            "$10.00 today (UTC)",
            "$12.50 so far",
            "simulated prices: nobody is charged",
            "$10.00 of $50/day (20%)",
            "the head bills $0.10/h, also while every session is parked",
            "idle for 3 min",
            "6 of 7",
            "no capacity: InsufficientInstanceCapacity",
            "figures of ",
        ):
            assert words in shown, (kind, words)
    assert "<b>exp</b>" in data["text/plain"]
    assert "<b>exp</b>" not in data["text/html"]


def test_without_a_cluster_nothing_bills() -> None:
    board = Dashboard()
    board.take("", None)
    assert board.text() == NO_CLUSTER
    assert "nothing bills" in board.html()


def test_prices_in_an_exported_notebook() -> None:
    shown = mlcloud.show("prices", gpu="h100", market="spot")
    data, _ = shown._repr_mimebundle_()  # type: ignore[misc]
    for kind in ("text/plain", "text/html"):
        assert "H100" in data[kind]
        assert "on-demand" not in data[kind]
        assert "prices of" in data[kind]
    assert "~ estimated" in data["text/plain"] or "~" not in data["text/plain"]
    prices = [each.usd_per_hour for each in shown.shown]  # type: ignore[union-attr]
    assert prices == sorted(prices)


def test_what_cannot_be_shown_is_said() -> None:
    with pytest.raises(UsageError, match="did you mean 'H100'"):
        mlcloud.show("prices", gpu="H10")
    with pytest.raises(UsageError, match="not 'sessions'"):
        mlcloud.show("sessions")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="only for"):
        mlcloud.show(gpu="H100")
