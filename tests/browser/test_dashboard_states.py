"""The dashboard's page alone: many sessions, what is idle, refused, stale, asked twice."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

pytest.importorskip("anywidget")

from mlcloud.widgets.dashboard import Dashboard
from tests.browser.bare import Bare
from tests.browser.screen import unnamed


@pytest.fixture
def alone(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1000, "height": 1300})
    yield page
    page.close()


def ago(**time_: float) -> str:
    return (datetime.now(timezone.utc) - timedelta(**time_)).isoformat()


def session(name: str, state: str, **more: Any) -> dict[str, Any]:
    on = state not in ("parked", "failed", "closed")
    return {
        "id": name, "name": name, "state": state, "node": "i-1" if on else None,
        "instance_type": "g5.xlarge" if on else None, "zone": "eu-central-1a" if on else None,
        "usd_per_hour": "0.4210" if on else "0", "usd": "3.21", "running": None, "queued": 0,
        "finished_cells": 12, "safe_cells": 12, "detail": "", "idle_since": None, **more,
    }  # fmt: skip


def node(id_: str, **more: Any) -> dict[str, Any]:
    return {
        "id": id_, "instance_type": "g5.xlarge", "market": "spot", "zone": "eu-central-1a",
        "usd_per_hour": "0.4210", "reserved": 1.0, "sessions": [], "idle_since": None,
        "notice_deadline": None, "cpus": 4.0, "memory_bytes": 16 * 10**9, "gpu": "A10G:1",
        "use": None, **more,
    }  # fmt: skip


def used(cpus: float, gb: float, gpu: float | None = None) -> dict[str, Any]:
    gpus = [{"busy": gpu, "memory": 18 * 10**9, "memory_there": 24 * 10**9}]
    return {"cpus": cpus, "memory": gb * 10**9, "gpus": [] if gpu is None else gpus}


def cluster(**more: Any) -> str:
    found = {
        "name": "gpus", "cloud": "aws", "state": "running", "detail": "", "usd": "41.37",
        "usd_per_hour": "1.3630", "standing_usd_per_hour": "0.1000", "simulated": False,
        "sessions": [
            session("train-llm", "busy", running="e-1", safe_cells=11),
            session("features", "idle", idle_since=ago(minutes=42), data_usd_estimate="0.12"),
            session("still", "idle", node="i-3a4b5c6d", idle_since=ago(minutes=11)),
            session("ablation-3", "parked"),
            session("broken", "failed", detail="no node came up"),
        ],
        "nodes": [
            node("i-1", sessions=["train-llm", "features"], use=used(3.4, 12, 0.97)),
            node("i-1a2b3c4d", sessions=["still"], notice_deadline=ago(seconds=-100)),
            node("i-2a3b4c5d", reserved=0.0, market="on-demand", idle_since=ago(minutes=7),
                 use=used(0.04, 1, 0.0)),
            node("i-3a4b5c6d", sessions=["still"], gpu=None, use=used(0.1, 2)),
        ],
        "budgets": [
            {"session": None, "limit": "50/day", "limit_usd": "50", "spent_usd": "41.37",
             "alerts": [0.5, 0.8, 0.95], "refuses": ""},
            {"session": "features", "limit": "3", "limit_usd": "3", "spent_usd": "3.21",
             "alerts": [0.5], "refuses": "the budget is spent"},
            {"session": None, "user": "ada", "limit": "20/day", "limit_usd": "20",
             "spent_usd": "4", "alerts": [0.5], "refuses": ""},
        ],
        "attempts": [
            {"at": ago(minutes=3), "node_type": "gpu", "what": "no capacity",
             "detail": "InsufficientInstanceCapacity", "instance_type": "p5.48xlarge",
             "zone": "eu-central-1b", "market": "spot", "usd_per_hour": "21.2",
             "until": ago(minutes=-7)},
            {"at": ago(minutes=2), "node_type": "gpu", "what": "launched", "detail": "i-0a1b2c3d",
             "instance_type": "g5.xlarge", "zone": "eu-central-1a", "market": "spot",
             "usd_per_hour": "0.421", "until": None},
        ],
        **more,
    }  # fmt: skip
    return json.dumps(found)


def spend(sessions: int = 4, steps: int = 60, step_s: int = 60) -> str:
    def usd(which: int, step: int) -> str:
        here = which * 3 < step < which * 3 + 40
        return str(Decimal(step_s) / 3600 * Decimal("0.421") if here else Decimal(0))

    names = ["train-llm", "features", "ablation-3", *(f"run-{i}" for i in range(sessions))]
    return json.dumps(
        {
            "begins_at": ago(seconds=steps * step_s - step_s / 2),
            "step_s": step_s,
            "of": [
                {"session": name, "usd": [usd(i, step) for step in range(steps)]}
                for i, name in enumerate(names[:sessions])
            ]
            + [{"session": None, "usd": [str(Decimal(step_s) / 36000)] * steps}],
            "usd_before_today": "5.12",
        }
    )


def shown(page: Page, *, dark: bool = False, **more: Any) -> Bare:
    state = {"cluster": cluster(), "spend": spend(), "range": "hour", "at": time.time()}
    return Bare(page, Dashboard, dark=dark, **{**state, **more})


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_that_it_has_to_say(alone: Page, artefacts: Path, dark: bool) -> None:
    bare = shown(alone, dark=dark)
    for words in (
        "$1.363/h",
        "$36.25",  # today: 41.37 - 5.12
        "The head bills $0.10/h, also while every session is parked.",
        "cluster: $41.37 of $50/day (83 %), $8.63 left",
        "session features: $3.21 of $3 (107 %), $0.00 left · spent: new work is refused",
        "user ada: $4.00 of $20/day (20 %), $16.00 left",
        "idle for 42 min",
        "$3.21 + ~$0.12 data",
        "⚠ idle for 7 min",
        "taken back in 1 min",
        "1 offer could not be had within the last hour",
    ):
        expect(bare.root).to_contain_text(words)
    assert "simulated" not in bare.root.inner_text()

    def measured(name: str) -> list[str]:
        head = alone.get_by_role("rowheader", name=name, exact=True)
        row = bare.root.locator("tr").filter(has=head)
        return [
            text.partition(" min")[0].strip() for text in row.locator("td").all_inner_texts()[5:]
        ]

    assert measured("i-1") == ["85 %", "75 %", "97 %", "train-llm, features"]
    assert measured("i-1a2b3c4d")[:3] == ["", "", "not seen"]  # it was not heard yet
    assert measured("i-2a3b4c5d") == ["1 %", "6 %", "0 %", "⚠ idle for 7"]
    # Its one session stands still: so does the node.
    assert measured("i-3a4b5c6d") == ["3 %", "13 %", "none", "⚠ still: idle for 11"]
    bare.root.locator("summary").click()
    expect(bare.root).to_contain_text("no capacity: InsufficientInstanceCapacity; again at")
    assert unnamed(bare.root) == []
    bare.root.screenshot(path=artefacts / f"dashboard-full-{'dark' if dark else 'light'}.png")
    assert bare.errors == []


def test_many_sessions_have_a_band_for_the_rest(alone: Page, artefacts: Path) -> None:
    many = [session(f"run-{i}", "parked") for i in range(30)]
    bare = shown(
        alone, spend=spend(20, 84, 7200), range="week", cluster=cluster(sessions=many, nodes=[])
    )
    expect(bare.root).to_contain_text("14 other sessions")
    assert bare.root.locator("svg path").count() == 8
    expect(bare.root).to_contain_text("No node is up.")
    bare.root.screenshot(path=artefacts / "dashboard-week.png")
    alone.set_viewport_size({"width": 420, "height": 900})
    expect(bare.root.locator("svg")).to_have_attribute("width", "374")
    assert alone.evaluate("document.documentElement.scrollWidth <= innerWidth")
    bare.root.screenshot(path=artefacts / "dashboard-narrow.png")


def test_without_a_cluster(alone: Page) -> None:
    bare = shown(alone, cluster="", spend="")
    expect(bare.root).to_contain_text("No cluster is up, and nothing bills.")
    expect(bare.root.get_by_role("button")).to_have_count(0)
    bare.set(cluster=cluster(), at=time.time())
    expect(bare.root).to_contain_text("cluster gpus")
    bare.set(cluster="", at=time.time())
    expect(bare.root).to_contain_text("No cluster is up")


def test_old_figures_are_told_from_new_ones(alone: Page) -> None:
    bare = shown(alone, at=time.time() - 60)
    expect(bare.root.locator(".asof")).to_contain_text("no news since")
    bare.set(at=time.time())
    expect(bare.root.locator(".asof")).to_contain_text("live")


def test_focus_stays_through_updates_and_a_press_is_sent_once(alone: Page) -> None:
    bare = shown(alone)
    park = bare.root.get_by_role("button", name="Park session train-llm")
    park.focus()
    for number in range(3):
        bare.set(cluster=cluster(usd=str(41.4 + number)), at=time.time())
    expect(park).to_be_focused()
    park.press("Enter")
    park.press("Enter")
    expect(park).to_have_attribute("aria-disabled", "true")
    expect(park).to_be_focused()
    acts = [each for each in bare.sent if each["kind"] == "act"]
    assert [(each["action"], each["session"]) for each in acts] == [("park", "train-llm")]
    bare.answer(kind="acted", id=acts[0]["id"], text="session train-llm is parked")
    expect(bare.root.get_by_role("status")).to_have_text("session train-llm is parked")
    expect(park).not_to_have_attribute("aria-disabled", "true")
    others = [session("features", "idle"), session("train-llm", "parked")]
    bare.set(cluster=cluster(sessions=others[::-1]), at=time.time())
    expect(bare.root.get_by_role("button", name="Resume session train-llm")).to_be_focused()
    assert bare.root.locator("tbody th").all_inner_texts()[:2] == ["features", "train-llm"]
    bare.set(cluster=cluster(), at=time.time())
    expect(bare.root.get_by_role("button", name="Park session train-llm")).to_have_count(1)
    park = bare.root.get_by_role("button", name="Park session features")
    park.focus()
    bare.set(cluster=cluster(sessions=others), at=time.time())  # its row comes first now
    expect(park).to_be_focused()
    bare.set(cluster=cluster(), at=time.time())
    bare.root.get_by_role("button", name="Interrupt session train-llm").click()
    assert bare.sent[-1]["execution"] == "e-1"


def test_a_screen_reader_is_told_at_most_every_ten_seconds(alone: Page) -> None:
    alone.clock.install()
    bare = shown(alone)
    live = bare.root.locator("[aria-live=polite]")
    expect(live).to_contain_text("$1.363/h now")
    for _ in range(9):
        alone.clock.run_for(1000)
        bare.set(cluster=cluster(usd_per_hour="2.5"), at=time.time())
    expect(live).to_contain_text("$1.363/h now")
    alone.clock.run_for(1500)
    bare.set(cluster=cluster(usd_per_hour="2.5"), at=time.time())
    expect(live).to_contain_text("$2.50/h now")


def test_beats_end_with_the_view(alone: Page) -> None:
    alone.clock.install()
    bare = shown(alone)
    alone.clock.run_for(21_000)
    beats = sum(each["kind"] == "beat" for each in bare.sent)
    assert beats == 3
    alone.evaluate("window.end()")
    alone.clock.run_for(60_000)
    assert sum(each["kind"] == "beat" for each in bare.sent) == beats
    assert alone.evaluate("Object.values(window.heard).every(each => each.length === 0)")
